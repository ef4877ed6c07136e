"""A PostgreSQL that a fleet connects to: an accept queue, processors, slots.

What things cost was measured with PostgreSQL 15, TLS and SCRAM, 400 times each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from asyncdb_guard.failures import FailureKind
from asyncdb_guard.fleet.policy import LOGINS_PER_VCPU
from asyncdb_guard.fleet.processor import Job, Processor
from asyncdb_guard.fleet.scenarios import Reach
from asyncdb_guard.fleet.timeline import Timeline

ROUND_TRIP = 0.001
"""Seconds."""

CONNECT_TIMEOUT = 2.0
"""Seconds after which a client gives up, the default of CONNECT_TIMEOUT_MS. Its CPU is spent."""

LOGIN_CPU = 1 / LOGINS_PER_VCPU
"""Seconds of CPU: fork, TLS, SCRAM, start of the session."""

STARTING_CPU = 0.0028
"""A 57P03 costs the fork and the TLS."""

FULL_CPU, ROLE_FULL_CPU = 0.0030, 0.0042
"""A full server says so before the login, a full role and reserved slots only after it."""

ABANDONED_CPU = 0.0010
"""A connection that was accepted when its client had gone."""

STATEMENT_CPU = 0.0003
"""Of one request of an environment that has its session."""

_SYN_RETRY = 1.0
"""Seconds after which TCP asks again, where the backlog dropped its first packet."""

_CORES_KEPT = 0.3
"""The share of the cores that logins get however many statements run."""


@dataclass(frozen=True)
class ServerModel:
    """The size of a server."""

    vcpu: float
    slots: int = 1_000_000
    """max_connections without the reserved ones."""
    role_limit: int | None = None
    """CONNECTION LIMIT of the fleet's role."""
    logins_per_second: float | None = None
    """A throttle in front of it, such as that of IAM logins."""
    hosts: int = 1
    """Each has a postmaster of its own, which accepts 4,000 connections a second behind a backlog of 4,096."""

    @property
    def capacity(self) -> float:
        """C, the logins a second that it can take for ever."""
        return min(self.vcpu * LOGINS_PER_VCPU, self.accepts_per_second)

    @property
    def accepts_per_second(self) -> float:
        """Connections a second that are accepted."""
        return self.logins_per_second or 4000.0 * self.hosts

    @property
    def backlog(self) -> int:
        """Connections that wait to be accepted; more are dropped."""
        return 4096 * self.hosts


class Client(Protocol):
    """Who connects."""

    def connected(self, connect: Connect) -> None:
        """It has a session."""

    def failed(self, connect: Connect, kind: FailureKind) -> None:
        """It has none."""


class Connect:
    """One attempt; lives until its client knows how it ended."""

    __slots__ = ("asked", "began", "client", "environment", "job", "permit")

    def __init__(self, client: Client, environment: int, permit: int, began: float, asked: float) -> None:
        self.client = client
        self.environment = environment
        self.permit = permit
        self.began = began
        self.asked = asked
        """When the request came that wants the session."""
        self.job: Job | None = None


class Server:
    """Answers connects; lives as long as one simulation."""

    def __init__(self, timeline: Timeline, model: ServerModel, rate: float) -> None:
        self._timeline = timeline
        self._model = model
        self._rate = rate
        self._processor = Processor(timeline, model.vcpu)
        self._accept_step = 1 / model.accepts_per_second
        self._accept_free_at = 0.0
        self._logging_in = 0
        self.reach = Reach.UP
        self.sessions = 0
        """Of the fleet."""
        self.starting_cpu = 0.0
        """Seconds of CPU that went into 57P03."""

    def connect(self, connect: Connect) -> None:
        """A client's first packet, or its second where the first one was dropped."""
        now, timeline = self._timeline.now, self._timeline
        queued = (self._accept_free_at - now) / self._accept_step
        if self.reach is Reach.REFUSED:
            timeline.at(now + ROUND_TRIP, self._fail, connect, FailureKind.ANSWERED)
        elif self.reach is Reach.SILENT:
            timeline.at(connect.began + CONNECT_TIMEOUT, self._fail, connect, FailureKind.SILENT)
        elif queued <= 0:
            self._accept_free_at = now + self._accept_step
            self._accept(connect)
        elif queued < self._model.backlog:
            timeline.at(self._accept_free_at, self._accept, connect)
            self._accept_free_at += self._accept_step
        elif now == connect.began:
            timeline.at(now + _SYN_RETRY, self.connect, connect)
        else:
            timeline.at(connect.began + CONNECT_TIMEOUT, self._fail, connect, FailureKind.SILENT)

    def _accept(self, connect: Connect) -> None:
        start, model = self._processor.start, self._model
        ours = connect.environment >= 0
        if self._timeline.now - connect.began >= CONNECT_TIMEOUT:
            start(ABANDONED_CPU, _nothing)
            self._fail(connect, FailureKind.SILENT)
        elif self.reach is Reach.STARTING:
            self.starting_cpu += STARTING_CPU
            start(STARTING_CPU, self._refuse, connect, FailureKind.STARTING)
        elif self.sessions + self._logging_in >= model.slots:
            start(FULL_CPU, self._refuse, connect, FailureKind.FULL)
        elif ours and model.role_limit is not None and self.sessions >= model.role_limit:
            start(ROLE_FULL_CPU, self._refuse, connect, FailureKind.FULL)
        else:
            self._logging_in += 1
            connect.job = start(LOGIN_CPU, self._log_in, connect)
            self._timeline.at(connect.began + CONNECT_TIMEOUT, self._give_up, connect)

    def _log_in(self, connect: Connect) -> None:
        connect.job = None
        self._logging_in -= 1
        if connect.environment >= 0:
            limit = self._model.role_limit
            if limit is not None and self.sessions >= limit:  # others were faster
                self._refuse(connect, FailureKind.FULL)
                return
            self.sessions += 1
            statements = self.sessions * self._rate * STATEMENT_CPU
            self._processor.resize(max(self._model.vcpu - statements, _CORES_KEPT * self._model.vcpu))
        connect.client.connected(connect)

    def _give_up(self, connect: Connect) -> None:
        if connect.job is not None:
            self._processor.drop(connect.job)
            connect.job = None
            self._logging_in -= 1
            self._fail(connect, FailureKind.SILENT)

    def _refuse(self, connect: Connect, kind: FailureKind) -> None:
        self._timeline.at(self._timeline.now + ROUND_TRIP / 2, self._fail, connect, kind)

    def _fail(self, connect: Connect, kind: FailureKind) -> None:
        connect.client.failed(connect, kind)


def _nothing() -> None:
    """Nobody waits for it."""
