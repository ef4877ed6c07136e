"""Generates docs/settings.md from the settings' fields and the URL's parameters.

`python -m tests.support.settings_doc` writes the page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from asyncdb_guard import DatabaseSettings
from asyncdb_guard.settings.fields import ENV_PREFIX, choices, number_range
from asyncdb_guard.settings.url_parameters import URL_PARAMETERS, UrlParameter

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

_INTRODUCTION = f"""# Settings

`DatabaseSettings` takes each setting from a keyword argument (`pool_max=5`), else from the environment
(`{ENV_PREFIX}POOL_MAX=5`), else from a parameter of the database URL, else its default. Settings whose names end in
`_MS` are in milliseconds. Write variables in upper case; an empty or blank one counts as not set. Settings are frozen
once built.

Three variables of the metrics, `POWERTOOLS_METRICS_NAMESPACE`, `POWERTOOLS_SERVICE_NAME` and
`POWERTOOLS_METRICS_DISABLED`, are not among them: see [Metrics and alarms](metrics.md#the-metrics).

## Summary

The names are without their prefix, `{ENV_PREFIX}`. Each leads to its section.

| setting | default | meaning |
|---|---|---|
{{summary}}
## How they are read

`DatabaseSettings()` reads the environment when it is called, and `GuardedPool()` calls it on first use. Do not call it
at the top level of a Lambda module: a wrong setting would then fail every start of the process, not just one request.

**Nothing is silently ignored.** Each of these is a fault: an unknown keyword, an unknown `{ENV_PREFIX}*` variable (even
if it is empty or in lower case), an unknown URL parameter, a value out of range, and a URL parameter that contradicts
its setting. One `ConfigurationError` lists all faults, suggests the nearest known names, and shows no secret. A keyword
that differs from its variable is not a contradiction: the keyword wins.

**Several databases.** `DatabaseSettings.from_env("REPLICA_DATABASE_")` reads the variables with that prefix, as
strictly, and nothing else. `url=` in code while a variable says where the database is or who logs in (PROXY_HOST,
PROXY_PROFILE, SECRET_ARN, IAM_AUTH, SSL_ROOT_CERT) is a fault, as that variable belongs to another database; if it does
not, also pass that keyword.

## The URL

Set `{ENV_PREFIX}URL`, or else `DATABASE_URL`, to `postgresql://user:password@host:port/database?parameter=value`.
Percent-encode each part. The parameters are libpq's and Prisma's, so that one URL serves both Node and Python. Any
other parameter is refused by its name, with what to use instead, and so are several hosts in one URL.

- The URL is read as it was pasted: with the quotes of an env file, as `psql '…'`, with SQLAlchemy's `+driver` or with
  `jdbc:` in front.
- libpq's `host`, `port`, `user`, `password` and `dbname` name a part that is missing before the `?`.
- A Unix socket is a host that starts with `/`: the directory, as in `?host=/cloudsql/project:region:instance`. It has
  no TLS.
- Neon: remove `channel_binding=require`, which asyncpg does not support. Without `sslmode`, the server is verified.
- Heroku's certificates are self-signed: use `sslmode=require`, which encrypts without verifying the server.

| example | sets | must be | meaning |
|---|---|---|---|
"""

_FIRST_CLAUSE = re.compile(r"(.+?)(?=: |, which |, as `|\. |\.?$)")
"""Of a meaning: what fits into one line of the summary."""

_FIELD_DOC = re.compile(r"(?P<meaning>.*?)(?: Default: (?P<default>.*?)\.)? Verify: (?P<verify>.*)")


def page() -> str:
    """The whole page."""
    parameters = "".join(map(_row, URL_PARAMETERS))
    settings = "".join(map(_section, DatabaseSettings.model_fields))
    summary = "".join(map(_line, DatabaseSettings.model_fields))
    return f"{_INTRODUCTION.format(summary=summary)}{parameters}\n## The settings\n{settings}"


def _parts(setting: str) -> tuple[str, str, str]:
    """The meaning, the default, and how to verify it."""
    field = DatabaseSettings.model_fields[setting]
    doc = _FIELD_DOC.fullmatch(field.description or "")
    assert doc is not None, f"the description of {setting} does not end with how to verify it"
    return doc["meaning"], doc["default"] or _default(field.default), doc["verify"].removesuffix(".")


def _line(setting: str) -> str:
    meaning, default, _ = _parts(setting)
    clause = _FIRST_CLAUSE.match(meaning)
    assert clause is not None
    return f"| [{setting.upper()}](#{ENV_PREFIX.lower()}{setting}) | {default} | {clause[0]} |\n"


def _row(parameter: UrlParameter) -> str:
    setting = parameter.feeds.upper() if parameter.feeds_setting else ""
    return f"| `{parameter.name}={parameter.example}` | {setting} | {parameter.rule} | {parameter.doc} |\n"


def _section(setting: str) -> str:
    meaning, default, verify = _parts(setting)
    facts = [f"Default: {default}"]
    if words := choices(setting):
        facts.append(f"Values: {', '.join(f'`{word}`' for word in words)}")
    if limits := number_range(setting):
        facts.append(f"Range: {limits[0]:,} to {limits[1]:,}")
    if parameters := [f"`{parameter.name}`" for parameter in URL_PARAMETERS if parameter.feeds == setting]:
        facts.append(f"In the URL: {' + '.join(parameters)}")
    listed = "".join(f"- {fact}\n" for fact in [*facts, f"Verify: {verify}"])
    return f"\n### {ENV_PREFIX}{setting.upper()}\n\n{meaning}\n\n{listed}"


def _default(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"`{str(value).lower()}`"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
