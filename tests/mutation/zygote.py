"""Runs pytest over and over, each time in a fork of this process, which has already imported what takes long.

A new interpreter for each mutant would spend a second and more on imports, and another one on a server. Nothing of the
package itself stays imported here, so that each child imports the changed module in its place.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "asyncdb_guard"
_OURS = (PACKAGE, "asyncdb_guard_pytest", "tests")
_HEAVY = (
    "aiobreaker", "aiobreaker.storage.memory", "asyncpg", "boto3", "botocore.session", "hypothesis.stateful", "psutil",
    "pydantic_settings", "pytest", "pytest_asyncio", "redis.asyncio", "sqlalchemy.ext.asyncio", "trustme",
)  # fmt: skip


def warm_up() -> None:
    """Import what the children need, but nothing of ours."""
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def forget_ours() -> None:
    for name in [
        name for name in sys.modules if name.partition(".")[0] in _OURS and not name.startswith("tests.mutation")
    ]:
        del sys.modules[name]


class Run:
    """One run of pytest in a child."""

    def __init__(
        self, tests: Sequence[str], seconds: float, server: Any, change: tuple[str, CodeType] | None, output: int
    ) -> None:
        self.started = time.monotonic()
        self._deadline = self.started + seconds
        self.pid = os.fork()
        if self.pid == 0:
            _in_the_child(tests, server, change, output)

    def result(self) -> str | None:
        """`passed`, `failed` or `timeout`; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._end()
            return "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        if time.monotonic() > self._deadline:
            self._end()
            os.waitpid(self.pid, 0)
            return "timeout"
        return None

    def _end(self) -> None:
        """The whole group: a test may have started processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _in_the_child(tests: Sequence[str], server: Any, change: tuple[str, CodeType] | None, output: int) -> None:
    code = 99
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(output, stream)
        forget_ours()
        if change is not None:
            sys.meta_path.insert(0, _Finder(*change))
        import hypothesis
        import pytest

        # The same examples for each mutant, and none that an earlier one left behind.
        hypothesis.settings.register_profile("mutation", derandomize=True, database=None, deadline=None)
        hypothesis.settings.load_profile("mutation")
        # What this process has imported is nothing to warn of.
        options = "-x -q --tb=line -p no:cacheprovider -W ignore::pytest.PytestAssertRewriteWarning --server=16"
        arguments = [*options.split(), *tests]
        code = int(pytest.main(arguments, plugins=[_Plugin(server)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Plugin:
    """The session's server is the parent's (tests that start one of their own still do), and quick tests come first."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: ("server" in item.fixturenames, hasattr(item.obj, "hypothesis")))

    def pytest_sessionstart(self) -> None:
        if self._server is None:
            return
        from asyncdb_guard.testing.postgres.server import TemporaryPostgres

        server, start = self._server, TemporaryPostgres.start

        def shared(version: int | None = None, **options: Any) -> Any:
            return contextlib.nullcontext(server) if version == 16 and not options else start(version, **options)

        TemporaryPostgres.start = shared  # type: ignore[method-assign, assignment]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the changed module before anything else can."""

    def __init__(self, name: str, code: CodeType) -> None:
        self._name = name
        self._code = code

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._code.co_filename, loader=self)

    def create_module(self, spec: object) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)
