"""A bulletin in a DynamoDB table, for functions without a Redis. Needs the extra `aws`."""

from __future__ import annotations

import importlib.util
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic import SecretStr

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.aws.boto import aws_session
from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.news import LAST_LIFE, RECOVERY_LIFE, News, believed
from asyncdb_guard.settings.problems import label

_SETTING = "fleet_url"
_TIMEOUT = 0.5
"""Seconds for a connect, and for one answer."""

_TICK = 1.0
"""Seconds: DynamoDB tells the time by the header `Date` of its answers, which has whole seconds."""

_REMEDY = "check the role's rights to dynamodb:GetItem and dynamodb:UpdateItem on the table"


class DynamoDbStore:
    """A `FleetStore`: one item of one database, whose key attribute is `id`, a string.

    DynamoDB has no time to live that is exact to a second, so the item holds instants, by DynamoDB's own clock: `last`
    and `since`, in milliseconds; `recovery`; `open`, a set of strings such as `1700000000000 witness`, each with the
    instant at which it stops to count.
    """

    def __init__(self, url: SecretStr, database: str) -> None:
        """Does not connect yet. Raises ConfigurationError or ConnectFailedError without a region or a role."""
        from botocore.config import Config

        config = Config(connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT, retries={"total_max_attempts": 1})
        with aws_session("DynamoDB", _REMEDY) as session:
            self._client: Any = session.client("dynamodb", config=config)
        self._item = {"TableName": url.get_secret_value().partition("://")[2], "Key": {"id": {"S": database}}}
        self._asked_at: Instant | None = None
        self._told_then = 0.0
        """DynamoDB's clock at that instant, in seconds."""
        self._last: float | None = None
        """What it then said of the last success, in seconds of its clock."""
        self._witnesses: list[str] = []

    def look(self, at: Instant) -> News:
        """Return what it holds. Raises ValueError for what no environment can have told."""
        answer = self._client.get_item(**self._item, ConsistentRead=True)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        # half a second later on average, as the header is cut off to whole seconds
        now = parsedate_to_datetime(headers["date"]).timestamp() + _TICK / 2
        item: dict[str, dict[str, Any]] = answer.get("Item", {})
        self._asked_at, self._told_then = at, now
        self._last = _instant(item.get("last"))
        since = _instant(item.get("since"))
        recovery = item.get("recovery", {}).get("S")
        words = [str(word).partition(" ") for word in item.get("open", {}).get("SS", ())]
        alive = {witness: until for until, _, witness in words if float(until) / 1000 > now}
        self._witnesses = [f"{until} {witness}" for witness, until in alive.items()]
        last_age, since_age = _age(self._last, now, LAST_LIFE), _age(since, now, RECOVERY_LIFE)
        return believed(at, last_age, recovery, since_age, len(alive))

    def tell_open(self, witness: str, life: float) -> None:
        """Keep for `life` seconds that `witness` has opened its circuit."""
        until = f"{_milliseconds(self._now() + life)} {witness}"
        # what others have added since the last look may be lost, and is added again at their next failure
        words = [until, *(word for word in self._witnesses if not word.endswith(f" {witness}"))]
        self._update("SET #open = :open", {":open": {"SS": words}}, "open")

    def tell_recovered(self, recovery: str) -> None:
        """A trial succeeded. If none did lately, `recovery` begins; nobody's circuit counts as open any more."""
        now = self._now()
        moment = {"N": str(_milliseconds(now))}
        if self._last is not None and now - self._last < LAST_LIFE:
            self._update("SET #last = :now REMOVE #open", {":now": moment}, "last", "open")
        else:
            values = {":now": moment, ":recovery": {"S": recovery}}
            names = ("last", "since", "recovery", "open")
            self._update("SET #last = :now, #since = :now, #recovery = :recovery REMOVE #open", values, *names)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _now(self) -> float:
        """DynamoDB's clock, in seconds."""
        if self._asked_at is None:
            self.look(clock.now())
        assert self._asked_at is not None
        return self._told_then + elapsed(self._asked_at, clock.now())

    def _update(self, expression: str, values: dict[str, Any], *names: str) -> None:
        self._client.update_item(
            **self._item,
            UpdateExpression=expression,
            ExpressionAttributeValues=values,
            ExpressionAttributeNames={f"#{name}": name for name in names},
        )


def require_extra() -> None:
    """Raise ConfigurationError if the extra is missing."""
    if importlib.util.find_spec("boto3") is None:
        raise ConfigurationError(
            f"{label(_SETTING)} needs the extra `aws`. Install it: pip install 'asyncdb-guard[aws]'."
        )


def _instant(attribute: dict[str, Any] | None) -> float | None:
    return None if attribute is None else float(attribute["N"]) / 1000


def _age(moment: float | None, now: float, life: float) -> float | None:
    """Seconds since `moment`; None if that is over. Two readings of DynamoDB's clock differ by up to a second."""
    if moment is None or now - moment > life:
        return None
    return max(now - moment, 0.0) if now - moment >= -2 * _TICK else now - moment


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
