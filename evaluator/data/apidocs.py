"""The built-in collection: docstrings of the standard library, NumPy and PyTorch.

A document is a name and its docstring without the first paragraph. That first paragraph is the
query, whose one relevant document is the rest of the docstring. Sources are parsed, never imported
(except NumPy's functions in C), so loading has no side effects.

With Python 3.11, NumPy 2.4 and PyTorch 2.13: 3,336 documents; 2,756 queries for training, 167 for
validation, 413 for testing. Loading takes three seconds, once per process.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import platform
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from xsweep.errors import DataError
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.specs import ApidocsSpec

EXTRACTION = "3"
"""Version of this module's own rules: increases whenever they give other texts or splits."""

QUERY_WORDS = range(4, 41)
MIN_DOCUMENT_WORDS = 20

SPLIT_BOUNDS = {"train": 0.83, "validation": 0.88, "test": 1.0}
"""Upper bound of each split on a name's hash, as a share of all hashes."""

SKIPPED = {
    *("test", "tests", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3"),
    *("turtledemo", "ensurepip", "f2py", "distutils", "_pyinstaller"),
    *("distributed", "ao", "fx", "onnx"),
    *("xpu", "mtia"),
}
"""Folders of tests and tools, of PyTorch's internals, and of copies of torch.cuda."""

PRIVATE_TORCH = {"_torch_docs", "_tensor_docs", "_tensor"}
"""Modules with a leading underscore that hold the docstrings of public names."""

_SIGNATURE = re.compile(r"[\w.]+\(.*\)(\s*->.*)?", re.DOTALL)

_MARKS = [
    (re.compile(r":[\w:+-]+:`~?([^`]*)`"), r"\1"),  # :func:`~torch.mean`
    (re.compile(r"\{\w+\}|`"), ""),  # {input}, ``dim``
    (re.compile(r"^[ \t]*([-=~^*#+\"_])\1{2,}[ \t]*$", re.MULTILINE), ""),  # underlines of headings
    (re.compile(r"^[ \t]*\.\. [\w-]+::", re.MULTILINE), ""),  # .. note::
    (re.compile(r"^[ \t]*>>> ?", re.MULTILINE), ""),
    (re.compile(r"::[ \t]*$", re.MULTILINE), ":"),
    (re.compile(r"(?<!\w)(\*{1,2})(\w[^*\n]*)\1(?!\w)"), r"\2"),  # *emphasis*
]
"""Markup of reStructuredText and its replacement."""


def load(spec: ApidocsSpec) -> Collection:
    """All documents, with the queries and qrels of one split.

    Raises DataError if the installed packages are not the declared versions.
    """
    installed = versions()
    for package, declared in spec.versions.items():
        if (found := installed.get(package)) != declared:
            raise DataError(
                f"collection {spec.name!r} was declared with {package} {declared}, "
                f"installed is {found}: install that version or declare this one"
            )
    entries = entries_of_packages()
    documents = {name: f"{title(name)}: {body}" for name, _, body in entries}
    queries = {name: query for name, query, _ in entries if split_of(name) == spec.split}
    return Collection(
        name=spec.name,
        documents=lambda: iter(documents.items()),
        queries=queries,
        qrels={name: {name: 1} for name in queries},
        lookup=lambda ids: {name: documents[name] for name in ids if name in documents},
    )


def versions() -> dict[str, str]:
    """The versions that determine the texts; a build's tag (`+cpu`) is ignored."""
    return {
        "extraction": EXTRACTION,
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "torch": importlib.metadata.version("torch").partition("+")[0],
    }


def split_of(name: str) -> str:
    """The split of a name, by a fixed hash: a new package version moves no name."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return next(split for split, bound in SPLIT_BOUNDS.items() if share < bound)


@cache  # three seconds of parsing, and a worker loads all three splits
def entries_of_packages() -> tuple[tuple[str, str, str], ...]:
    """(name, query, document) of every usable docstring, sorted by name.

    Docstrings whose query or document occurred under an earlier name are skipped.
    """
    entries = []
    seen: set[str] = set()
    for name, docstring in sorted(dict(_docstrings()).items()):
        query, document = cut(docstring)
        if len(query.split()) not in QUERY_WORDS or len(document.split()) < MIN_DOCUMENT_WORDS:
            continue
        if seen & {query, document}:
            continue
        seen |= {query, document}
        entries.append((name, query, document))
    return tuple(entries)


def title(name: str) -> str:
    """A document's heading: its qualified name without private modules.

    `numpy._core.numeric.allclose` gives `numpy.numeric.allclose`.
    """
    return ".".join(part for part in name.split(".") if not part.startswith("_"))


def cut(docstring: str) -> tuple[str, str]:
    """Query and document of a docstring: its first paragraph and the rest, as plain words.

    A leading signature (`sum(input) -> Tensor`) and reStructuredText's markup are dropped.
    """
    plain = docstring
    for mark, kept in _MARKS:
        plain = mark.sub(kept, plain)
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", plain.strip())]
    if _SIGNATURE.fullmatch(paragraphs[0]):
        paragraphs = paragraphs[1:]
    return (paragraphs[0], " ".join(paragraphs[1:])) if paragraphs else ("", "")


def _docstrings() -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of the public modules, classes, methods and functions."""
    for package, root in _roots():
        for path in sorted(root.rglob("*.py")):
            parts = list(path.relative_to(root).with_suffix("").parts)
            private = [part for part in parts if part.startswith("_") and part != "__init__"]
            if SKIPPED.intersection(parts) or (
                private and package != "numpy" and parts[-1] not in PRIVATE_TORCH
            ):
                continue
            module = ".".join([package, *parts]).strip(".").removesuffix(".__init__")
            yield from _of_source(module, path)
    import numpy as np

    for name, value in inspect.getmembers(np, lambda value: isinstance(value, np.ufunc)):
        yield f"numpy.{name}", inspect.cleandoc(value.__doc__ or "")


def _roots() -> Iterator[tuple[str, Path]]:
    yield "", Path(sysconfig.get_paths()["stdlib"])
    for package in ("numpy", "torch"):
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        yield package, Path(found.origin).parent


def _of_source(module: str, path: Path) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # templates among the standard library's files
        return
    yield from _of_node(module, tree)
    for statement in tree.body:
        match statement:
            case ast.Expr(value=ast.Call() as call):
                yield from _of_call(call)


def _of_node(
    name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef
) -> Iterator[tuple[str, str]]:
    yield name, ast.get_docstring(node) or ""
    if not isinstance(node, ast.FunctionDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and child.name[0] != "_":
                yield from _of_node(f"{name}.{child.name}", child)


def _of_call(call: ast.Call) -> Iterator[tuple[str, str]]:
    """Docstrings that NumPy and PyTorch attach to compiled names.

    `add_newdoc("numpy", "nditer", "...")`, the same with ("method", "..."), `add_docstr(torch.abs,
    "...")` and `add_docstr_all("abs", "...")` for tensors.
    """
    function = ast.unparse(call.func)
    if function not in ("add_newdoc", "add_docstr", "add_docstr_all"):
        return
    *target, text = call.args
    name = ".".join(ast.unparse(part).strip("'\"") for part in target)
    prefix = "torch.Tensor." if function == "add_docstr_all" else ""
    for item in text.elts if isinstance(text, ast.List) else [text]:
        if isinstance(item, ast.Tuple):
            method, docstring = item.elts
            yield f"{name}.{ast.literal_eval(method)}", _first_string(docstring)
        else:
            yield prefix + name, _first_string(item)


def _first_string(node: ast.AST) -> str:
    texts = (
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )
    return inspect.cleandoc(next(texts, ""))
