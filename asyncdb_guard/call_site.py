"""Where in the application's or the tests' code something was called."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

_OURS = str(Path(__file__).resolve().parent) + os.sep
_ASYNCIO = str(Path(asyncio.__file__).parent) + os.sep
_CONTEXTLIB = contextlib.__file__
_SQLALCHEMY = "sqlalchemy"


def caller() -> str:
    """The nearest place outside of this package and SQLAlchemy, as "file:line in function".

    In a task of ours, where it began.
    """
    frame = inspect.currentframe()
    assert frame is not None
    # SQLAlchemy calls us in a greenlet, whose frames end where it began: they go on in the one that waits for it
    greenlet = sys.modules.get("greenlet")
    running: Any = greenlet.getcurrent() if greenlet is not None else None
    while _is_passing(frame):
        outer = frame.f_back
        if outer is None and running is not None and running.parent is not None:
            running = running.parent
            outer = running.gr_frame
        if outer is None or outer.f_code.co_filename.startswith(_ASYNCIO):
            break
        frame = outer
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"


def _is_passing(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return file.startswith(_OURS) or file == _CONTEXTLIB or package == _SQLALCHEMY


def _short(file: str) -> str:
    with contextlib.suppress(ValueError, OSError):
        return str(Path(file).relative_to(Path.cwd()))
    return file
