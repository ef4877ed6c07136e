"""The demo, small and short, in its own process: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from examples.burst.__main__ import main
from examples.burst.measurements import Run, Sample, SignUp, Visit, shown
from examples.burst.picture import draw
from examples.burst.report import meaning
from examples.burst.scenario import Scenario
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from examples.burst.scenario import PoolName

SMALL = ("--processes", "6", "--max-connections", "24", "--seconds", "7")
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
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
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


def figures(output: str, row: str) -> tuple[int, int]:
    """A row of the table: the plain run's figure and the guarded one's."""
    found = re.search(rf"{re.escape(row)}\W+([\d,]+)\D+?([\d,]+)", output)
    assert found, f"No row {row!r} in:\n{output}"
    plain, guarded = (int(figure.replace(",", "")) for figure in found.groups())
    return plain, guarded


@pytest.mark.timeout(120)
async def test_a_short_run_tells_the_whole_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(*SMALL, cwd=tmp_path) as demo:
        assert await demo.process.wait() == 0, demo.output
        assert len(demo.descendants) >= 2 * 6 + 1, "Two fleets of six and a server were to be seen."
        assert demo.directories
        await demo.leaves_nothing()
    said = demo.output

    for answer in ('"claimsOverrideDetails"', '"idTokenGeneration"', '"accessTokenGeneration"', '"role": "member"'):
        assert answer in said
    peak, guarded_peak = figures(said, "Peak sessions (limit 24)")
    assert peak > 10
    assert guarded_peak == 6
    turned_away, guarded_turned_away = figures(said, "Bystander's requests failed")
    assert turned_away > 0
    assert guarded_turned_away == 0
    done, guarded_done = figures(said, "Sign-ups completed in total")
    assert 0 < done < guarded_done
    done, guarded_done = figures(said, "Sign-ups completed before the outage")
    assert done < guarded_done
    attempts, guarded_attempts = figures(said, "attempts during outage")
    assert guarded_attempts <= 6 * 4 < attempts  # three failures, and a trial
    p50, guarded_p50 = figures(said, "p50")
    p99, guarded_p99 = figures(said, "p99")
    assert 10 <= p50 <= p99
    assert 10 <= guarded_p50 <= guarded_p99
    assert "\x1b" not in said, "Escape codes have no place in a file."
    assert (tmp_path / "burst.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("moment", ["A database", "Act one", "starting", "burst  ", "database down"])
async def test_ctrl_c_ends_everything_within_seconds(moment: str, tmp_path: Path) -> None:
    async with running(*SMALL, cwd=tmp_path) as demo:
        await demo.reaches(moment)
        demo.process.send_signal(signal.SIGINT)
        # Whoever started it may lose patience, as nox does; the cleaning up goes on.
        demo.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
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


def test_a_run_that_shows_no_difference_says_so() -> None:
    harmless, harmful = seen("plain", [None, None]), seen("plain", [None, "TooManyConnectionsError"])
    assert shown(harmful, seen("guarded", [None]))
    assert meaning(harmful, seen("guarded", [None])).startswith("What it means")
    assert not shown(harmless, seen("guarded", [None]))
    assert meaning(harmless, seen("guarded", [None])).startswith("The runs did not show")
    assert not shown(harmful, seen("guarded", ["TooManyConnectionsError"]))
    assert not shown(harmful, replace(seen("guarded", [None]), attempts=101))
    assert not shown(harmful, replace(seen("guarded", [None]), sign_ups=[]))
    assert not shown(harmful, replace(seen("guarded", [None]), samples=[Sample(1.0, 3)]))


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    draw(seen("plain", [None, "TooManyConnectionsError"]), seen("guarded", [None]), tmp_path / "burst.png")
    assert (tmp_path / "burst.png").read_bytes().startswith(PNG)
