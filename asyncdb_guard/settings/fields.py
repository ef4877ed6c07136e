"""Every setting: its name, type, default and range, what it means, and how to verify that it works.

A new setting is one new field here, and a property in seconds if it is a duration. The environment variable, the fault
for a wrong value and the section in docs/settings.md derive from the field. A description ends with the sentences
"Default: …", where the default is more than the field's own value, and "Verify: …".

It is one module, as it is one table.
"""

import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, cast, get_args, get_origin

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncdb_guard.settings.server_settings import parse_server_settings, write_server_settings

ENV_PREFIX = "LAMBDA_DATABASE_"

SslMode: TypeAlias = Literal["disable", "require", "verify-ca", "verify-full"]
"""libpq's modes, except `allow` and `prefer`, which can fall back to plain text, and connect twice to a server that
refuses."""

OnUnavailable: TypeAlias = Literal["deny", "unchanged", "stale"]
"""What happens to a sign-in while the database is unavailable."""

_UNSET: Any = None
"""None, typed so that a `Secret` field may default to it."""

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


def _revealed_text(value: object) -> object:
    # pydantic strips no white space from a SecretStr. It would decode bytes, but the URL's parameters are read only
    # from a str.
    revealed = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(revealed, bytes | bytearray):
        raise PydanticCustomError("no_text", "must be a string")
    return revealed


if TYPE_CHECKING:

    class Secret:
        """A secret setting as type checkers see it: set as a str or a SecretStr, read as a SecretStr."""

        def __get__(self, instance: object, owner: object = None) -> SecretStr | None: ...
        def __set__(self, instance: object, value: str | SecretStr | None) -> None: ...

else:
    Secret = Annotated[SecretStr, BeforeValidator(_revealed_text)] | None


def _server_settings_text(value: object) -> object:
    """The same text for the same settings: `-c name=value`, or a mapping in Python."""
    settings = parse_server_settings(value) if isinstance(value, str) else None
    if isinstance(value, Mapping):
        given = {str(name): _setting_text(one) for name, one in cast("Mapping[object, object]", value).items()}
        settings = parse_server_settings(write_server_settings(given))
        settings = None if settings is not None and len(settings) < len(given) else settings
    if not settings:
        raise PydanticCustomError("no_server_settings", "must be settings")
    return write_server_settings(settings)


def _setting_text(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


if TYPE_CHECKING:

    class ServerSettings:
        """SERVER_SETTINGS as type checkers see it: set as a mapping or a text, read as a text."""

        def __get__(self, instance: object, owner: object = None) -> str | None: ...
        def __set__(self, instance: object, value: str | Mapping[str, str | int | float | bool] | None) -> None: ...

else:
    ServerSettings = Annotated[str, BeforeValidator(_server_settings_text)] | None


class SettingsFields(BaseSettings):
    """The settings alone. `DatabaseSettings` reads them from the environment and the URL, and checks them together."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        str_min_length=1,
        str_strip_whitespace=True,
        # Built with the first instance, because pydantic then looks for plugins in the environment and on the disk.
        defer_build=True,
    )

    url: Secret = Field(
        default=_UNSET,
        repr=False,
        exclude=True,
        description="Where the database is: `postgresql://user:password@host:port/database?…`. DATABASE_URL is read if"
        " this is not set. The host may be the directory of a Unix socket, as in `?host=/cloudsql/…`. The port defaults"
        " to 5432, and the database to the name of the user. Only the documented parameters are accepted. Default:"
        " none; required unless SECRET_ARN is set. Verify: `datname`, `usename` and `application_name` in"
        " pg_stat_activity.",
    )
    proxy_host: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Connect to this `host`, `host:port` or `[IPv6]:port` instead of the host in the URL. Without a"
        " port, the port in the URL is used. Turns on the proxy profile, unless PROXY_PROFILE is `false`. Verify: the"
        " address that the client connects to.",
    )
    proxy_profile: bool | None = Field(
        default=None,
        description="Connect the way RDS Proxy and PgBouncer in transaction mode require: no statement cache, no reset"
        " query, and no startup parameters that a pooler refuses. Default: `true` with PROXY_HOST, otherwise `false`."
        " Verify: no statement on the wire has a name.",
    )
    pool_max: int = Field(
        default=1,
        ge=1,
        le=100,
        description="The most server sessions that one pool may hold. A fleet holds at most environments × POOL_MAX."
        " Verify: the number of rows in pg_stat_activity.",
    )
    connect_timeout_ms: int = Field(
        default=2000,
        ge=1,
        le=300_000,
        description="Milliseconds for one acquisition: the wait for the pool, the liveness check and the connect"
        " together. Verify: how long `acquire` waits for a server that does not answer.",
    )
    idle_timeout_ms: int = Field(
        default=60_000,
        ge=100,
        le=_DAY_MS,
        description="Milliseconds after its last use until a session is gone from the server. While the process is"
        " frozen, this holds on direct connections to PostgreSQL 14 or later. Verify: pg_stat_activity, and `SHOW"
        " idle_session_timeout` on a direct connection.",
    )
    max_lifetime_ms: int = Field(
        default=1_800_000,
        ge=0,
        le=_DAY_MS,
        description="Milliseconds after which a connection is replaced at its next borrow, ±10 %. 0 means never; any"
        " other value is at least 100. Verify: `backend_start` in pg_stat_activity.",
    )
    command_timeout_ms: int = Field(
        default=3000,
        ge=1,
        le=900_000,
        description="Milliseconds for one statement. Verify: a longer `pg_sleep` raises StatementTimeoutError.",
    )
    server_settings: ServerSettings = Field(
        default=_UNSET,
        repr=False,
        exclude=True,
        description="Settings of each session, as `-c timezone=UTC -c search_path=app,public` (or `--timezone=UTC`; a"
        " backslash before a space keeps it), or a dictionary in Python. They are sent at startup, so the session reset"
        " keeps them. Of a timeout that the pool sets, too, the stricter one counts, and a longer one is refused."
        " Direct connections only: behind a transaction pooler use ALTER ROLE … SET. Verify: `SHOW timezone`.",
    )
    handler_budget_ms: int = Field(
        default=4000,
        ge=1,
        le=5000,
        description="Milliseconds for one trigger, or the Lambda's remaining time minus 200 ms if that is less. Cognito"
        " waits 5 s, including the cold start. Verify: how soon a trigger fails while the database hangs.",
    )
    hold_warning_ms: int = Field(
        default=0,
        ge=0,
        le=_DAY_MS,
        description="Milliseconds for which a block may hold its connection before a warning in the log says where it"
        " borrowed it; 0 turns that off. Verify: the warning, and the event `connection_held`, while a longer block"
        " still runs.",
    )
    slow_statement_ms: int = Field(
        default=0,
        ge=0,
        le=_DAY_MS,
        description="Milliseconds after which a statement is slow: at its end, a warning in the log gives its duration,"
        " the place in the code and its text, cut to 500 characters and without its arguments; 0 turns that off. A"
        " literal in the text is shown, too. Verify: the warning, after a `pg_sleep` that is longer.",
    )
    breaker_fail_max: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Consecutive failures that open the circuit. A connect without any answer opens it at once if the"
        " pool has no other session. Verify: the number of connection attempts that a dead server receives.",
    )
    breaker_reset_timeout_ms: int = Field(
        default=2000,
        ge=1,
        le=_HOUR_MS,
        description="Milliseconds of the first open period. Each failed trial doubles it, and it is twice as long if"
        " the server did not answer or was full. Verify: `retry_after` of CircuitOpenError.",
    )
    breaker_reset_timeout_max_ms: int = Field(
        default=5000,
        ge=1,
        le=_HOUR_MS,
        description="Milliseconds of the longest open period, which is twice as long if the server did not answer or"
        " was full; at least BREAKER_RESET_TIMEOUT_MS. Verify: `retry_after` of CircuitOpenError.",
    )
    fleet_url: Secret = Field(
        default=_UNSET,
        repr=False,
        exclude=True,
        description="Store in which the environments announce the end of an outage to each other:"
        " `redis://user:password@host:port/number`, `rediss://…` for TLS, `valkey://…`, `valkeys://…`, or"
        " `dynamodb://table`. It is asked only after a failure; while it answers, the longest open period of a large"
        " fleet is up to four times as long. Needs the extra `redis` or `aws`. Default: none; each environment finds"
        " out for itself."
        " Verify: the store receives no command while the database is well, and all environments return within"
        " BREAKER_RESET_TIMEOUT_MS of the first.",
    )
    fleet_ssl_root_cert: str | None = Field(
        default=None,
        description="PEM file of certificate authorities to trust for a FLEET_URL of Redis, in addition to the system's"
        " trust store. Needs `rediss://…`. Default: the system's trust store alone. Verify: without it, `asyncdb-guard"
        " doctor` refuses a server with a certificate of your own authority.",
    )
    fleet_ssl_cert: str | None = Field(
        default=None,
        description="PEM file of the client certificate for a FLEET_URL of Redis. Needs `rediss://…`. Default: no"
        " certificate. Verify: a server with `tls-auth-clients yes` accepts the connection.",
    )
    fleet_ssl_key: str | None = Field(
        default=None,
        description="PEM file of the key of FLEET_SSL_CERT, which is not encrypted. Default: the key is in"
        " FLEET_SSL_CERT. Verify: as FLEET_SSL_CERT.",
    )
    session_reset: Literal["always", "never"] | None = Field(
        default=None,
        description="Whether a reset query is sent at each release. Default: `always`; `never` under the proxy"
        " profile. Verify: the query on the wire, or whether the next borrower sees an earlier `SET`.",
    )
    sslmode: SslMode | None = Field(
        default=None,
        description="The TLS mode, as in libpq: `disable`, `require` (encrypted, but the server is not verified),"
        " `verify-ca` or `verify-full`. As in libpq, `require` with a root certificate means `verify-ca`. Default:"
        " `verify-full`; `disable` on a Unix socket, and on loopback without SSL_ROOT_CERT, SSL_CERT and IAM_AUTH."
        " Verify: pg_stat_ssl.",
    )
    ssl_root_cert: str | None = Field(
        default=None,
        description="PEM file of the certificate authorities to trust, such as RDS's global-bundle.pem. `system` means"
        " the system's trust store, and requires `verify-full`. Default: the system's trust store. Verify: a connect"
        " fails if another authority signed the server's certificate.",
    )
    ssl_cert: str | None = Field(
        default=None,
        description="PEM file of the client's certificate, with its chain, for a server that asks for one. Needs"
        " SSL_KEY and TLS. Verify: `client_dn` in pg_stat_ssl.",
    )
    ssl_key: str | None = Field(
        default=None,
        description="PEM file of the private key of SSL_CERT, unencrypted. Verify: `client_dn` in pg_stat_ssl.",
    )
    secret_arn: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Secrets Manager secret that supplies the user and the password, and the host, port and database"
        " that the URL does not name. Needs the extra `aws`. Verify: one GetSecretValue call per new environment, and"
        " one more after a rotation.",
    )
    iam_auth: bool = Field(
        default=False,
        description="Sign an RDS IAM token for each connect, instead of using a password. Needs TLS and the extra"
        " `aws`. Verify: connects still succeed when the first token is older than 15 minutes.",
    )
    iam_host: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="The endpoint of RDS, as `host` or `host:port`, that IAM tokens are signed for. Set it where the"
        " URL or PROXY_HOST names an alias or a tunnel. Needs IAM_AUTH. Default: the host and port that are connected"
        " to; without a port, that port. Verify: a login through the alias succeeds.",
    )
    claims_cache_ttl_ms: int = Field(
        default=60_000,
        ge=0,
        le=_DAY_MS,
        description="Milliseconds that a user's claims are cached; 0 turns the cache off. Verify: the `cache_miss`"
        " events.",
    )
    claims_cache_url: Secret = Field(
        default=_UNSET,
        repr=False,
        exclude=True,
        description="Redis or Valkey server, or cluster, on which the fleet shares cached claims:"
        " `redis://user:password@host:port/number`, or `rediss://…` for TLS (`valkey://…` and `valkeys://…` mean the"
        " same). Everything but the host is optional; parameters are refused. Needs the extra `redis`."
        " Default: none; each environment caches in memory. Verify: a hit for a user whose claims another environment"
        " loaded.",
    )
    claims_cache_ssl_root_cert: str | None = Field(
        default=None,
        description="PEM file of certificate authorities to trust for CLAIMS_CACHE_URL, in addition to the system's"
        " trust store. Needs `rediss://…`. Default: the system's trust store alone. Verify: without it, a connect to a"
        " server with a certificate of your own authority fails.",
    )
    claims_cache_ssl_cert: str | None = Field(
        default=None,
        description="PEM file of the client certificate for CLAIMS_CACHE_URL. Needs `rediss://…`. Default: no"
        " certificate. Verify: a server with `tls-auth-clients yes` accepts the connection.",
    )
    claims_cache_ssl_key: str | None = Field(
        default=None,
        description="PEM file of the key of CLAIMS_CACHE_SSL_CERT, which is not encrypted. Default: the key is in"
        " CLAIMS_CACHE_SSL_CERT. Verify: as CLAIMS_CACHE_SSL_CERT.",
    )
    claims_sql: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Statement that `asyncdb_guard.handlers.load_claims` runs; its row becomes the claims. Verify: the"
        " claims in the tokens.",
    )
    provision_sql: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Statement that `asyncdb_guard.handlers.provision_user` runs. Verify: the row that it writes.",
    )
    machine_claims_sql: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Statement that `asyncdb_guard.handlers.load_claims` runs for a machine's token; its row becomes"
        " the claims. Default: none; a machine's token is left unchanged. Verify: the claims in the token.",
    )
    on_unavailable: OnUnavailable = Field(
        default="deny",
        description="What happens to a sign-in while the database is unavailable: `deny` (it fails), `unchanged` (it"
        " succeeds without claims) or `stale` (it succeeds with the user's last known claims, else it fails). Verify: a"
        " sign-in while the server is stopped.",
    )

    @property
    def connect_timeout(self) -> float:
        """`connect_timeout_ms` in seconds."""
        return self.connect_timeout_ms / 1000

    @property
    def idle_timeout(self) -> float:
        """`idle_timeout_ms` in seconds."""
        return self.idle_timeout_ms / 1000

    @property
    def max_lifetime(self) -> float:
        """`max_lifetime_ms` in seconds; 0 means never."""
        return self.max_lifetime_ms / 1000

    @property
    def command_timeout(self) -> float:
        """`command_timeout_ms` in seconds."""
        return self.command_timeout_ms / 1000

    @property
    def handler_budget(self) -> float:
        """`handler_budget_ms` in seconds."""
        return self.handler_budget_ms / 1000

    @property
    def hold_warning(self) -> float:
        """`hold_warning_ms` in seconds; 0 means off."""
        return self.hold_warning_ms / 1000

    @property
    def slow_statement(self) -> float:
        """`slow_statement_ms` in seconds; 0 means off."""
        return self.slow_statement_ms / 1000

    @property
    def breaker_reset_timeout(self) -> float:
        """`breaker_reset_timeout_ms` in seconds."""
        return self.breaker_reset_timeout_ms / 1000

    @property
    def breaker_reset_timeout_max(self) -> float:
        """`breaker_reset_timeout_max_ms` in seconds."""
        return self.breaker_reset_timeout_max_ms / 1000

    @property
    def claims_cache_ttl(self) -> float:
        """`claims_cache_ttl_ms` in seconds; 0 means off."""
        return self.claims_cache_ttl_ms / 1000


SECRETS = frozenset(name for name, field in SettingsFields.model_fields.items() if field.annotation == Secret)
"""The settings whose whole value is a secret."""


def number_range(setting: str) -> tuple[int, int] | None:
    """The least and the greatest value of a setting that is a number; None for any other setting."""
    limits: list[Any] = SettingsFields.model_fields[setting].metadata
    return (limits[0].ge, limits[1].le) if limits else None


def choices(setting: str) -> tuple[str, ...]:
    """The words that a setting can be; empty where it can be any text or number."""
    annotation: Any = SettingsFields.model_fields[setting].annotation
    is_union = get_origin(annotation) in (Union, types.UnionType)
    for part in get_args(annotation) if is_union else (annotation,):
        if part is bool:
            return "true", "false"
        if get_origin(part) is Literal:
            return get_args(part)
    return ()


def rule(setting: str) -> str:
    """What a setting's value must be, as the end of a sentence."""
    if setting == "server_settings":
        return "settings as in `-c name=value -c name=value`, each name once, or a dictionary in Python"
    if limits := number_range(setting):
        unit = " of milliseconds" if setting.endswith("_ms") else ""
        return f"a whole number{unit} from {limits[0]} to {limits[1]}"
    if words := choices(setting):
        return f"{', '.join(words[:-1])} or {words[-1]}"
    return "a non-empty string"
