"""What nobody should ever hear: logged errors, warnings, exceptions that nobody retrieved."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from typing import Any

_EXPECTED = ("A block ended with an open transaction", "is always, but connections go through")


class Noise(logging.Handler):
    """Collects it, from the main thread, for as long as the process lives."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []
        logging.getLogger().addHandler(self)
        warnings.simplefilter("always")
        warnings.showwarning = self._warned
        sys.unraisablehook = self._unraisable

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.thread == threading.main_thread().ident and not any(words in text for words in _EXPECTED):
            self.heard.append(f"log: {record.name} {record.levelname} {text[:200]}")

    def from_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An event loop's exception handler."""
        self.heard.append(f"event loop: {context.get('message')} {context.get('exception')!r}"[:300])

    def take(self) -> list[str]:
        heard, self.heard = self.heard, []
        return heard

    def _warned(self, message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        self.heard.append(f"warning: {category.__name__} {str(message)[:200]} ({filename}:{lineno})")

    def _unraisable(self, unraisable: Any) -> None:
        self.heard.append(f"unraisable: {unraisable.exc_value!r} in {unraisable.object!r}"[:300])
