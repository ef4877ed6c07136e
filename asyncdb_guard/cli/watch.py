"""`asyncdb-guard watch`: a fleet's sessions and circuits, live."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
from collections import deque
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asyncdb_guard.cli.arguments import positive
from asyncdb_guard.cli.outside import HIDDEN, Seen, Sessions, Watcher
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.pooler_profile import DIRECT

NAME: str = "watch"
SUMMARY: str = "a fleet's sessions and circuits, live"
DESCRIPTION: str = (
    "Show what can be seen of a fleet from outside: its sessions on the server of LAMBDA_DATABASE_URL, the limits that"
    " bound them, and what the environments say of their circuits in the store of LAMBDA_DATABASE_FLEET_URL. It uses"
    " one session of its own, and goes on while the database is down. End it with Ctrl-C. With --once, exit code 0: all"
    " is well; 1: the database or the store is unavailable, or a circuit is open."
)

_HISTORY = 60
"""Looks that the curve shows."""
_BAR = 30
"""Characters."""
_BLOCKS = " ▁▂▃▄▅▆▇█"
_REMEDY_HIDDEN = "states are hidden: log in as the fleet's role, or grant pg_monitor"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `watch`."""
    parser.add_argument("--role", metavar="ROLE", help="the fleet's role, where this command logs in as another one")
    parser.add_argument("--application", metavar="NAME", help="only the sessions with this application_name")
    parser.add_argument("--every", type=positive, default=1.0, metavar="S", help="seconds between two looks (1)")
    parser.add_argument("--once", action="store_true", help="look once, and exit with 0 if all is well, else with 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object in a line for each look")


def run(options: argparse.Namespace, console: Console) -> int:
    """Look until Ctrl-C, or once."""
    return asyncio.run(_watch(options, console))


async def _watch(options: argparse.Namespace, console: Console) -> int:
    settings = DatabaseSettings()
    pooler = settings.profile is not DIRECT
    totals: deque[int] = deque(maxlen=_HISTORY)
    async with Watcher(settings, options.role, options.application) as watcher:
        seen = await watcher.look()
        if options.json or options.once or not console.is_terminal:
            while True:
                if options.json:
                    console.print(json.dumps(as_json(seen)), markup=False, soft_wrap=True)
                else:
                    console.print(view(seen, (), pooler=pooler))
                if options.once:
                    return 0 if seen.good else 1
                await asyncio.sleep(options.every)
                seen = await watcher.look()
        with Live(console=console, auto_refresh=False) as live:
            while True:
                totals.append(0 if seen.sessions is None else seen.sessions.total)
                live.update(view(seen, totals, pooler=pooler), refresh=True)
                await asyncio.sleep(options.every)
                seen = await watcher.look()


def as_json(seen: Seen) -> dict[str, Any]:
    """One look, for scripts; what is unknown is null. Ages are in seconds."""
    sessions, news = seen.sessions, seen.news
    return {
        "at": dt.datetime.fromtimestamp(seen.at, dt.UTC).isoformat(timespec="milliseconds"),
        "good": seen.good,
        "database": {"available": sessions is not None, "fault": seen.database_fault},
        "sessions": None
        if sessions is None
        else {
            "total": sessions.total,
            "states": sessions.states,
            "applications": sessions.applications,
            "opened": sessions.opened,
            "closed": sessions.closed,
            "role_limit": sessions.facts.role_limit,
            "others": sessions.facts.others,
            "slots": sessions.facts.slots,
        },
        "store": None
        if not seen.has_store
        else {
            "available": news is not None,
            "fault": seen.store_fault,
            "open_circuits": None if news is None else news.open,
            "last_success_age": None if news is None else news.last,
            "recovery_age": None if news is None or news.recovery is None else news.since,
        },
    }


def view(seen: Seen, totals: Any, *, pooler: bool) -> Group:
    """One look, for people. `totals`: those of the looks before, for the curve."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for label, text in _lines(seen, list(totals), pooler=pooler):
        table.add_row(label, text)
    return Group(table, Text())


def _lines(seen: Seen, totals: list[int], *, pooler: bool) -> list[tuple[str, Text]]:
    at = dt.datetime.fromtimestamp(seen.at, dt.UTC).astimezone()
    lines = [("time", Text(f"{at:%H:%M:%S}"))]
    if seen.sessions is None:
        lines.append(("database", Text(f"unavailable: {seen.database_fault}", style="bold red")))
    else:
        lines.append(("database", Text("up", style="green")))
        lines.extend(_session_lines(seen.sessions, pooler=pooler))
    if totals:
        top = max(*totals, 1)
        curve = "".join(_BLOCKS[-(-total * (len(_BLOCKS) - 1) // top)] for total in totals)
        lines.append(("", Text(curve, style="cyan")))
    lines.append(("circuits", Text(seen.circuit, style="green" if seen.circuit.startswith("closed") else "yellow")))
    if seen.store_fault is not None:
        lines.append(("store", Text(seen.store_fault, style="yellow")))
    elif seen.news is not None and seen.news.last is not None:
        since = f", the first {seen.news.since:.1f} s ago" if seen.news.recovery is not None else ""
        lines.append(("recovery", Text(f"last success {seen.news.last:.1f} s ago{since}")))
    return lines


def _session_lines(sessions: Sessions, *, pooler: bool) -> list[tuple[str, Text]]:
    facts = sessions.facts
    most, bound = facts.ceiling
    filled = round(_BAR * min(sessions.total / max(most, 1), 1.0))
    style = "red" if sessions.total >= most else "cyan"
    bar = Text.assemble(("█" * filled, style), ("░" * (_BAR - filled), "dim"))
    states = ", ".join(f"{count} {state}" for state, count in sessions.states.items() if state != HIDDEN)
    lines = [("sessions", bar.append(f" {sessions.total:,} of {most:,} by {bound}"))]
    if states:
        lines.append(("", Text(states)))
    if HIDDEN in sessions.states:
        lines.append(("", Text(_REMEDY_HIDDEN, style="dim")))
    if sessions.opened or sessions.closed:
        lines.append(("", Text(f"+{sessions.opened:,} opened, -{sessions.closed:,} closed since the last look")))
    names = ", ".join(f"{name or '(no name)'} {count:,}" for name, count in sessions.applications.items())
    if names:
        lines.append(("programs", Text(names)))
    lines.append(("others", Text(f"{facts.others:,}; {facts.slots:,} slots in all")))
    if pooler:
        lines.append(("", Text("behind a pooler, these are its sessions, and not the environments'", style="dim")))
    return lines
