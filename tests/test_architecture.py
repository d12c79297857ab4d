"""The structure of the house: sizes, layers, circles, heavy imports, and names."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
LAYERS = ("db", "evaluator", "trainer", "orchestrator")
MAY_IMPORT = {
    "db": set(),
    "evaluator": set(),
    "trainer": {"evaluator"},
    "orchestrator": {"db", "evaluator", "trainer"},
}
MOST_LINES = 32_566
MOST_MODULES = 150
RIDDLE = r"(What|Whether|How|Where|Which|Why|When|Of)\b"
MOST_FLAT = 4
"""Modules directly in `orchestrator/`, its `__init__` included."""


@cache
def modules() -> dict[str, Path]:
    """Every product module by its dotted name."""
    package = PROJECT / "xsweep"
    found = {"xsweep": package / "__init__.py"}
    found |= {f"xsweep.{name}": package / f"{name}.py" for name in ("errors", "interface")}
    for layer in LAYERS:
        for path in (PROJECT / layer).rglob("*.py"):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            found[".".join(("xsweep", *parts)).removesuffix(".__init__")] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text())


@cache
def imports(name: str) -> frozenset[str]:
    """Modules that a module imports anywhere: at its top, for type checking, inside functions."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules() else str(node.module))
    return frozenset(found - {name})


def circles() -> Iterator[list[str]]:
    """Import circles, by Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(imports(name) & modules().keys()):
            if other not in index:
                yield from visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(circle) > 1:
                yield sorted(circle)

    for name in sorted(modules()):
        if name not in index:
            yield from visit(name)


def test_the_product_stays_small():
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert sum(lines.values()) <= MOST_LINES
    assert len([name for name in lines if "migrations.versions" not in name]) <= MOST_MODULES


def test_few_modules_lie_flat_in_the_orchestrator():
    flat = [path.name for path in (PROJECT / "orchestrator").glob("*.py")]
    assert len(flat) <= MOST_FLAT, flat


def test_no_imports_form_a_circle():
    assert list(circles()) == []


def test_no_lower_package_imports_a_higher_one():
    wrong = []
    for name in modules():
        layer = name.split(".")[1] if "." in name else ""
        if layer in LAYERS:
            higher = {"interface", *LAYERS} - MAY_IMPORT[layer] - {layer}
            for other in imports(name) & modules().keys():
                target = other.split(".")[1] if "." in other else ""
                if target in higher:
                    wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_only_the_runtime_imports_ray():
    users = {
        name for name in modules() if any(other.split(".")[0] == "ray" for other in imports(name))
    }
    assert users
    assert {name for name in users if not name.startswith("xsweep.orchestrator.runtime.")} == set()


@pytest.mark.slow(2)
@pytest.mark.parametrize("command", ["--help", "status"])
def test_a_light_command_imports_neither_torch_nor_ray(command, tmp_path):
    program = (
        "import sys\nfrom xsweep.orchestrator.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(sorted({'torch', 'ray', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    for arguments in (["db", "upgrade"], [command]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.splitlines()[-1] == "[]"


def test_values_are_frozen():
    """Only a plain `@dataclass`, which has no options, holds state that changes."""
    options = [
        (name, ast.unparse(mark))
        for name in modules()
        for node in ast.walk(tree(name))
        if isinstance(node, ast.ClassDef)
        for mark in node.decorator_list
        if ast.unparse(mark).startswith("dataclass(")
    ]
    assert len(options) > 30
    assert [each for each in options if "frozen=True" not in each[1]] == []


def test_tests_mirror_the_packages():
    """`tests/a/b/test_c[_topic].py` tests the module `xsweep.a.b.c`, or the package `b` itself."""
    strangers = []
    for layer in LAYERS:
        for path in (PROJECT / "tests" / layer).rglob("test_*.py"):
            folder = ".".join(("xsweep", *path.parent.relative_to(PROJECT / "tests").parts))
            words = path.stem.removeprefix("test_").split("_")
            names = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
            package = folder.rpartition(".")[2]
            if not any(f"{folder}.{name}" in modules() or name == package for name in names):
                strangers.append(str(path.relative_to(PROJECT)))
    assert strangers == []


def test_importing_the_package_is_instant_and_its_interface_is_loaded_when_used():
    program = (
        "import sys, time\nknown, began_s = set(sys.modules), time.perf_counter()\nimport xsweep\n"
        "print(time.perf_counter() - began_s, sorted(set(sys.modules) - known))\n"
        "assert xsweep.XsweepError.__module__ == 'xsweep.errors'\n"
        "assert {'__version__', 'ConfigError'} <= set(dir(xsweep))"
    )
    command = [sys.executable, "-c", program]
    found = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" ", 1)
        for _ in range(3)
    ]
    assert min(float(spent_s) for spent_s, _ in found) < 0.05
    assert {loaded.strip() for _, loaded in found} == {"['xsweep']"}


def test_docstrings_and_comments_begin_with_a_noun_or_a_verb():
    riddles = []
    for name, path in modules().items():
        for node in ast.walk(tree(name)):
            body = getattr(node, "body", None)
            for child in body if isinstance(body, list) else []:
                if (
                    isinstance(child, ast.Expr)
                    and isinstance(child.value, ast.Constant)
                    and isinstance(child.value.value, str)
                    and re.match(RIDDLE, child.value.value)
                ):
                    riddles.append(f"{name}:{child.lineno}: {child.value.value[:50]!r}")
        previous = ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            comment = line.strip()
            if re.match(f"# {RIDDLE}", comment) and not previous.startswith("#"):
                riddles.append(f"{name}:{number}: {comment}")
            previous = comment
    assert riddles == []


def test_the_top_level_holds_what_the_readme_names():
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True)
    folders = {name.split("/")[0] for name in listed.stdout.splitlines() if "/" in name} - {".ci"}
    named = {"benchmarks", "docker", "docs", "sweeps", "tests", "xsweep", *LAYERS}
    assert folders <= named
