"""Names that other clients use, and what to use here instead. Data only, read when there is a fault to tell."""

from __future__ import annotations

from collections.abc import Mapping

_REMOVE = "remove it"
_PROFILE = "use pgbouncer=true behind a transaction pooler, otherwise remove it"
_BOUND = (
    "remove it; CONNECT_TIMEOUT_MS and COMMAND_TIMEOUT_MS bound each wait, and a dead connection is found before it is"
    " lent"
)
_SSLMODE = "use sslmode=require (encrypted, not verified) or sslmode=verify-full"
_SEARCH_PATH = "use schema"
_SNI = "is for clients that do not send the host name in the TLS handshake, and asyncpg sends it: remove it"

ALREADY_SO: Mapping[str, frozenset[str]] = {
    "channel_binding": frozenset({"disable", "prefer"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "sslcompression": frozenset({"0"}),
    "sslnegotiation": frozenset({"postgres"}),
    "sslsni": frozenset({"1"}),
    "client_encoding": frozenset({"utf8", "utf-8", "unicode", "auto"}),
}
"""URL parameters that ask for what happens in any case, with these values: they are accepted."""

URL_REMEDIES: Mapping[str, str] = {
    # libpq
    "channel_binding": "asyncpg does not support channel binding: remove it, and use sslmode=verify-full, which"
    " verifies the server by its certificate",
    "client_encoding": "the encoding is always UTF-8: remove it",
    "fallback_application_name": "use application_name",
    "gssencmode": "asyncpg does not encrypt with GSSAPI: remove it, and use sslmode",
    "gssdelegation": _REMOVE,
    "gsslib": _REMOVE,
    "krbsrvname": "remove it; logins use a password or a client certificate",
    "hostaddr": "name one host before the database, and remove hostaddr",
    "keepalives": _BOUND,
    "keepalives_idle": _BOUND,
    "keepalives_interval": _BOUND,
    "keepalives_count": _BOUND,
    "tcp_user_timeout": _BOUND,
    "load_balance_hosts": "name one host, such as the cluster endpoint, and remove it",
    "passfile": "write the password in the URL, or use SECRET_ARN",
    "service": "write the host, the user and the database in the URL",
    "servicefile": "write the host, the user and the database in the URL",
    "replication": "remove it; use a connection of your own for replication",
    "require_auth": "remove it; sslmode=verify-full verifies the server",
    "requirepeer": _REMOVE,
    "requiressl": _SSLMODE,
    "sslcertmode": "remove it; the client certificate is sent if the server asks for it",
    "sslcompression": _REMOVE,
    "sslcrl": "revocation lists are not supported: remove it",
    "sslcrldir": "revocation lists are not supported: remove it",
    "sslnegotiation": "remove it",
    "sslsni": "the host name is always sent: remove it",
    "sslpassword": "an encrypted client key is not supported: decrypt it with `openssl pkey -in … -out …`, and remove"
    " the password",
    "ssl_min_protocol_version": "remove it; Python's own minimum, TLS 1.2, applies",
    "ssl_max_protocol_version": _REMOVE,
    # Prisma
    "max_idle_connections": "use connection_limit",
    "single_use_connections": _REMOVE,
    "sslidentity": "PKCS #12 files are not supported: convert it with `openssl pkcs12`, and use sslcert and sslkey",
    "statement_cache_size": _PROFILE,
    # SQLAlchemy, asyncpg, node-postgres
    "prepared_statement_cache_size": _PROFILE,
    "prepared_statements": _PROFILE,
    "prepared_statement_name_func": _PROFILE,
    "direct_tls": _REMOVE,
    "ssl": _SSLMODE,
    "async_fallback": _REMOVE,
    "unix_sock": "use host with the directory of the socket",
    "min_size": "sessions open on demand: remove it",
    "pool_min": "sessions open on demand: remove it",
    "max_size": "use connection_limit",
    "pool_size": "use connection_limit",
    "max": "use connection_limit",
    "max_overflow": "the pool has one ceiling: use connection_limit",
    "timeout": "use connect_timeout (seconds)",
    "connect_timeout_ms": "use connect_timeout (seconds)",
    "connecttimeoutms": "use connect_timeout (seconds)",
    "command_timeout": "use socket_timeout (seconds)",
    "statement_timeout": "use socket_timeout (seconds)",
    "query_timeout": "use socket_timeout (seconds)",
    "idle_timeout": "use max_idle_connection_lifetime (seconds)",
    "max_inactive_connection_lifetime": "use max_idle_connection_lifetime (seconds)",
    "max_queries": "use max_connection_lifetime (seconds)",
    "search_path": _SEARCH_PATH,
    # JDBC
    "applicationname": "use application_name",
    "connecttimeout": "use connect_timeout",
    "logintimeout": "use connect_timeout",
    "sockettimeout": "use socket_timeout",
    "currentschema": _SEARCH_PATH,
    "databasename": "write the database after the host",
    "preparethreshold": _PROFILE,
    "preparedstatementcachequeries": _PROFILE,
    "rewritebatchedinserts": _REMOVE,
    "sslfactory": _SSLMODE,
    "stringtype": _REMOVE,
    "tcpkeepalive": _BOUND,
    # platforms
    "supa": "it is meant for Supabase's own tools: remove it",
    "workaround": _REMOVE,
    "pool_mode": _PROFILE,
    "pooler": _PROFILE,
}
"""URL parameters of other clients that are refused, in lower case, each with its remedy."""

OPTIONS_REMEDIES: Mapping[str, str] = {"endpoint": _SNI, "project": _SNI, "--cluster": _SNI}
"""What the value of `options` begins with at Neon and CockroachDB, and the remedy."""

RENAMED: Mapping[str, str] = {
    name: setting
    for setting, names in {
        "pool_max": "max_size maxsize pool_size poolsize max max_connections connection_limit max_pool_size"
        " maximum_pool_size pool_max_size",
        "connect_timeout_ms": "timeout timeout_ms connect_timeout connection_timeout connection_timeout_ms pool_timeout"
        " pool_timeout_ms acquire_timeout acquire_timeout_ms",
        "command_timeout_ms": "command_timeout statement_timeout statement_timeout_ms query_timeout query_timeout_ms"
        " socket_timeout socket_timeout_ms",
        "idle_timeout_ms": "max_inactive_connection_lifetime idle_timeout max_idle max_idle_connection_lifetime",
        "max_lifetime_ms": "max_lifetime max_connection_lifetime max_queries pool_recycle recycle",
        "url": "dsn uri connection_string conninfo database_url",
        "sslmode": "ssl ssl_mode tls use_ssl sslaccept",
        "ssl_root_cert": "ssl_ca ssl_ca_file sslrootcert ca_cert ca_file root_cert ssl_ca_cert",
        "ssl_cert": "sslcert ssl_client_cert client_cert ssl_cert_file",
        "ssl_key": "sslkey ssl_client_key client_key ssl_key_file",
        "proxy_host": "proxy proxy_endpoint rds_proxy_host rds_proxy_endpoint pooler_host",
        "proxy_profile": "statement_cache_size prepared_statement_cache_size pgbouncer",
        "secret_arn": "secret secret_id secret_name",
        "session_reset": "reset reset_on_return pool_reset_on_return",
    }.items()
    for name in names.split()
}
"""What asyncpg, SQLAlchemy, Prisma and others call a setting of ours."""

PARTS_OF_THE_URL = frozenset(
    "host hostname port user username password pass passwd name database dbname db db_name db_host db_port db_user"
    " db_password".split()
)
"""Names of what is a part of the URL here."""

SETTING_REMEDIES: Mapping[str, str] = {
    "min_size": "sessions open on demand: remove it",
    "minsize": "sessions open on demand: remove it",
    "pool_min": "sessions open on demand: remove it",
    "min_pool_size": "sessions open on demand: remove it",
    "max_overflow": "POOL_MAX is the one ceiling: remove it",
    "pool_pre_ping": "a connection is always checked before it is lent: remove it",
    "echo": "remove it; listen to the pool's events instead",
    "schema": "write it in the URL, as in ?schema=tenant",
    "application_name": "write it in the URL, as in ?application_name=signup",
    "ssl_password": "an encrypted client key is not supported: decrypt it with `openssl pkey -in … -out …`",
}
"""Names that no setting has the meaning of, each with its remedy."""
