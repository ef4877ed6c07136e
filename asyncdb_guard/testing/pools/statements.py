"""What a statement means inside of a transaction that is always undone: refused, or to be made up for. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

_INTERESTING = re.compile(
    r"\b(begin|start|commit|end|rollback|abort|prepare|listen|create|alter|drop|savepoint|release|lock|declare)\b",
    re.IGNORECASE,
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
_SAVEPOINTS = {"SAVEPOINT", "RELEASE"}
_BLOCKS = {"LOCK": "LOCK TABLE", "DECLARE": "DECLARE CURSOR"}
"""What the server refuses outside of a transaction only where it is alone in a message, and what it calls that."""
_WITH_HOLD = re.compile(r"\bwith\s+hold\b", re.IGNORECASE)
"""A cursor that needs no transaction."""

_SET_LOCAL = re.compile(
    r"""
    \bSET \s+ LOCAL \s+ (?: "(?P<quoted>[^"]+)" | (?P<plain>[\w.]+) )
    | \bset_config \s* \( \s* '(?P<named>[^']+)' \s* , (?: [^()] | \([^()]*\) )* ,\s* (?: true | 't(?:rue)?' ) \s* \)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SPELLED = {"time": "timezone", "schema": "search_path", "names": "client_encoding", "session": "session_authorization"}
"""The settings that SET has words of its own for."""
_NO_SETTINGS = {"transaction", "xml"}

_TEMPORARY = re.compile(
    r"\bCREATE\s+(?:(?:GLOBAL|LOCAL)\s+)?TEMP(?:ORARY)?\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    r'(?:pg_temp\s*\.\s*)?(?P<name>"[^"]+"|\w+)[^;]*?\bON\s+COMMIT\s+(?P<then>DROP|DELETE)\b',
    re.IGNORECASE,
)


class Reading(NamedTuple):
    """What is to be known of a statement, or of several in one message."""

    refused: str | None = None
    """The command that would begin or end a transaction by hand, that listens, or that needs a COMMIT."""
    needs_transaction: str | None = None
    """The command that the server refuses outside of a transaction."""
    changes_schema: bool = False
    """Whether something is created, altered or dropped."""
    prepares: bool = False
    """Whether it may leave a name of PREPARE."""
    local_settings: tuple[str, ...] = ()
    """The settings that are set until the end of the transaction."""
    dropped_at_commit: tuple[str, ...] = ()
    """The temporary tables that a COMMIT drops, as SQL writes their names."""


@functools.lru_cache(512)
def read(sql: str) -> Reading:
    """Read the text of a statement."""
    local = tuple(dict.fromkeys(_local_settings(sql)))
    if _INTERESTING.search(sql) is None:
        return Reading(local_settings=local)
    commands = [*_commands(sql)]
    tables = [*_TEMPORARY.finditer(sql)]
    emptied = any(table["then"].upper() == "DELETE" for table in tables)
    return Reading(
        "ON COMMIT DELETE ROWS" if emptied else _first_refused(commands),
        _first_in_need(commands, sql),
        any(words[0] in _SCHEMA for words in commands),
        any(words[0] == "PREPARE" for words in commands),
        local,
        tuple(table["name"] for table in tables),
    )


def _commands(sql: str) -> Iterator[list[str]]:
    """The first three words of each statement."""
    for statement in _OPAQUE.sub(" ", sql).split(";"):
        words = statement.upper().split(None, 3)[:3]
        if words:
            yield words


def _first_refused(commands: list[list[str]]) -> str | None:
    for words in commands:
        first, both = words[0], " ".join(words[:2])
        if first == "ROLLBACK" and "TO" in words:
            continue  # a savepoint of the caller's own
        if first in _REFUSED:
            return first
        if both in _REFUSED:
            return both
    return None


def _first_in_need(commands: list[list[str]], sql: str) -> str | None:
    for words in commands:
        if words[0] in _SAVEPOINTS:
            return f"{words[0]} SAVEPOINT" if words[0] == "RELEASE" else words[0]
        if words[0] == "ROLLBACK":
            return "ROLLBACK TO SAVEPOINT"
    if len(commands) != 1 or _WITH_HOLD.search(sql):
        return None
    return _BLOCKS.get(commands[0][0])


def _local_settings(sql: str) -> Iterator[str]:
    for match in _SET_LOCAL.finditer(sql):
        name = (match["quoted"] or match["plain"] or match["named"]).lower()
        if name not in _NO_SETTINGS:
            yield _SPELLED.get(name, name)
