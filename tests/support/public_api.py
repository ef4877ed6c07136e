"""The public API as text: names, signatures, fields and their types, settings, fixtures, commands and their options.

`python -m tests.support.public_api` writes it to tests/public_api.txt, where a review sees what a change does to users.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib
import inspect
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any

import pytest

from asyncdb_guard import DatabaseSettings
from asyncdb_guard.cli.main import _parser
from asyncdb_guard.settings.fields import ENV_PREFIX

PAGE = Path(__file__).parents[1] / "public_api.txt"

MODULES = ("", ".cognito", ".events", ".handlers", ".otel", ".runtime", ".sqlalchemy", ".testing")
_OURS = "asyncdb_guard"
_OPERATIONS = ("__aenter__", "__aexit__", "__aiter__", "__anext__", "__await__", "__call__", "__enter__", "__exit__")


def page() -> str:
    """The whole text."""
    parts = [_module(importlib.import_module(_OURS + name)) for name in MODULES]
    return "\n".join(["".join(f"{line}\n" for line in part) for part in (*parts, _settings(), _pytest(), _commands())])


def _module(module: ModuleType) -> Iterator[str]:
    yield f"module {module.__name__}"
    if module.__name__ == f"{_OURS}.handlers":  # objects, no definitions
        yield from ("  load_claims", "  provision_user")
        return
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    for name in sorted(getattr(module, "__all__", [name for name in own if not name.startswith("_")])):
        value = getattr(module, name)
        if inspect.isclass(value) and (value.__module__.startswith(_OURS)):
            yield from _class(name, value)
        elif inspect.isfunction(value):
            yield f"  {_function(name, value)}"
        else:
            yield f"  {name}: {_kind(value)}"


def _kind(value: object) -> str:
    return type(value).__name__ if isinstance(value, str) else str(value)


def _class(name: str, kind: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in kind.__bases__ if base is not object)
    yield f"  class {name}({bases})" if bases else f"  class {name}"
    if issubclass(kind, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in kind)
        return
    if not issubclass(kind, DatabaseSettings):  # its fields are listed as settings
        yield from _fields(kind)
        if not dataclasses.is_dataclass(kind) and "__init__" in vars(kind) and not getattr(kind, "_is_protocol", False):
            yield f"    {_function('__init__', kind.__init__)}"
    for member, owner in sorted(_members(kind).items()):
        yield f"    {_member(member, vars(owner)[member])}"


def _fields(kind: type) -> Iterator[str]:
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            yield f"    {field.name}: {field.type}{default}"
        return
    for owner in _owners(kind):
        for name, annotation in inspect.get_annotations(owner).items():
            if not name.startswith("_"):
                text = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
                yield f"    {name}: {text}"


def _owners(kind: type) -> list[type]:
    """The class and those of its bases that are ours."""
    return [owner for owner in kind.__mro__ if owner.__module__.startswith(_OURS)]


def _members(kind: type) -> dict[str, type]:
    """Methods and properties, each with the class that has it."""
    found: dict[str, type] = {}
    for owner in _owners(kind):
        for name, value in vars(owner).items():
            if name.startswith("_") and name not in _OPERATIONS:
                continue
            if inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod):
                found.setdefault(name, owner)
    return found


def _member(name: str, value: Any) -> str:
    if isinstance(value, property):
        returns = inspect.signature(value.fget).return_annotation if value.fget is not None else "?"
        return f"property {name}: {returns.__name__ if inspect.isclass(returns) else returns}"
    if isinstance(value, classmethod | staticmethod):
        return f"{type(value).__name__} {_function(name, value.__func__)}"
    return _function(name, value)


def _function(name: str, function: Any) -> str:
    if function.__module__.partition(".")[0] == "asyncpg":
        return f"def {name}: asyncpg's"
    asynchronous = "async " if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) else ""
    signature = inspect.signature(function)
    parameters = [
        part.replace(annotation=_unquoted(part.annotation), default=_portable(part.default))
        for part in signature.parameters.values()
    ]
    returns = _unquoted(signature.return_annotation)
    return f"{asynchronous}def {name}{signature.replace(parameters=parameters, return_annotation=returns)}"


class _Text(str):
    """A text that shows itself without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _unquoted(annotation: Any) -> Any:
    return _Text(annotation) if isinstance(annotation, str) else annotation


def _portable(default: Any) -> Any:
    """The default, unless its repr is another one in another process."""
    own = default is not inspect.Parameter.empty and (" at 0x" in repr(default) or default == sys.executable)
    return _Text("...") if own else default


def _settings() -> Iterator[str]:
    yield f"settings: keywords of DatabaseSettings, and with the prefix {ENV_PREFIX} variables of the environment"
    for name, field in DatabaseSettings.model_fields.items():
        yield f"  {name.upper()}: {_type(field.annotation)} = {field.default!r}"


def _type(annotation: Any) -> str:
    """As it would be written, without what pydantic does with it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in {typing.Union, UnionType}:
        return " | ".join(_type(argument) for argument in arguments)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    return "None" if annotation is type(None) else str(annotation.__name__)


class _Options:
    """Stands for pytest's parser, and notes each option."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def getgroup(self, *_: object) -> _Options:
        return self

    def addoption(self, *names: str, **_: object) -> None:
        self.names += names

    def addini(self, name: str, *_: object, **__: object) -> None:
        self.names.append(name)


def _pytest() -> Iterator[str]:
    plugin = importlib.import_module(f"{_OURS}.testing.plugin")
    yield "pytest plugin"
    options = _Options()
    plugin.pytest_addoption(options)
    yield from (f"  option {name}" for name in sorted(options.names))
    for name, value in sorted(vars(plugin).items()):
        if isinstance(value, type(_example)) and not name.startswith("_"):
            yield f"  fixture {name}, scope {value._fixture_function_marker.scope}"


@pytest.fixture
def _example() -> None:
    """To see of which type a fixture is."""


def _commands() -> Iterator[str]:
    yield "commands"
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        yield f"  asyncdb-guard {name}"
        for action in parser._actions:
            names = ", ".join(action.option_strings) or action.dest
            choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
            default = "" if action.default in (None, argparse.SUPPRESS) else f" = {action.default!r}"
            yield f"    {names}{choices}{default}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
