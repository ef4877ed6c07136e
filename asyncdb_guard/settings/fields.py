"""Every knob: its name, type, default and range, its meaning, and where to see that it works."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "LAMBDA_DATABASE_"

SslMode: TypeAlias = Literal["disable", "require", "verify-ca", "verify-full"]
"""libpq's words, less `allow` and `prefer`: these can fall to plain text unseen, and dial a refusing server twice."""

_NOTHING: Any = None
"""None, as a default that type checkers let stand for a `Secret`."""

_HOUR = 3_600_000
_DAY = 24 * _HOUR


def _bare_text(value: object) -> object:
    # Bare, as pydantic strips no SecretStr. It would decode bytes, but a URL's parameters are read from a text alone.
    bare = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(bare, bytes | bytearray):
        raise PydanticCustomError("no_text", "must be a text")
    return bare


if TYPE_CHECKING:

    class Secret:
        """Given as a text or a SecretStr, read as a SecretStr: what a type checker makes of the secret knobs."""

        def __get__(self, instance: object, owner: object = None) -> SecretStr | None: ...
        def __set__(self, instance: object, value: str | SecretStr | None) -> None: ...

else:
    Secret = Annotated[SecretStr, BeforeValidator(_bare_text)] | None


class SettingsFields(BaseSettings):
    """The knobs alone. `DatabaseSettings` puts them together with the environment and the URL."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        str_min_length=1,
        str_strip_whitespace=True,
        # With the first instance, as pydantic then looks for plugins: in the environment, and on the disk.
        defer_build=True,
    )

    url: Secret = Field(
        default=_NOTHING,
        repr=False,
        exclude=True,
        description="Where the database is: `postgresql://user:password@host:port/database?…`, else DATABASE_URL. Port"
        " 5432 and a database named like the user, unless it says otherwise. Its parameters sslmode, sslrootcert,"
        " application_name, connect_timeout, connection_limit, pool_timeout, pgbouncer and schema are honoured, any"
        " other is refused. Seen in `datname`, `usename` and `application_name` of pg_stat_activity.",
    )
    proxy_host: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Connect to this `host`, `host:port` or `[IPv6]:port` in place of the URL's host; without a port"
        " of its own it keeps the URL's. Turns on the proxy profile. Seen in the address that is dialled.",
    )
    proxy_profile: bool | None = Field(
        default=None,
        description="Speak as RDS Proxy and PgBouncer in transaction mode need it: no statement cache, no reset query,"
        " no startup options. Unsaid, it is on with PROXY_HOST or `pgbouncer=true` in the URL. Seen on the wire: no"
        " named statement.",
    )
    pool_max: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Server sessions that one pool may hold, at most; a fleet holds environments × this."
        " `connection_limit` in the URL says the same. Seen in the rows of pg_stat_activity.",
    )
    connect_timeout_ms: int = Field(
        default=2000,
        ge=1,
        le=300_000,
        description="Milliseconds for one acquisition: the wait for the pool, the liveness check and the connect"
        " together. `connect_timeout` + `pool_timeout` in the URL (seconds) say the same. Seen in how long `acquire`"
        " waits for a deaf server.",
    )
    idle_timeout_ms: int = Field(
        default=60_000,
        ge=100,
        le=_DAY,
        description="Milliseconds after its last use until a session is gone from the server; while the process is"
        " frozen, on direct connections to PostgreSQL 14 or later. Seen in pg_stat_activity, and in `SHOW"
        " idle_session_timeout` on a direct connection.",
    )
    max_lifetime_ms: int = Field(
        default=1_800_000,
        ge=0,
        le=_DAY,
        description="Milliseconds after which a connection is replaced at its next borrow, give or take 10 %; 0 is"
        " never, else at least 100. Seen in `backend_start` of pg_stat_activity.",
    )
    command_timeout_ms: int = Field(
        default=3000,
        ge=1,
        le=900_000,
        description="Milliseconds for one statement. Seen in a `pg_sleep` that ends with TimeoutError.",
    )
    handler_budget_ms: int = Field(
        default=4000,
        ge=1,
        le=5000,
        description="Milliseconds for one trigger, or the Lambda's remaining time less 0.2 s, if that is less. Cognito"
        " waits 5 s, the cold start included. Seen in how soon a trigger fails while the database hangs.",
    )
    breaker_fail_max: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Consecutive failures that open the circuit. A connect that meets silence opens it at once where"
        " the pool has no other session. Seen in the connection attempts that a dead server gets.",
    )
    breaker_reset_timeout_ms: int = Field(
        default=2000,
        ge=1,
        le=_HOUR,
        description="Milliseconds of the first open period; it doubles with each failed trial, and is twice as long"
        " after silence and for a full server. Seen in `retry_after` of CircuitOpenError.",
    )
    breaker_reset_timeout_max_ms: int = Field(
        default=5000,
        ge=1,
        le=_HOUR,
        description="Milliseconds that an open period grows to, at most, and twice that after silence and for a full"
        " server; never less than BREAKER_RESET_TIMEOUT_MS. Seen in `retry_after` of CircuitOpenError.",
    )
    session_reset: Literal["always", "never"] | None = Field(
        default=None,
        description="Whether asyncpg's reset query runs at each release. Unsaid, it is `always`, and `never` under the"
        " proxy profile. Seen on the wire, and in a `SET` that the next borrower sees or doesn't.",
    )
    sslmode: SslMode | None = Field(
        default=None,
        description="libpq's word for TLS: `disable`, `require` (encrypted, the server not verified), `verify-ca` or"
        " `verify-full`. Unsaid, it is `verify-full`; on loopback with no SSL_ROOT_CERT and no IAM_AUTH, `disable`. As"
        " in libpq, `require` with a root certificate is `verify-ca`. Seen in pg_stat_ssl.",
    )
    ssl_root_cert: str | None = Field(
        default=None,
        description="PEM file of the authorities to trust, such as RDS's global-bundle.pem. Unsaid, or `system` (with"
        " `verify-full` only): the system's trust store. Seen in a connect that fails under another authority.",
    )
    secret_arn: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Secrets Manager secret that gives user and password, and host, port and database where the URL"
        " does not. Needs the extra `aws`. Seen in one GetSecretValue for a new environment, and one more after a"
        " rotation.",
    )
    iam_auth: bool = Field(
        default=False,
        description="Sign an RDS IAM token for each connect, in place of a password. Needs TLS, and the extra `aws`."
        " Seen in connects that go on when the first token is older than 15 minutes.",
    )
    claims_cache_ttl_ms: int = Field(
        default=60_000,
        ge=0,
        le=_DAY,
        description="Milliseconds that a user's claims are kept; 0 turns the cache off. Seen in the `cache_miss`"
        " events.",
    )
    claims_cache_url: Secret = Field(
        default=_NOTHING,
        repr=False,
        exclude=True,
        description="Redis that the fleet shares for its claims: `redis://user:password@host:port/number`, or with TLS"
        " `rediss://…`; all but the host may be left out, and parameters are refused. Unsaid, they are kept in memory."
        " Needs the extra `redis`. Seen in a hit for a user whom another environment loaded.",
    )
    claims_sql: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Statement that `asyncdb_guard.handlers.load_claims` runs; its row becomes the claims. Seen in the"
        " tokens.",
    )
    provision_sql: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Statement that `asyncdb_guard.handlers.provision_user` runs. Seen in the row it writes.",
    )
