"""Processors shared alike, against sums that one can do in one's head."""

from __future__ import annotations

from asyncdb_guard.fleet.processor import Processor
from asyncdb_guard.fleet.timeline import Timeline


class Bench:
    """A processor, and when each job was done."""

    def __init__(self, cores: float) -> None:
        self.timeline = Timeline()
        self.processor = Processor(self.timeline, cores)
        self.done: dict[str, float] = {}

    def start(self, name: str, seconds: float):
        return self.processor.start(seconds, lambda: self.done.__setitem__(name, round(self.timeline.now, 9)))

    def run(self) -> dict[str, float]:
        self.timeline.run(100.0)
        return self.done


def test_a_job_alone_has_one_core_and_no_more() -> None:
    bench = Bench(4)
    bench.start("a", 1.0)
    assert bench.run() == {"a": 1.0}


def test_jobs_share_the_cores_alike() -> None:
    bench = Bench(2)
    for name in "abcd":
        bench.start(name, 1.0)
    assert bench.run() == dict.fromkeys("abcd", 2.0)


def test_a_short_job_leaves_its_share_to_the_others() -> None:
    bench = Bench(1)
    bench.start("long", 2.0)
    bench.start("short", 1.0)
    assert bench.run() == {"short": 2.0, "long": 3.0}


def test_a_job_that_comes_later_delays_those_that_run() -> None:
    bench = Bench(1)
    bench.start("first", 1.0)
    bench.timeline.at(0.5, bench.start, "second", 1.0)
    assert bench.run() == {"first": 1.5, "second": 2.0}


def test_a_dropped_job_is_never_done_and_speeds_up_the_others() -> None:
    bench = Bench(1)
    bench.start("kept", 1.0)
    dropped = bench.start("dropped", 0.9)
    bench.timeline.at(1.0, bench.processor.drop, dropped)
    assert bench.run() == {"kept": 1.5}


def test_the_last_job_may_be_dropped() -> None:
    bench = Bench(1)
    bench.timeline.at(0.5, bench.processor.drop, bench.start("dropped", 1.0))
    bench.timeline.at(2.0, bench.start, "next", 1.0)
    assert bench.run() == {"next": 3.0}


def test_a_job_dropped_in_the_middle_of_the_queue_is_passed_over() -> None:
    bench = Bench(1)
    bench.start("short", 1.0)
    middle = bench.start("middle", 1.0)
    bench.start("long", 2.0)
    bench.timeline.at(0.3, bench.processor.drop, middle)
    assert bench.run() == {"short": 2.1, "long": 3.1}


def test_fewer_cores_slow_down_what_runs() -> None:
    bench = Bench(1)
    bench.start("a", 1.0)
    bench.timeline.at(0.5, bench.processor.resize, 0.5)
    assert bench.run() == {"a": 1.5}
