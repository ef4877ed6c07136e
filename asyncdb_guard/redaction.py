"""Describes an error for the log without its values. Pure: no I/O."""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Collection
from types import FrameType, TracebackType

from asyncdb_guard.errors import GuardError
from asyncdb_guard.failures import chain_of, sqlstate_of

_CAUSES_MAX = 12
"""Errors of one chain that are told: a group may hold thousands."""

_WORD_MAX = 200
"""Characters of a name or a path that are told."""

_PLACES_MAX = 8
"""Calls of the author's that are told."""

_LIBRARIES = ("asyncpg", "boto", "pydantic", "uvloop")
"""How the names begin of packages that the author calls through ours: their frames lead to no mistake."""


def describe(error: BaseException, silent: Collection[BaseException] = ()) -> str:
    """Tell the type of `error`, its SQLSTATE and the author's code it came through, and the same of its causes: in one
    line.

    The text of an error may contain personal data, SQL or a host, so it is left out, unless this library raised the
    error itself; then it is told, except for those in `silent`.
    """
    chain = list(itertools.islice(chain_of(error), _CAUSES_MAX + 1))
    told = "; because of ".join(_describe_alone(one, silent=one in silent) for one in chain[:_CAUSES_MAX])
    return told + ("; because of more" if len(chain) > _CAUSES_MAX else "")


def authors_frames(error: BaseException) -> TracebackType | None:
    """The traceback of `error` without the frames of ours and the event loop's that lead to the author's code.

    If we raised the error, without ours at its end, too: the author looks for the call that failed. Where nothing would
    remain, it is left as it is.
    """
    steps: list[TracebackType] = []
    step = error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    while steps and (_is_ours(steps[0].tb_frame) or _is_event_loop(steps[0].tb_frame)):
        del steps[0]
    while steps and isinstance(error, GuardError) and _is_ours(steps[-1].tb_frame):
        del steps[-1]
    kept: TracebackType | None = None
    for step in reversed(steps):
        kept = TracebackType(kept, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return kept or error.__traceback__


def type_name(error: BaseException) -> str:
    """The name of the type of `error`, with its module if it is not a built-in one."""
    kind = type(error)
    module = str(kind.__module__)
    return _word(kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}")


def raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame of `error` is this library's, so that its text is, too."""
    trace = list(traceback.walk_tb(error.__traceback__))
    return bool(trace) and _is_ours(trace[-1][0])


def where(error: BaseException) -> str | None:
    """The author's code that `error` came through, from the outermost call to the innermost; None if there is none."""
    places = [
        _word(f"{frame.f_code.co_filename}:{line} ({frame.f_code.co_name})")
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_authors(frame)
    ]
    return " > ".join(places[-_PLACES_MAX:]) or None


def _describe_alone(error: BaseException, *, silent: bool) -> str:
    sqlstate, place = sqlstate_of(error), where(error)
    text = " ".join(str(error).split()) if isinstance(error, GuardError) and raised_by_us(error) and not silent else ""
    return "".join(
        (
            type_name(error),
            f" [{sqlstate}]" if sqlstate else "",
            f": {text}" if text else "",
            f" at {place}" if place else "",
        )
    )


def _word(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_WORD_MAX])


def _is_ours(frame: FrameType) -> bool:
    return _module(frame).startswith("asyncdb_guard.")


def _is_authors(frame: FrameType) -> bool:
    package = _module(frame).partition(".")[0]
    return not (_is_ours(frame) or package in sys.stdlib_module_names or package.startswith(_LIBRARIES))


def _is_event_loop(frame: FrameType) -> bool:
    return _module(frame).partition(".")[0] in {"asyncio", "uvloop"}


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
