"""The demo, small and short, in its own process: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import socket
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import pytest

from asyncdb_guard import DatabaseSettings
from asyncdb_guard.bulletin import open_bulletin
from examples.burst.__main__ import main
from examples.burst.measurements import Run, Sample, SignUp, Visit, shown
from examples.burst.picture import draw
from examples.burst.report import meaning
from examples.burst.scenario import Scenario
from examples.burst.store import Store, StoreError, running_store
from tests.support.eventually import eventually
from tests.support.program import unmeasured

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from examples.burst.scenario import PoolName

SMALL = ("--processes", "6", "--max-connections", "24", "--seconds", "6")
PNG = b"\x89PNG\r\n\x1a\n"


class Demo:
    """A running demo: its output so far, and every process that it was ever seen to have."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""
        self.descendants: set[psutil.Process] = set()
        self.workers: list[psutil.Process] = []
        self.directories: set[Path] = set()

    async def listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.output += line.decode()

    async def watch(self) -> None:
        with suppress(psutil.NoSuchProcess):
            demo = psutil.Process(self.process.pid)
            while True:
                for process in set(demo.children(recursive=True)) - self.descendants:
                    self._note(process)
                await asyncio.sleep(0.05)

    def _note(self, process: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            self.descendants.add(process)
            if "examples.burst.worker" in command:
                self.workers.append(process)
            if "-D" in command:
                self.directories.add(Path(command[command.index("-D") + 1]))

    async def reaches(self, words: str) -> None:
        """Return once it has said this."""
        await eventually(lambda: words in self.output or self.process.returncode is not None, within=40)
        assert words in self.output

    async def leaves_nothing(self) -> None:
        """No process (a process id that somebody else got meanwhile does not count), and no directory."""
        await eventually(lambda: not [process for process in self.descendants if process.is_running()])
        await eventually(lambda: not [directory for directory in self.directories if directory.parent.exists()])


@asynccontextmanager
async def running(*arguments: str, cwd: Path) -> AsyncGenerator[Demo, None]:
    """The demo, as `python -m` starts it from the root of the repository; killed if the block leaves it alive."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.burst", "--output", str(cwd / "burst.png"), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=unmeasured(),
    )  # fmt: skip
    demo = Demo(process)
    jobs = [asyncio.create_task(demo.listen()), asyncio.create_task(demo.watch())]
    try:
        yield demo
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(*jobs)


def figures(output: str, row: str) -> tuple[int, int, int]:
    """A row of the table: the figures of the three runs."""
    found = re.search(rf"{re.escape(row)}\W+([\d,]+)\D+?([\d,]+)\D+?([\d,]+)", output)
    assert found, f"No row {row!r} in:\n{output}"
    plain, guarded, fleet = (int(figure.replace(",", "")) for figure in found.groups())
    return plain, guarded, fleet


@pytest.mark.timeout(120)
async def test_a_short_run_tells_the_whole_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(*SMALL, cwd=tmp_path) as demo:
        assert await demo.process.wait() == 0, demo.output
        assert len(demo.descendants) >= 3 * 6 + 2, "Three fleets of six, a server and a store were to be seen."
        assert demo.directories
        await demo.leaves_nothing()
    said = demo.output

    for answer in ('"claimsOverrideDetails"', '"idTokenGeneration"', '"accessTokenGeneration"', '"role": "member"'):
        assert answer in said
    assert figures(said, "Environments") == (6, 6, 30), "half as many again as the server's 20 seats"
    assert "ALTER ROLE app CONNECTION LIMIT 12" in said
    assert "a fleet store: " in said
    peak, guarded_peak, fleet_peak = figures(said, "Peak sessions (limit 24)")
    assert peak > 10
    assert guarded_peak == 6
    assert 6 < fleet_peak <= 12
    turned_away, *guarded_turned_away = figures(said, "Bystander's requests failed")
    assert turned_away > 0
    assert guarded_turned_away == [0, 0]
    done, guarded_done, fleet_done = figures(said, "Sign-ups completed in total")
    assert 0 < done < min(guarded_done, fleet_done)
    attempts, guarded_attempts, fleet_attempts = figures(said, "Connects tried in the outage")
    assert guarded_attempts <= 6 * 4 < attempts  # three failures, and a trial
    assert fleet_attempts < attempts
    p50, p99 = figures(said, "p50"), figures(said, "p99")
    assert all(10 <= half <= most for half, most in zip(p50, p99, strict=True))
    assert "The last of them after" in said
    assert "\x1b" not in said, "Escape codes have no place in a file."
    assert (tmp_path / "burst.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("moment", ["A database", "starting", "burst  ", "database down"])
async def test_ctrl_c_ends_everything_within_seconds(moment: str, tmp_path: Path) -> None:
    async with running(*SMALL, cwd=tmp_path) as demo:
        await demo.reaches(moment)
        demo.process.send_signal(signal.SIGINT)
        # Whoever started it may lose patience, as nox does; the cleaning up goes on.
        demo.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await demo.process.wait() == 130, demo.output
        await demo.leaves_nothing()
    assert "Nothing is left running" in demo.output
    assert "Traceback" not in demo.output
    assert not (tmp_path / "burst.png").exists()


async def test_nothing_outlives_a_demo_that_was_killed(tmp_path: Path) -> None:
    async with running(*SMALL, cwd=tmp_path) as demo:
        await demo.reaches("burst  ")
        demo.process.kill()
        await demo.leaves_nothing()


async def test_a_process_that_dies_is_one_clear_failure(tmp_path: Path) -> None:
    async with running(*SMALL, cwd=tmp_path) as demo:
        await demo.reaches("burst  ")
        demo.workers[-1].kill()
        assert await demo.process.wait() == 1
        await demo.leaves_nothing()
    assert "The demo failed. A process of the fleet died." in demo.output
    assert "Traceback" not in demo.output


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--processes", "9"], "use at least 10"),
        (["--processes", "96"], "must be below 96"),
        (["--seconds", "1"], "at least 3"),
        (["--output", "/no/such/directory/burst.png"], "does not exist"),
    ],
)
def test_arguments_that_show_nothing_are_refused_with_a_remedy(
    arguments: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert remedy in capsys.readouterr().err


def seen(pool: PoolName, errors: list[str | None]) -> Run:
    """A run of two processes, made up."""
    plain = pool == "plain"
    return Run(
        pool,
        Scenario(processes=2, max_connections=10, seconds=6),
        samples=[Sample(at / 10, 2) for at in range(60)],
        visits=[Visit(at / 10, error) for at, error in enumerate(errors)],
        sign_ups=[SignUp(at=float(at), seconds=at / 100, error=None) for at in range(1, 101 if plain else 102)],
        outage=(2.0, 3.0),
        attempts=100 if plain else 6,
    )


def test_percentiles_are_those_of_the_successful_sign_ups() -> None:
    run = seen("plain", [])
    run.sign_ups.append(SignUp(at=1.0, seconds=9.0, error="TooManyConnectionsError"))
    assert (run.percentile(50), run.percentile(99), run.percentile(100)) == (0.5, 0.99, 1.0)
    assert (run.done, run.failed) == (100, 1)
    assert math.isnan(Run("plain", run.scenario).percentile(50))


def test_failures_after_the_outage_are_those_of_attempts() -> None:
    run = seen("guarded", [])
    run.sign_ups = [
        SignUp(at=1.0, seconds=3.0, error=None, failures=[3.5, 2.5]),
        SignUp(at=4.0, seconds=0.1, error="CircuitOpenError", failures=[4.1]),
    ]
    assert run.failures == [2.5, 3.5, 4.1]
    assert run.failed_after == 2
    assert run.last_failure == pytest.approx(1.1)
    assert seen("guarded", []).last_failure == 0


def test_a_run_that_shows_no_difference_says_so() -> None:
    harmless, harmful = seen("plain", [None, None]), seen("plain", [None, "TooManyConnectionsError"])
    fleet = seen("fleet", [None])
    assert shown(harmful, seen("guarded", [None]), fleet)
    assert meaning(harmful, seen("guarded", [None]), fleet).startswith("What it means")
    assert not shown(harmless, seen("guarded", [None]), fleet)
    assert meaning(harmless, seen("guarded", [None]), fleet).startswith("The runs did not show")
    assert not shown(harmful, seen("guarded", [None]), seen("fleet", ["TooManyConnectionsError"]))
    assert not shown(harmful, seen("guarded", ["TooManyConnectionsError"]))
    assert not shown(harmful, replace(seen("guarded", [None]), attempts=101))
    assert not shown(harmful, replace(seen("guarded", [None]), sign_ups=[]))
    assert not shown(harmful, replace(seen("guarded", [None]), samples=[Sample(1.0, 3)]))


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    runs = (seen("plain", [None, "TooManyConnectionsError"]), seen("guarded", [None]), seen("fleet", [None]))
    draw(runs, tmp_path / "burst.png")
    assert (tmp_path / "burst.png").read_bytes().startswith(PNG)


async def answers(store: Store) -> None:
    """It does what an environment wants of it."""
    bulletin = open_bulletin(DatabaseSettings(url="postgresql://app@127.0.0.1/app", fleet_url=store.url))
    assert bulletin is not None
    bulletin.tell_open()
    await bulletin.settle(2.0)
    assert (await bulletin.probe()).open == 1
    bulletin.tell_recovered()
    await bulletin.settle(2.0)
    news = await bulletin.probe()
    assert news.open == 0
    assert news.recovery is not None
    bulletin.close()


async def test_without_a_redis_server_a_stand_in_speaks_its_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with running_store() as store:
        assert "fakeredis, a stand-in" in store.name
        await answers(store)
    assert_closed(store)


@pytest.mark.debian
async def test_a_redis_server_that_is_found_is_used() -> None:
    with running_store() as store:
        assert store.name == "a real Redis"
        await answers(store)
    assert_closed(store)


def assert_closed(store: Store) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(store.url).port or 0), timeout=1.0)


def test_a_store_that_does_not_start_is_one_clear_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr("examples.burst.store.free_port", lambda: taken.getsockname()[1])
        with pytest.raises(StoreError, match="did not start"), running_store():
            pass
