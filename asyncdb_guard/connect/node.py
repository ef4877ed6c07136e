"""Which node of a cluster a session may be on (`target_session_attrs`), and the order to try its addresses in.

Pure: no I/O. PostgreSQL 14 and later report both facts at startup and whenever they change: the latter with the answer
to a statement.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from asyncdb_guard.settings.url_parameters import SessionAttrs

STANDBY, READ_ONLY = 1, 2


class NodeState(NamedTuple):
    """What a server says about a session."""

    standby: bool
    """Whether the server replays another one's changes (`in_hot_standby`)."""
    read_only: bool
    """Whether transactions of the session are read-only by default (`default_transaction_read_only`)."""


def reported_state(server_settings: Any) -> NodeState | None:
    """What the server has reported last; None if it reports neither, as before PostgreSQL 14."""
    standby = getattr(server_settings, "in_hot_standby", None)
    read_only = getattr(server_settings, "default_transaction_read_only", None)
    if standby is None or read_only is None:
        return None
    return NodeState(standby == "on", read_only == "on")


def suits(wanted: SessionAttrs, state: NodeState) -> bool:
    """Whether a session may be used, by libpq's rules. `prefer-standby` is a standby here; see `attempts`."""
    if wanted == "read-write":
        return not (state.standby or state.read_only)
    if wanted == "read-only":
        return state.standby or state.read_only
    if wanted == "primary":
        return not state.standby
    return wanted == "any" or state.standby


def attempts(wanted: SessionAttrs, addresses: Sequence[str]) -> list[tuple[str, SessionAttrs]]:
    """The addresses to try, in order, and what to accept at each. Where no standby is, `prefer-standby` is any node."""
    if wanted != "prefer-standby":
        return [(address, wanted) for address in addresses]
    standbys: list[tuple[str, SessionAttrs]] = [(address, "standby") for address in addresses]
    anything: list[tuple[str, SessionAttrs]] = [(address, "any") for address in addresses]
    return anything if len(addresses) == 1 else standbys + anything


def needs_writer(wanted: SessionAttrs) -> bool:
    """Whether a refused write is a reason to look for another node: a pool that asked for a standby has one."""
    return wanted in {"any", "read-write", "primary"}


def kept_suitable(wanted: SessionAttrs) -> bool:
    """Whether a session is closed when its node is of that kind no longer."""
    return wanted not in {"any", "prefer-standby"}
