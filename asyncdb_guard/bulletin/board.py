"""The bulletin of one pool: asked in a bounded time, told in the background, and out of the way when it is sick."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from uuid import uuid4

from asyncdb_guard import clock
from asyncdb_guard.bulletin.protocol import FleetStore
from asyncdb_guard.clock import LONG_AGO, Instant, elapsed
from asyncdb_guard.connect.aws.boto import off_loop
from asyncdb_guard.errors import GuardError
from asyncdb_guard.events import logger
from asyncdb_guard.news import News
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.problems import label


class Bulletin:
    """Asks and tells the fleet's store; lives as long as its pool, across event loops and forks.

    The store runs in threads, so a slow one delays nobody for longer than LOOK_TIMEOUT. After an error, or two answers
    in a row that came later than that, it is left alone for a period that doubles with each further one, and everybody
    goes without news. One late answer says little: the process may have waited for its CPU.
    """

    LOOK_TIMEOUT = 0.05
    """Seconds that a caller waits for news."""
    FRESH = 0.1
    """Seconds for which news are not asked for again."""
    FIRST_BACKOFF, MAX_BACKOFF = 1.0, 30.0
    """Seconds without a call after an error."""
    WARN_EVERY = 60.0
    """Seconds between two warnings."""

    def __init__(self, open_store: Callable[[], FleetStore], witness_life: float) -> None:
        """`open_store` makes the store, in a thread, and again in a fork. `witness_life`: seconds an `open` is kept."""
        self._open_store = open_store
        self._witness_life = witness_life
        self._begin()
        self._backoff = 0.0
        self._failed_at = LONG_AGO
        self._warned_at = LONG_AGO

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._opening = threading.Lock()
        self._store: FleetStore | None = None
        self._witness: str | None = None
        """This environment's name, drawn when it is first needed: not before a SnapStart snapshot."""
        self._news: News | None = None
        self._look: Future[News] | None = None
        self._looking_since = LONG_AGO
        self._tales: set[Future[None]] = set()
        self._looked = False
        """Whether the store has answered a look; the first one may have to import its client and to connect."""
        self._late = False
        """Whether its last answer came later than LOOK_TIMEOUT."""

    @property
    def telling(self) -> bool:
        """Whether the store is still being told something."""
        return any(not tale.done() for tale in tuple(self._tales))

    async def look(self, timeout: float) -> News | None:
        """Return the fleet's news, or None if the store does not answer within LOOK_TIMEOUT and `timeout` seconds."""
        now = clock.now()
        if self._is_sick(now):
            return None
        if self._news is not None and elapsed(self._news.at, now) < self.FRESH:
            return self._news
        if self._look is None or self._look.done():
            self._looking_since = now
            self._look = off_loop(lambda: self._ask(now))
        elif elapsed(self._looking_since, now) >= self.LOOK_TIMEOUT:
            return None
        try:
            async with asyncio.timeout(min(self.LOOK_TIMEOUT, timeout)):
                return await asyncio.wrap_future(self._look)
        except Exception:  # told of by whoever met it
            return None

    async def probe(self) -> News:
        """Look without a bound but the store's own, and raise what it raises: for whoever wants to know why."""
        return await asyncio.wrap_future(off_loop(lambda: self._opened().look(clock.now())))

    def tell_open(self) -> None:
        """Tell the fleet, in the background, that this circuit has opened, unless enough others have."""
        if not (self._news is not None and self._news.speaks_for_open()):
            self._tell(lambda store: store.tell_open(self._name(), self._witness_life))

    def _name(self) -> str:
        self._witness = self._witness or uuid4().hex
        return self._witness

    def tell_recovered(self) -> None:
        """Tell the fleet, in the background, that a trial has succeeded, unless somebody has just told it."""
        if not (self._news is not None and self._news.speaks_for_recovery(clock.now())):
            self._tell(lambda store: store.tell_recovered(uuid4().hex))

    async def settle(self, timeout: float) -> None:
        """Wait until nothing is being told any more, for at most `timeout` seconds."""
        tales = [asyncio.wrap_future(tale) for tale in tuple(self._tales) if not tale.done()]
        if tales:
            await asyncio.wait(tales, timeout=timeout)

    def close(self) -> None:
        """Close the store's connections; the next use opens new ones."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _is_sick(self, now: Instant) -> bool:
        if self._pid != os.getpid():  # a forked child has none of its parent's threads, and must not use its sockets
            self._begin()
        return bool(self._backoff) and elapsed(self._failed_at, now) < self._backoff

    def _ask(self, at: Instant) -> News:
        """In a thread."""
        try:
            news = self._opened().look(at)
            was_late, self._late = self._late, self._looked and elapsed(at, clock.now()) > self.LOOK_TIMEOUT
            self._looked = True
            if was_late and self._late:
                raise TimeoutError
        except Exception as error:
            self._fell_sick(error)
            raise
        if not self._late:
            self._backoff = 0.0
        self._news = news
        return news

    def _tell(self, tell: Callable[[FleetStore], None]) -> None:
        if self._is_sick(clock.now()):
            return
        self._news = None  # what it said before is no longer so
        tale = off_loop(lambda: self._tell_it(tell))
        self._tales.add(tale)
        tale.add_done_callback(self._tales.discard)

    def _tell_it(self, tell: Callable[[FleetStore], None]) -> None:
        """In a thread."""
        try:
            tell(self._opened())
        except Exception as error:
            self._fell_sick(error)

    def _opened(self) -> FleetStore:
        with self._opening:  # who asks and who tells may come at the same moment
            if self._store is None:
                self._store = self._open_store()
            return self._store

    def _fell_sick(self, error: Exception) -> None:
        now = clock.now()
        self._backoff = min(self._backoff * 2 or self.FIRST_BACKOFF, self.MAX_BACKOFF)
        self._failed_at = now
        self._news = None
        if elapsed(self._warned_at, now) >= self.WARN_EVERY:
            self._warned_at = now
            logger.warning(
                "%s Each environment goes by its own circuit breaker until the store answers.", fault_of(error)
            )


def fault_of(error: Exception) -> str:
    """What an error of a store means, with the remedy."""
    if isinstance(error, GuardError):
        return str(error)
    # Only the type: a client's text may contain the store's address.
    return f"The fleet store failed with {type(error).__name__}. Check {label('fleet_url')}."


def database_key(settings: DatabaseSettings) -> str:
    """Names a database in the store: a hash, which shows neither its address nor its name."""
    target = settings.target
    parts = (target.host, target.port, target.database, settings.secret_arn)
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]
