"""A process that runs a pool and can be frozen: as a warm Lambda environment is, or as a service is.

Run as a program it takes one JSON object a line: {"sql": …} to run a statement, with {"slept": seconds} to let the wall
clock jump before, as a frozen micro-VM's does; {"hold": sql} to begin a transaction, run a statement in it and stay.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent.parent


class Child:
    """That process, seen by a test."""

    def __init__(self, url: str, *, uvloop: bool = False, loop_runs: bool = False, **settings: Any) -> None:
        options = {"uvloop": uvloop, "loop_runs": loop_runs, "settings": {"url": url} | settings}
        self._process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-m", __name__, json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.thaw()
            self._process.kill()
        self._process.communicate()

    def tell(self, **command: Any) -> None:
        """Give an order and don't wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        self.tell(**command)
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(await asyncio.to_thread(self._process.stdout.readline))
        return answer

    def freeze(self) -> None:
        """Stop the whole process, and return when it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{self._process.pid}/stat")
        while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a goodbye."""
        self._process.kill()
        self._process.wait()


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    from asyncdb_guard import DatabaseSettings, GuardedPool, clock

    options = json.loads(sys.argv[1])
    heard: list[str] = []
    logged: list[str] = []
    slept = 0.0

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    logging.getLogger().addHandler(Ear())
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # -X dev tells of each slow step
    clock.now = lambda: (time.monotonic(), time.time() + slept)
    pool = GuardedPool(
        DatabaseSettings(**options["settings"]),
        on_event=lambda event: heard.append(f"{event.name} {getattr(event, 'reason', '')}".strip()),
    )

    async def obey(command: dict[str, Any]) -> dict[str, Any]:
        nonlocal slept
        slept += command.get("slept", 0.0)
        if "hold" in command:
            async with pool.transaction() as connection:
                await connection.execute("SELECT 1")
                say({"holding": True})
                await connection.execute(command["hold"])
                await asyncio.Event().wait()
        started = time.monotonic()
        answer: dict[str, Any] = {"error": None}
        try:
            answer["value"] = await pool.fetchval(command["sql"])
        except Exception as error:
            answer["error"] = repr(error)
        answer |= {"seconds": time.monotonic() - started, "events": heard[:], "log": logged[:], "stats": pool.stats()}
        heard.clear()
        return answer

    async def serve() -> None:
        while line := await asyncio.to_thread(sys.stdin.readline):
            say(await obey(json.loads(line)))
        await pool.close()

    factory = asyncio.new_event_loop
    if options["uvloop"]:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if options["loop_runs"]:
            runner.run(serve())
            return
        for line in sys.stdin:
            say(runner.run(obey(json.loads(line))))
        runner.run(pool.close())


if __name__ == "__main__":
    os.environ.pop("PYTHONASYNCIODEBUG", None)
    main()
