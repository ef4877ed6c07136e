"""The ready entry points, as Lambda runs them: two statements in the environment and no code."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cognito.conftest import SUB, TABLE
from tests.cognito.events import access_claims, confirmation_event, id_claims, machine_event, token_event

if TYPE_CHECKING:
    from asyncdb_guard.testing.lambda_runtime.api import RuntimeApi
    from asyncdb_guard.testing.lambda_runtime.process import LambdaRuntime as Environment
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

ROOT = Path(__file__).resolve().parent.parent

CLAIMS = "SELECT role, moods FROM app_user WHERE cognito_sub = $1"
PROVISION = "INSERT INTO app_user (cognito_sub, email, attributes) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"

HOSTILE = """
import asyncio
from asyncdb_guard import GuardedPool
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.runtime import lambda_handler

async def claims(conn, user):
    match user.client_metadata.get("do"):
        case "reserved": return {"sub": "somebody else"}
        case "nan": return {"score": float("nan")}
        case "cancel": raise asyncio.CancelledError
        case "exit": raise SystemExit(3)
        case "violate": await conn.execute("INSERT INTO app_user (cognito_sub) VALUES ($1)", user.sub)
        case "sleep": await conn.execute("SELECT pg_sleep(20)")
    return {"role": "x"}

load_claims = lambda_handler(CognitoTriggers(GuardedPool(), claims=claims).load_claims)
"""


@pytest.fixture
def statements(server: Cluster, role: str) -> dict[str, str]:
    """The environment of a function that needs no code."""
    server.psql(TABLE.format(schema=role, sub=SUB))
    return {
        "LAMBDA_DATABASE_URL": server.url(user=role),
        "LAMBDA_DATABASE_CLAIMS_SQL": CLAIMS,
        "LAMBDA_DATABASE_PROVISION_SQL": PROVISION,
    }


def metrics(environment: Environment) -> list[dict[str, Any]]:
    return [json.loads(line) for line in environment.stdout.splitlines() if line.startswith('{"_aws"')]


def test_claims_come_from_a_statement(runtime_api: RuntimeApi, statements: dict[str, str]) -> None:
    with runtime_api.environment("asyncdb_guard.handlers.load_claims", env=statements, cwd=ROOT) as environment:
        for version in ("2", "2", "3"):
            answer = environment.invoke(token_event(version, sub=SUB))
            assert answer.error is None
            assert id_claims(answer.payload) == {"role": "admin", "moods": ["calm"]}
        answer = environment.invoke(token_event("1", sub=SUB))
        assert answer.payload["response"] == {
            "claimsOverrideDetails": {"claimsToAddOrOverride": {"role": "admin", "moods": '["calm"]'}}
        }
        assert environment.invoke(machine_event()).payload == machine_event()
        assert [line.get("CacheMiss") for line in metrics(environment)] == [1, 0, 1, 1, None]
        assert SUB not in environment.stdout + environment.stderr


def test_a_machines_claims_come_from_a_statement(runtime_api: RuntimeApi, statements: dict[str, str]) -> None:
    env = statements | {"LAMBDA_DATABASE_MACHINE_CLAIMS_SQL": "SELECT $1 AS machine, $2[1] AS scope"}
    with runtime_api.environment("asyncdb_guard.handlers.load_claims", env=env, cwd=ROOT) as environment:
        answers = [environment.invoke(machine_event(client_id="batch")).payload for _ in range(2)]
        assert [access_claims(answer) for answer in answers] == [{"machine": "batch", "scope": "orders/read"}] * 2
        assert [line.get("CacheMiss") for line in metrics(environment)] == [1, 0]


@pytest.mark.parametrize("policy", ["deny", "unchanged"])
def test_an_outage_is_answered_as_the_environment_says(runtime_api: RuntimeApi, policy: str) -> None:
    env = {
        "LAMBDA_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "LAMBDA_DATABASE_CLAIMS_SQL": CLAIMS,
        "LAMBDA_DATABASE_ON_UNAVAILABLE": policy,
    }
    with runtime_api.environment("asyncdb_guard.handlers.load_claims", env=env, cwd=ROOT) as environment:
        answer = environment.invoke(token_event("2", sub=SUB))
        assert (answer.error is None) == (policy == "unchanged")
        (line,) = metrics(environment)
        assert (line["Failed"], line["Degraded"]) == ((0, 1) if policy == "unchanged" else (1, 0))


def test_users_are_provisioned_by_a_statement(
    runtime_api: RuntimeApi, statements: dict[str, str], server: Cluster, role: str
) -> None:
    new = "11111111-2222-3333-4444-555555555555"
    with runtime_api.environment("asyncdb_guard.handlers.provision_user", env=statements, cwd=ROOT) as environment:
        for _ in range(3):
            answer = environment.invoke(confirmation_event(new))
            assert (answer.error, answer.payload) == (None, confirmation_event(new))
        untouched = confirmation_event(new, "PostConfirmation_ConfirmForgotPassword")
        assert environment.invoke(untouched).payload == untouched
    email = f"SELECT email, attributes->>'email' FROM {role}.app_user WHERE cognito_sub = '{new}'"
    assert server.psql(email) == "ada@example.com|ada@example.com"


@pytest.mark.parametrize("handler", ["load_claims", "provision_user"])
def test_a_missing_statement_is_logged(runtime_api: RuntimeApi, statements: dict[str, str], handler: str) -> None:
    url = {"LAMBDA_DATABASE_URL": statements["LAMBDA_DATABASE_URL"]}
    with runtime_api.environment(f"asyncdb_guard.handlers.{handler}", env=url, cwd=ROOT) as environment:
        answer = environment.invoke(token_event("2", sub=SUB) if handler == "load_claims" else confirmation_event(SUB))
        assert answer.error is not None
        assert "please try again later" in answer.error["errorMessage"]
        name = "CLAIMS" if handler == "load_claims" else "PROVISION"
        assert f"LAMBDA_DATABASE_{name}_SQL" in environment.stdout + environment.stderr
        assert "LAMBDA_DATABASE" not in json.dumps(answer.error)


def test_json_logs_have_fields_to_filter_by(runtime_api: RuntimeApi, statements: dict[str, str]) -> None:
    env = statements | {
        "LAMBDA_DATABASE_CLAIMS_SQL": "SELECT rolle FROM app_user WHERE cognito_sub = $1",
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
    }
    with runtime_api.environment("asyncdb_guard.handlers.load_claims", env=env, cwd=ROOT) as environment:
        environment.invoke(token_event("2", sub=SUB))
        records = [json.loads(line) for line in environment.logs if line.startswith("{")]
    (record,) = [record for record in records if record.get("logger") == "asyncdb_guard"]
    assert (record["level"], record["sqlstate"]) == ("ERROR", "42703")
    assert record["error"].endswith("StatementRefusedError < asyncpg.exceptions.UndefinedColumnError")
    assert record["remedy"].startswith("The column does not exist; check its name")
    assert "LAMBDA_DATABASE_CLAIMS_SQL" in record["remedy"]
    assert "where" not in record  # there is no code of the author's


@pytest.mark.slow
def test_hostile_callbacks_give_safe_text_in_time_and_the_process_lives(
    runtime_api: RuntimeApi, statements: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(HOSTILE)
    env = {
        "LAMBDA_DATABASE_URL": statements["LAMBDA_DATABASE_URL"], "LAMBDA_DATABASE_COMMAND_TIMEOUT_MS": "500",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with runtime_api.environment("app.load_claims", env=env, cwd=tmp_path) as environment:
        pid = environment.pid
        environment.wait_ready(30.0)
        for deed in ("reserved", "nan", "cancel", "exit", "violate", "sleep"):
            began = time.monotonic()
            answer = environment.invoke(token_event("2", sub=SUB, clientMetadata={"do": deed}))
            assert time.monotonic() - began < 5.0  # what Cognito allows
            assert answer.error is not None, deed
            shown = json.dumps(answer.error)
            assert answer.error["errorType"] == "TriggerFailedError"
            assert answer.error["errorMessage"] in {
                "The sign-in could not be completed, please try again later",
                "The request could not be completed",
            }
            for private in (SUB, "ada@", "app_user", "pg_sleep", "postgresql", "somebody"):
                assert private not in shown
            fine = environment.invoke(token_event("2", sub=SUB, clientMetadata={"do": "nothing", "after": deed}))
            assert id_claims(fine.payload) == {"role": "x"}
        assert environment.pid == pid
        assert SUB not in environment.stdout + environment.stderr


def test_while_the_database_is_down_errors_come_first_and_then_refusals_at_once(runtime_api: RuntimeApi) -> None:
    env = {"LAMBDA_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "LAMBDA_DATABASE_CLAIMS_SQL": CLAIMS}
    with runtime_api.environment("asyncdb_guard.handlers.load_claims", env=env, cwd=ROOT) as environment:
        answers = [environment.invoke(token_event("2", sub=SUB)) for _ in range(6)]
        assert all(answer.error is not None for answer in answers)
        assert min(answer.seconds for answer in answers[3:]) < 0.5
        assert [line["Rejected"] for line in metrics(environment)][-3:] == [1, 1, 1]


@pytest.mark.slow
def test_importing_them_reads_nothing() -> None:
    code = """
import os, sys
import asyncdb_guard.cognito, asyncdb_guard.runtime
seen = []
class Watched(type(os.environ)):
    def __getitem__(self, key):
        seen.append(key)
        return super().__getitem__(key)
os.environ.__class__ = Watched
sys.addaudithook(lambda event, _: event.startswith("socket.") and seen.append(event))
import asyncdb_guard.handlers
print([name for name in seen if "DATABASE" in str(name) or str(name).startswith("socket.")])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
