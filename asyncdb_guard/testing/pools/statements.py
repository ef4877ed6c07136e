"""Which statements can't run inside of a transaction that is always undone. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

_INTERESTING = re.compile(
    r"\b(begin|start|commit|end|rollback|abort|prepare|listen|create|alter|drop)\b", re.IGNORECASE
)
"""Whether a look is worth it: most statements have none of these words."""

_OPAQUE = re.compile(
    r"""
    --[^\n]*                                    # a comment to the end of the line
    | /\*.*?\*/                                 # a block comment; the rare nested one ends early, in its own text
    | \b[eE]'(?:[^'\\]|\\.|'')*'                # a text with escapes
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \$(?P<tag>[A-Za-z_0-9]*)\$.*?\$(?P=tag)\$  # dollar-quoted, such as a function's body
    | \b(?:begin\s+atomic)\b.*?\bend\b          # the body of an SQL function in standard syntax
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)

_REFUSED = {
    "ABORT", "BEGIN", "COMMIT", "END", "LISTEN", "PREPARE TRANSACTION", "ROLLBACK", "START TRANSACTION"
}  # fmt: skip
_SCHEMA = {"CREATE", "ALTER", "DROP"}


def refused(sql: str) -> str | None:
    """The command that would begin or end a transaction by hand, or that listens; None if there is none."""
    for words in _commands(sql):
        first, both = words[0], " ".join(words[:2])
        if first == "ROLLBACK" and "TO" in words:
            continue  # a savepoint of the caller's own
        if first in _REFUSED:
            return first
        if both in _REFUSED:
            return both
    return None


def changes_schema(sql: str) -> bool:
    """Whether something is created, altered or dropped."""
    return any(words[0] in _SCHEMA for words in _commands(sql))


def _commands(sql: str) -> Iterator[list[str]]:
    """The first three words of each statement."""
    if _INTERESTING.search(sql) is None:
        return
    for statement in _OPAQUE.sub(" ", sql).split(";"):
        words = statement.upper().split(None, 3)[:3]
        if words:
            yield words
