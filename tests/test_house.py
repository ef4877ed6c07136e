"""The house: imports go one way down, each foreign library has one door, and importing does nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "asyncdb_guard"

# From the roof down. A module imports from lower floors or from its own, and never in a circle.
FLOORS = (
    {"testing"},
    {"__main__"},
    {"cli"},
    {"fleet"},
    {"handlers"},
    {"cognito", "otel", "runtime", "sqlalchemy"},
    {"emf"},
    {"pool"},
    {"bulletin"},
    {"connect"},
    {"breaker", "failure_report", "failures", "news", "redaction"},
    {"settings"},
    {"call_site", "clock", "errors", "events", "lambda_environment"},
)
SEPARATE = ({"cognito", "runtime"},)
"""Rooms of one floor that don't know each other."""

# What may be imported, used or named by these rooms only. A name that ends in "_" is the beginning of one.
DOORS = {
    "aiobreaker": {"breaker"},
    "botocore": {"connect.aws", "bulletin.dynamodb"},
    "redis": {"connect.redis.opening"},
    "asyncpg.connect": {"connect.connector", "testing.postgres"},
    "asyncpg.create_pool": {"connect.adopting_pool"},
    "signal": {"runtime.process", "testing.lambda_runtime", "testing.postgres"},
    "snapshot_restore_py": {"runtime.process"},
    "AWS_LAMBDA_": {"lambda_environment", "runtime.process", "testing.lambda_runtime"},
    "pydantic_settings": {"settings"},
    "rich": {"cli"},
    "matplotlib": {"cli.picture"},
    "opentelemetry": {"otel"},
    "sqlalchemy": {"call_site", "sqlalchemy"},
}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module: str) -> str:
    """The part of a module's name that stands in the table; empty for the package itself."""
    return module.removeprefix("asyncdb_guard").removeprefix(".").partition(".")[0]


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported(module: str) -> set[str]:
    """All that a module imports, anywhere in it, with full names."""
    names: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def neighbours(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    own = {name for name in imported(module) if name.split(".")[0] == "asyncdb_guard"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in own}


def mentioned(module: str) -> set[str]:
    """What a module imports, which attributes of modules it uses, and its texts."""
    nodes = list(ast.walk(tree(module)))
    attributes = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, documented)}
    return imported(module) | attributes | {text for text in texts if text not in docstrings}


INNER = [module for module in MODULES if room(module)]


@pytest.mark.parametrize("module", INNER)
def test_a_module_imports_only_downwards(module: str) -> None:
    floor_of = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    assert room(module) in floor_of, f"{module} stands on no floor: give it one in FLOORS"
    for other in neighbours(module):
        assert room(other), f"{module} imports the roof, {other}"
        assert floor_of[room(other)] >= floor_of[room(module)], f"{module} imports upwards, from {other}"
        for separate in SEPARATE:
            assert room(other) == room(module) or not {room(module), room(other)} <= separate, f"{module} knows {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    list(TopologicalSorter({module: neighbours(module) - {module} for module in INNER}).static_order())


def test_every_room_of_the_table_exists() -> None:
    assert set().union(*FLOORS) == {room(module) for module in INNER}


@pytest.mark.parametrize("name", DOORS)
def test_a_foreign_thing_has_one_door(name: str) -> None:
    beginning = name if name.endswith("_") else f"{name}."
    users = {
        module.removeprefix("asyncdb_guard.")
        for module in INNER
        if any(word == name or word.startswith(beginning) for word in mentioned(module))
    }
    doors = DOORS[name]
    assert {door for door in doors if any(f"{user}.".startswith(f"{door}.") for user in users)} == doors
    assert [user for user in users if not any(f"{user}.".startswith(f"{door}.") for door in doors)] == []


@pytest.mark.parametrize("module", [name for name in INNER if room(name) not in {"cli", "fleet", "testing"}])
def test_chance_comes_from_the_operating_system(module: str) -> None:
    """A generator's state is part of a SnapStart snapshot, so all restored environments would draw the same."""
    drawn = {word for word in mentioned(module) if word.startswith("random.")}
    assert drawn <= {"random.SystemRandom", "random.SystemRandom().uniform"}


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_an_init_hands_names_on_and_holds_no_logic(module: str) -> None:
    for node in tree(module).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_constant = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"__all__", "__version__"}
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        names = node.body if isinstance(node, ast.If) and is_for_types else [node]
        only_imports = all(isinstance(one, ast.ImportFrom) for one in names)
        assert is_docstring or is_constant or only_imports, ast.unparse(node)


@pytest.mark.parametrize("module", MODULES)
def test_a_long_module_says_why_it_is_one(module: str) -> None:
    if len(MODULES[module].read_text(encoding="utf-8").splitlines()) > 400:
        assert "one module" in (ast.get_docstring(tree(module)) or "")


def run(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_brings_nothing_that_its_own_dependencies_do_not_bring() -> None:
    code = """
import sys
import aiobreaker, asyncpg, pydantic_settings
def roots():
    return {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
before = roots()
import asyncdb_guard, asyncdb_guard.cognito, asyncdb_guard.runtime
print(*sorted(roots() - before))
"""
    assert run(code).split() == ["asyncdb_guard"]


def test_importing_and_constructing_does_no_io_and_reads_no_environment() -> None:
    """`handlers` is left out: it is an entry point, which joins the Lambda runtime where there is one."""
    code = """
import os, sys
import aiobreaker, aiobreaker.storage.memory, asyncpg, pydantic, pydantic_settings
seen = []
class Watched(type(os.environ)):
    def __getitem__(self, key):
        if not key.startswith("PYDANTIC_"):
            seen.append(f"environment: {key}")
        return super().__getitem__(key)
    def __iter__(self):
        seen.append("environment: all of it")
        return super().__iter__()
os.environ.__class__ = Watched
def watch(event, arguments):
    source = event == "open" and str(arguments[0]).endswith((".py", ".pyc"))
    if event.startswith(("socket.", "subprocess.", "os.", "signal.")) or (event == "open" and not source):
        if event not in ("os.listdir", "os.scandir", "os.mkdir", "os.rename"):
            seen.append(f"{event}: {arguments}")
sys.addaudithook(watch)
sys.dont_write_bytecode = True
import asyncdb_guard, asyncdb_guard.cognito, asyncdb_guard.runtime
asyncdb_guard.cognito.CognitoTriggers(asyncdb_guard.GuardedPool(), claims="SELECT 1")
print(*seen, sep="\\n")
"""
    assert run(code).strip() == ""


def test_the_watch_of_the_test_above_sees_something() -> None:
    code = "import os, sys; sys.addaudithook(lambda event, arguments: print(event)); import socket; socket.socket()"
    assert "socket.__new__" in run(code)


def test_the_public_forges_workflow_calls_sessions_that_exist():
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    plain = [re.sub(r'-\$\{\{.*?\}\}|"', "", run) for run in commands]
    called = {name for run in plain if run.startswith("nox -s") for name in run.split()[2:]}
    assert called
    assert called <= sessions
    assert ".ci/run" in commands
