"""Mutation test: change random product lines one at a time and see whether the tests notice.

    python benchmarks/mutations.py [--seed 1] [--mutants 20] [--only PATTERN] [--rounds N]

Each mutant changes one comparison, arithmetic operator, boolean, number or statement of a line
drawn with `--seed` from all product lines that have one. It is made in a temporary clone of the
last commit. There run the tests named after its module, the fast ones of its folder, all fast
ones, and the slow ones of its folder, so many of these `--rounds`, until one fails. A mutant that
no test notices survives: it is equivalent to the original, or a test is missing. First the fast
tests run on the clone as it is: only if they pass there does a failure say something of a mutant.
"""

import argparse
import ast
import copy
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PRODUCT = ("xsweep/", "db/", "evaluator/", "orchestrator/", "trainer/")
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
ALL_FAST = ["tests", "-m", "not slow", "-n", "2", "--dist", "loadfile"]
TIMEOUT_S = 900.0
PACKAGES = sysconfig.get_path("purelib")
DATA = os.environ.get("XSWEEP_TEST_DATA", str(PROJECT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Mutant:
    """A change of one place in a file, which is given by line and column, in UTF-8 bytes."""

    path: str
    start: tuple[int, int]
    end: tuple[int, int]
    new: str

    def applied_to(self, source: str) -> str:
        """The whole file with the change."""
        lines = source.encode().splitlines(keepends=True)
        (first, left), (last, right) = self.start, self.end
        changed = lines[first - 1][:left] + self.new.encode() + lines[last - 1][right:]
        return b"".join([*lines[: first - 1], changed, *lines[last:]]).decode()

    def describe(self, source: str) -> str:
        """File and line, the old text and the new."""
        old = source.encode().splitlines()[self.start[0] - 1].strip().decode()
        new = self.applied_to(source).encode().splitlines()[self.start[0] - 1].strip().decode()
        return f"{self.path}:{self.start[0]}: {old}  ->  {new}"


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse(source)
    ignored = {id(each) for node in ast.walk(tree) for each in _without_behaviour(node)}

    def visit(node: ast.AST) -> Iterator[Mutant]:
        if id(node) in ignored:
            return
        if (new := _mutated(node)) is not None:
            assert isinstance(node, ast.expr | ast.stmt)
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            text = ast.unparse(new)
            yield Mutant(
                path,
                (node.lineno, node.col_offset),
                (node.end_lineno, node.end_col_offset),
                text if isinstance(new, ast.stmt | ast.Constant) else f"({text})",
            )
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(tree)


def _without_behaviour(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of a node that are never mutated: docstrings, annotations, f-strings' texts, and
    `strict=True`, an assertion that holds."""
    if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation:
        yield node.annotation
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
        yield node.returns
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield node
    if isinstance(node, ast.JoinedStr):
        yield node
    if isinstance(node, ast.keyword) and node.arg == "strict":
        yield node.value


def _mutated(node: ast.AST) -> ast.AST | None:
    """The node with one change; None where it has nothing to change."""
    new = copy.copy(node)
    match new:
        case ast.Compare(ops=[op, *others]) if type(op) in COMPARISONS:
            new.ops = [COMPARISONS[type(op)](), *others]
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            new.op = ARITHMETIC[type(op)]()
        case ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            new.op = ARITHMETIC[type(op)]()
        case ast.BoolOp(op=op):
            new.op = ast.Or() if isinstance(op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Constant(value=bool(value)):
            new.value = not value
        case ast.Constant(value=int() | float() as value):
            new.value = value + 1
        case ast.Expr(value=ast.Call()):
            return ast.Pass()
        case _:
            return None
    return new


def draw(files: dict[str, str], count: int, seed: int) -> list[Mutant]:
    """One mutant each of so many random lines."""
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for path, source in sorted(files.items()):
        for mutant in mutants_of(path, source):
            by_line.setdefault((path, mutant.start[0]), []).append(mutant)
    dice = random.Random(seed)  # noqa: S311
    lines = dice.sample(sorted(by_line), min(count, len(by_line)))
    return [dice.choice(by_line[line]) for line in lines]


def rounds(path: str, root: Path) -> Iterator[tuple[str, list[str]]]:
    """Tests to run for a module, the most likely ones first: their name and pytest's arguments."""
    module = Path(path)
    folder = Path("tests") / module.parent.relative_to("xsweep" if path[:7] == "xsweep/" else "")
    named = sorted(map(str, (root / folder).glob(f"test_{module.stem}*.py")))
    if named:
        yield "its own tests", [*named, "-m", "not slow"]
    if (root / folder).is_dir():
        yield "the fast tests of its folder", [str(folder), "-m", "not slow"]
    yield "all fast tests", ALL_FAST
    if (root / folder).is_dir():
        yield "the slow tests of its folder", [str(folder), "-m", "slow"]


def clone(root: Path) -> None:
    """Clone the last commit, with a virtual environment that has the packages of this one."""
    subprocess.run(["git", "clone", "--quiet", PROJECT, root], check=True)
    venv.create(root / ".venv")
    (packages,) = root.glob(".venv/lib/*/site-packages")
    for number, line in enumerate((str(root), f"import site; site.addsitedir({PACKAGES!r})")):
        (packages / f"{number}.pth").write_text(line + "\n")


def first_failure(arguments: list[str], root: Path) -> str | None:
    """The first test that fails, or the time limit; None where all pass or none is selected."""
    command = [str(root / ".venv/bin/python"), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *arguments],
            cwd=root,
            env=os.environ | {"XSWEEP_TEST_DATA": DATA},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return "time limit"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode in (0, 5):  # 5: no test was selected
        return None
    return failed[0].split(" - ")[0].split()[-1] if failed else done.stdout[-300:]


def killed_by(path: str, root: Path, most: int) -> str | None:
    """The first of so many rounds in which a test fails; None where the mutant survives."""
    for name, arguments in islice(rounds(path, root), most):
        if failure := first_failure(arguments, root):
            return f"{name} ({failure})"
    return None


def main() -> int:
    """Draw, change, run, report; the exit code is the number of survivors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutants", type=int, default=20)
    parser.add_argument("--only", default="*", help="pattern of paths, as db/*")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="xsweep-mutants-") as folder:
        root = Path(folder) / "xsweep"
        clone(root)
        files = {
            str(path.relative_to(root)): path.read_text()
            for package in PRODUCT
            for path in (root / package).rglob("*.py")
            if fnmatch(str(path.relative_to(root)), options.only) and not path.is_symlink()
        }
        if failure := first_failure(ALL_FAST, root):
            sys.exit(f"the clone without a mutant fails already: {failure}")
        for mutant in draw(files, options.mutants, options.seed):
            source, began_s = files[mutant.path], time.monotonic()
            changed = root / mutant.path
            changed.write_text(mutant.applied_to(source))
            killer = killed_by(mutant.path, root, options.rounds)
            changed.write_text(source)
            survivors += killer is None
            verdict = f"killed by {killer}" if killer else "SURVIVED"
            print(f"{mutant.describe(source)}\n    {verdict}, {time.monotonic() - began_s:.0f} s")
            sys.stdout.flush()
    print(f"{options.mutants - survivors} of {options.mutants} killed (seed {options.seed})")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
