"""Where in the tests' or the application's code something was called."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from pathlib import Path

_OURS = str(Path(__file__).resolve().parents[2]) + os.sep
_ASYNCIO = str(Path(asyncio.__file__).parent) + os.sep
_CONTEXTLIB = contextlib.__file__


def caller() -> str:
    """The nearest place outside of this package, as "file:line in function"; in a task of ours, where it began."""
    frame = inspect.currentframe()
    while frame is not None:
        file = frame.f_code.co_filename
        outer = frame.f_back
        passing = file.startswith(_OURS) or file == _CONTEXTLIB
        if not passing or outer is None or outer.f_code.co_filename.startswith(_ASYNCIO):
            return f"{_short(file)}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = outer
    return "unknown"


def _short(file: str) -> str:
    with contextlib.suppress(ValueError, OSError):
        return str(Path(file).relative_to(Path.cwd()))
    return file
