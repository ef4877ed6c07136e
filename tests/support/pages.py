"""The code on the pages, so that tests run it: a test takes a block, and a block that nobody takes is a failure."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)$")
_NOT_RUN = re.compile(r" *<!-- not run: (?P<reason>.+) -->$")
"""Stands right above a block, and is not shown."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    """The file, from the root of the repository."""
    heading: str
    """The nearest one above it."""
    line: int
    """The line of its first line on the page."""
    language: str
    text: str
    not_run: str | None = None
    """Why it is not run, if its page says so."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the reader saves it as: its first line says so."""
        found = re.match(r"# ([\w.]+\.\w+)\n", self.text)
        return found[1] if found else None

    def run(self) -> dict[str, Any]:
        """Run this Python as a module; what it defines."""
        names: dict[str, Any] = {"__name__": "page"}
        exec(compile(ast.parse("\n" * (self.line - 1) + self.text), str(ROOT / self.page), "exec"), names)
        return names


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    page = path.relative_to(ROOT).as_posix()
    found: list[Block] = []
    heading, reason = "", None
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        if fence := _FENCE.match(line):
            inside: list[str] = []
            for _, text in lines:
                if text.strip() == "```":
                    break
                inside.append(text.removeprefix(fence["indent"]))
            text = "".join(f"{one}\n" for one in inside)
            found.append(Block(page, heading, number + 1, fence["language"], text, reason))
            reason = None
        elif mark := _NOT_RUN.match(line):
            reason = mark["reason"]
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    return found


BLOCKS = [block for path in PAGES for block in blocks_of(path)]

taken: set[Block] = set()
"""What a test has taken."""


def take(page: str, heading: str | None = None, *, language: str = "python") -> list[Block]:
    """The blocks below a heading, or of the whole page, for a test that runs all of them."""
    found = [
        block
        for block in BLOCKS
        if block.page == page and block.language == language and heading in {None, block.heading} and not block.not_run
    ]
    assert found, f"{page} has no {language} below {heading!r}"
    taken.update(found)
    return found


def take_one(page: str, heading: str, *, language: str = "python") -> Block:
    """The only block below a heading."""
    (block,) = take(page, heading, language=language)
    return block
