"""Finds the parameters and the parts of an SQL statement. Pure: no server, and thus no named prepared statement.

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
    | (?P<bracket>    [()] )
    | (?P<other>      . )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_WRITES = frozenset({"DELETE", "INSERT", "MERGE", "UPDATE"})
_MAIN = _WRITES | {"SELECT", "TABLE", "VALUES"}
"""The words with which a statement that follows WITH can begin."""

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
    main: int
    """Where the statement itself begins, after a WITH clause if there is one."""
    writes: bool
    """Whether it, or a part of its WITH clause, is an INSERT, UPDATE, DELETE or MERGE."""
    main_writes: bool
    returns: bool
    """Whether the word RETURNING occurs in it."""


def scan(sql: str) -> Scan:
    """Find the parameters of one statement. Raises StatementError if the text is not exactly one statement."""
    parameters: list[Parameter] = []
    shape = _Shape()
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
            shape.read(token[0], start)
            if token["parameter"] is not None:
                parameters.append(Parameter(int(token[0][1:]), start, position))
    if not has_content:
        raise StatementError("is empty")
    return Scan(sql[:end], tuple(parameters), shape.main or 0, shape.writes, shape.main_writes, shape.returns)


class _Shape:
    """Finds out, token by token, where a statement begins and whether it writes; lives for one scan."""

    def __init__(self) -> None:
        self.main: int | None = None
        self.writes = self.main_writes = self.returns = False
        self._depth = 0
        self._last = ""

    def read(self, token: str, start: int) -> None:
        word = token.upper()
        begins = self._begins(word)
        if begins:
            self.main = start
            self.main_writes = word in _WRITES
        # not FOR UPDATE, DO UPDATE or WHEN MATCHED THEN DELETE, nor a column of that name
        self.writes |= word in _WRITES and (begins or self._last == "(")
        self.returns |= word == "RETURNING"
        self._depth += {"(": 1, ")": -1}.get(token, 0)
        self._last = word

    def _begins(self, word: str) -> bool:
        """Whether the statement itself begins here: with its first word, or after its WITH clause."""
        if self.main is not None or self._depth or (not self._last and word == "WITH"):
            return False
        if not self._last or (word == "(" and self._last == ")"):
            return True
        return word in _MAIN and self._last not in {"WITH", "RECURSIVE", ","}  # these introduce a name


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
