"""What `doctor` says of what it has seen. Pure."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from asyncdb_guard.fleet import Misfit, OpenPeriods, logins_per_second, open_periods
from asyncdb_guard.fleet.budget import Budget, Demand, ServerFacts
from asyncdb_guard.settings.fields import ENV_PREFIX
from asyncdb_guard.settings.problems import label


class Grade(enum.IntEnum):
    """How a finding is; the worst one is the exit code."""

    GOOD = 0
    DOUBTFUL = 1
    BAD = 2


@dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    name: str
    grade: Grade
    text: str
    """What was seen, and what to do about it."""


class PoolerKind(enum.Enum):
    """What stands between the client and its backend."""

    NONE = "none"
    SESSION = "session"
    """Something that keeps one backend for each client."""
    TRANSACTION = "transaction"
    """The backend changes between transactions."""


_OLDEST_WITH_TIMEOUTS = 14
_OLDEST_SUPPORTED = 12
_CERTIFICATE_SOON = 30.0
"""Days."""


def version(major: int) -> Finding:
    """`major`: of the server's version."""
    if major >= _OLDEST_WITH_TIMEOUTS:
        return Finding("version", Grade.GOOD, f"PostgreSQL {major}")
    return Finding(
        "version",
        Grade.DOUBTFUL if major >= _OLDEST_SUPPORTED else Grade.BAD,
        f"PostgreSQL {major} is too old: it has no idle_session_timeout, so it keeps the sessions of frozen and killed"
        " environments. Upgrade to 14 or later.",
    )


def certificate(issuer: str, days: float) -> Finding:
    """A server's certificate that was verified, with the days until it expires."""
    if days < _CERTIFICATE_SOON:
        text = f"verified, signed by {issuer}, but it expires in {days:.0f} days: renew it on the server"
        return Finding("tls", Grade.DOUBTFUL, text)
    return Finding("tls", Grade.GOOD, f"verified, signed by {issuer}, valid for {days:.0f} more days")


def pooler(kind: PoolerKind, *, profile: bool) -> Finding:
    """`profile`: whether the settings turn the proxy profile on."""
    remedy = f"Set {label('proxy_profile')} to true, or pgbouncer=true in the database URL."
    if kind is PoolerKind.NONE:
        if profile:
            text = (
                "direct, but the proxy profile is on, which costs a round trip and the server's timeouts. Remove"
                f" {label('proxy_profile')} unless a pooler will stand there."
            )
            return Finding("pooler", Grade.DOUBTFUL, text)
        return Finding("pooler", Grade.GOOD, "direct: the backend is the one that answered the login")
    if profile:
        return Finding("pooler", Grade.GOOD, f"a pooler in {kind.value} mode, and the proxy profile is on")
    if kind is PoolerKind.TRANSACTION:
        text = f"a pooler in transaction mode, which the settings do not mention: the backend changed. {remedy}"
        return Finding("pooler", Grade.BAD, text)
    text = (
        "a pooler in session mode, which the settings do not mention: each environment keeps one of its connections"
        f" until it disconnects. Use its transaction mode. {remedy}"
    )
    return Finding("pooler", Grade.BAD, text)


def node(*, standby: bool, read_only: bool) -> Finding:
    """Whether the server takes writes."""
    if standby:
        text = (
            "a standby, which refuses writes. Connect to the writer's endpoint, or set target_session_attrs=read-write"
            " in the database URL."
        )
        return Finding("writes", Grade.BAD, text)
    if read_only:
        text = (
            "read-only: default_transaction_read_only is on for this server, database or role. Turn it off, or connect"
            " to the writer."
        )
        return Finding("writes", Grade.BAD, text)
    return Finding("writes", Grade.GOOD, "the server takes writes")


def role(facts: ServerFacts) -> Finding:
    """Whether the server bounds the fleet."""
    if facts.role_is_superuser:
        text = "a superuser, whom no limit binds. Log in as an ordinary role."
        return Finding("role", Grade.DOUBTFUL, text)
    if facts.role_limit is None:
        text = (
            "no CONNECTION LIMIT, so that this fleet may use up the server. `asyncdb-guard budget` prints the statement"
            " that sets one."
        )
        return Finding("role", Grade.DOUBTFUL, text)
    return Finding("role", Grade.GOOD, f"CONNECTION LIMIT {facts.role_limit:,}")


def fits(budget: Budget) -> Finding:
    """Whether every environment gets its sessions."""
    told = f"{budget.demand.sessions:,} + {budget.others:,} others of {budget.facts.slots:,}"
    if not budget.fits:
        remedy = "Use fewer environments, a larger server, or a pooler."
        return Finding("fits", Grade.BAD, f"{told}: {budget.refused_share:.0%} never get a session. {remedy}")
    if budget.obstacles:
        return Finding("fits", Grade.DOUBTFUL, f"{told}. {' '.join(budget.obstacles)}")
    return Finding("fits", Grade.GOOD, told)


def periods(yours: OpenPeriods, demand: Demand, source: str, capacity: float | None) -> Finding:
    """Whether the breaker's open periods fit the fleet. `source` of the demand; `capacity` in logins a second.

    Without a `capacity`, they are good if a server with one vCPU suffices.
    """
    pools, least = demand.pools, logins_per_second(1)
    needed = yours.capacity_needed(pools)
    told = f"{yours.first * 1000:.0f} and {yours.longest * 1000:.0f} ms, for {pools:,} pools ({source})"
    if capacity is None and needed > least:
        text = (
            f"{told}, suit a server that takes {needed:,.0f} logins a second ({math.ceil(needed / least)} vCPUs), and"
            " are too short for a smaller one. Tell the server's size with --vcpu or --connects-per-second."
        )
        return Finding("breaker", Grade.DOUBTFUL, text)
    size = "any server" if capacity is None else f"{capacity:,.0f} logins a second"
    misfit = yours.misfit(pools, capacity or least)
    if misfit is None:
        return Finding("breaker", Grade.GOOD, f"{told} and {size}: all are back within seconds of an outage's end")
    fitted = open_periods(pools, capacity or least)
    effect = (
        "after an outage the fleet asks for more logins than the server takes"
        if misfit is Misfit.SHORT
        else f"after an outage the last environments return {yours.longest - fitted.longest:.0f} s late"
    )
    text = (
        f"{told} and {size}, are {misfit.value}: {effect}. Set {ENV_PREFIX}BREAKER_RESET_TIMEOUT_MS={fitted.first_ms}"
        f" and {ENV_PREFIX}BREAKER_RESET_TIMEOUT_MAX_MS={fitted.longest_ms}."
    )
    return Finding("breaker", Grade.DOUBTFUL, text)


def periods_behind_pooler() -> Finding:
    """Nothing is known of the fleet, or of the pooler."""
    text = (
        "nobody can tell whether the open periods fit: a pooler tells neither how many clients it has nor how many"
        " logins it takes. Give --concurrency and --connects-per-second."
    )
    return Finding("breaker", Grade.DOUBTFUL, text)


def timeouts(wanted: dict[str, str], in_force: dict[str, str | None]) -> Finding:
    """Our startup parameters in milliseconds, and what the server says of each."""
    lost = [name for name in wanted if in_force[name] in (None, "0")]
    if lost:
        text = (
            f"{', '.join(lost)} did not take effect, so the server may keep sessions of frozen or killed environments."
            " Set them for the role: ALTER ROLE … SET."
        )
        return Finding("timeouts", Grade.DOUBTFUL, text)
    return Finding("timeouts", Grade.GOOD, ", ".join(f"{name} {in_force[name]} ms" for name in wanted))
