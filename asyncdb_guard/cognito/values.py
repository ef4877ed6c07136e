"""What a claim's value may be, and how it is written. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import TypeAlias, cast
from uuid import UUID

from asyncdb_guard.errors import GuardError

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

MAX_SIZE = 16_384
"""Bytes of JSON for the whole answer. A token travels in a header, and 8 KiB is what many servers take of one."""

MAX_DEPTH = 8
"""Lists and objects in one another."""

_EXACT = 2**53
"""Most readers of JSON keep numbers as IEEE 754 doubles, which have every whole number up to here (RFC 8259, 6)."""


class ClaimError(GuardError):
    """What a callback returned can't go into a token. Names the claim, never its value."""


class Values:
    """Makes the values of one answer plain JSON values; lives for that answer, and counts its size."""

    def __init__(self) -> None:
        self._left = MAX_SIZE

    def plain(self, name: str, value: object) -> Json:
        """Return claim `name`'s value as JSON has it. Raises ClaimError for what JSON can't carry.

        UUID, datetime and date become texts (ISO 8601), Decimal a number, Enum its value, tuple a list.
        """
        try:
            return self._plain(value, MAX_DEPTH)
        except _UnfitError as error:
            reason = str(error)
        raise ClaimError(f"The claim {shown(name)} {reason}.")

    def _plain(self, value: object, depth: int) -> Json:
        self._spend(1)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            return self._plain(value.value, self._deeper(depth))
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            return _whole(value)
        if isinstance(value, float):
            return _finite(value)
        if isinstance(value, Decimal):
            return _number(value)
        if isinstance(value, UUID):
            return self._text(str(value))
        if isinstance(value, date):
            return self._text(value.isoformat())
        if isinstance(value, (list, tuple)):
            deeper = self._deeper(depth)
            return [self._plain(item, deeper) for item in cast("Sequence[object]", value)]
        if is_mapping(value):
            deeper = self._deeper(depth)
            return {self._key(key): self._plain(item, deeper) for key, item in pairs(value)}
        raise _UnfitError(f"is or holds a {type(value).__name__}, which JSON can't carry")

    def _text(self, value: str) -> str:
        self._spend(len(value))
        if not is_utf8(value):
            raise _UnfitError("is or holds a text that UTF-8 can't carry")
        return str.__str__(value)  # a subclass may have a __str__ of its own

    def _key(self, key: object) -> str:
        if not isinstance(key, str):
            raise _UnfitError(f"holds an object with a key that is a {type(key).__name__}, not a str")
        return self._text(key)

    def _deeper(self, depth: int) -> int:
        if not depth:
            raise _UnfitError(f"goes deeper than {MAX_DEPTH} levels")
        return depth - 1

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _UnfitError(f"makes the claims larger than {MAX_SIZE} bytes altogether")


class _UnfitError(Exception):
    """Why a value is refused, as the end of a sentence about its claim."""


def _whole(value: int) -> int:
    if not -_EXACT <= value <= _EXACT:
        raise _UnfitError("holds a whole number beyond ±2^53, which readers of JSON round; return it as a str")
    return int.__index__(value)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise _UnfitError("is or holds a NaN or an infinity, which JSON can't carry")
    return float.__float__(value)


def _number(value: Decimal) -> int | float:
    if not value.is_finite():
        raise _UnfitError("is or holds a NaN or an infinity, which JSON can't carry")
    if value.adjusted() > 16:  # before int() makes a billion digits of 1E+999999999
        return _whole(_EXACT + 1)
    if value == value.to_integral_value():
        return _whole(int(value))
    near = float(value)
    if Decimal(repr(near)) != value:
        raise _UnfitError("holds a Decimal with more digits than a JSON number keeps; return it as a str")
    return near


def is_mapping(value: object) -> bool:
    """Whether `value` is a mapping, or reads like one, as asyncpg's Record does."""
    return isinstance(value, Mapping) or (hasattr(type(value), "keys") and hasattr(type(value), "__getitem__"))


def pairs(mapping: object) -> Iterator[tuple[object, object]]:
    """Names and values of what `is_mapping` accepts."""
    for key in mapping.keys():  # type: ignore[attr-defined]  # noqa: SIM118
        yield key, mapping[key]  # type: ignore[index]


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can carry it: a lone surrogate would break the Lambda runtime's own encoder."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(value: object) -> str | None:
    """Write a JSON value as one text, for where Cognito takes nothing else.

    A text stays as it is; true, false and numbers are written as JSON has them, lists and objects as JSON text;
    null is None, which means: leave it out.
    """
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))


def shown(name: str) -> str:
    """A claim's name for a message: one line of ASCII, not too long."""
    return ascii(name[:64])
