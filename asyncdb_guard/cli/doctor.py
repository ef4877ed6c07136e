"""`asyncdb-guard doctor`: the settings as a handler would read them, and everything that they lead to."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from asyncdb_guard.cli.arguments import add_processes_option, add_server_options, concurrency, server_model
from asyncdb_guard.cli.examination import Plan, examine
from asyncdb_guard.cli.findings import Finding, Grade
from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.fleet.policy import IAM_LOGINS
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.fields import ENV_PREFIX, SettingsFields
from asyncdb_guard.settings.url import parse_database_url

NAME: str = "doctor"
SUMMARY: str = "is everything right between this environment and its database"
DESCRIPTION: str = (
    "Read the settings as a handler would, then go the way to the database step by step and look around there. Exit"
    " code 0: all is good; 1: something is doubtful; 2: something is bad. Nothing is changed."
)

_STYLES = {Grade.GOOD: "green", Grade.DOUBTFUL: "yellow", Grade.BAD: "bold red"}


@dataclass(frozen=True)
class Value:
    """A setting that is not at its default, and who set it."""

    setting: str
    source: str
    shown: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor`."""
    parser.add_argument("--concurrency", type=concurrency, metavar="N", help="environments at most, to judge the fleet")
    add_processes_option(parser)
    add_server_options(parser, required=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(options: argparse.Namespace, console: Console) -> int:
    """Examine and print; return the worst grade."""
    found: list[Finding] = []
    values: list[Value] = []
    try:
        settings = DatabaseSettings()
    except ConfigurationError as error:
        found = [Finding("settings", Grade.BAD, fault) for fault in error.faults]
        settings = None
    if settings is not None:
        values = set_values(settings)
        found = [Finding("settings", Grade.GOOD, f"{len(values)} set, the others at their defaults")]
    if not options.json:
        for value in values:
            _line(console, value.setting, "", f"{value.shown}   ({value.source})")
        for finding in found:
            _told(console, finding)
    if settings is not None:
        asyncio.run(_examine(settings, _plan(options, settings), found, None if options.json else console))
    worst = max(finding.grade for finding in found)
    if options.json:
        console.print(_as_json(values, found, worst), markup=False, soft_wrap=True)
    return int(worst)


def _plan(options: argparse.Namespace, settings: DatabaseSettings) -> Plan:
    capacity = None
    if options.vcpu or options.connects_per_second:
        capacity = server_model(options, iam=settings.iam_auth).capacity
    elif settings.iam_auth:
        capacity = IAM_LOGINS
    return Plan(options.concurrency, options.processes, capacity)


async def _examine(settings: DatabaseSettings, plan: Plan, found: list[Finding], console: Console | None) -> None:
    async for finding in examine(settings, plan):
        found.append(finding)
        if console is not None:
            _told(console, finding)


def set_values(settings: DatabaseSettings) -> list[Value]:
    """What somebody has set, without what must not be shown."""
    url = settings.url.get_secret_value() if settings.url is not None else ""
    in_url = parse_database_url(url)[0].settings
    values: list[Value] = []
    for setting, field in SettingsFields.model_fields.items():
        variable = f"{ENV_PREFIX}{setting.upper()}"
        if setting == "url" and settings.url is not None and not os.environ.get(variable):
            variable = "DATABASE_URL"
        if os.environ.get(variable, "").strip():
            source = variable
        elif setting in in_url:
            source = "the database URL"
        else:
            continue
        values.append(Value(setting, source, str(getattr(settings, setting)) if field.repr else "(not shown)"))
    return values


def _told(console: Console, finding: Finding) -> None:
    _line(console, finding.name, finding.grade.name.lower(), finding.text, _STYLES[finding.grade])


def _line(console: Console, name: str, grade: str, text: str, style: str = "") -> None:
    console.print(Text.assemble((f"{name:<28} ", "bold"), (f"{grade:<9}", style), text), soft_wrap=True)


def _as_json(values: list[Value], found: list[Finding], worst: Grade) -> str:
    return json.dumps(
        {
            "grade": worst.name.lower(),
            "settings": [vars(value) for value in values],
            "findings": [{"name": one.name, "grade": one.grade.name.lower(), "text": one.text} for one in found],
        },
        indent=2,
    )
