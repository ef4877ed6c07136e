"""Everything that can be wrong with the settings, and the sentence for each fault. Pure; no sentence shows a value."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TypeAlias

from pydantic import SecretStr
from pydantic_core import ErrorDetails

from asyncdb_guard.settings.fields import ENV_PREFIX, SettingsFields, rule
from asyncdb_guard.settings.pooler_profile import PoolerProfile
from asyncdb_guard.settings.server_settings import BOUNDS, RESERVED, milliseconds, parse_server_settings
from asyncdb_guard.settings.target import ConnectTarget, is_socket
from asyncdb_guard.settings.url import DatabaseUrl, nearest, parse_endpoint
from asyncdb_guard.settings.url_parameters import URL_PARAMETERS

Conflict: TypeAlias = tuple[frozenset[str], str]
"""The settings involved, and the sentence."""

VARIABLE = "$"
"""Precedes an unknown name that is an environment variable, not a keyword."""

_REMEDIES = {
    "sslmode": " allow and prefer are refused, because they can fall back to plain text unnoticed and connect twice."
    " Use require or verify-full for TLS, disable for none.",
}
"""What to add to the rule of a setting, where the rule alone does not say what to do."""


def label(setting: str) -> str:
    """A setting's name, both for those who write Python and for those who set variables."""
    if setting == "url":
        return f"url ({ENV_PREFIX}URL, else DATABASE_URL)"
    return f"{setting} ({ENV_PREFIX}{setting.upper()})"


def invalid_value(error: ErrorDetails, from_url: bool) -> str:
    """The sentence for a keyword, variable or value that pydantic refused."""
    setting = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return _unknown(setting)
    if not from_url:
        return f"{label(setting)} must be {rule(setting)}.{_REMEDIES.get(setting, '')}"
    rule_in_url = next(parameter.rule for parameter in URL_PARAMETERS if parameter.feeds == setting)
    return f"{_url_label(setting)} must be {rule_in_url}.{_REMEDIES.get(setting, '')}"


def _url_label(setting: str) -> str:
    names = " + ".join(parameter.name for parameter in URL_PARAMETERS if parameter.feeds == setting)
    unit = " (seconds)" if setting.endswith("_ms") else ""
    return f"{names}{unit} in the database URL"


def _unknown(name: str) -> str:
    from asyncdb_guard.settings import foreign_names  # only for faults, so not at a cold start

    bare = name.removeprefix(VARIABLE)
    is_variable = bare != name
    short = bare.lower().removeprefix(ENV_PREFIX.lower())
    if not is_variable and short != bare.lower() and short in SettingsFields.model_fields:
        return f"{bare} is the name of an environment variable: use the keyword {short}."
    if short in foreign_names.PARTS_OF_THE_URL:
        return (
            f"{bare} is not a setting: the host, the port, the user, the password and the database are parts of"
            f" {label('url')}, as in postgresql://user:password@host:port/database."
        )
    if short in foreign_names.SETTING_REMEDIES:
        return f"{bare} is not a setting: {foreign_names.SETTING_REMEDIES[short]}."
    if short in foreign_names.RENAMED:
        setting = foreign_names.RENAMED[short]
        unit = " (milliseconds)" if setting.endswith("_ms") else ""
        return f"{bare} is not a setting: use {_spelt(setting, is_variable)}{unit}."
    if (found := nearest(short, list(SettingsFields.model_fields))) is not None:
        return f"{bare} is not a setting; the nearest is {_spelt(found, is_variable)}. Correct it, or remove it."
    return f"{bare} is not a setting, and no setting has a similar name: remove it."


def _spelt(setting: str, is_variable: bool) -> str:
    return f"{ENV_PREFIX}{setting.upper()}" if is_variable else setting


def contradiction(setting: str) -> str:
    """The sentence for a setting that a keyword or a variable sets to one value, and the URL to another."""
    return f"{_url_label(setting)} contradicts {label(setting)}: remove one of them, or make them equal."


def url_mixed_with(setting: str) -> str:
    """The sentence for a variable that says where another database is than the keyword `url`."""
    return (
        f"url is given in code, and {ENV_PREFIX}{setting.upper()} in the environment would apply to it. For one"
        f" database, also pass {setting}= in code, or set {ENV_PREFIX}URL. For another database, use"
        ' DatabaseSettings.from_env("OTHER_DATABASE_").'
    )


def reserved_keyword(keyword: str) -> str:
    """The sentence for a keyword that pydantic would take as an option of its own."""
    return f"{keyword} is not a setting: remove it. Settings come from keywords, the environment and the URL only."


def conflicts(
    settings: SettingsFields, url: DatabaseUrl, target: ConnectTarget, profile: PoolerProfile, from_url: Container[str]
) -> Iterator[Conflict]:
    """The faults between settings that are each valid. `from_url` names the settings that only the URL sets."""
    yield from _address(settings, url)
    yield from _credentials(settings, url)
    yield from _tls(settings, url, target)
    yield from _pooler(settings, url, target, profile, from_url)
    yield from _server_settings(settings, url, profile)
    yield from _durations(settings)
    yield from _claims_cache(settings)
    yield from _fleet(settings)


def _conflict(sentence: str, *settings: str) -> Conflict:
    return frozenset(settings), sentence.format(*map(label, settings))


def _address(settings: SettingsFields, url: DatabaseUrl) -> Iterator[Conflict]:
    if settings.secret_arn is not None:
        return
    if settings.url is None:
        yield _conflict(
            f"No database URL: set {ENV_PREFIX}URL or DATABASE_URL to postgresql://user:password@host:port/database.",
            "url",
            "secret_arn",
        )
        return
    if url.host is None and settings.proxy_host is None:
        yield _conflict(
            "The database URL names no host: write it after the `@` or, for the directory of a Unix socket, as in"
            " ?host=/cloudsql/project:region:instance.",
            "secret_arn",
            "proxy_host",
        )
    if url.user is None:
        yield _conflict("The database URL names no user: write it before the host, as in user@host.", "secret_arn")


def _credentials(settings: SettingsFields, url: DatabaseUrl) -> Iterator[Conflict]:
    if settings.secret_arn is not None and (url.user or url.password):
        yield _conflict(
            "{} supplies user and password, and so does the database URL: remove them from the URL.", "secret_arn"
        )
    if settings.secret_arn is not None and settings.iam_auth:
        yield _conflict("{} and {} exclude each other: set only one.", "secret_arn", "iam_auth")
    if settings.iam_host is not None and not settings.iam_auth:
        yield _conflict("{} needs {} to be true.", "iam_host", "iam_auth")
    if settings.iam_host is not None and not (parse_endpoint(settings.iam_host) or ("",))[0]:
        yield _conflict("{} must be host or host:port, with a port from 1 to 65535.", "iam_host")
    if settings.iam_auth and url.password:
        yield _conflict("{} uses a token instead of a password: remove the password from the database URL.", "iam_auth")


def _tls(settings: SettingsFields, url: DatabaseUrl, target: ConnectTarget) -> Iterator[Conflict]:
    if is_socket(target.host):
        for setting in ("sslmode", "ssl_root_cert", "ssl_cert", "iam_auth"):
            if getattr(settings, setting) not in {None, False, "disable"}:
                yield _conflict("{} needs TLS, which a Unix socket does not have: remove it, or name a host.", setting)
        return
    yield from _client_certificate(settings, target)
    if url.verifies is True and target.sslmode in {"disable", "verify-ca"}:
        yield _conflict("sslaccept=strict in the database URL needs {} to be require or verify-full.", "sslmode")
    elif url.verifies is False and target.sslmode in {"verify-ca", "verify-full"}:
        yield _conflict(
            "sslaccept=accept_invalid_certs in the database URL contradicts {}, which verifies the server: remove it"
            " or, to accept any certificate, set sslmode=require.",
            "sslmode",
        )
    if target.sslmode == "disable" and settings.iam_auth:
        yield _conflict("{} needs TLS: set {} to verify-full.", "iam_auth", "sslmode")
    if target.sslmode == "disable" and settings.ssl_root_cert is not None:
        yield _conflict(
            "{} is set, but {} is disable: use verify-full, or remove the root certificate.", "ssl_root_cert", "sslmode"
        )
    elif target.sslmode != "verify-full" and settings.ssl_root_cert == "system":
        yield _conflict(
            "{} is system, which needs {} to be verify-full: anyone can get a certificate that the system trusts.",
            "ssl_root_cert",
            "sslmode",
        )


def _client_certificate(settings: SettingsFields, target: ConnectTarget) -> Iterator[Conflict]:
    if settings.ssl_cert is not None and settings.ssl_key is None:
        yield _conflict(
            "{} is the client's certificate and needs {}, its private key. In a URL of Prisma's, sslcert names the CA:"
            " use sslrootcert for that.",
            "ssl_cert",
            "ssl_key",
        )
    elif settings.ssl_key is not None and settings.ssl_cert is None:
        yield _conflict("{} is set without {}: set both, or none.", "ssl_key", "ssl_cert")
    elif settings.ssl_cert is not None and target.sslmode == "disable":
        yield _conflict(
            "{} is set, but {} is disable: use verify-full, or remove the client's certificate.", "ssl_cert", "sslmode"
        )


def _pooler(
    settings: SettingsFields,
    url: DatabaseUrl,
    target: ConnectTarget,
    profile: PoolerProfile,
    from_url: Container[str],
) -> Iterator[Conflict]:
    if settings.proxy_host is not None and not (parse_endpoint(settings.proxy_host) or ("",))[0]:
        yield _conflict("{} must be host, host:port or [IPv6]:port, with a port from 1 to 65535.", "proxy_host")
    if settings.proxy_host is not None and settings.proxy_profile is False and "proxy_profile" in from_url:
        yield _conflict(
            "pgbouncer=false in the database URL contradicts {}: remove it from the URL or, to turn the proxy profile"
            " off, also set {} to false.",
            "proxy_host",
            "proxy_profile",
        )
    if not profile.sets_search_path and url.schema not in {None, "public"}:
        yield _conflict(
            "schema in the database URL can only be public under the proxy profile ({} or {}), because a pooler refuses"
            " search_path: qualify the names in your SQL, or use ALTER ROLE … SET search_path.",
            "proxy_profile",
            "proxy_host",
        )
    if not profile.tells_node and target.target_session_attrs != "any":
        yield _conflict(
            "target_session_attrs in the database URL can only be any under the proxy profile ({} or {}), because the"
            " pooler chooses the node: remove it, and connect to the pooler's endpoint for that kind of node.",
            "proxy_profile",
            "proxy_host",
        )


def _server_settings(settings: SettingsFields, url: DatabaseUrl, profile: PoolerProfile) -> Iterator[Conflict]:
    own = parse_server_settings(settings.server_settings or "") or {}
    if not profile.sends_startup_timeouts and own.keys() - {"application_name"}:
        yield _conflict(
            "{} cannot be sent under the proxy profile ({} or {}): remove it, and use ALTER ROLE … SET.",
            "server_settings",
            "proxy_profile",
            "proxy_host",
        )
    for name in sorted(own.keys() & RESERVED):
        yield _conflict(f"{{}} names {name}, which is set already: remove it there.", "server_settings")
    for name, in_url in (("application_name", url.application_name), ("search_path", url.schema)):
        if name in own and in_url not in {None, own[name]}:
            parameter = "schema" if name == "search_path" else name
            yield _conflict(
                f"{{}} names {name}, and so does {parameter} in the database URL: keep one of them.", "server_settings"
            )
    for name, setting in BOUNDS.items():
        if name in own and not 0 < milliseconds(own[name]) <= getattr(settings, setting):
            yield _conflict(
                f"{name} in {{}} is no time, or longer than {{}}: lower it, or raise the latter.",
                "server_settings",
                setting,
            )


def _durations(settings: SettingsFields) -> Iterator[Conflict]:
    if 0 < settings.max_lifetime_ms < 100:
        yield _conflict("{} must be 0 (never), or at least 100 milliseconds.", "max_lifetime_ms")
    if settings.breaker_reset_timeout_max_ms < settings.breaker_reset_timeout_ms:
        yield _conflict(
            "{} is less than {}: raise the first, or lower the second.",
            "breaker_reset_timeout_max_ms",
            "breaker_reset_timeout_ms",
        )


def _claims_cache(settings: SettingsFields) -> Iterator[Conflict]:
    yield from _files_of_store(settings, "claims_cache")
    if settings.claims_cache_url is None:
        return
    from asyncdb_guard.settings.redis_url import redis_url_faults  # only where needed, for a quick cold start

    for fault in redis_url_faults(settings.claims_cache_url.get_secret_value()):
        yield _conflict(f"{{}} {fault}", "claims_cache_url")
    if settings.claims_cache_ttl_ms == 0:
        yield _conflict(
            "{} is 0, which turns the claims cache off, but {} is set: remove one of them.",
            "claims_cache_ttl_ms",
            "claims_cache_url",
        )


def _fleet(settings: SettingsFields) -> Iterator[Conflict]:
    yield from _files_of_store(settings, "fleet")
    if settings.fleet_url is None:
        return
    from asyncdb_guard.settings.redis_url import fleet_url_faults

    for fault in fleet_url_faults(settings.fleet_url.get_secret_value()):
        yield _conflict(f"{{}} {fault}", "fleet_url")


def _files_of_store(settings: SettingsFields, store: str) -> Iterator[Conflict]:
    """The files for TLS with the Redis of `claims_cache` or `fleet`."""
    url_setting, cert, key = f"{store}_url", f"{store}_ssl_cert", f"{store}_ssl_key"
    files = [name for name in (f"{store}_ssl_root_cert", cert, key) if getattr(settings, name) is not None]
    if not files:
        return
    if key in files and cert not in files:
        yield _conflict("{} is set, but {} is not: set the certificate too, or remove the key.", key, cert)
    secret: SecretStr | None = getattr(settings, url_setting)
    if secret is None:
        for name in files:
            yield _conflict("{} is set, but {} is not: set the URL, or remove the file.", name, url_setting)
        return
    from asyncdb_guard.settings.redis_url import is_redis, uses_tls

    url = secret.get_secret_value()
    if is_redis(url) and not uses_tls(url):
        sentence = "{} is set, but {} does not use TLS: start it with rediss://, or remove the file."
    elif url.startswith("dynamodb:"):
        sentence = "{} is set, but {} names a DynamoDB table, which needs no file: remove the file."
    else:
        return
    for name in files:
        yield _conflict(sentence, name, url_setting)
