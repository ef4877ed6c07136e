"""Makes docs/settings.md from the knobs themselves: `python -m tests.support.settings_doc` writes it anew."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any

from asyncdb_guard import DatabaseSettings
from asyncdb_guard.settings.fields import ENV_PREFIX

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

_HEAD = f"""# Settings

`DatabaseSettings` takes each knob as a keyword argument (`pool_max=5`), else from the environment
(`{ENV_PREFIX}POOL_MAX=5`), else from a parameter of the database URL, else its default. Names that end in `_MS` are
milliseconds. A variable is written in capitals; an empty or blank one counts as not set. The settings are sealed once
made. The environment is read when `DatabaseSettings()` is made, and `GuardedPool()` makes it on first use: make none at
the top of a Lambda module, where a wrong setting would end each start of the process in place of one request.

**Nothing is silently ignored.** An unknown `{ENV_PREFIX}*` variable (an empty or lower-case one, too), keyword or URL
parameter, a value out of range, and a URL parameter that contradicts its knob are each a fault; one
`ConfigurationError` lists all of them, names the nearest known name, and shows no secret. A keyword that differs from
its variable is no contradiction: it wins.

## The URL

`{ENV_PREFIX}URL`, else `DATABASE_URL`: `postgresql://user:password@host:port/database?parameter=value`, each part
percent-encoded.

| parameter | says | unit |
|---|---|---|
| `sslmode` | SSLMODE | libpq's words |
| `sslrootcert` | SSL_ROOT_CERT | a path |
| `application_name` | the name in pg_stat_activity | |
| `connection_limit` | POOL_MAX | |
| `connect_timeout`, `pool_timeout` | CONNECT_TIMEOUT_MS: their sum, or the one that is there | seconds |
| `pgbouncer` | PROXY_PROFILE | `true` or `false` |
| `schema` | the search path; only `public` under the proxy profile | |

The last five are Prisma's, so that one URL serves Node and Python. Prisma's 0, which means no limit, is refused. Any
other parameter is refused, too, as are several hosts in one URL.

## The knobs
"""

_UNSAID = {
    "url": "required, unless SECRET_ARN is set",
    "proxy_profile": "default off, but on with PROXY_HOST or `pgbouncer=true` in the URL",
    "session_reset": "default `always`, but `never` under the proxy profile",
    "sslmode": "default `verify-full`, but `disable` on loopback with no SSL_ROOT_CERT and no IAM_AUTH",
    "ssl_root_cert": "default the system's trust store",
    "claims_cache_url": "default in memory",
}
"""What None means, where that is not simply nothing."""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_section(name) for name in DatabaseSettings.model_fields)


def _section(name: str) -> str:
    field = DatabaseSettings.model_fields[name]
    limits = {type(limit).__name__.lower(): limit for limit in field.metadata}
    facts = [_UNSAID.get(name) or f"default {_default(field.default)}"]
    if choices := _choices(field.annotation):
        facts.insert(0, " or ".join(f"`{choice}`" for choice in choices))
    if "ge" in limits and "le" in limits:
        facts.append(f"{limits['ge'].ge:,} to {limits['le'].le:,}")
    text = re.sub(r" (Seen (?:in|on) .*)", r"\n\n*\1*", str(field.description))
    return f"\n### {ENV_PREFIX}{name.upper()}\n\n{'; '.join(facts)}\n\n{text}\n"


def _default(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"`{str(value).lower()}`"


def _choices(annotation: Any) -> tuple[str, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((found for part in typing.get_args(annotation) if (found := _choices(part))), ())
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
