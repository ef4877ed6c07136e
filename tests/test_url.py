"""A database URL is read by libpq's grammar and Prisma's parameters, and no fault shows a piece of it."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdb_guard.settings import DatabaseSettings, foreign_names
from asyncdb_guard.settings.url import DatabaseUrl, parse_database_url, parse_endpoint
from asyncdb_guard.settings.url_parameters import ADDRESS_PARAMETERS, URL_PARAMETERS, UrlParameter

NAMES = [parameter.name for parameter in URL_PARAMETERS]

# NUL can't be in any PostgreSQL text, and a lone surrogate is no Unicode text.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
PASSWORD = st.text(st.sampled_from("abcXYZ019 :/?#[]@!$&'()*+,;=%\\\"<>^`{|}~é€"), min_size=8, max_size=24)


def read(text: str) -> DatabaseUrl:
    """Read a URL that has no fault."""
    url, faults = parse_database_url(text)
    assert faults == []
    return url


def fault(text: str) -> str:
    """The one fault of a URL."""
    faults = parse_database_url(text)[1]
    assert len(faults) == 1, faults
    assert faults[0].endswith("."), "it is a sentence"
    return faults[0]


def encoded(text: str) -> str:
    return quote(text, safe="")


@given(user=TEXT, password=TEXT, database=TEXT, port=st.integers(1, 65535))
@settings(max_examples=100, deadline=None)
def test_what_was_percent_encoded_is_read_back(user: str, password: str, database: str, port: int) -> None:
    url = read(f"postgresql://{encoded(user)}:{encoded(password)}@db.example:{port}/{encoded(database)}")
    assert (url.user, url.host, url.port, url.database) == (user, "db.example", port, database)
    assert url.password is not None
    assert url.password.get_secret_value() == password


@given(password=PASSWORD)
@settings(max_examples=200, deadline=None)
def test_a_password_that_was_not_encoded_is_in_no_fault(password: str) -> None:
    faults = parse_database_url(f"postgresql://user:{password}@db.example/app")[1]
    assert password not in "".join(faults)
    for piece in password.replace("/", "?").replace("@", "?").split("?"):
        assert len(piece) < 6 or piece not in "".join(faults)


@given(text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_at_all_gives_facts_or_faults(text: str) -> None:
    url, faults = parse_database_url("postgresql://" + text)
    assert isinstance(url, DatabaseUrl)
    assert all(isinstance(sentence, str) for sentence in faults)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "PostgreSQL"])
def test_both_schemes_are_read_in_any_case(scheme: str) -> None:
    assert read(f"{scheme}://user@db.example/app").host == "db.example"


def test_what_the_url_leaves_out_is_none() -> None:
    url = read("postgresql://")
    assert (url.host, url.port, url.user, url.password, url.database) == (None,) * 5
    assert (url.application_name, url.schema, dict(url.settings)) == (None, None, {})


def test_white_space_around_the_url_is_no_part_of_it() -> None:
    assert read(" postgresql://user@db.example/app\n").database == "app"


def test_a_user_with_an_empty_password_has_none() -> None:
    assert read("postgresql://user:@db.example").password is None


def test_the_last_at_sign_ends_the_password() -> None:
    url = read("postgresql://user:p@ss@db.example/app")
    assert url.password is not None
    assert (url.password.get_secret_value(), url.host) == ("p@ss", "db.example")


def test_an_ipv6_host_loses_its_brackets() -> None:
    url = read("postgresql://user@[2001:db8::1]:6432/app")
    assert (url.host, url.port) == ("2001:db8::1", 6432)


def test_a_repr_shows_nothing_of_the_url() -> None:
    shown = repr(read("postgresql://someone:password@db.example/app?application_name=thing"))
    assert not any(part in shown for part in ("someone", "password", "db.example", "app", "thing"))


@pytest.mark.parametrize("text", ["mysql://user@h/d", "", "postgresql:/user@h/d", "h:5432/d", "'postgresql://u@h/d"])
def test_another_scheme_is_refused(text: str) -> None:
    assert fault(text) == "The database URL must start with postgresql:// or postgres://."


@pytest.mark.parametrize(
    "text", ["prisma://accelerate.prisma-data.net/?api_key=zz", "prisma+postgres://a.example/?k=zz"]
)
def test_prismas_own_proxy_is_refused_by_its_name(text: str) -> None:
    assert "Prisma Accelerate" in fault(text)


@pytest.mark.parametrize(
    "text",
    [
        "host=h dbname=d user=u password=zz",
        "Server=h.postgres.database.azure.com;Database=d;Port=5432;User Id=u;Password=zz;Ssl Mode=Require;",
    ],
)
def test_a_list_of_keys_and_values_is_refused_with_the_form_of_a_url(text: str) -> None:
    assert "in the form `key=value`: write it as postgresql://user:password@host:port/database" in fault(text)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+asyncpg://someone:word@db.example:6432/app",
        "postgres+psycopg2://someone:word@db.example:6432/app",
        "cockroachdb+asyncpg://someone:word@db.example:6432/app",
        "'postgresql://someone:word@db.example:6432/app'",
        '"postgresql://someone:word@db.example:6432/app"',
        "psql 'postgresql://someone:word@db.example:6432/app'\n",
        "psql postgresql://someone:word@db.example:6432/app",
        "jdbc:postgresql://db.example:6432/app?user=someone&password=word",
        "postgresql:///app?host=db.example&port=6432&user=someone&password=word",
        "postgresql://someone:word@?host=db.example&port=6432&dbname=app",
        "postgresql://someone:word@db.example:6432/app?user=someone&password=word&dbname=app&port=6432",
    ],
)
def test_a_url_is_read_as_it_was_pasted(text: str) -> None:
    url = read(text)
    assert url.password is not None
    assert (url.user, url.password.get_secret_value()) == ("someone", "word")
    assert (url.host, url.port, url.database) == ("db.example", 6432, "app")


@pytest.mark.parametrize(
    "word", ["[YOUR-PASSWORD]", "%5BYOUR-PASSWORD%5D", "{your_password}", "<ENTER-SQL-USER-PASSWORD>"]
)
def test_a_placeholder_is_not_taken_for_the_password(word: str) -> None:
    assert fault(f"postgresql://u:{word}@h/d").startswith("The database URL contains a placeholder for the password")


@pytest.mark.parametrize("query", ["user=other", "password=other", "host=other", "port=1", "dbname=other", "host=%2Fx"])
def test_a_parameter_that_contradicts_a_part_of_the_address_is_refused(query: str) -> None:
    sentence = fault(f"postgresql://u:word@h:5432/d?{query}")
    assert sentence.startswith(f"{query.partition('=')[0]} in the database URL contradicts the part before the `?`")


@pytest.mark.parametrize("port", ["0", "65536", "http", "123456"])
def test_a_parameter_with_a_port_out_of_range_is_refused(port: str) -> None:
    for host in ("h", "h:5432"):
        told = fault(f"postgresql://u@{host}/d?port={port}")
        assert told == "port in the database URL must be a port from 1 to 65535."


@pytest.mark.parametrize("host", ["h:5432", "one,two", ":5432", "a%20b"])
def test_a_parameter_with_something_else_than_a_host_is_refused(host: str) -> None:
    assert "must be one host, or the directory of a Unix socket" in fault(f"postgresql://u@/d?host={host}")


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_parameter_with_an_ipv6_host_is_read_with_and_without_brackets(host: str) -> None:
    assert read(f"postgresql://u@/d?host={host}").host == "::1"


@pytest.mark.parametrize("text", ["postgresql://us er@h/d", "postgresql://user@h/d\n?x", "postgresql://user@h/\x7f"])
def test_white_space_in_the_url_is_refused(text: str) -> None:
    assert "contains white space" in fault(text)


def test_a_bare_hash_is_refused_rather_than_taken_for_a_fragment() -> None:
    assert "%23" in fault("postgresql://user:pass#word@h/d")


@pytest.mark.parametrize("port", ["0", "65536", "99999", "123456", "http", "-1"])
def test_a_port_out_of_range_is_refused(port: str) -> None:
    assert "a port from 1 to 65535" in fault(f"postgresql://user@h:{port}/d")


@pytest.mark.parametrize("host", ["[::g]", "[::1", "::1", "a b".replace(" ", "%20"), "[]"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    assert "[IPv6]:port" in fault(f"postgresql://user@{host}/d")


@pytest.mark.parametrize("rest", ["pass/word@h/d", "12/word@h/d", "12?word@h/d", "/@h/d"])
def test_a_user_before_a_password_that_was_not_encoded_is_unknown_and_not_missing(rest: str) -> None:
    url, faults = parse_database_url(f"postgresql://zz-user:{rest}")
    assert faults
    assert url.user == ""


def test_a_name_that_the_slash_hides_is_unknown_and_not_missing() -> None:
    url, faults = parse_database_url("postgresql:///user@h/d")
    assert len(faults) == 1
    assert (url.host, url.user, url.database) == ("", "", "")


@pytest.mark.parametrize("address", ["h:99999/d", "h/d?pgbouncer=2", "@h/d?pgbouncer=2"])
def test_a_user_that_no_fault_can_hide_is_missing(address: str) -> None:
    assert parse_database_url(f"postgresql://{address}")[0].user is None


def test_a_parameter_that_is_not_named_is_told_by_its_position() -> None:
    assert fault("postgresql://h/d?user=u&password=pass&hunter2=1").startswith("Parameter 3 of the database URL is")


def test_an_at_sign_in_a_parameter_hides_no_missing_user() -> None:
    assert read("postgresql://h/d?application_name=a@b").user is None


def test_several_hosts_are_refused() -> None:
    assert "several hosts" in fault("postgresql://user@one:5432,two:5432/d")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("postgresql://user@%2Fvar%2Frun/d", "/var/run", None),
        ("postgresql://user@%2fvar%2Frun:6432/d", "/var/run", 6432),
        ("postgresql://user@/d?host=/cloudsql/project:region:instance", "/cloudsql/project:region:instance", None),
        ("postgresql+asyncpg://user:word@/d?host=%2Fvar%2Frun&port=6432", "/var/run", 6432),
        ("postgresql://user:word@localhost/d?host=/cloudsql/p:r:i", "/cloudsql/p:r:i", None),
    ],
)
def test_a_unix_socket_is_the_host(text: str, host: str, port: int | None) -> None:
    url = read(text)
    assert (url.host, url.port, url.database) == (host, port, "d")


@pytest.mark.parametrize("text", ["postgresql://u@/d?host=/a,b", "postgresql://u@%2Fa,b/d"])
def test_a_directory_that_asyncpg_would_split_is_refused(text: str) -> None:
    assert "contains a comma" in fault(text)
    assert parse_database_url(text)[0].host == "", "it is unknown, and not missing"


@pytest.mark.parametrize("database", ["a/b", "a@b"])
def test_a_bare_slash_or_at_sign_in_the_database_is_refused(database: str) -> None:
    assert "contains a bare `/` or `@` after the host" in fault(f"postgresql://user@h/{database}")


@pytest.mark.parametrize("text", ["postgresql://user:pass/word@h/d", "postgresql://user:12/word@h/d"])
def test_a_bare_slash_in_the_password_is_told_as_such(text: str) -> None:
    assert any("ercent-encode" in sentence for sentence in parse_database_url(text)[1])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("postgresql://us%zz@h/d", "user"),
        ("postgresql://user:100%@h/d", "password"),
        ("postgresql://user:%ff@h/d", "password"),
        ("postgresql://user:%00@h/d", "password"),
        ("postgresql://user@h/%d", "database"),
        ("postgresql://user@%2Fa%zz/d", "host"),
        ("postgresql://user@h/d?schema=%f", "schema"),
    ],
)
def test_a_broken_percent_encoding_names_its_part(text: str, part: str) -> None:
    assert fault(text).startswith(f"The {part} in the database URL is not percent-encoded")
    if part in {"user", "host", "database"}:
        assert getattr(parse_database_url(text)[0], part) == "", "it is unknown, and not missing"


def test_a_broken_percent_encoding_in_the_host_is_told() -> None:
    assert any("The host in" in sentence for sentence in parse_database_url("postgresql://user@h%/d")[1])


@pytest.mark.parametrize("parameter", URL_PARAMETERS, ids=NAMES)
def test_the_example_of_a_parameter_reaches_what_it_feeds(parameter: UrlParameter) -> None:
    url = read(f"postgresql://u@h/d?{parameter.name}={encoded(parameter.example)}")
    fed = url.settings.get(parameter.feeds) if parameter.feeds_setting else getattr(url, parameter.feeds)
    assert fed is not None
    assert fed == parameter.parse(parameter.example)


def test_all_examples_together_are_valid_settings() -> None:
    query = "&".join(f"{parameter.name}={encoded(parameter.example)}" for parameter in URL_PARAMETERS)
    built = DatabaseSettings(url=f"postgresql://u@h/d?{query}")
    fed = {parameter.feeds for parameter in URL_PARAMETERS if parameter.feeds_setting}
    assert built.model_fields_set >= fed


def test_each_parameter_stands_once_in_the_table() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_text_parameters_are_decoded() -> None:
    url = read(
        "postgresql://u@h/d?application_name=sign%20up&schema=tenant&sslrootcert=%2Fopt%2Fca.pem&sslmode=require"
    )
    assert (url.application_name, url.schema) == ("sign up", "tenant")
    assert url.settings == {"sslmode": "require", "ssl_root_cert": "/opt/ca.pem"}


def test_connection_limit_is_pool_max() -> None:
    assert read("postgresql://u@h/d?connection_limit=3").settings == {"pool_max": 3}


@pytest.mark.parametrize("value", ["-1", "1.5", "many", "9999999999"])
def test_a_connection_limit_that_is_no_whole_number_is_refused(value: str) -> None:
    assert fault(f"postgresql://u@h/d?connection_limit={value}").startswith("connection_limit in the database URL")


@pytest.mark.parametrize(
    ("query", "milliseconds"),
    [("connect_timeout=2&pool_timeout=3", 5000), ("connect_timeout=2", 2000), ("pool_timeout=3", 3000)],
)
def test_connect_timeout_and_pool_timeout_add_up_and_either_alone_is_the_bound(query: str, milliseconds: int) -> None:
    assert read(f"postgresql://u@h/d?{query}").settings == {"connect_timeout_ms": milliseconds}


@pytest.mark.parametrize("name", ["connect_timeout", "pool_timeout"])
@pytest.mark.parametrize("value", ["0", "00", "-1", "0.5", "soon"])
def test_a_timeout_without_a_bound_is_refused(name: str, value: str) -> None:
    sentence = fault(f"postgresql://u@h/d?{name}={value}")
    assert sentence.startswith(f"{name} in the database URL must be a whole number of seconds from 1 to 300, ")


def test_one_wrong_timeout_leaves_no_bound_made_of_the_other() -> None:
    assert parse_database_url("postgresql://u@h/d?connect_timeout=2&pool_timeout=0")[0].settings == {}


@pytest.mark.parametrize(("word", "profile"), [("true", True), ("false", False)])
def test_pgbouncer_is_the_proxy_profile(word: str, profile: bool) -> None:
    assert read(f"postgresql://u@h/d?pgbouncer={word}").settings == {"proxy_profile": profile}


def test_another_word_for_pgbouncer_is_refused() -> None:
    assert "true or false" in fault("postgresql://u@h/d?pgbouncer=1")


@pytest.mark.parametrize("kind", ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"])
def test_the_kind_of_node_is_one_of_libpqs_words(kind: str) -> None:
    assert read(f"postgresql://u@h/d?target_session_attrs={kind}").target_session_attrs == kind


@pytest.mark.parametrize("kind", ["master", "Primary", "read_write"])
def test_another_kind_of_node_is_refused(kind: str) -> None:
    sentence = fault(f"postgresql://u@h/d?target_session_attrs={kind}")
    assert sentence.startswith("target_session_attrs in the database URL must be any, read-write, read-only, primary, ")


@pytest.mark.parametrize("name", ["a" * 64, "caf%C3%A9", "line%0Afeed"])
def test_an_application_name_that_the_server_would_change_is_refused(name: str) -> None:
    assert "63 printable ASCII" in fault(f"postgresql://u@h/d?application_name={name}")


@pytest.mark.parametrize("known", [*NAMES, "host", "password"])
def test_a_misspelt_parameter_is_told_with_the_nearest_known_one(known: str) -> None:
    wrong = f"{known[:-1]}{known[-1] * 2}"
    assert fault(f"postgresql://u@h/d?&{wrong}=1") == (
        f"{wrong} in the database URL is unknown; the nearest known one is {known}. Correct it, or remove it."
    )


def test_an_unknown_parameter_is_named_and_all_known_ones_are_listed() -> None:
    sentence = fault("postgresql://u:word@h/d?frobnicate=1")
    assert sentence.startswith("frobnicate in the database URL is unknown: remove it. The known ones are ")
    assert all(name in sentence for name in NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:pass?hunter2@h/d",  # the name is the rest of a password
        "postgresql://user:pass?hunter2=1",
        "postgresql://user:p@ss?hunter2=@h/d",
        "postgresql://h/d?user=u&password=pass&hunter2=1",  # and here, too
        "postgresql://u@h/d?hunter2%40=1",
    ],
)
def test_a_name_that_may_be_a_piece_of_a_password_is_told_by_its_position(text: str) -> None:
    told = " ".join(parse_database_url(text)[1])
    assert " of the database URL is unknown: remove it." in told
    assert "hunter2" not in told


FOREIGN = {
    "neon": (
        "channel_binding=require",
        "channel_binding in the database URL is not supported: asyncpg does not support",
    ),
    "neon-endpoint": (
        "options=endpoint%3Dep-zz-123",
        "options=endpoint… in the database URL is for clients that do not",
    ),
    "cockroach": ("options=--cluster%3Dzz-123", "options=--cluster… in the database URL is for clients that do not"),
    "supabase": ("supa=base-pooler.x", "supa in the database URL is not supported: it is meant for Supabase's own"),
    "prisma-cache": ("statement_cache_size=0", "use pgbouncer=true behind a transaction pooler"),
    "prisma-identity": ("sslidentity=zz.p12", "use sslcert and sslkey"),
    "sqlalchemy": ("prepared_statement_cache_size=0", "use pgbouncer=true behind a transaction pooler"),
    "asyncpg-ssl": ("ssl=require", "use sslmode=require (encrypted, not verified) or sslmode=verify-full"),
    "asyncpg-size": ("max_size=5", "use connection_limit"),
    "jdbc-schema": ("currentSchema=zz", "currentSchema in the database URL is not supported: use schema"),
    "jdbc-timeout": ("loginTimeout=5", "use connect_timeout"),
    "libpq-password": ("sslpassword=zz", "decrypt it with `openssl pkey"),
    "libpq-keepalives": ("keepalives=1", "a dead connection is found before it is lent"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_parameter_of_another_client_is_refused_by_name_with_the_remedy_that_fits(case: str) -> None:
    query, remedy = FOREIGN[case]
    sentence = fault(f"postgresql://u:word@h/d?{query}")
    assert remedy in sentence
    assert "nearest" not in sentence
    assert "zz" not in sentence


OF_OTHER_CLIENTS = {
    "libpq": "channel_binding client_encoding fallback_application_name gssdelegation gssencmode gsslib hostaddr"
    " keepalives keepalives_count keepalives_idle keepalives_interval krbsrvname load_balance_hosts passfile"
    " replication require_auth requirepeer requiressl service servicefile ssl_max_protocol_version"
    " ssl_min_protocol_version sslcertmode sslcompression sslcrl sslcrldir sslnegotiation sslpassword sslsni"
    " tcp_user_timeout",
    "Prisma": "max_idle_connections single_use_connections sslidentity statement_cache_size",
    "Python's": "async_fallback command_timeout direct_tls max_inactive_connection_lifetime max_overflow max_queries"
    " max_size min_size pool_size prepared_statement_cache_size prepared_statement_name_func ssl timeout unix_sock",
    "Node's": "connectTimeoutMS connect_timeout_ms idle_timeout max pool_min prepared_statements query_timeout"
    " search_path statement_timeout",
    "JDBC": "ApplicationName connectTimeout currentSchema databaseName loginTimeout prepareThreshold"
    " preparedStatementCacheQueries reWriteBatchedInserts socketTimeout sslfactory stringtype tcpKeepAlive",
    "platforms": "pool_mode pooler supa workaround",
}


@pytest.mark.parametrize("client", OF_OTHER_CLIENTS)
def test_each_parameter_that_only_another_client_has_is_told_as_such(client: str) -> None:
    for name in OF_OTHER_CLIENTS[client].split():
        assert fault(f"postgresql://u:word@h/d?{name}=zz").startswith(f"{name} in the database URL is not supported: ")


@pytest.mark.parametrize("client", ["endpoint=x", "project=x", "--cluster=x"])
def test_an_option_of_a_platform_is_named(client: str) -> None:
    name = client.partition("=")[0]
    told = fault(f"postgresql://u:word@h/d?options={encoded(client)}")
    assert told.startswith(f"options={name}… in the database URL is for clients that do not send the host name")


def test_an_option_of_no_known_platform_is_refused_without_its_value() -> None:
    sentence = fault("postgresql://u:word@h/d?options=--zz")
    assert "options" in sentence
    assert "zz" not in sentence


@pytest.mark.parametrize("name", foreign_names.URL_REMEDIES)
def test_no_parameter_of_another_client_is_one_of_ours(name: str) -> None:
    assert name not in {*NAMES, *ADDRESS_PARAMETERS}
    assert name == name.lower()


@pytest.mark.parametrize(
    "query", [f"{name}={value}" for name, values in foreign_names.ALREADY_SO.items() for value in sorted(values)]
)
def test_a_parameter_that_asks_for_what_happens_anyhow_is_taken(query: str) -> None:
    assert read(f"postgresql://u@h/d?{query}") == read("postgresql://u@h/d")


@pytest.mark.parametrize(
    "query",
    "channel_binding=disable channel_binding=prefer gssencmode=disable gssencmode=prefer sslcompression=0 sslsni=1"
    " sslnegotiation=postgres client_encoding=UTF8 client_encoding=utf-8 client_encoding=unicode client_encoding=auto"
    "".split(),
)
def test_these_are_what_happens_anyhow(query: str) -> None:
    assert read(f"postgresql://u@h/d?{query}") == read("postgresql://u@h/d")


def test_prismas_timeouts_and_lifetimes_reach_the_settings() -> None:
    url = read("postgresql://u@h/d?socket_timeout=5&max_idle_connection_lifetime=30&max_connection_lifetime=0")
    assert url.settings == {"command_timeout_ms": 5000, "idle_timeout_ms": 30_000, "max_lifetime_ms": 0}


@pytest.mark.parametrize("name", ["socket_timeout", "max_idle_connection_lifetime"])
def test_a_bound_of_prismas_that_is_none_is_refused(name: str) -> None:
    assert "(0, which means no limit in Prisma, is refused)" in fault(f"postgresql://u@h/d?{name}=0")


@pytest.mark.parametrize("value", ["a,,b", ",", "a,%20"])
def test_an_empty_name_between_schemas_is_refused(value: str) -> None:
    assert "schema in the database URL must be the names of schemas" in fault(f"postgresql://u@h/d?schema={value}")


def test_a_word_for_sslaccept_that_is_none_is_refused() -> None:
    assert "must be strict or accept_invalid_certs" in fault("postgresql://u@h/d?sslaccept=yes")


@pytest.mark.parametrize("query", ["schema", "schema="])
def test_a_parameter_without_a_value_is_refused(query: str) -> None:
    assert "schema in the database URL has no value" in fault(f"postgresql://u@h/d?{query}")


def test_a_bare_plus_in_a_value_is_refused_as_ambiguous() -> None:
    assert "%20 for a space, or %2B for a plus" in fault("postgresql://u@h/d?application_name=sign+up")


def test_a_parameter_given_twice_with_one_value_is_fine() -> None:
    assert read("postgresql://u@h/d?schema=a&schema=%61").schema == "a"


def test_a_parameter_given_twice_with_two_values_is_refused() -> None:
    assert "schema appears twice" in fault("postgresql://u@h/d?schema=a&schema=b")


def test_all_faults_of_a_url_are_told_at_once() -> None:
    faults = parse_database_url("postgresql://us%:pa%@h:0/%?sslmod=1&pgbouncer=2&connection_limit=x&pool_timeout=0")[1]
    assert len(faults) == 8


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("db.example", ("db.example", None)),
        ("db.example:6432", ("db.example", 6432)),
        ("db.example:", ("db.example", None)),
        ("db.example:1", ("db.example", 1)),
        ("db.example:65535", ("db.example", 65535)),
        ("[::1]:6432", ("::1", 6432)),
        ("[fe80::1%eth0]", ("fe80::1%eth0", None)),
        (":6432", (None, 6432)),
        ("", (None, None)),
        ("::1", None),
        ("user@db.example", None),
        ("db.example/app", None),
    ],
)
def test_an_endpoint_is_host_and_port(text: str, endpoint: tuple[str | None, int | None] | None) -> None:
    assert parse_endpoint(text) == endpoint
