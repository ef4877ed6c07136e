"""Whether an idle session is lent as it is, pinged or replaced; and the poll of its socket, on real sockets."""

from __future__ import annotations

import select
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdb_guard.connect.sockets import socket_probe
from asyncdb_guard.pool.health import PING_AFTER, PING_TIMEOUT, Health, assess, ping_timeout

HEALTHY = {
    "closed": False, "readable": False, "idle": 0.1, "idle_timeout": 60.0, "expired": False,
    "misplaced": False,
}  # fmt: skip
SECONDS = st.floats(0.0, 1e6)
SESSIONS = st.fixed_dictionaries(
    {
        "closed": st.booleans(),
        "readable": st.booleans(),
        "idle": SECONDS,
        "idle_timeout": SECONDS,
        "expired": st.booleans(),
        "misplaced": st.booleans(),
    }
)


@pytest.mark.parametrize(
    ("facts", "health"),
    [
        pytest.param({}, Health.GOOD, id="quiet-and-recent"),
        pytest.param({"idle": 0.0}, Health.GOOD, id="just-returned"),
        pytest.param({"idle": 0.999}, Health.GOOD, id="idle-for-less-than-a-second"),
        pytest.param({"idle": 1.0}, Health.SUSPECT, id="idle-for-a-second"),
        pytest.param({"readable": True}, Health.SUSPECT, id="something-to-read"),
        pytest.param({"closed": True}, Health.LOST, id="closed"),
        pytest.param({"idle": 59.999}, Health.SUSPECT, id="just-within-the-idle-timeout"),
        pytest.param({"idle": 60.0}, Health.IDLE_TIMEOUT, id="idle-timeout"),
        pytest.param({"idle": 0.1, "idle_timeout": 0.1}, Health.IDLE_TIMEOUT, id="idle-timeout-of-less-than-a-second"),
        pytest.param({"expired": True}, Health.MAX_LIFETIME, id="lifetime"),
        pytest.param({"expired": True, "readable": True}, Health.MAX_LIFETIME, id="old-is-not-pinged"),
        pytest.param({"misplaced": True, "readable": True}, Health.WRONG_NODE, id="wrong-node-is-not-pinged"),
        pytest.param({"misplaced": True, "expired": True}, Health.MAX_LIFETIME, id="old-before-wrong-node"),
        pytest.param({"idle": 60.0, "expired": True}, Health.IDLE_TIMEOUT, id="idle-before-old"),
        pytest.param({"closed": True, "idle": 60.0}, Health.LOST, id="closed-before-all"),
    ],
)
def test_a_session_is_assessed(facts, health):
    assert assess(**HEALTHY | facts) is health


@given(SESSIONS)
def test_only_a_quiet_recent_young_session_is_lent_as_it_is(facts):
    quiet = not (facts["closed"] or facts["readable"] or facts["misplaced"])
    recent = facts["idle"] < min(PING_AFTER, facts["idle_timeout"])
    assert (assess(**facts) is Health.GOOD) == (quiet and recent and not facts["expired"])


@given(SESSIONS)
def test_a_ping_is_only_spent_on_a_session_that_may_stay(facts):
    if assess(**facts) is Health.SUSPECT:
        assert not facts["closed"]
        assert not facts["misplaced"]
        assert facts["idle"] < facts["idle_timeout"]
        assert not facts["expired"]


@given(SESSIONS, SECONDS)
def test_no_session_gets_better_with_time(facts, more):
    later = facts | {"idle": facts["idle"] + more, "expired": True}
    assert (assess(**later) is Health.GOOD) <= (assess(**facts) is Health.GOOD)


@pytest.mark.parametrize(("remaining", "bound"), [(10.0, 0.5), (2.0, 0.5), (1.0, 0.25), (0.2, 0.1), (0.0, 0.1)])
def test_a_ping_leaves_most_of_the_time_to_a_new_connection(remaining, bound):
    assert ping_timeout(remaining) == bound


@given(st.floats(0.0, 1e6))
def test_a_ping_is_bounded(remaining):
    assert 0.1 <= ping_timeout(remaining) <= min(PING_TIMEOUT, max(remaining / 2, 0.1))


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


def arrived(ours: socket.socket) -> None:
    """Wait until what the other end did has reached ours."""
    select.select([ours], [], [], 5.0)


def test_a_quiet_socket_has_nothing_to_read(ends):
    suspicious = socket_probe(ends[0].fileno())
    assert not suspicious()


def test_data_is_seen_and_left_where_it_is(ends):
    ours, theirs = ends
    suspicious = socket_probe(ours.fileno())
    theirs.send(b"N")
    assert suspicious()
    assert suspicious()
    assert ours.recv(8) == b"N"
    assert not suspicious()


def test_a_fin_is_seen(connection):
    ours, theirs = connection
    suspicious = socket_probe(ours.fileno())
    assert not suspicious()
    theirs.shutdown(socket.SHUT_WR)
    arrived(ours)
    assert suspicious()


def test_a_reset_is_seen(connection):
    ours, theirs = connection
    suspicious = socket_probe(ours.fileno())
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    arrived(ours)
    assert suspicious()


def test_urgent_data_is_seen(connection):
    ours, theirs = connection
    suspicious = socket_probe(ours.fileno())
    theirs.send(b"!", socket.MSG_OOB)
    select.select([], [], [ours], 5.0)
    assert suspicious()


def test_a_descriptor_that_was_closed_is_seen(ends):
    suspicious = socket_probe(ends[0].fileno())
    ends[0].close()
    assert suspicious()


def test_without_a_descriptor_every_session_is_suspect():
    assert socket_probe(None)() is True


def test_without_poll_every_session_is_suspect(monkeypatch, ends):
    monkeypatch.delattr(select, "poll")
    assert socket_probe(ends[0].fileno())() is True
