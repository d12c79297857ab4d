"""Documents and topics in TREC's markup: `<DOC>` with `<DOCNO>`, `<top>` with `<num>`, `<title>`.

A document's text is that of its content elements, headings first as they stand, tags removed. Of a
topic the title is read, as rankers do; description and narrative are for the assessors.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from evaluator.files import read_lines, text
from xsweep import DataError

CONTENT = ("HEADLINE", "TITLE", "TTL", "HEAD", "HL", "DD", "LP", "LEADPARA", "GRAPHIC", "TEXT")
_CONTENT = re.compile(rf"<({'|'.join(CONTENT)})\b[^>]*>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_DOCNO = re.compile(r"<DOCNO>\s*(.*?)\s*</DOCNO>", re.DOTALL | re.IGNORECASE)
_NUM = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)", re.IGNORECASE)
_TITLE = re.compile(r"<title>\s*(?:Topic:)?\s*([^<]*)", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_START = re.compile(r"<(DOC|top)>", re.IGNORECASE)


def read_markup(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, id, text) of each document or topic of a file, in its order.

    Raises DataError with `file:line` for an element without an id, one that is not closed, text
    outside of elements, and text that is not UTF-8.
    """
    block: list[str] = []
    start, end = 0, ""
    for number, line in enumerate(read_lines(path), 1):
        decoded = text(line, f"{path}:{number}")
        if not block:
            if not decoded.strip() or decoded.lstrip().startswith(("<?", "<!")):
                continue
            opening = _START.match(decoded.strip())
            if not opening:
                raise DataError(
                    f"{path}:{number}: expected <DOC> or <top>, found {decoded.strip()[:60]!r}"
                )
            start, end = number, f"</{opening[1].lower()}>"
        block.append(decoded)
        if end in decoded.lower():
            yield start, *_parse("".join(block), topic=end == "</top>", place=f"{path}:{start}")
            block = []
    if block:
        raise DataError(f"{path}:{start}: the element is not closed by {end} before the file ends")


def _parse(block: str, topic: bool, place: str) -> tuple[str, str]:
    identity = (_NUM if topic else _DOCNO).search(block)
    if not identity:
        raise DataError(f"{place}: the element has no {'<num>' if topic else '<DOCNO>'}")
    if topic:
        title = _TITLE.search(block)
        parts = [title[1]] if title else []
    else:
        parts = [match[2] for match in _CONTENT.finditer(block)]
    plain = html.unescape(_TAG.sub(" ", " ".join(parts)))
    return identity[1], " ".join(plain.split())
