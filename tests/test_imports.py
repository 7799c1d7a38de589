"""The import rules of docs/DESIGN.md, read from every module's syntax tree."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("data", "models", "study", "analysis")
MODULES = sorted(file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py"))
USE_RAY = {f"study/{name}.py" for name in ("capacity", "cluster", "submission", "tasks", "tuning")}
FORBIDDEN = {
    "data": {"models", "study", "analysis", "ray"},
    "models": {"data", "study", "analysis", "ray"},
    "analysis": {"models", "study", "ray", "torch", "lightning", "torchmetrics"},
    "study": set(),
}


def name_of(module: Path) -> str:
    return module.relative_to(REPOSITORY).as_posix()


def imported(module: Path) -> Iterator[str]:
    """Dotted names of all that a module imports, wherever it does: also inside functions."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(module)}: a relative import hides where it goes"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_one_way(module: Path) -> None:
    names = set(imported(module))
    tops = {name.split(".")[0] for name in names}
    package = name_of(module).split("/")[0]
    assert not tops & FORBIDDEN[package]
    assert ("ray" in tops) <= (name_of(module) in USE_RAY)
    if package == "analysis":
        assert {name.split(".")[1] for name in names if name.startswith("data.")} <= {
            "sealing",
            "storage",
            "tables",
        }


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {
        name_of(m).removesuffix(".py").removesuffix("/__init__").replace("/", "."): m
        for m in MODULES
    }
    graph: dict[str, set[str]] = {}
    for name, module in names.items():
        found = {each if each in names else each.rpartition(".")[0] for each in imported(module)}
        graph[name] = (found & set(names)) - {name}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_the_modules_that_may_use_ray_do() -> None:
    assert set(map(name_of, MODULES)) >= USE_RAY, "renamed? then this test checks nothing"


def test_no_module_is_for_odds_and_ends() -> None:
    assert not {"utils", "util", "common", "helpers", "misc"} & {m.stem for m in MODULES}


def test_the_four_packages_are_installed_and_none_is_hidden_from_git() -> None:
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {name.split(".")[0] for name in listed["packages"]} == set(PACKAGES)
    files = [f"{package}/__init__.py" for package in PACKAGES] + ["study/presets/quick.yaml"]
    command = ["git", "check-ignore", "--no-index", *PACKAGES, *files]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        pytest.skip(f"no git repository: {done.stderr.strip()}")
    assert done.stdout == "", "Ray uploads no ignored path"


HEAVY = ("ray", "torch", "lightning", "pandas", "pyarrow", "optuna", "pydantic", "sklearn", "PIL")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["data", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys, study.cli\n"
        f"try: study.cli.main({arguments!r})\n"
        f"finally: print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    assert "usage: mariposa" in done.stdout


def test_tables_and_reports_need_neither_torch_nor_ray() -> None:
    names = [name_of(module).removesuffix(".py").replace("/", ".") for module in MODULES]
    modules = [n for n in names if n.startswith("analysis.") and not n.endswith("__init__")]
    program = f"import sys, {', '.join(modules)}\n"
    program += "print([m for m in ('ray', 'torch', 'lightning') if m in sys.modules])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
