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

from tests.benchmarks.contestants import COMMAND_TIMEOUT, STATEMENT, Contestant, Maker

VERSION = "8.23.1"
_SCRIPT = Path(__file__).with_name("node_pg.js")
_FETCH_TIMEOUT = 60


@contextmanager
def installed() -> Iterator[Maker | str]:
    """A maker, or the reason why there is none."""
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
            yield _maker(node, Path(directory) / "node_modules")


def _maker(node: str, modules: Path) -> Maker:
    @asynccontextmanager
    async def make(url: str) -> AsyncIterator[Contestant]:
        process = await asyncio.create_subprocess_exec(
            node, str(_SCRIPT), url, STATEMENT, str(COMMAND_TIMEOUT * 1000),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"NODE_PATH": str(modules)},
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        asked, told = process.stdin, process.stdout

        async def run(times: int) -> float:
            asked.write(b"%d\n" % times)
            return int(await told.readline()) / 1e9

        try:
            yield run
        finally:
            asked.close()
            await process.wait()

    return make
