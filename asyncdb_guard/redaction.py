"""An error, told for the log. Pure: no I/O, and no value of anybody's."""

from __future__ import annotations

import traceback
from types import FrameType

from asyncdb_guard.errors import GuardError
from asyncdb_guard.verdict import chain_of, sqlstate_of


def describe(error: BaseException) -> str:
    """Tell the type of `error`, its SQLSTATE and the code it came through, and the same of its causes.

    Its text is left out, as it may carry a person's values, an SQL statement or a host; only of an error that this
    library itself raised is the text known to carry none. Of its frames, this library's are left out where there are
    others.
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
