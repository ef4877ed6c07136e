"""Runs a small Python program in a process of its own, as strict as the tests are."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def unmeasured(**environment: str) -> dict[str, str]:
    """The environment of a process whose coverage nobody needs: to measure it takes as long again."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")} | environment


def run(source: str, *, timeout: float = 20, **environment: str) -> str:
    """Return what `source` printed. It must end with status 0 and say nothing on stderr, warnings included."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
