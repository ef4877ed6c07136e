"""The modelled server: what it answers, and how long that takes."""

from __future__ import annotations

import pytest

from asyncdb_guard.failures import FailureKind
from asyncdb_guard.fleet import ServerModel
from asyncdb_guard.fleet.scenarios import Reach
from asyncdb_guard.fleet.server import Connect, Server
from asyncdb_guard.fleet.timeline import Timeline

ANSWERED, STARTING, FULL, SILENT = FailureKind.ANSWERED, FailureKind.STARTING, FailureKind.FULL, FailureKind.SILENT


class Clients:
    """They connect, and note what comes of it: a kind of failure or None, and when."""

    def __init__(self, **model) -> None:
        self.timeline = Timeline()
        self.server = Server(self.timeline, ServerModel(**{"vcpu": 2} | model), rate=1.0)
        self.answers: list[tuple[FailureKind | None, float]] = []

    def connected(self, connect: Connect) -> None:
        self.answers.append((None, self.timeline.now))

    def failed(self, connect: Connect, kind: FailureKind) -> None:
        self.answers.append((kind, self.timeline.now))

    def come(self, count: int, environment: int = 0) -> None:
        now = self.timeline.now
        for _ in range(count):
            self.server.connect(Connect(self, environment, 0, now, now))

    def count(self, kind: FailureKind | None) -> int:
        return [answer for answer, _ in self.answers].count(kind)


@pytest.mark.parametrize(
    ("reach", "answer", "seconds"),
    [
        (Reach.UP, None, 0.005),
        (Reach.REFUSED, ANSWERED, 0.001),
        (Reach.STARTING, STARTING, 0.0033),
        (Reach.SILENT, SILENT, 2.0),
    ],
)
def test_a_connect_meets_what_the_server_is(reach: Reach, answer: FailureKind | None, seconds: float) -> None:
    clients = Clients()
    clients.server.reach = reach
    clients.come(1)
    clients.timeline.run(10.0)
    assert clients.answers == [(answer, pytest.approx(seconds))]


def test_it_takes_200_logins_a_second_and_vcpu() -> None:
    clients = Clients(vcpu=4)
    clients.come(800)
    clients.timeline.run(10.0)
    assert clients.count(None) == 800
    assert clients.answers[-1][1] == pytest.approx(1.0, abs=0.1)
    assert ServerModel(vcpu=4).capacity == 800
    assert ServerModel(vcpu=4, logins_per_second=200).capacity == 200


def test_who_waits_longer_than_its_timeout_gives_up_and_has_cost_the_server_its_time() -> None:
    clients = Clients(vcpu=1)
    clients.come(1000)
    clients.timeline.run(10.0)
    assert clients.count(SILENT) == 1000  # shared alike, no login is done in time
    assert {seconds for _, seconds in clients.answers} == {2.0}


def test_a_connection_is_accepted_one_after_the_other_and_a_late_one_finds_nobody() -> None:
    clients = Clients(logins_per_second=100)
    clients.come(300)
    clients.timeline.run(10.0)
    assert clients.count(None) == pytest.approx(200, abs=2)
    assert clients.count(SILENT) == 300 - clients.count(None)


def test_beyond_the_backlog_a_client_asks_once_more_and_then_gives_up() -> None:
    clients = Clients(vcpu=64, logins_per_second=4000)
    clients.come(4096 + 4000 + 500)
    clients.timeline.run(10.0)
    # the second packets come after a second, when 4,000 have been accepted, and the last in line wait too long
    assert 500 <= clients.count(SILENT) <= 650
    assert len(clients.answers) == 4096 + 4000 + 500


def test_a_full_server_turns_everybody_away_and_a_full_role_only_the_fleet() -> None:
    full = Clients(slots=5)
    full.come(10)
    full.timeline.run(1.0)
    full.come(1, environment=-1)
    full.timeline.run(10.0)
    assert (full.count(None), full.count(FULL)) == (5, 6)
    limited = Clients(role_limit=5)
    limited.come(10)
    limited.timeline.run(1.0)
    limited.come(5)
    limited.come(1, environment=-1)
    limited.timeline.run(10.0)
    assert (limited.count(None), limited.count(FULL)) == (6, 10)


def test_statements_of_the_fleet_take_their_share_of_the_processor() -> None:
    busy = Clients(vcpu=1)
    busy.server._rate = 1000.0
    busy.come(10)
    busy.timeline.run(1.0)
    busy.come(100)
    busy.timeline.run(10.0)
    idle = Clients(vcpu=1)
    idle.come(10)
    idle.timeline.run(1.0)
    idle.come(100)
    idle.timeline.run(10.0)
    assert busy.answers[-1][1] - 1.0 > 3 * (idle.answers[-1][1] - 1.0)
