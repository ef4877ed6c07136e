"""node-pg, the pool of Node's world, in a process of its own: where `node` and `npm` are found and npm can fetch it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.benchmarks.contestants import COMMAND_TIMEOUT, NODE_PG, NODE_PG_HOT, STATEMENT, Contestant, Maker

VERSION = "8.23.1"
_SCRIPT = Path(__file__).with_name("node_pg.js")
_FETCH_TIMEOUT = 60
_YOUNG = 1000
"""Borrows after which a process is replaced by a new one."""
_HOT = 4000
"""Borrows after which one gets no quicker."""


@contextmanager
def makers_or_reason() -> Iterator[dict[str, Maker] | str]:
    """Its contestants' makers, or the reason why there are none."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        yield "node and npm are not found"
        return
    with tempfile.TemporaryDirectory(prefix="asyncdb-guard-node-") as directory:
        command = [npm, "install", "--prefix", directory, "--no-audit", "--no-fund", "--silent", f"pg@{VERSION}"]
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=_FETCH_TIMEOUT)
        except subprocess.SubprocessError as error:
            yield f"npm could not install pg {VERSION} ({type(error).__name__})"
        else:
            modules = Path(directory) / "node_modules"
            yield {NODE_PG: _young(node, modules), NODE_PG_HOT: _hot(node, modules)}


def node_version() -> str:
    """Of the `node` that is found."""
    return subprocess.run(["node", "--version"], capture_output=True, check=True, text=True).stdout.strip().lstrip("v")


def _young(node: str, modules: Path) -> Maker:
    @asynccontextmanager
    async def make(url: str) -> AsyncIterator[Contestant]:
        process = _Process(node, modules, url)

        async def run(times: int) -> float:
            if process.borrows + times > _YOUNG:
                await process.end()
                await process.run(times)  # the first borrows of all compile and connect
            return await process.run(times)

        try:
            await process.run(1)
            yield run
        finally:
            await process.end()

    return make


def _hot(node: str, modules: Path) -> Maker:
    @asynccontextmanager
    async def make(url: str) -> AsyncIterator[Contestant]:
        process = _Process(node, modules, url)
        try:
            await process.run(_HOT)
            yield process.run
        finally:
            await process.end()

    return make


class _Process:
    """Starts with its first run."""

    def __init__(self, node: str, modules: Path, url: str) -> None:
        self._command = (node, str(_SCRIPT), url, STATEMENT, str(COMMAND_TIMEOUT * 1000))
        self._environment = os.environ | {"NODE_PATH": str(modules)}
        self._process: asyncio.subprocess.Process | None = None
        self.borrows = 0

    async def run(self, times: int) -> float:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment
            )
        self.borrows += times + 2  # the script makes two beforehand
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"%d\n" % times)
        return int(await self._process.stdout.readline()) / 1e9

    async def end(self) -> None:
        process, self._process, self.borrows = self._process, None, 0
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
