"""The project's commands: `nox -s tests`, `nox -s demo`; `nox --list` shows them all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests", "lint", "types", "package", "examples"]
nox.options.reuse_existing_virtualenvs = True

PROJECT = nox.project.load_toml("pyproject.toml")
CURRENT = f"{sys.version_info.major}.{sys.version_info.minor}"


def works(version: str) -> bool:
    """Whether this Python starts. A version manager leaves commands that do not."""
    command = shutil.which(f"python{version}")
    return command is not None and subprocess.run([command, "-c", ""], capture_output=True, check=False).returncode == 0


SUPPORTED = nox.project.python_versions(PROJECT)
SERVERS = ["16", "18"]
# Those that are here, so that a stranger's command runs with the one Python there is.
PYTHONS = [version for version in SUPPORTED if version == CURRENT or works(version)] or [CURRENT]


def group(name: str) -> list[str]:
    """The pinned requirements of a dependency group."""
    return list(nox.project.dependency_groups(PROJECT, name))


COVERAGE = Path(".nox", "coverage").resolve()


# Tests mostly wait: for a timeout, for a server, for a process.
AT_ONCE = ("-n", "3")


def covered(session: nox.Session, *arguments: str) -> None:
    """Run pytest, child processes included, and keep what it covered beside what other sessions did."""
    COVERAGE.mkdir(parents=True, exist_ok=True)
    environment = {"COVERAGE_FILE": str(COVERAGE / "data")}
    session.run("coverage", "run", "-m", "pytest", *AT_ONCE, *arguments, *session.posargs, env=environment)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests that need nothing but Python's packages; the newest Python meets both servers, the others one each."""
    session.install("-e", ".[aws,redis,demo]", *group("tests"))
    if session.python == PYTHONS[-1]:
        shutil.rmtree(COVERAGE, ignore_errors=True)
        covered(session, "-m", "not debian", *(["--thorough"] if os.environ.get("CI") else []))
    else:
        server = SERVERS[PYTHONS.index(str(session.python)) % len(SERVERS)]
        session.run("python", "-m", "pytest", *AT_ONCE, "-m", "not debian", f"--server={server}", *session.posargs)


@nox.session(python=PYTHONS[-1])
def services(session: nox.Session) -> None:
    """The tests that need Debian's pgbouncer, redis-server and postgresql; with `tests` before, every branch is met."""
    session.install("-e", ".[aws,redis,demo]", *group("tests"))
    covered(session, "-m", "debian")
    if not session.posargs:
        environment = {"COVERAGE_FILE": str(COVERAGE / "data")}
        session.run("coverage", "combine", "--quiet", "--keep", env=environment)
        session.run("coverage", "report", env=environment)


@nox.session
def demo(session: nox.Session) -> None:
    """A burst against a real PostgreSQL, unguarded and guarded, with a table and a picture at the end."""
    session.install(".[demo]")
    # Ctrl-C reaches the demo, too, which takes a moment to stop its servers and its fleet.
    session.run("python", "-m", "examples.burst", *session.posargs, interrupt_timeout=10, terminate_timeout=5)


@nox.session(python=PYTHONS[-1])
def bench(session: nox.Session) -> None:
    """How fast it is, beside what else one could take; `-- --quick` only to see that it runs."""
    session.install("-e", ".", *group("bench"))
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


SESSION_LOOP = ("-o", "asyncio_default_test_loop_scope=session", "-o", "asyncio_default_fixture_loop_scope=session")


@nox.session(python=PYTHONS)
def examples(session: nox.Session) -> None:
    """The suite of `examples/pytest_suite` against the built wheel: with pytest-asyncio three ways, and with anyio."""
    wheel = built_wheel(session)
    session.install(f"{wheel}[testing]", *group("examples"))
    suite = Path(session.create_tmp()).resolve() / "suite"
    shutil.rmtree(suite, ignore_errors=True)
    shutil.copytree("examples/pytest_suite", suite, ignore=shutil.ignore_patterns("__pycache__"))
    with session.chdir(suite):
        for options in ((), SESSION_LOOP, ("-n", "2"), ("-c", "anyio.ini"), ("-c", "anyio.ini", "-n", "2")):
            session.run("python", "-m", "pytest", *options, *session.posargs)


def built_wheel(session: nox.Session) -> Path:
    """The wheel, built from this tree, in a folder of its own."""
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), ".")
    (wheel,) = dist.glob("*.whl")
    return wheel


@nox.session
def lint(session: nox.Session) -> None:
    """ruff's rules and layout, and a pre-commit configuration that agrees with them."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pre-commit", "validate-config", ".pre-commit-config.yaml")
    pins = set(re.findall(r"[\w-]+==[\w.]+", Path(".pre-commit-config.yaml").read_text(encoding="utf-8")))
    if strangers := pins - set(group("lint")):
        session.error(f"Not the pins of the group lint: {', '.join(sorted(strangers))}")


@nox.session
def types(session: nox.Session) -> None:
    """mypy and pyright, both strict."""
    session.install("-e", ".[aws,redis,demo]", *group("types"))
    session.run("mypy")
    session.run("pyright", "--pythonpath", str(Path(session.bin) / "python"))


@nox.session
def package(session: nox.Session) -> None:
    """The built wheel, in an environment of its own: it imports, it is typed, and nothing else came along."""
    wheel = built_wheel(session)
    session.install("--force-reinstall", str(wheel))
    with session.chdir(wheel.parent):
        session.run(
            "python", "-c",
            "import asyncdb_guard, importlib.metadata as m, importlib.resources as r\n"
            "assert r.files(asyncdb_guard).joinpath('py.typed').is_file()\n"
            "files = [p for p in m.files('asyncdb-guard') if not p.parts[0].endswith('.dist-info')]\n"
            "names = {p.parts[0] for p in files} - {'__pycache__'}\n"
            "assert names == {'asyncdb_guard', 'asyncdb_guard_pytest.py'}, files\n"
            "assert all(p.suffix in ('.py', '.pyc') or p.name == 'py.typed' for p in files), files\n",
        )  # fmt: skip
