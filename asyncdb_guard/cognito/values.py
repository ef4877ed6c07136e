"""Converts the values of claims to JSON. Pure."""

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
"""Bytes of JSON for the claims of both tokens. Tokens travel in HTTP headers, which many servers limit to 8 KiB."""

MAX_DEPTH = 8
"""Levels of nested lists and objects."""

_MAX_EXACT_INT = 2**53
"""Most JSON parsers read numbers as IEEE 754 doubles, which are exact for integers up to this (RFC 8259, section 6)."""


_BEYOND_EXACT = "contains an integer beyond ±2^53, which JSON parsers round; return it as a str"


class ClaimError(GuardError):
    """A value that a callback returned cannot go into a token. Names the claim, never its value."""


class ClaimConverter:
    """Converts the values of one answer to JSON, within a limit on their total size; lives for that answer."""

    def __init__(self) -> None:
        self._remaining_size = MAX_SIZE

    def convert(self, name: str, value: object) -> Json:
        """Return the value of claim `name` as JSON. Raises ClaimError if JSON cannot represent it.

        UUID, datetime and date become strings (ISO 8601), Decimal a number, Enum its value, tuple a list.
        """
        try:
            return self._convert(value, MAX_DEPTH)
        except _RefusedValueError as error:
            reason = str(error)
        raise ClaimError(f"The claim {quoted(name)} {reason}.")

    def _convert(self, value: object, depth: int) -> Json:
        self._use(1)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            return self._convert(value.value, _descend(depth))
        if isinstance(value, str):
            return self._from_str(value)
        if isinstance(value, int):
            return _from_int(value)
        if isinstance(value, float):
            return _from_float(value)
        if isinstance(value, Decimal):
            return _from_decimal(value)
        if isinstance(value, UUID):
            return self._from_str(str(value))
        if isinstance(value, date):
            return self._from_str(value.isoformat())
        if isinstance(value, (list, tuple)):
            depth = _descend(depth)
            return [self._convert(item, depth) for item in cast("Sequence[object]", value)]
        if is_mapping(value):
            depth = _descend(depth)
            return {self._from_key(key): self._convert(item, depth) for key, item in items_of(value)}
        raise _RefusedValueError(f"contains a {type(value).__name__}, which JSON cannot represent")

    def _from_str(self, value: str) -> str:
        self._use(len(value))
        if not is_utf8(value):
            raise _RefusedValueError("contains text that UTF-8 cannot encode")
        return str.__str__(value)  # a subclass may have a __str__ of its own

    def _from_key(self, key: object) -> str:
        if not isinstance(key, str):
            raise _RefusedValueError(f"contains an object with a key of type {type(key).__name__}; keys must be str")
        return self._from_str(key)

    def _use(self, size: int) -> None:
        self._remaining_size -= size
        if self._remaining_size < 0:
            raise _RefusedValueError(f"makes the claims larger than {MAX_SIZE} bytes in total")


class _RefusedValueError(Exception):
    """Why a value is refused, worded as the predicate of a sentence about its claim."""


def _descend(depth: int) -> int:
    if not depth:
        raise _RefusedValueError(f"is nested deeper than {MAX_DEPTH} levels")
    return depth - 1


def _from_int(value: int) -> int:
    if not -_MAX_EXACT_INT <= value <= _MAX_EXACT_INT:
        raise _RefusedValueError(_BEYOND_EXACT)
    return int.__index__(value)


def _from_float(value: float) -> float:
    if not math.isfinite(value):
        raise _RefusedValueError("contains a NaN or an infinity, which JSON cannot represent")
    return float.__float__(value)


def _from_decimal(value: Decimal) -> int | float:
    if not value.is_finite():
        raise _RefusedValueError("contains a NaN or an infinity, which JSON cannot represent")
    if value == value.to_integral_value():
        if value.adjusted() > 15:  # before int() creates a billion digits of 1E+999999999
            raise _RefusedValueError(_BEYOND_EXACT)
        return _from_int(int(value))
    nearest = float(value)
    if Decimal(repr(nearest)) != value:
        raise _RefusedValueError("contains a Decimal with more digits than a JSON number keeps; return it as a str")
    return nearest


def is_mapping(value: object) -> bool:
    """Whether `value` is a mapping, or can be read like one, as asyncpg's Record can."""
    return isinstance(value, Mapping) or (hasattr(type(value), "keys") and hasattr(type(value), "__getitem__"))


def items_of(mapping: object) -> Iterator[tuple[object, object]]:
    """The keys and values of an object that `is_mapping` accepts."""
    for key in mapping.keys():  # type: ignore[attr-defined]  # noqa: SIM118
        yield key, mapping[key]  # type: ignore[index]


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can encode `text`: a lone surrogate would break the Lambda runtime's own encoder."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(value: object) -> str | None:
    """Write a JSON value as a string, where Cognito accepts nothing else.

    A string stays as it is; booleans and numbers are written as in JSON, lists and objects as JSON text. None stays
    None, which means that the value is left out.
    """
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))


def quoted(name: str) -> str:
    """The name of a claim for a message: ASCII, on one line, limited in length."""
    return ascii(name[:64])
