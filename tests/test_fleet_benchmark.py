"""The benchmark of the real fleet runs: a small one, once. Its bars are for a machine that does nothing else."""

from __future__ import annotations

import subprocess
import sys

from tests.support.program import unmeasured


def test_a_small_real_fleet_comes_back_and_is_told_of() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.fleet", "--quick"],
        env=unmeasured(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table, _, _ = done.stdout.partition("└")  # the first one; the others need a redis-server
    cells = {line.split("│")[1].strip(): line.split("│")[3].split()[0] for line in table.splitlines() if "│" in line}
    assert float(cells["failed during"]) > 0
    assert 1.0 <= float(cells["attempts each"]) <= 5.0
    assert float(cells["90 % served, s"]) < 4.0  # as long as it is watched
