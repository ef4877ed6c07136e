"""Finds the parameters of an SQL statement. Pure: it needs no server, and thus no named prepared statement.

Source: PostgreSQL manual, "SQL Syntax: Lexical Structure".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
      (?P<blank>      \s+ | -- [^\r\n]* )
    | (?P<comment>    /\* )
    | (?P<quoted>     [eE] ' (?: [^'\\] | '' | \\. )* '
                    | ' (?: [^'] | '' )* '
                    | " (?: [^"] | "" )* "
                    | \$ (?P<tag> (?: [A-Za-z_\x80-\U0010ffff] [\w\x80-\U0010ffff]* )? ) \$ .*? \$ (?P=tag) \$ )
    | (?P<parameter>  \$ [0-9]+ )
    | (?P<word>       [A-Za-z_\x80-\U0010ffff] [\w$\x80-\U0010ffff]* )
    | (?P<end>        ; )
    | (?P<open>       ['"] )
    | (?P<other>      . )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


class StatementError(Exception):
    """Why a text is not a single statement, worded as the predicate of a sentence."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One `$n` in the text of a statement."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scan:
    """One statement without its semicolon, and its parameters in order of appearance."""

    text: str
    parameters: tuple[Parameter, ...]


def scan(sql: str) -> Scan:
    """Find the parameters of one statement. Raises StatementError if the text is not exactly one statement."""
    parameters: list[Parameter] = []
    has_content = False
    end: int | None = None
    position = 0
    while token := _TOKEN.match(sql, position):
        kind, start, position = token.lastgroup, token.start(), token.end()
        if kind == "comment":
            position = _after_comment(sql, position)
        elif kind == "end":
            end = start if end is None else end
        elif kind == "open":
            raise StatementError("has an unterminated quote")
        elif token["blank"] is None:
            if end is not None:
                raise StatementError("contains more than one statement")
            has_content = True
            if token["parameter"] is not None:
                parameters.append(Parameter(int(token[0][1:]), start, position))
    if not has_content:
        raise StatementError("is empty")
    return Scan(sql[:end], tuple(parameters))


def _after_comment(sql: str, position: int) -> int:
    """The end of the block comment whose text begins at `position`. Block comments nest."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(sql, position)
        if edge is None:
            raise StatementError("has an unterminated comment")
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position
