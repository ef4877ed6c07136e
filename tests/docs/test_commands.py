"""The commands of the pages: our own run, and the others are checked against what they name."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from asyncdb_guard.cli.main import main
from tests.support.pages import BLOCKS, ROOT, Block, taken

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [block for block in BLOCKS if block.language == "sh" and not block.not_run]
taken.update(COMMANDS)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = set(PROJECT["project"]["optional-dependencies"])
GROUPS = PROJECT["dependency-groups"]
PINNED = {Requirement(one).name for group in GROUPS.values() for one in group if isinstance(one, str)}
SESSIONS = set(re.findall(r"@nox\.session.*\ndef (\w+)\(", (ROOT / "noxfile.py").read_text(encoding="utf-8")))

FEWER = ("--concurrency", "20")
QUICK = {"budget": FEWER, "doctor": FEWER, "simulate": (*FEWER, "--runs", "1"), "watch": ("--once",)}
"""What makes our commands quicker than on the page: fewer environments, one run, one look."""


def lines(block: Block) -> list[list[str]]:
    """The words of each command, without comments, and without the folder of the virtual environment."""
    commands = [part for line in block.text.splitlines() for part in line.split("&&")]
    words = [shlex.split(command, comments=True) for command in commands]
    return [[one[0].removeprefix(".venv/bin/"), *one[1:]] for one in words if one]


def check_pip(arguments: list[str]) -> None:
    """What is installed exists: our extras are those of pyproject.toml, and anything else is pinned there."""
    assert arguments[0] == "install"
    for argument in arguments[1:]:
        if argument.startswith("-"):
            assert argument == "-q"
            continue
        requirement = Requirement(argument.replace(".", "asyncdb-guard", 1) if argument[0] == "." else argument)
        if requirement.name == "asyncdb-guard":
            assert requirement.extras <= EXTRAS
        else:
            assert requirement.name in PINNED


def check_nox(arguments: list[str]) -> None:
    """The sessions exist."""
    assert arguments[0] == "-s"
    named = arguments[1 : arguments.index("--") if "--" in arguments else None]
    assert {name.partition("-")[0] for name in named} <= SESSIONS


def check_python(arguments: list[str], page: str) -> None:
    """A virtual environment, or what a tutorial runs, which another test does."""
    if arguments != ["-m", "venv", ".venv"]:
        assert page.startswith("docs/tutorials/")
        assert arguments in (["try_it.py"], ["-m", "pytest"])


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_a_command_is_one(
    block: Block, environment: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for command, *arguments in lines(block):
        if command == "pip":
            check_pip(arguments)
        elif command == "nox":
            check_nox(arguments)
        elif command in {"python", "python3"}:
            check_python(arguments, block.page)
        elif command == "asyncdb-guard":
            assert main([*arguments, *QUICK.get(arguments[0], ())]) in {0, 1}, capsys.readouterr().out
        else:
            assert command == ".ci/run", command
            assert os.access(ROOT / command, os.X_OK)
