"""Describes an error for the log without its values. Pure: no I/O."""

from __future__ import annotations

import traceback
from types import FrameType

from asyncdb_guard.errors import GuardError
from asyncdb_guard.verdict import chain_of, sqlstate_of


def describe(error: BaseException) -> str:
    """Describe `error` and its causes: the type, the SQLSTATE, and the files and lines it passed through.

    The text of an error may contain personal data, SQL or a host, so it is left out, unless this library raised the
    error itself. Frames of this library are left out if there are others.
    """
    return "; because of ".join(map(_describe_alone, chain_of(error)))


def _describe_alone(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    sqlstate = sqlstate_of(error)
    trace = list(traceback.walk_tb(error.__traceback__))
    others = [step for step in trace if not _is_ours(step[0])]
    ours = isinstance(error, GuardError) and bool(trace) and _is_ours(trace[-1][0])
    places = [f"{frame.f_code.co_filename}:{line} ({frame.f_code.co_name})" for frame, line in others or trace[-1:]]
    return "".join(
        (
            name,
            f" [{sqlstate}]" if sqlstate else "",
            f": {error}" if ours else "",
            f" at {' > '.join(places)}" if places else "",
        )
    )


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("asyncdb_guard.")
