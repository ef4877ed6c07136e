"""The fleet store of the third run: a redis-server where there is one, else a stand-in that speaks its protocol.

Run as a module, it is a process that ends with its parent, and takes the redis-server with it.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

from asyncdb_guard.testing.ports import LOOPBACK, free_port
from examples.burst.fleet import ROOT

START_SECONDS = 15.0


class StoreError(Exception):
    """The store did not start."""


class Store(NamedTuple):
    """A store that runs."""

    url: str
    name: str
    """What it is: a real Redis, or what stands in for it."""


@contextmanager
def running_store() -> Generator[Store, None, None]:
    """Yield a store, which ends with the block. Raises StoreError."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "examples.burst.store", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, cwd=ROOT, process_group=0,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = process.stdout.readline().strip()
            if not said.startswith(_READY):
                raise StoreError(f"The fleet store did not start. It said:\n{said}\n{process.stdout.read()}")
            yield Store(f"redis://{LOOPBACK}:{port}", said.removeprefix(_READY))
        finally:
            process.stdin.close()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()


_READY = "ready: "


def _serve(port: int) -> None:
    """Be the store until the parent ends."""
    program = shutil.which("redis-server")
    if program is None:
        _serve_stand_in(port)
    else:
        _serve_redis(program, port)


def _serve_redis(program: str, port: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "--bind", LOOPBACK, "--port", str(port), "--save", "", "--appendonly", "no"]
        server = subprocess.Popen([*command, "--dir", directory], stdout=subprocess.DEVNULL)
        try:
            _wait_for(port, server)
            print(f"{_READY}a real Redis", flush=True)
            sys.stdin.read()
        finally:
            server.kill()
            server.wait()


def _serve_stand_in(port: int) -> None:
    from fakeredis import TcpFakeServer

    server = TcpFakeServer((LOOPBACK, port))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _wait_for(port, None)
    print(f"{_READY}fakeredis, a stand-in that speaks its protocol, as there is no redis-server here", flush=True)
    sys.stdin.read()


def _wait_for(port: int, server: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1.0).close()
        except OSError:
            if time.monotonic() > deadline or (server is not None and server.poll() is not None):
                raise
            time.sleep(0.02)
        else:
            return


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
