"""A database URL is read by libpq's grammar and Prisma's parameters, and no fault shows a piece of it."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.url import DatabaseUrl, parse_database_url, parse_endpoint
from asyncdb_guard.settings.url_parameters import URL_PARAMETERS, UrlParameter

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


@pytest.mark.parametrize(
    "text",
    ["postgresql+asyncpg://user@h/d", "mysql://user@h/d", "host=h dbname=d", "", "postgresql:/user@h/d", "h:5432/d"],
)
def test_another_scheme_is_refused(text: str) -> None:
    assert "must start with postgresql:// or postgres://" in fault(text)


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
    assert (url.host, url.user) == ("", "")


@pytest.mark.parametrize("address", ["h:99999/d", "h/d?pgbouncer=2", "@h/d?pgbouncer=2"])
def test_a_user_that_no_fault_can_hide_is_missing(address: str) -> None:
    assert parse_database_url(f"postgresql://{address}")[0].user is None


def test_an_at_sign_in_a_parameter_hides_no_missing_user() -> None:
    assert read("postgresql://h/d?application_name=a@b").user is None


def test_several_hosts_are_refused() -> None:
    assert "several hosts" in fault("postgresql://user@one:5432,two:5432/d")


@pytest.mark.parametrize("text", ["postgresql://user@%2Fvar%2Frun/d", "postgresql://user@h/d?host=/var/run"])
def test_a_unix_socket_is_refused_by_name(text: str) -> None:
    assert "Unix socket" in fault(text)


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
        ("postgresql://user@h/d?schema=%f", "schema"),
    ],
)
def test_a_broken_percent_encoding_names_its_part(text: str, part: str) -> None:
    assert fault(text).startswith(f"The {part} in the database URL is not percent-encoded")


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


@pytest.mark.parametrize("known", NAMES)
def test_a_misspelt_parameter_is_named_by_its_position_and_the_nearest_known_one(known: str) -> None:
    sentence = fault(f"postgresql://u@h/d?&{known[:-1]}{known[-1] * 2}=1")
    assert f"Parameter 2 of the database URL is unknown; the nearest known one is {known}." in sentence


def test_the_fault_for_an_unknown_parameter_lists_all_known_ones() -> None:
    sentence = fault("postgresql://u@h/d?hunter2=1")
    assert "; the nearest known one is pgbouncer." in sentence
    assert all(name in sentence for name in NAMES)
    assert "hunter2" not in sentence


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
