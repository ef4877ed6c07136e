"""SQL statements as callbacks, with a real database."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from asyncdb_guard import ConfigurationError, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.cognito.placeholders import scan
from asyncdb_guard.cognito.statements import MachineClaims, Statement, UserClaims, refusal
from tests.cognito.conftest import MakePool
from tests.cognito.events import (
    access_claims,
    confirmation_event,
    id_claims,
    machine_event,
    token_event,
    user_attributes,
)

if TYPE_CHECKING:
    from asyncdb_guard import GuardedPool
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy


async def claims_of(pool: GuardedPool, statement: str, sub: str, **request: Any) -> dict[str, Any]:
    return id_claims(await CognitoTriggers(pool, claims=statement).load_claims(token_event("2", sub=sub, **request)))


async def test_the_columns_of_the_row_are_the_claims(pool: GuardedPool, sub: str) -> None:
    statement = "SELECT role, email, moods, since, score, runs, attributes FROM app_user WHERE cognito_sub = $1"
    assert await claims_of(pool, statement, sub) == {
        "role": "admin",
        "email": "ada@example.com",
        "moods": ["calm"],
        "since": "2026-01-02T03:04:05+00:00",
        "score": 1.5,
        "runs": 0,
    }


async def test_no_row_is_no_claims(pool: GuardedPool, sub: str) -> None:
    assert await claims_of(pool, "SELECT role FROM app_user WHERE cognito_sub = $1", str(uuid.uuid4())) == {}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 'x' AS plan", {"plan": "x"}),
        ("SELECT $1 AS a, $2 AS b, $3 AS c", {"a": "S", "b": "ada@example.com", "c": user_attributes("S")}),
        ("SELECT $3->>'email' AS email", {"email": "ada@example.com"}),
        (
            "SELECT $3::jsonb->'email' AS email, $3::text IS NOT NULL AS there",
            {"email": "ada@example.com", "there": True},
        ),
        ("SELECT $2 AS email, $2 AS again", {"email": "ada@example.com", "again": "ada@example.com"}),
        ("WITH who AS (SELECT $1::text AS sub) SELECT length(sub) AS n FROM who ;", {"n": 1}),
        ("SELECT '$1;' AS text -- $9", {"text": "$1;"}),
        ("VALUES (1)", {"column1": 1}),
        ('SELECT \'{"a": [1, {"b": null}]}\'::json AS nested', {"nested": {"a": [1, {"b": None}]}}),
        ("SELECT 9007199254740993::text AS big", {"big": "9007199254740993"}),
        ("SELECT 1 AS asyncdb_guard_row, 2 AS answer", {"asyncdb_guard_row": 1, "answer": 2}),
    ],
)
async def test_parameters_and_values(pool: GuardedPool, statement: str, expected: dict[str, Any]) -> None:
    assert await claims_of(pool, statement, "S") == expected


async def test_an_absent_e_mail_is_null(pool: GuardedPool) -> None:
    assert await claims_of(pool, "SELECT $2::text IS NULL AS none", "", userAttributes={"sub": "S"}) == {"none": True}


async def test_a_provisioning_statement_writes_what_the_event_has(pool: GuardedPool, sub: str) -> None:
    new = str(uuid.uuid4())
    statement = "INSERT INTO app_user (attributes, cognito_sub) VALUES ($3, $1) ON CONFLICT DO NOTHING;"
    await CognitoTriggers(pool, provision=statement).provision_user(confirmation_event(new))
    written = await pool.fetchval("SELECT attributes FROM app_user WHERE cognito_sub = $1", new)
    assert json.loads(written) == user_attributes(new)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1 AS a; SELECT 2 AS b", "claims= of CognitoTriggers contains more than one statement"),
        ("  ", "is empty"),
        ("SELECT 'a", "has an unterminated quote"),
        ("SELECT $4 AS a", r"uses \$4. Use only \$1 \(the sub\), \$2 \(the e-mail\) and \$3"),
        ("SELECT $0 AS a", r"uses \$0"),
        ("SELECT role FROM app_user", r"returned more than one row\. Select one by"),
        ("SELECT 1 AS a, 2 AS a", "returned two columns of the same name"),
        ("SELECT 1", r"returned a column without a name"),
        ("SELEC 1", r"PostgresSyntaxError \[42601\].*not SQL"),
        ("SELECT %s AS a", r"\[42601\].*write parameters as"),
        ("INSERT INTO app_user (cognito_sub) VALUES ($1)", "writes a row and returns none. Add RETURNING"),
        ("CREATE TABLE another ()", r"\[42601\].*that is allowed here"),
        ("SELECT a FROM nowhere", r"UndefinedTableError \[42P01\].*the table does not exist"),
        ("SELECT nothing FROM app_user", r"UndefinedColumnError \[42703\].*the column does not exist"),
        ("SELECT $1 + $2 AS a", r"\[42725\].*cast the parameter"),
        ("SELECT lower(5) AS a", r"\[42883\].*cast the parameter"),
        ("SELECT pg_read_file('x') AS a", r"InsufficientPrivilegeError \[42501\].*lacks a privilege"),
        ("SELECT 9007199254740993 AS big", "'big' contains an integer beyond"),
        ("SELECT 0.12345678901234567890 AS score", "'score' contains a Decimal with more digits"),
        ("SELECT 1 AS sub", "'sub' is reserved"),
    ],
)
async def test_an_invalid_statement_is_logged_with_its_remedy(
    pool: GuardedPool, sub: str, caplog: pytest.LogCaptureFixture, statement: str, expected: str
) -> None:
    await pool.execute("INSERT INTO app_user (cognito_sub) VALUES (gen_random_uuid())")
    with pytest.raises(TriggerFailedError, match=r"^The sign-in could not be completed, please try again later$"):
        await CognitoTriggers(pool, claims=statement).load_claims(token_event("2", sub=sub))
    (record,) = [record for record in caplog.records if record.name == "asyncdb_guard"]
    assert record.levelname == "ERROR"
    message = record.getMessage()
    assert all(re.search(part, message, re.IGNORECASE) for part in expected.split(".*")), message
    assert sub not in caplog.text
    assert "app_user" not in caplog.text


def test_what_the_server_says_of_a_statement_is_told_with_its_name() -> None:
    said = asyncpg.UndefinedColumnError('column "a\n\x1b" does not exist ' + "x" * 400)
    told = refusal(said, Statement("SELECT 1", "claims_sql"))
    text = "PostgreSQL refused claims_sql: "
    assert str(told).startswith(f'{text}column "a  " does not exist x')
    assert len(str(told)) == len(text) + 300
    assert told.__cause__ is said


@pytest.mark.parametrize("error", [asyncpg.DivisionByZeroError("secret"), LookupError("secret")])
def test_what_the_server_says_of_values_is_not_told(error: Exception) -> None:
    assert refusal(error, Statement("SELECT 1", "claims_sql")) is error


def test_what_the_server_says_of_a_functions_statement_is_not_told() -> None:
    error = asyncpg.UndefinedColumnError("secret")
    assert refusal(error, claims_of) is error


async def test_one_row_too_many_is_all_that_is_fetched(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    pool = make_pool(url=url_via_tcp_proxy)
    await pool.ping()
    before = proxy.server_bytes
    with pytest.raises(TriggerFailedError):
        await claims_of(pool, "SELECT repeat('x', 1000) AS a FROM generate_series(1, 100000)", "s")
    assert proxy.server_bytes - before < 10_000


async def test_behind_a_proxy_no_statement_is_named_and_nothing_is_looked_up(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str, sub: str
) -> None:
    pool = make_pool(url=f"{url_via_tcp_proxy}?pgbouncer=true")
    assert await claims_of(pool, "SELECT moods FROM app_user WHERE cognito_sub = $1", sub) == {"moods": ["calm"]}
    asked = [text for text in proxy.statements if "asyncdb_guard_row" not in text]
    assert not [text for text in asked if "pg_type" in text or "set_config" in text]


@pytest.mark.parametrize("sql", ["SELECT 1", "SELECT $2, $1, $2", "SELECT $3, $1"])
def test_only_what_a_statement_uses_is_sent(sql: str) -> None:
    statement = Statement(sql, "it")
    places = {f"${place}" for place in range(1, 4) if f"${place}" in statement.text}
    assert len(places) == len({part for part in ("$1", "$2", "$3") if part in sql})


def test_a_statement_from_the_environment_is_named_by_its_variable() -> None:
    with pytest.raises(ConfigurationError, match=r"^claims_sql \(LAMBDA_DATABASE_CLAIMS_SQL\) is empty"):
        UserClaims("--", "claims_sql (LAMBDA_DATABASE_CLAIMS_SQL)")


# -- statements that write -------------------------------------------------------------------------------------------

UPSERT = """
    INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2)
    ON CONFLICT (cognito_sub) DO UPDATE SET runs = app_user.runs + 1
    RETURNING role, runs
"""
FIND_OR_INSERT = """
    WITH found AS (SELECT role, runs FROM app_user WHERE cognito_sub = $1),
    new AS (
        INSERT INTO app_user (cognito_sub, email) SELECT $1, $2 FROM pg_sleep(0.01) WHERE NOT EXISTS (SELECT FROM found)
        RETURNING role, runs
    )
    SELECT * FROM found UNION ALL SELECT * FROM new
"""


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (UPSERT, [{"role": "user", "runs": 0}, {"role": "user", "runs": 1}]),
        (FIND_OR_INSERT, [{"role": "user", "runs": 0}, {"role": "user", "runs": 0}]),
        (
            f"-- first\nWITH me AS (SELECT 1) /* , */ {UPSERT} -- last",
            [{"role": "user", "runs": 0}, {"role": "user", "runs": 1}],
        ),
    ],
    ids=["upsert", "find or insert", "with and insert"],
)
async def test_a_claims_statement_may_write_the_row_that_it_returns(
    make_pool: MakePool, sub: str, statement: str, expected: list[dict[str, Any]]
) -> None:
    """For users who never confirmed a sign-up: an administrator created them, or they are federated."""
    pool = make_pool(claims_cache_ttl_ms=0)
    new = str(uuid.uuid4())
    got = [await claims_of(pool, statement, new) for _ in range(2)]
    assert got == expected
    assert await pool.fetchval("SELECT email FROM app_user WHERE cognito_sub = $1", new) == "ada@example.com"


async def test_first_sign_ins_of_one_user_wait_for_each_other(make_pool: MakePool, sub: str) -> None:
    """Without the lock, two of them would find no row, and one would fail."""
    new = str(uuid.uuid4())
    pools = [make_pool() for _ in range(3)]  # three environments
    got = await asyncio.gather(*(claims_of(pool, FIND_OR_INSERT, new) for pool in pools))
    assert got == [{"role": "user", "runs": 0}] * 3


async def test_a_write_of_several_rows_is_rolled_back(pool: GuardedPool, sub: str) -> None:
    await pool.execute("INSERT INTO app_user (cognito_sub) VALUES (gen_random_uuid())")
    with pytest.raises(TriggerFailedError):
        await claims_of(pool, "UPDATE app_user SET runs = 7 RETURNING role", sub)
    assert await pool.fetchval("SELECT max(runs) FROM app_user") == 0


async def test_a_statement_that_reads_opens_no_transaction(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str, sub: str
) -> None:
    pool = make_pool(url=url_via_tcp_proxy)
    await claims_of(pool, "SELECT role FROM app_user WHERE cognito_sub = $1", sub)
    assert not [text for text in proxy.statements if "BEGIN" in text or "advisory_xact" in text]


@pytest.mark.parametrize(
    ("sql", "clause", "writes"),
    [
        ("SELECT 1", "", False),
        ("SELECT a FROM b FOR UPDATE", "", False),
        ('SELECT "insert", delete FROM update', "", False),
        ("(SELECT 1) UNION SELECT 2", "", False),
        ("insert into a values (1) returning b", "", True),
        ("MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE RETURNING c", "", True),
        ("WITH a AS (SELECT 1) SELECT 2", "WITH a AS (SELECT 1) ", False),
        ("WITH a AS (SELECT 1) (SELECT 2) UNION SELECT 3", "WITH a AS (SELECT 1) ", False),
        ("WITH update AS (SELECT 1), merge (x) AS (SELECT 2) TABLE a", "…, merge (x) AS (SELECT 2) ", False),
        ("WITH RECURSIVE values AS (SELECT 1) VALUES (2)", "WITH RECURSIVE values AS (SELECT 1) ", False),
        ("WITH a AS MATERIALIZED (DELETE FROM b RETURNING c) SELECT c", "…(DELETE FROM b RETURNING c) ", True),
        ("WITH a AS (SELECT 1 FROM b FOR UPDATE) UPDATE c SET d = 1 RETURNING e", "…FOR UPDATE) ", True),
    ],
)  # fmt: skip
def test_the_parts_of_a_statement(sql: str, clause: str, writes: bool) -> None:
    scanned = scan(sql)
    before = scanned.text[: scanned.main]
    assert scanned.writes == writes
    assert before.endswith(clause[1:]) if clause.startswith("…") else before == clause


# -- machines --------------------------------------------------------------------------------------------------------


async def test_a_machines_claims_come_from_a_statement_too(pool: GuardedPool) -> None:
    statement = "SELECT $1 || '!' AS who, cardinality($2) AS scopes, 'orders/read' = ANY ($2) AS reads"
    triggers = CognitoTriggers(pool, machine_claims=statement)
    event = await triggers.load_claims(machine_event(scopes=["orders/read", "orders/write"], client_id="m"))
    assert access_claims(event) == {"who": "m!", "scopes": 2, "reads": True}


async def test_a_machines_first_token_may_write_its_row(make_pool: MakePool, sub: str) -> None:
    statement = "INSERT INTO app_user (cognito_sub, email) VALUES (gen_random_uuid(), $1) RETURNING email AS client"
    event = await CognitoTriggers(make_pool(), machine_claims=statement).load_claims(machine_event(client_id="m"))
    assert access_claims(event) == {"client": "m"}


def test_a_machine_has_no_attributes() -> None:
    with pytest.raises(ConfigurationError, match=r"uses \$3\. Use only \$1 \(the client ID\) and \$2 \(the scopes"):
        MachineClaims("SELECT $3", "it")
