"""The Python of the pages does what they say."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest

import asyncdb_guard
from asyncdb_guard import DatabaseSettings, GuardedPool, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.testing import LambdaRuntime, access_claims, confirmation_event, id_claims, token_event
from tests.support.bound import at_rest
from tests.support.pages import Block, take, take_one

if TYPE_CHECKING:
    pass

SUB = "8b1f6a52-6f0e-4b65-9d6c-0a2d1b3c4d5e"

LAMBDA = take_one("README.md", "In a Lambda function")
SERVICE = take_one("README.md", "In a service")
ERRORS = take_one("README.md", "In a service", language="text")
CALLBACKS, DECODER = take("docs/cognito.md", "Your own callbacks")
LOG = take_one("docs/cognito.md", "Errors and logs", language="text")
FROM_ASYNCPG = take_one("docs/from_asyncpg.md", "Moving from asyncpg")
DIFFERENCE = take_one("docs/from_asyncpg.md", "Moving from asyncpg", language="diff")
HANDLER = take_one("docs/metrics.md", "Metrics and alarms")
EVENTS = take_one("docs/observing.md", "Events")
SET_LOCAL = take_one("docs/rds.md", "What pins RDS Proxy")
PROVIDER = take_one("docs/rds.md", "Your own provider")
TRY_IT = take_one("docs/packaging.md", "Try it where you are")


async def sign_up_and_in(triggers: CognitoTriggers) -> dict[str, Any]:
    """The token event of somebody who has just signed up, answered."""
    sign_up = confirmation_event(sub=SUB, attributes={"email": "ada@example.com"})
    for _ in range(2):  # a second run changes nothing
        await triggers.provision_user(sign_up)
    return await triggers.load_claims(token_event(sub=SUB, version=2))


async def test_the_readmes_triggers(environment: str) -> None:
    page = LAMBDA.run()
    async with page["pool"] as pool:
        assert id_claims(await sign_up_and_in(page["triggers"])) == {"role": "user"}
        assert await pool.fetchval("SELECT email FROM app_user") == "ada@example.com"
    assert callable(page["pre_token"])
    assert callable(page["post_confirmation"])


def test_the_readmes_service(environment: str, capsys: pytest.CaptureFixture[str]) -> None:
    SERVICE.run()
    assert capsys.readouterr().out == "[]\n"


def test_the_readmes_errors_are_those_there_are() -> None:
    above: list[str] = []
    for line in ERRORS.text.splitlines():
        found = re.match(r"(?P<indent>[│├└─ ]*)(?P<name>\w+)", line)
        assert found
        depth = len(found["indent"]) // 3
        error = getattr(asyncdb_guard, found["name"])
        if depth:
            assert getattr(asyncdb_guard, above[depth - 1]) in error.__bases__
        above[depth:] = [found["name"]]


async def test_callbacks(environment: str) -> None:
    page = CALLBACKS.run()
    async with page["pool"]:
        event = await sign_up_and_in(page["triggers"])
        assert id_claims(event) == {"role": "user"}
        assert access_claims(event) == {"role": "user", "plan": "free"}
        assert "api/read" in json.dumps(event["response"])


async def test_json_that_is_decoded(environment: str) -> None:
    async with DECODER.run()["pool"] as pool:
        await pool.execute("INSERT INTO app_user VALUES (gen_random_uuid())")
        assert await pool.fetchval("SELECT extra FROM app_user") == {"one": 1}


async def test_the_log_of_a_refused_statement(environment: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = DatabaseSettings(claims_sql="SELECT rolle FROM app_user WHERE cognito_sub = $1")
    async with GuardedPool(settings) as pool:
        with pytest.raises(TriggerFailedError):
            await CognitoTriggers(pool).load_claims(token_event(sub=SUB))
    told = " ".join(LOG.text.split())
    parts = [part for part in told.split("…") if part]
    said = " ".join(caplog.messages[0].split())
    assert all(part in said for part in parts), said


async def test_one_program_runs_on_both(environment: str) -> None:
    page = FROM_ASYNCPG.run() | {"DSN": environment} | vars(asyncdb_guard) | {"asyncpg": asyncpg}
    theirs, ours = (line[len("-pool = ") :] for line in DIFFERENCE.text.splitlines())
    async with eval(theirs.removeprefix("await "), page) as pool:
        *expected, size, _ = await page["program"](pool)
        await pool.execute("DROP TABLE note")
    async with eval(ours, page) as pool:
        assert [*await page["program"](pool)][:-1] == [*expected, size]
        await at_rest(pool)


def test_the_handler_that_prints_metrics(environment: str, tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(HANDLER.text)
    with LambdaRuntime.start("page.handler", env={"LAMBDA_DATABASE_URL": environment}, cwd=tmp_path) as function:
        assert function.invoke({}).payload == 1
        assert function.metrics[0]["Failed"] == 0


async def test_listeners(environment: str, caplog: pytest.LogCaptureFixture) -> None:
    page = EVENTS.run()
    with caplog.at_level(logging.INFO):
        async with page["pool"] as pool:
            await pool.ping()
    assert page["counts"] == {"connection_opened": 1, "connection_closed": 1}
    assert [record.event for record in caplog.records] == ["connection_opened", "connection_closed"]


async def test_set_local(environment: str) -> None:
    async with GuardedPool() as pool:
        assert [tuple(row) for row in await SET_LOCAL.run()["people_in_mood"](pool, "keen")] == [(2, "keen")]


async def test_a_provider_of_ones_own(
    environment: str, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(environment)
    monkeypatch.setenv(
        "LAMBDA_DATABASE_URL", parts._replace(netloc=f"nobody@{parts.netloc.rpartition('@')[2]}").geturl()
    )
    (tmp_path / "database.json").write_text(json.dumps({"user": role, "password": "p"}))
    text = PROVIDER.text.replace("/run/secrets", str(tmp_path))
    async with Block(PROVIDER.page, PROVIDER.heading, PROVIDER.line, "python", text).run()["pool"] as pool:
        assert await pool.fetchval("SELECT current_user") == role


def test_the_built_package_where_you_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is not built here, which `nox -s lambda_package` does: it has the example's own module."""
    example = Path("examples/lambda_cognito")
    (tmp_path / "build").mkdir()
    for source, target in (("app.py", "build/app.py"), ("schema.sql", "schema.sql")):
        (tmp_path / target).write_text((example / source).read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    TRY_IT.run()
    shown = capsys.readouterr().out
    assert "PostConfirmation_ConfirmSignUp" in shown
    assert SUB in shown.strip().splitlines()[-1]
