"""Events are frozen facts with the documented names, and a listener that raises harms nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging

import pytest

from asyncdb_guard import events
from asyncdb_guard.events import AcquireTimeout, CacheHit, CacheMiss, CircuitOpened, Event, Events

SAMPLES = {
    "cache_hit": CacheHit(),
    "cache_miss": CacheMiss(),
    "connection_opened": events.ConnectionOpened(0.1),
    "connection_replaced": events.ConnectionReplaced("lost"),
    "connection_closed": events.ConnectionClosed("close"),
    "connection_held": events.ConnectionHeld(1.5),
    "growth_paused": events.GrowthPaused(0.2),
    "acquire_timeout": AcquireTimeout(2.0),
    "circuit_opened": CircuitOpened(10.0),
    "circuit_half_opened": events.CircuitHalfOpened(),
    "circuit_closed": events.CircuitClosed(),
    "circuit_rejected": events.CircuitRejected(),
}


def test_these_are_all_events_there_are():
    public = [value for name, value in vars(events).items() if not name.startswith("_")]
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Event)}
    assert {kind.name for kind in kinds - {Event}} == SAMPLES.keys()
    assert {type(event) for event in SAMPLES.values()} == kinds - {Event}


@pytest.mark.parametrize(("name", "event"), SAMPLES.items(), ids=SAMPLES)
def test_an_event_has_its_name_and_is_frozen(name, event):
    assert event.name == name
    assert event == dataclasses.replace(event)
    for field in dataclasses.fields(event):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, field.name, "other")
    for name_of_no_field in ("name", "other"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, name_of_no_field, "other")


@pytest.mark.parametrize("several", [False, True], ids=["one-listener", "several"])
def test_listeners_hear_every_event_in_the_order_in_which_they_were_given(several):
    heard: list[tuple[str, Event]] = []

    def first(event: Event) -> None:
        heard.append(("first", event))

    def second(event: Event) -> None:
        heard.append(("second", event))

    told = Events(iter((first, second))) if several else Events(first)
    if not several:
        told.add(second)
    told.emit(CacheHit())
    told.emit(CacheMiss())
    assert heard == [("first", CacheHit()), ("second", CacheHit()), ("first", CacheMiss()), ("second", CacheMiss())]


def test_nobody_need_listen():
    Events().emit(CacheHit())


def test_a_listener_that_raises_is_logged_without_its_text_and_harms_nobody(caplog):
    heard = []

    def broken(event: Event) -> None:
        raise KeyError("ada@example.com")

    with caplog.at_level(logging.ERROR, logger="asyncdb_guard"):
        Events([broken, heard.append]).emit(CacheMiss())
    assert heard == [CacheMiss()]
    assert [record.getMessage() for record in caplog.records] == ["A listener failed on cache_miss with KeyError."]
    assert "ada@example.com" not in caplog.text


async def waits(event: Event) -> None:
    pass


class Waits:
    async def __call__(self, event: Event) -> None:
        pass


@pytest.mark.parametrize(
    "listener",
    [waits, Waits(), Waits().__call__, functools.partial(waits), None, 5, "log"],
    ids=["async", "object", "method", "partial", "none", "number", "text"],
)
def test_what_could_never_hear_an_event_is_refused_at_once(listener):
    for give in (Events, lambda wrong: Events([print, wrong]), Events().add):
        with pytest.raises(TypeError, match=r"^on_event= takes one function or several, each a plain `def") as caught:
            give(listener)
        assert "log" not in str(caught.value)


def test_an_object_that_can_be_called_and_iterated_is_one_listener():
    class Collector(list):
        def __call__(self, event: Event) -> None:
            self.append(event)

    heard = Collector()
    Events(heard).emit(CacheHit())
    assert heard == [CacheHit()]


def test_an_interrupt_of_the_process_is_not_held_back():
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Events(interrupted).emit(CacheHit())


def test_a_listener_that_looked_at_a_cancelled_future_harms_nothing():
    heard = []

    def look(event):
        raise asyncio.CancelledError

    Events([look, heard.append]).emit(CacheHit())
    assert heard == [CacheHit()]
