"""Every setting reaches the settings, nothing is ignored, and no secret is shown."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.settings import DatabaseSettings, foreign_names
from asyncdb_guard.settings.fields import SECRETS, choices, number_range
from asyncdb_guard.settings.pooler_profile import DIRECT, TRANSACTION_POOLER, PoolerProfile
from asyncdb_guard.settings.problems import conflicts
from asyncdb_guard.settings.target import connect_target, is_loopback
from asyncdb_guard.settings.url import parse_database_url
from asyncdb_guard.settings.url_parameters import URL_PARAMETERS, UrlParameter
from tests.support.settings_doc import page

URL = "postgresql://someone:s3cr3t-word@db.example/app"
LOCAL = "postgresql://someone@127.0.0.1/app"
PREFIX = "LAMBDA_DATABASE_"
ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:signup-AbCdEf"
NUMBERS = {
    "pool_max": (1, 1, 100),
    "connect_timeout_ms": (2000, 1, 300_000),
    "idle_timeout_ms": (60_000, 100, 86_400_000),
    "max_lifetime_ms": (1_800_000, 0, 86_400_000),
    "command_timeout_ms": (3000, 1, 900_000),
    "handler_budget_ms": (4000, 1, 5000),
    "hold_warning_ms": (0, 0, 86_400_000),
    "slow_statement_ms": (0, 0, 86_400_000),
    "breaker_fail_max": (3, 1, 1000),
    "breaker_reset_timeout_ms": (2000, 1, 3_600_000),
    "breaker_reset_timeout_max_ms": (5000, 1, 3_600_000),
    "claims_cache_ttl_ms": (60_000, 0, 86_400_000),
}
"""Default, least and most."""
TEXTS = (
    "ssl_root_cert",
    "ssl_cert",
    "ssl_key",
    "secret_arn",
    "claims_sql",
    "provision_sql",
    "proxy_host",
    "claims_cache_url",
    "fleet_url",
    "url",
    "claims_cache_ssl_root_cert",
    "claims_cache_ssl_cert",
    "claims_cache_ssl_key",
    "fleet_ssl_root_cert",
    "fleet_ssl_cert",
    "fleet_ssl_key",
)
SECONDS = [
    ("connect_timeout", 2.0),
    ("idle_timeout", 60.0),
    ("max_lifetime", 1800.0),
    ("command_timeout", 3.0),
    ("handler_budget", 4.0),
    ("hold_warning", 0.0),
    ("slow_statement", 0.0),
    ("breaker_reset_timeout", 2.0),
    ("breaker_reset_timeout_max", 5.0),
    ("claims_cache_ttl", 60.0),
]


def make(**values: Any) -> DatabaseSettings:
    """Settings with a URL, unless another is given."""
    given: dict[str, Any] = {"url": URL, **values}
    return DatabaseSettings(**given)


def refusal(**values: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        make(**values)
    return caught.value


def fault(**values: Any) -> str:
    """The one fault of these values."""
    faults = refusal(**values).faults
    assert len(faults) == 1, faults
    assert faults[0].endswith("."), "it is a sentence"
    return faults[0]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def everything_about(error: BaseException) -> str:
    """All that a log, a report or a debugger would print of an error, the variables of its frames aside."""
    texts = [f"{link!s} {link!r} {link.args!r} {vars(link)!r}" for link in chain(error)]
    return "\n".join([*texts, *traceback.format_exception(error)])


# Where values come from


@pytest.mark.parametrize(("setting", "default"), [(setting, limits[0]) for setting, limits in NUMBERS.items()])
def test_a_number_that_nobody_sets_has_its_default(setting: str, default: int) -> None:
    assert getattr(make(), setting) == default


@pytest.mark.parametrize("setting", NUMBERS)
def test_a_number_comes_from_its_variable(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}BREAKER_RESET_TIMEOUT_MS", "1")
    monkeypatch.setenv(PREFIX + setting.upper(), "123" if setting != "pool_max" else "12")
    assert getattr(make(), setting) == (123 if setting != "pool_max" else 12)


def test_words_and_texts_come_from_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "url": "postgresql://u@h/d",
        "proxy_host": "proxy.example",
        "proxy_profile": "false",
        "session_reset": "never",
        "sslmode": "verify-ca",
        "ssl_root_cert": "/opt/ca.pem",
        "iam_auth": "true",
        "claims_cache_url": "rediss://cache.example",
        "fleet_url": "dynamodb://fleet",
        "claims_sql": "SELECT 1",
        "provision_sql": "SELECT 2",
    }
    for setting, value in values.items():
        monkeypatch.setenv(PREFIX + setting.upper(), value)
    built = DatabaseSettings()
    assert built.proxy_host == "proxy.example"
    assert (built.proxy_profile, built.session_reset, built.iam_auth) == (False, "never", True)
    assert (built.sslmode, built.ssl_root_cert) == ("verify-ca", "/opt/ca.pem")
    assert (built.claims_sql, built.provision_sql) == ("SELECT 1", "SELECT 2")
    assert built.claims_cache_url is not None
    assert built.claims_cache_url.get_secret_value() == "rediss://cache.example"


def test_an_argument_beats_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}POOL_MAX", "7")
    assert make(pool_max=5).pool_max == 5


def test_the_prefixed_url_beats_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}URL", "postgresql://u@one.example")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@two.example")
    assert DatabaseSettings().target.host == "one.example"


def test_database_url_serves_where_the_prefixed_one_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@two.example")
    assert DatabaseSettings().target.host == "two.example"


def test_a_lower_case_database_url_is_another_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@one.example")
    monkeypatch.setenv("database_url", "postgresql://u@two.example")
    assert DatabaseSettings().target.host == "one.example"


@pytest.mark.parametrize("blank", ["", " ", " \t\n"])
def test_an_empty_or_blank_variable_counts_as_not_set(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in DatabaseSettings.model_fields:
        monkeypatch.setenv(PREFIX + setting.upper(), blank)
    monkeypatch.setenv("DATABASE_URL", URL)
    assert DatabaseSettings() == make()


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_database_url_counts_as_not_set(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", blank)
    assert fault(url=None).startswith("No database URL")
    with pytest.raises(ConfigurationError, match=r"^No database URL"):
        DatabaseSettings()


def test_a_dotenv_file_is_not_read(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(f"{PREFIX}POOL_MAX=9\n")
    monkeypatch.chdir(tmp_path)
    assert make().pool_max == 1


@pytest.mark.slow
def test_a_bad_environment_harms_no_import() -> None:
    environment = {f"{PREFIX}POOL_MAX": "none", f"{PREFIX}PLOO": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "error", "-c", "import asyncdb_guard.settings.building"]
    assert subprocess.run(command, env=environment, check=False).returncode == 0


@pytest.mark.parametrize(("name", "seconds"), SECONDS)
def test_milliseconds_are_read_as_seconds(name: str, seconds: float) -> None:
    assert getattr(make(), name) == seconds


@pytest.mark.parametrize("setting", list(DatabaseSettings.model_fields))
def test_every_setting_says_how_to_verify_it(setting: str) -> None:
    description = DatabaseSettings.model_fields[setting].description
    assert description is not None
    assert description.count(" Verify: ") == 1


def test_the_page_lists_the_default_the_values_the_range_and_the_url_parameters() -> None:
    facts = {
        section.split("\n")[0]: dict(line[2:].split(": ", 1) for line in section.split("\n") if line.startswith("- "))
        for section in page().split(f"\n### {PREFIX}")[1:]
    }
    assert facts["URL"]["Default"] == "none; required unless SECRET_ARN is set"
    assert facts["PROXY_PROFILE"]["Default"] == "`true` with PROXY_HOST, otherwise `false`"
    assert facts["SESSION_RESET"]["Default"] == "`always`; `never` under the proxy profile"
    assert facts["SESSION_RESET"]["Values"] == "`always`, `never`"
    assert facts["SSLMODE"]["Default"].startswith("`verify-full`; `disable` on a Unix socket, and on loopback")
    assert facts["CONNECT_TIMEOUT_MS"]["Default"] == "2,000"
    assert facts["CONNECT_TIMEOUT_MS"]["Range"] == "1 to 300,000"
    assert facts["CONNECT_TIMEOUT_MS"]["In the URL"] == "`connect_timeout` + `pool_timeout`"
    without_default = {name for name, fact in facts.items() if fact["Default"] == "none"}
    assert without_default == {
        "SERVER_SETTINGS",
        "PROXY_HOST",
        "SSL_CERT",
        "SSL_KEY",
        "SECRET_ARN",
        "CLAIMS_SQL",
        "PROVISION_SQL",
    }


def test_the_secret_settings_are_those_that_are_covered_in_the_environment() -> None:
    assert {"url", "claims_cache_url", "fleet_url"} == SECRETS


# What is refused


def test_no_url_is_one_fault_that_names_both_variables() -> None:
    sentence = fault(url=None)
    assert f"{PREFIX}URL or DATABASE_URL" in sentence


@pytest.mark.parametrize("setting", NUMBERS)
def test_a_number_below_its_least_is_refused(setting: str) -> None:
    least, most = NUMBERS[setting][1:]
    sentence = fault(**{setting: least - 1})
    unit = " of milliseconds" if setting.endswith("_ms") else ""
    assert sentence == f"{setting} ({PREFIX}{setting.upper()}) must be a whole number{unit} from {least} to {most}."


@pytest.mark.parametrize("setting", NUMBERS)
def test_a_number_above_its_most_is_refused(setting: str) -> None:
    assert f"to {NUMBERS[setting][2]}." in fault(**{setting: NUMBERS[setting][2] + 1})


@pytest.mark.parametrize("setting", NUMBERS)
def test_the_least_and_the_most_are_allowed(setting: str) -> None:
    values = {"breaker_reset_timeout_ms": 1, "breaker_reset_timeout_max_ms": 3_600_000}
    for value in NUMBERS[setting][1:]:
        assert getattr(make(**{**values, setting: value}), setting) == value


def test_a_variable_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}POOL_MAX", "several")
    assert fault() == "pool_max (LAMBDA_DATABASE_POOL_MAX) must be a whole number from 1 to 100."


@pytest.mark.parametrize("setting", TEXTS)
def test_an_empty_text_is_one_fault(setting: str) -> None:
    assert fault(**{setting: " "}).endswith("must be a non-empty string.")


@pytest.mark.parametrize("setting", ["iam_auth", "proxy_profile"])
def test_a_switch_that_is_neither_on_nor_off_is_refused(setting: str) -> None:
    assert fault(**{setting: "perhaps"}).endswith("must be true or false.")


def test_another_word_for_session_reset_is_refused() -> None:
    assert fault(session_reset="sometimes").endswith("must be always or never.")


@pytest.mark.parametrize("word", ["allow", "prefer", "VERIFY-FULL"])
def test_an_sslmode_that_may_fall_to_plain_text_is_refused_with_its_remedy(word: str) -> None:
    sentence = fault(sslmode=word)
    assert "must be disable, require, verify-ca or verify-full. allow and prefer are refused" in sentence
    assert "Use require or verify-full for TLS, disable for none." in sentence


def test_a_lifetime_too_short_to_be_meant_is_refused() -> None:
    assert "0 (never), or at least 100 milliseconds" in fault(max_lifetime_ms=99)
    assert make(max_lifetime_ms=100).max_lifetime == 0.1


def test_an_open_period_beyond_its_cap_is_refused() -> None:
    sentence = fault(breaker_reset_timeout_ms=60_001)
    assert sentence.startswith(
        "breaker_reset_timeout_max_ms (LAMBDA_DATABASE_BREAKER_RESET_TIMEOUT_MAX_MS) is less than"
    )


def test_an_unknown_variable_is_told_with_the_nearest_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}POOL_MX", "5")
    assert "LAMBDA_DATABASE_POOL_MX is not a setting; the nearest is LAMBDA_DATABASE_POOL_MAX." in fault()


@pytest.mark.parametrize("name", ["ttl_ms", "qqq"])
def test_a_name_unlike_any_other_is_told_without_a_guess(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault(**{name: 5}) == f"{name} is not a setting, and no setting has a similar name: remove it."
    monkeypatch.setenv(PREFIX + name.upper(), "5")
    assert f"{PREFIX}{name.upper()} is not a setting, and no" in fault()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("max_size", "pool_max"), ("ssl_ca", "ssl_root_cert"), ("dsn", "url"), ("statement_cache_size", "proxy_profile")],
)
def test_what_others_call_a_setting_is_told_with_our_name(
    name: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault(**{name: 5}) == f"{name} is not a setting: use {setting}."
    monkeypatch.setenv(PREFIX + name.upper(), "5")
    assert fault() == f"{PREFIX}{name.upper()} is not a setting: use {PREFIX}{setting.upper()}."


def test_a_bound_of_others_is_told_with_its_unit() -> None:
    assert fault(command_timeout=5) == "command_timeout is not a setting: use command_timeout_ms (milliseconds)."


@pytest.mark.parametrize("name", ["HOST", "PORT", "USER", "PASSWORD", "NAME", "DATABASE"])
def test_a_variable_for_a_part_of_the_url_is_told_where_it_belongs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + name, "zz")
    sentence = fault()
    assert sentence.startswith(f"{PREFIX}{name} is not a setting: the host, the port, the user, the password and the")
    assert "url (LAMBDA_DATABASE_URL, else DATABASE_URL), as in postgresql://user:password@host:port/data" in sentence


def test_what_has_no_counterpart_is_told_with_its_remedy() -> None:
    assert fault(min_size=1) == "min_size is not a setting: sessions open on demand: remove it."


@pytest.mark.parametrize(
    "name",
    "min_size minsize pool_min min_pool_size max_overflow pool_pre_ping echo schema application_name ssl_password"
    "".split(),
)
def test_what_others_set_and_nobody_can_set_here_is_told_without_a_guess(name: str) -> None:
    assert re.match(rf"{name} is not a setting: (?!use )", fault(**{name: 1}))


def test_the_names_of_others_lead_to_settings_and_are_none() -> None:
    names = {*foreign_names.RENAMED, *foreign_names.SETTING_REMEDIES, *foreign_names.PARTS_OF_THE_URL}
    assert not names & set(DatabaseSettings.model_fields)
    assert set(foreign_names.RENAMED.values()) <= set(DatabaseSettings.model_fields)


@pytest.mark.parametrize("name", ["lambda_database_pool_max", "Lambda_Database_Pool_Max", "LAMBDA_DATABASE_pool_max"])
def test_a_variable_that_is_not_in_capitals_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}POOL_MAX", "3")
    monkeypatch.setenv(name, "7")
    assert fault().startswith(f"{name} is not a setting; the nearest is LAMBDA_DATABASE_POOL_MAX.")


@pytest.mark.parametrize("value", ["", " "])
def test_an_unknown_variable_is_refused_empty_as_well(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}POOL_MX", value)
    assert "LAMBDA_DATABASE_POOL_MX is not a setting" in fault()


@pytest.mark.parametrize("name", ["LAMBDA_DATABASE_POOL_MAX", "lambda_database_pool_max"])
def test_a_variables_name_as_a_keyword_is_told_with_the_keyword(name: str) -> None:
    assert fault(**{name: 3}) == f"{name} is the name of an environment variable: use the keyword pool_max."


@pytest.mark.parametrize(
    "keyword", ["_env_file", "_env_prefix", "_case_sensitive", "_secrets_dir", "_cli_parse_args", "_nonsense"]
)
def test_a_keyword_that_pydantic_takes_for_its_own_is_refused(keyword: str) -> None:
    assert fault(**{keyword: None}).startswith(f"{keyword} is not a setting: remove it.")


def test_all_keywords_that_pydantic_takes_for_its_own_are_told_at_once() -> None:
    assert len(refusal(_env_file=".env", _env_prefix="X_").faults) == 2


def test_settings_take_keywords_only() -> None:
    untyped: Any = DatabaseSettings
    with pytest.raises(TypeError, match="positional") as caught:
        untyped(URL)
    assert "s3cr3t-word" not in everything_about(caught.value)


def test_an_unknown_argument_is_told_with_the_nearest_known() -> None:
    assert "poolmax is not a setting; the nearest is pool_max." in fault(poolmax=5)


@pytest.mark.parametrize(
    "url", ["memcached://cache.example", "cache.example:6379", "valkeyss://h", "REDIS://h", "redis:"]
)
def test_a_claims_cache_that_is_no_redis_is_refused(url: str) -> None:
    sentence = fault(claims_cache_url=url)
    assert sentence == (
        "claims_cache_url (LAMBDA_DATABASE_CLAIMS_CACHE_URL) must start with redis://, rediss://, valkey:// or valkeys://."
    )


@pytest.mark.parametrize(
    "authority",
    ["", ":6379", "u:p@", "u:p@:6379", "h:0", "h:65536", "h:port", "::1", "[::1", "a b", "u:p w@h", "u:p[w@h", "%68"],
)
def test_a_claims_cache_url_without_a_host_that_can_be_read_is_refused(authority: str) -> None:
    for path in ("", "/1"):
        assert "must name a host, as in redis://host:port" in fault(claims_cache_url=f"redis://{authority}{path}")


@pytest.mark.parametrize("path", ["/claims", "/0x1", "/1/2", "/1/", "//1", "/-1", "/\N{ARABIC-INDIC DIGIT ONE}"])
def test_a_claims_cache_url_whose_path_is_no_number_is_refused(path: str) -> None:
    assert "must end with the host, the port or a database number" in fault(
        claims_cache_url=f"redis://cache.example{path}"
    )


@pytest.mark.parametrize("rest", ["?", "?db=1", "?socket_timeout=30", "/1?ssl_cert_reqs=none", "/1#a", ":6379#a"])
def test_a_claims_cache_url_with_parameters_is_refused(rest: str) -> None:
    assert "takes no parameters: remove the" in fault(claims_cache_url=f"rediss://cache.example{rest}")


def test_each_part_of_a_claims_cache_url_is_a_fault_of_its_own_that_shows_nothing() -> None:
    error = refusal(claims_cache_url="redis://zz-user:zz/word@zz-host?zz=1#zz")
    assert len(error.faults) == 3
    assert "zz" not in everything_about(error)


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache.example",
        "redis://cache.example/",
        "redis://cache.example:6380/15",
        "rediss://someone:s3cr3t%2Fword@cache.example:6380/0",
        "redis://:s3cr3t@word@[::1]:6380",
        "valkey://cache.example",
        "valkeys://someone:s3cr3t%2Fword@cache.example:6380/0",
    ],
)
def test_a_claims_cache_url_is_taken_without_the_blanks_around_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}CLAIMS_CACHE_URL", f" {url}\n")
    for built in (make(), make(claims_cache_url=f"\t{url} "), make(claims_cache_url=SecretStr(f" {url}"))):
        assert built.claims_cache_url is not None
        assert built.claims_cache_url.get_secret_value() == url


def test_a_shared_claims_cache_that_is_off_is_refused() -> None:
    assert "turns the claims cache off" in fault(claims_cache_url="redis://cache.example", claims_cache_ttl_ms=0)


@pytest.mark.parametrize("store", ["claims_cache", "fleet"])
@pytest.mark.parametrize("file", ["root_cert", "cert", "key"])
def test_a_file_for_the_tls_of_a_redis_that_uses_none_is_refused(store: str, file: str) -> None:
    setting = f"{store}_ssl_{file}"
    files = {f"{store}_ssl_cert": "/cert.pem"} if file == "key" else {}
    files[setting] = "/file.pem"

    def fault_among(text: str, url: str | None) -> str:
        """The last of the faults with this text."""
        return [one for one in refusal(**{f"{store}_url": url}, **files).faults if text in one][-1]

    assert f"{setting} " in fault_among("does not use TLS: start it with rediss://", "valkey://redis.example")
    assert f"{setting} " in fault_among("set the URL, or remove the file", None)
    for url in ("rediss://redis.example", "valkeys://redis.example"):
        assert getattr(make(**{f"{store}_url": url}, **files), setting) == "/file.pem"
    if store == "fleet":
        assert f"{setting} " in fault_among("names a DynamoDB table, which needs no file", "dynamodb://fleet")
    wrong = refusal(**{f"{store}_url": "http://redis.example"}, **files).faults
    assert len(wrong) == 1, "of a URL with a fault, nothing else is said"


@pytest.mark.parametrize("store", ["claims_cache", "fleet"])
def test_a_key_without_a_client_certificate_is_refused(store: str) -> None:
    files = {f"{store}_url": "rediss://redis.example", f"{store}_ssl_key": "/key.pem"}
    assert "set the certificate too" in fault(**files)


def test_all_faults_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}PLOO_MAX", "1")
    error = refusal(
        url="postgresql://u@h:0/d?pool_timeout=0&connection_limit=2",
        pool_max=3,
        command_timeout_ms=0,
        breaker_reset_timeout_ms=90_000,
    )
    assert len(error.faults) == 6
    assert str(error).startswith("6 settings are wrong:\n- ")


def test_an_invalid_setting_is_not_checked_against_another() -> None:
    assert "whole number" in fault(breaker_reset_timeout_max_ms=0, breaker_reset_timeout_ms=90_000)


NO_PASSWORD = "postgresql://someone@db.example/app"
PAIR = {"ssl_cert": "/c.pem", "ssl_key": "/c.key"}
CONFLICTS: list[tuple[dict[str, Any], str]] = [
    ({"url": None}, "No database URL: set LAMBDA_DATABASE_URL or DATABASE_URL to postgresql://user:password@host:port/"),
    ({"secret_arn": ARN}, "secret_arn supplies user and password, and so does the database URL: remove them"),
    ({"url": None, "secret_arn": ARN, "iam_auth": True}, "secret_arn and iam_auth exclude each other: set only one."),
    ({"iam_host": "db.example"}, "iam_host needs iam_auth to be true."),
    ({"url": NO_PASSWORD, "iam_auth": True, "iam_host": ":5432"}, "iam_host must be host or host:port, with a port"),
    ({"iam_auth": True}, "iam_auth uses a token instead of a password: remove the password from the database URL."),
    ({"url": NO_PASSWORD, "iam_auth": True, "sslmode": "disable"}, "iam_auth needs TLS: set sslmode to verify-full."),
    ({"ssl_root_cert": "/ca.pem", "sslmode": "disable"}, "ssl_root_cert is set, but sslmode is disable: use"),
    ({"ssl_root_cert": "system", "sslmode": "require"}, "ssl_root_cert is system, which needs sslmode to be"),
    ({"ssl_cert": "/c.pem"}, "ssl_cert is the client's certificate and needs ssl_key, its private key."),
    ({"ssl_key": "/c.key"}, "ssl_key is set without ssl_cert: set both, or none."),
    ({**PAIR, "sslmode": "disable"}, "ssl_cert is set, but sslmode is disable: use verify-full, or remove the"),
    (
        {"url": f"{URL}?sslaccept=accept_invalid_certs"},
        "sslaccept=accept_invalid_certs in the database URL contradicts sslmode, which verifies the server: remove it",
    ),
    ({"url": "postgresql://u@/d?host=/run", "ssl_root_cert": "/ca.pem"}, "ssl_root_cert needs TLS, which a Unix"),
    (
        {"url": f"{URL}?pgbouncer=false", "proxy_host": "proxy.example"},
        (
            "pgbouncer=false in the database URL contradicts proxy_host: remove it from the URL or, to turn the proxy"
            " profile off, also set proxy_profile to false."
        ),
    ),
    (
        {"url": f"{URL}?schema=tenant", "proxy_host": "proxy.example"},
        "schema in the database URL can only be public under the proxy profile (proxy_profile or proxy_host), because",
    ),
    (
        {"url": f"{URL}?target_session_attrs=primary", "proxy_host": "proxy.example"},
        "target_session_attrs in the database URL can only be any under the proxy profile (proxy_profile or proxy_host",
    ),
    (
        {"server_settings": {"jit": "off"}, "proxy_host": "proxy.example"},
        "server_settings cannot be sent under the proxy profile (proxy_profile or proxy_host): remove it, and use",
    ),
    ({"proxy_host": ":5432"}, "proxy_host must be host, host:port or [IPv6]:port, with a port from 1 to 65535."),
    ({"max_lifetime_ms": 99}, "max_lifetime_ms must be 0 (never), or at least 100 milliseconds."),
    (
        {"breaker_reset_timeout_ms": 5001},
        "breaker_reset_timeout_max_ms is less than breaker_reset_timeout_ms: raise the first, or lower the second.",
    ),
    (
        {"claims_cache_url": "redis://cache.example", "claims_cache_ttl_ms": 0},
        "claims_cache_ttl_ms is 0, which turns the claims cache off, but claims_cache_url is set: remove one of them.",
    ),
    ({"claims_cache_url": "redis://"}, "claims_cache_url must name a host, as in redis://host:port or"),
    ({"claims_cache_ssl_root_cert": "/ca.pem"}, "claims_cache_ssl_root_cert is set, but claims_cache_url is not: set"),
    ({"fleet_url": "redis://"}, "fleet_url must name a host, as in redis://host:port or"),
    (
        {"fleet_url": "rediss://store.example", "fleet_ssl_key": "/key.pem"},
        "fleet_ssl_key is set, but fleet_ssl_cert is not: set the certificate too, or remove the key.",
    ),
    (
        {"fleet_url": "redis://store.example", "fleet_ssl_cert": "/cert.pem"},
        "fleet_ssl_cert is set, but fleet_url does not use TLS: start it with rediss://, or remove the file.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "told"), CONFLICTS, ids=[",".join(values) for values, _ in CONFLICTS])
def test_settings_that_do_not_go_together_are_all_named(values: dict[str, Any], told: str) -> None:
    """Each by its keyword, and with its variable, which the table leaves out."""
    settings = DatabaseSettings.model_fields.keys() - {"url"}
    names = re.compile(rf"\b({'|'.join(settings)})\b")
    assert fault(**values).startswith(names.sub(lambda name: f"{name[0]} ({PREFIX}{name[0].upper()})", told))


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"url": None, "secret_arn": " "}, "secret_arn"),
        ({"url": "postgresql://someone@/app", "secret_arn": " "}, "secret_arn"),
        ({"url": "postgresql://someone@/app", "proxy_host": " "}, "proxy_host"),
        ({"url": "postgresql://db.example/app", "secret_arn": " "}, "secret_arn"),
        ({"url": NO_PASSWORD, "iam_host": "db.example", "iam_auth": "perhaps"}, "iam_auth"),
        ({"ssl_cert": "/c.pem", "ssl_key": " "}, "ssl_key"),
        ({"ssl_cert": " ", "ssl_key": "/c.key"}, "ssl_cert"),
        ({"url": f"{URL}?schema=a", "proxy_host": "p.example", "proxy_profile": "perhaps"}, "proxy_profile"),
        (
            {"url": f"{URL}?target_session_attrs=primary", "proxy_host": "p.example", "proxy_profile": "perhaps"},
            "proxy_profile",
        ),
        ({"server_settings": {"jit": "off"}, "proxy_host": "p.example", "proxy_profile": "perhaps"}, "proxy_profile"),
        ({"server_settings": {"statement_timeout": "4s"}, "command_timeout_ms": 0}, "command_timeout_ms"),
        ({"breaker_reset_timeout_ms": 0, "breaker_reset_timeout_max_ms": 1}, "breaker_reset_timeout_ms"),
        ({"claims_cache_ssl_cert": "/c.pem", "claims_cache_url": " "}, "claims_cache_url"),
        ({"fleet_url": "rediss://h", "fleet_ssl_key": "/c.key", "fleet_ssl_cert": " "}, "fleet_ssl_cert"),
    ],
)  # fmt: skip
def test_what_a_wrong_setting_may_have_caused_is_not_told(values: dict[str, Any], wrong: str) -> None:
    assert fault(**values).startswith(f"{wrong} (LAMBDA_DATABASE_{wrong.upper()}) must be ")


# What the URL sets


def test_prisma_parameters_reach_the_settings() -> None:
    built = make(url=f"{URL}?connection_limit=4&connect_timeout=2&pool_timeout=3&pgbouncer=true&sslmode=require")
    assert (built.pool_max, built.connect_timeout, built.profile) == (4, 5.0, TRANSACTION_POOLER)
    assert built.target.sslmode == "require"


def test_a_url_value_out_of_range_is_told_by_its_parameter() -> None:
    sentence = fault(url=f"{URL}?connection_limit=0")
    assert sentence == "connection_limit in the database URL must be a whole number from 1 to 100."


def test_url_timeouts_out_of_range_are_told_in_seconds() -> None:
    sentence = fault(url=f"{URL}?connect_timeout=200&pool_timeout=101")
    assert sentence.startswith(
        "connect_timeout + pool_timeout (seconds) in the database URL must be a whole number of seconds from 1 to 300, "
    )


def test_a_url_value_equal_to_the_setting_is_fine() -> None:
    assert make(url=f"{URL}?connection_limit=5&sslmode=require", pool_max="5", sslmode="require").pool_max == 5


def other_value(parameter: UrlParameter) -> object:
    """A valid value of the setting that a parameter feeds, other than that of the parameter's example."""
    value = parameter.parse(parameter.example)
    candidates = choices(parameter.feeds) or number_range(parameter.feeds) or (f"{value}-other",)
    return next(candidate for candidate in candidates if str(candidate) != str(value).lower())


FED = [parameter for parameter in URL_PARAMETERS if parameter.feeds_setting]


@pytest.mark.parametrize("parameter", FED, ids=[parameter.name for parameter in FED])
def test_a_parameter_that_contradicts_its_setting_is_told_with_both(parameter: UrlParameter) -> None:
    url = f"{URL}?{parameter.name}={quote(parameter.example, safe='')}"
    partner = {"ssl_cert": {"ssl_key": "/k"}, "ssl_key": {"ssl_cert": "/c"}}.get(parameter.feeds, {})
    sentence = fault(url=url, **partner, **{parameter.feeds: other_value(parameter)})
    where, setting = sentence.split(" in the database URL contradicts ")
    assert parameter.name in where
    assert where.endswith(" (seconds)") is parameter.feeds.endswith("_ms")
    assert setting == (
        f"{parameter.feeds} ({PREFIX}{parameter.feeds.upper()}): remove one of them, or make them equal."
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"proxy_host": "proxy.example"}, "LAMBDA_DATABASE_PROXY_HOST"),
        ({"proxy_host": "proxy.example", "proxy_profile": True}, "LAMBDA_DATABASE_PROXY_PROFILE"),
    ],
)
def test_pgbouncer_false_beside_a_proxy_host_is_one_fault(values: dict[str, Any], named: str) -> None:
    sentence = fault(url=f"{URL}?pgbouncer=false", **values)
    assert "pgbouncer" in sentence
    assert "contradicts" in sentence
    assert named in sentence


def test_a_wrong_setting_is_not_compared_with_the_url() -> None:
    assert "whole number" in fault(url=f"{URL}?connection_limit=5", pool_max=0)


def test_an_argument_of_none_leaves_the_word_to_the_url() -> None:
    assert make(url=f"{URL}?sslmode=require", sslmode=None).target.sslmode == "require"


def test_a_url_that_names_no_host_is_refused() -> None:
    assert "names no host" in fault(url="postgresql://someone@/app")


def test_a_url_that_names_no_user_is_refused() -> None:
    assert "names no user" in fault(url="postgresql://db.example/app")


@pytest.mark.parametrize("url", [5432, URL.encode(), bytearray(URL, "ascii"), SecretStr(cast("Any", URL.encode()))])
def test_a_url_that_is_no_text_is_one_fault(url: object) -> None:
    assert "url (LAMBDA_DATABASE_URL, else DATABASE_URL) must be a non-empty string" in fault(url=url)


@pytest.mark.parametrize("url", ["postgresql://someone:pass/word@h/d", "postgresql://someone:12/word@h/d"])
def test_a_user_that_could_not_be_read_is_not_told_as_missing(url: str) -> None:
    assert not any("names no" in sentence for sentence in refusal(url=url).faults)


# Where the settings lead


def test_the_target_is_what_the_url_says() -> None:
    target = make(url=f"{URL}?application_name=signup&schema=tenant").target
    assert (target.host, target.port, target.user, target.database) == ("db.example", 5432, "someone", "app")
    assert (target.application_name, target.schema) == ("signup", "tenant")
    assert target.password is not None
    assert target.password.get_secret_value() == "s3cr3t-word"


def test_a_database_that_is_not_named_is_named_like_the_user() -> None:
    assert make(url="postgresql://someone@db.example").target.database == "someone"


@pytest.mark.parametrize(
    ("proxy_host", "host", "port"),
    [("proxy.example", "proxy.example", 6000), ("proxy.example:6432", "proxy.example", 6432), ("[::1]:1", "::1", 1)],
)
def test_the_proxy_host_takes_the_place_of_the_urls(proxy_host: str, host: str, port: int) -> None:
    target = make(url="postgresql://u@db.example:6000/d", proxy_host=proxy_host).target
    assert (target.host, target.port) == (host, port)


def test_a_proxy_host_serves_a_url_without_a_host() -> None:
    assert make(url="postgresql://someone@/app", proxy_host="proxy.example").target.host == "proxy.example"


@pytest.mark.parametrize("url", [URL, "postgresql://someone@/app"])
@pytest.mark.parametrize("proxy_host", ["::1", ":6432", "a b", "h:99999", "proxy.example:0", "http://proxy.example"])
def test_a_proxy_host_that_is_none_is_one_fault(proxy_host: str, url: str) -> None:
    assert "proxy_host (LAMBDA_DATABASE_PROXY_HOST) must be host" in fault(url=url, proxy_host=proxy_host)


@pytest.mark.parametrize(
    ("values", "profile"),
    [
        ({}, DIRECT),
        ({"proxy_host": "proxy.example"}, TRANSACTION_POOLER),
        ({"proxy_host": "proxy.example", "proxy_profile": False}, DIRECT),
        ({"proxy_profile": True}, TRANSACTION_POOLER),
        ({"url": f"{URL}?pgbouncer=true"}, TRANSACTION_POOLER),
        ({"url": f"{URL}?pgbouncer=false"}, DIRECT),
        ({"url": f"{URL}?pgbouncer=false", "proxy_host": "proxy.example", "proxy_profile": False}, DIRECT),
    ],
)
def test_proxy_profile_and_proxy_host_choose_the_profile(values: dict[str, Any], profile: PoolerProfile) -> None:
    built = make(**values)
    assert built.profile is profile


@pytest.mark.parametrize(
    ("values", "reset"),
    [
        ({}, True),
        ({"session_reset": "never"}, False),
        ({"proxy_profile": True}, False),
        ({"proxy_profile": True, "session_reset": "always"}, True),
    ],
)
def test_sessions_are_reset_except_under_the_proxy_profile(values: dict[str, Any], reset: bool) -> None:
    assert make(**values).reset_sessions is reset


def test_resetting_under_the_proxy_profile_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    make(proxy_profile=True, session_reset="always")
    assert [(record.name, record.levelno) for record in caplog.records] == [("asyncdb_guard", logging.WARNING)]
    assert "session_reset (LAMBDA_DATABASE_SESSION_RESET)" in caplog.text


def test_resetting_a_direct_connection_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    make(session_reset="always")
    assert caplog.records == []


def test_a_schema_other_than_public_is_refused_under_the_proxy_profile() -> None:
    assert "can only be public" in fault(url=f"{URL}?schema=tenant&pgbouncer=true")


def test_the_public_schema_is_left_to_the_server_under_the_proxy_profile() -> None:
    assert make(url=f"{URL}?schema=public&pgbouncer=true").target.schema is None


@pytest.mark.parametrize("values", [{"proxy_host": "proxy.example"}, {"proxy_profile": True}])
def test_a_kind_of_node_is_refused_under_the_proxy_profile(values: dict[str, Any]) -> None:
    sentence = fault(url=f"{URL}?target_session_attrs=read-write", **values)
    assert "can only be any under the proxy profile" in sentence
    assert make(url=f"{URL}?target_session_attrs=any", **values).target.target_session_attrs == "any"


def test_what_a_profile_permits_follows_from_its_fields() -> None:
    session_pooler = TRANSACTION_POOLER._replace(name="session pooler", sets_search_path=True)
    url = parse_database_url(f"{URL}?schema=tenant")[0]
    target = connect_target(make(), url, session_pooler)
    assert target.schema == "tenant"
    assert list(conflicts(make(), url, target, session_pooler, from_url=())) == []


# TLS


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_is_plain_unless_said_otherwise(host: str) -> None:
    assert make(url=f"postgresql://u@{host}/d").target.sslmode == "disable"


@pytest.mark.parametrize("host", ["db.example", "10.0.0.1", "[2001:db8::1]", "localhost.example", "127.1"])
def test_any_other_host_is_verified_unless_said_otherwise(host: str) -> None:
    assert make(url=f"postgresql://u@{host}/d").target.sslmode == "verify-full"


def test_it_is_the_proxy_host_whose_place_decides_on_tls() -> None:
    assert make(url=LOCAL, proxy_host="proxy.example").target.sslmode == "verify-full"


@pytest.mark.parametrize("values", [{"ssl_root_cert": "/opt/ca.pem"}, {"iam_auth": True}])
def test_loopback_is_verified_where_something_asks_for_tls(values: dict[str, Any]) -> None:
    assert make(url=LOCAL, **values).target.sslmode == "verify-full"


@pytest.mark.parametrize("word", ["disable", "require", "verify-ca", "verify-full"])
def test_the_word_that_is_said_is_what_is_done(word: str) -> None:
    assert make(sslmode=word).target.sslmode == word


def test_require_with_a_root_certificate_verifies_it_as_in_libpq() -> None:
    target = make(url=f"{URL}?sslmode=require&sslrootcert=/opt/ca.pem").target
    assert (target.sslmode, target.ssl_root_cert) == ("verify-ca", "/opt/ca.pem")


def test_a_root_certificate_without_tls_is_refused() -> None:
    assert "ssl_root_cert (LAMBDA_DATABASE_SSL_ROOT_CERT) is set" in fault(ssl_root_cert="/ca", sslmode="disable")


@pytest.mark.parametrize("values", [{"ssl_cert": "/c.pem"}, {"ssl_key": "/c.key"}])
def test_half_a_client_certificate_is_refused(values: dict[str, Any]) -> None:
    sentence = fault(**values)
    assert "ssl_cert (LAMBDA_DATABASE_SSL_CERT)" in sentence
    assert "ssl_key (LAMBDA_DATABASE_SSL_KEY)" in sentence


def test_a_client_certificate_without_tls_is_refused() -> None:
    assert "or remove the client's certificate" in fault(ssl_cert="/c.pem", ssl_key="/c.key", sslmode="disable")


def test_a_client_certificate_turns_tls_on_over_loopback() -> None:
    assert make(url=LOCAL, ssl_cert="/c.pem", ssl_key="/c.key").target.sslmode == "verify-full"


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("sslaccept=strict", "verify-full"),
        ("sslmode=require&sslaccept=strict", "verify-full"),
        ("sslmode=require&sslaccept=accept_invalid_certs", "require"),
        ("sslmode=verify-full&sslaccept=strict", "verify-full"),
    ],
)
def test_prismas_sslaccept_decides_what_require_means(query: str, mode: str) -> None:
    assert make(url=f"{URL}?{query}").target.sslmode == mode


@pytest.mark.parametrize(
    ("query", "remedy"),
    [
        ("sslaccept=accept_invalid_certs", "set sslmode=require"),
        ("sslmode=verify-ca&sslaccept=accept_invalid_certs", "set sslmode=require"),
        ("sslmode=disable&sslaccept=strict", "needs sslmode (LAMBDA_DATABASE_SSLMODE) to be require or verify-full"),
        ("sslmode=verify-ca&sslaccept=strict", "needs sslmode (LAMBDA_DATABASE_SSLMODE) to be require or verify-full"),
    ],
)
def test_a_sslaccept_that_contradicts_the_mode_is_refused(query: str, remedy: str) -> None:
    assert remedy in fault(url=f"{URL}?{query}")


@pytest.mark.parametrize("values", [{}, {"sslmode": "disable"}])
def test_a_unix_socket_is_plain(values: dict[str, Any]) -> None:
    assert make(url="postgresql://u@/d?host=/run", **values).target.sslmode == "disable"


@pytest.mark.parametrize("values", [{"sslmode": "require"}, {"ssl_root_cert": "/ca.pem"}, {"iam_auth": True}])
def test_tls_over_a_unix_socket_is_refused(values: dict[str, Any]) -> None:
    sentence = fault(url="postgresql://u@/d?host=/run", **values)
    assert "needs TLS, which a Unix socket does not have: remove it, or name a host." in sentence
    assert next(iter(values)) in sentence


def test_the_systems_trust_store_can_be_named() -> None:
    target = make(ssl_root_cert="system").target
    assert (target.sslmode, target.ssl_root_cert) == ("verify-full", None)


@pytest.mark.parametrize("word", ["require", "verify-ca"])
def test_the_systems_trust_store_needs_the_host_verified(word: str) -> None:
    assert "needs sslmode (LAMBDA_DATABASE_SSLMODE) to be verify-full" in fault(ssl_root_cert="system", sslmode=word)


def test_a_host_that_is_not_known_yet_is_no_loopback() -> None:
    assert not is_loopback(None)


# Credentials from elsewhere


def test_a_secret_needs_no_url() -> None:
    target = DatabaseSettings(secret_arn=ARN).target
    assert (target.host, target.port, target.user, target.password, target.database) == (None,) * 5
    assert target.sslmode == "verify-full"


def test_the_url_beats_the_secret_where_it_says_something() -> None:
    target = make(url="postgresql://db.example:6000/app", secret_arn=ARN).target
    assert (target.host, target.port, target.user, target.database) == ("db.example", 6000, None, "app")


@pytest.mark.parametrize("url", [URL, "postgresql://someone@db.example"])
def test_a_login_from_both_the_secret_and_the_url_is_refused(url: str) -> None:
    assert "remove them from the URL" in fault(url=url, secret_arn=ARN)


def test_a_secret_and_a_token_exclude_each_other() -> None:
    assert "exclude each other" in fault(url=None, secret_arn=ARN, iam_auth=True)


def test_a_password_beside_a_token_is_refused() -> None:
    assert "remove the password from the database URL" in fault(iam_auth=True)


def test_a_token_needs_tls() -> None:
    assert "iam_auth (LAMBDA_DATABASE_IAM_AUTH) needs TLS" in fault(url=LOCAL, iam_auth=True, sslmode="disable")


# Frozen, and silent about secrets

PRIVATE = ("someone", "s3cr3t-word", "db.example", "proxy.example", "cache.example", "SELECT", "signup-AbCdEf")


def full() -> DatabaseSettings:
    return make(
        proxy_host="proxy.example",
        claims_cache_url="redis://:s3cr3t-word@cache.example",
        claims_sql="SELECT role",
        provision_sql="SELECT add($1)",
    )


def shown(built: DatabaseSettings) -> list[str]:
    """Every way in which settings end in a log."""
    return [repr(built), str(built), repr(built.model_dump()), built.model_dump_json(), repr(built.target)]


def test_nothing_private_is_shown() -> None:
    assert not any(word in text for text in shown(full()) for word in PRIVATE)


def test_a_target_shows_no_name_and_no_port() -> None:
    target = make(url="postgresql://u@h:6123/zz-database?application_name=zz-name&schema=zz-schema").target
    assert re.findall(r"(\w+)=", repr(target)) == [
        "sslmode", "ssl_root_cert", "target_session_attrs", "ssl_cert", "ssl_key"
    ]  # fmt: skip


def test_the_secret_arn_is_not_shown() -> None:
    built = DatabaseSettings(secret_arn=ARN)
    assert not any(ARN in text for text in shown(built))


def pickled(built: DatabaseSettings) -> DatabaseSettings:
    again: DatabaseSettings = pickle.loads(pickle.dumps(built))
    return again


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, DatabaseSettings.model_copy, pickled])
def test_a_copy_is_whole(duplicate: Callable[[DatabaseSettings], DatabaseSettings]) -> None:
    again = duplicate(full())
    assert again == full()
    assert again.target == full().target


@pytest.mark.parametrize("setting", ["pool_max", "url", "nonsense"])
def test_built_settings_are_frozen(setting: str) -> None:
    built = make()
    with pytest.raises(ConfigurationError, match="frozen once built"):
        setattr(built, setting, "postgresql://other:s3cr3t-word@h")


def test_nothing_can_be_deleted_from_built_settings() -> None:
    built = make()
    with pytest.raises(ConfigurationError, match="frozen once built"):
        del built.pool_max
    assert built.pool_max == 1


def test_a_copy_with_changes_is_refused_as_nothing_would_check_them() -> None:
    with pytest.raises(ConfigurationError, match="frozen once built"):
        make().model_copy(update={"pool_max": 5000})


@pytest.mark.parametrize(
    "changes", [{"update": {"pool_max": 5000}}, {"include": {"pool_max"}}, {"exclude": {"url"}}, {"include": set()}]
)
def test_a_copy_with_changes_is_refused_under_its_old_name_as_well(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="frozen once built"):
        make().copy(**changes)


@pytest.mark.parametrize("deep", [False, True])
def test_a_plain_copy_can_be_made_under_its_old_name(deep: bool) -> None:
    built = full()
    again = built.copy(deep=deep, update=None)
    assert again == built
    assert again is not built
    assert (again.url is built.url) is not deep
    assert built.copy().url is built.model_copy().url is built.url


def test_nobody_can_subclass_the_settings() -> None:
    untyped: Any = DatabaseSettings
    with pytest.raises(
        TypeError, match=r"^DatabaseSettings cannot be subclassed: make it a field of your own model\.$"
    ):

        class Loose(untyped, env_prefix="REPORTS_"):
            pool_max: int = 5000


def test_settings_can_be_a_field_of_another_model() -> None:
    class Service(BaseModel):
        database: DatabaseSettings

    built = make()
    assert Service(database=built).database is built


def test_settings_can_be_a_field_of_settings_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Service(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="SERVICE_", env_nested_delimiter="__")
        greeting: str = "hello"
        database: DatabaseSettings

    monkeypatch.setenv("SERVICE_GREETING", "good day")
    monkeypatch.setenv("SERVICE_DATABASE__URL", URL)
    monkeypatch.setenv("SERVICE_DATABASE__POOL_MAX", "5")
    monkeypatch.setenv(f"{PREFIX}BREAKER_FAIL_MAX", "7")
    service = Service()  # type: ignore[call-arg]
    assert (service.greeting, service.database.pool_max, service.database.breaker_fail_max) == ("good day", 5, 7)
    assert service.database.target.host == "db.example"
    monkeypatch.setenv("SERVICE_DATABASE__POOL_MX", "5")
    with pytest.raises(ConfigurationError, match=r"pool_mx is not a setting; the nearest is pool_max\."):
        Service()  # type: ignore[call-arg]


def test_what_is_no_mapping_makes_no_settings() -> None:
    with pytest.raises(ValidationError) as caught:
        DatabaseSettings.model_validate("s3cr3t-word")
    assert "s3cr3t-word" not in str(caught.value)


@given(
    password=st.text(st.sampled_from("XYZ890:/?#[]@!$&'()*+,;=%\\^`{|}~"), min_size=8, max_size=24), raw=st.booleans()
)
@settings(max_examples=100, deadline=None)
@pytest.mark.slow
def test_no_error_shows_a_piece_of_the_url(password: str, raw: bool) -> None:
    written = password if raw else quote(password, safe="")
    url = f"postgresql://zz-user:{written}@zz-host.example:99999/zz-database?zz-parameter=zz-value&pool_timeout=0"
    error = refusal(url=url, sslmode="zz-mode", claims_cache_url=f"zz-cache://{written}", pool_max=-5)
    # The name of a parameter is told where it cannot be a piece of the password.
    told = everything_about(error).replace("zz-parameter in the database URL", "")
    assert "zz-" not in told
    assert password not in told
    assert written not in told
    assert [link for link in chain(error) if isinstance(link, ValidationError)] == []


def test_a_report_with_the_variables_of_each_frame_shows_no_secret_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"{PREFIX}URL", f"{URL}?unheard=of")
    monkeypatch.setenv(f"{PREFIX}CLAIMS_CACHE_URL", "memcached://:s3cr3t-word@cache.example")
    with pytest.raises(ConfigurationError) as caught:
        DatabaseSettings()
    report = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "s3cr3t-word" not in report
    assert "cache.example" not in report


@pytest.mark.parametrize(
    "url",
    [
        "redis://store.example", "rediss://:s3cr3t-word@store.example:6380/1", "valkey://store.example",
        "valkeys://user:s3cr3t-word@store.example", "dynamodb://fleet", "dynamodb://My_fleet.2-b",
    ],
)  # fmt: skip
def test_a_fleet_url_may_name_redis_valkey_or_a_dynamodb_table(url: str) -> None:
    built = make(fleet_url=url)
    assert built.fleet_url is not None
    assert built.fleet_url.get_secret_value() == url
    assert "s3cr3t" not in repr(built)


@pytest.mark.parametrize("url", ["http://store.example", "redi://store.example", "zz-store", "memcached://zz-store"])
def test_a_fleet_url_with_another_scheme_is_refused(url: str) -> None:
    assert fault(fleet_url=url) == (
        "fleet_url (LAMBDA_DATABASE_FLEET_URL) must start with redis://, rediss://, valkey://, valkeys:// or dynamodb://."
    )


@pytest.mark.parametrize(
    "url", ["dynamodb://", "dynamodb:zz-table", "dynamodb://zz", "dynamodb://zz/zz", "dynamodb://zz?zz"]
)
def test_a_fleet_url_without_the_name_of_a_table_is_refused(url: str) -> None:
    sentence = fault(fleet_url=url)
    assert "must name a table after dynamodb://" in sentence
    assert "zz" not in sentence


@pytest.mark.parametrize("url", ["valkey://", "redis://store.example/zz", "valkeys://store.example?zz=1"])
def test_a_fleet_url_is_checked_like_any_redis_url(url: str) -> None:
    assert "zz" not in fault(fleet_url=url)
