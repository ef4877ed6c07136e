"""Act one: a user signs up and signs in, through two Lambda functions in the real runtime client, awslambdaric."""

from __future__ import annotations

import uuid
from typing import Any

from rich.console import Console

from asyncdb_guard.testing import (
    Answer,
    LambdaRuntime,
    RuntimeApi,
    TemporaryPostgres,
    confirmation_event,
    token_event,
)
from examples.burst.fleet import ROOT
from examples.burst.scenario import FLEET

SUB = str(uuid.uuid5(uuid.NAMESPACE_DNS, "ada.example.com"))


class TriggerRefusedError(Exception):
    """A Lambda function answered with an error."""


def act(server: TemporaryPostgres, console: Console) -> None:
    """Provision one user and load her claims; print what Cognito would get back."""
    environment = {"LAMBDA_DATABASE_URL": server.url(user=FLEET, sslmode="disable")}
    with RuntimeApi.start() as api:
        with api.environment("examples.burst.lambda_app.post_confirmation", env=environment, cwd=ROOT) as function:
            answer = _ask(function, confirmation_event(sub=SUB))
            console.print(
                f"\n[bold]Post confirmation[/]: ada has signed up. Answered in {_ms(answer)}. From the answer:"
            )
            console.print_json(data={key: answer.payload[key] for key in ("version", "triggerSource", "response")})
            row = server.psql("SELECT email, role, tenant_id FROM app_user")
            console.print(f"Her row in app_user: {row.replace('|', ', ')}", soft_wrap=True)
        with api.environment("examples.burst.lambda_app.pre_token", env=environment, cwd=ROOT) as function:
            for version in ("1", "2", "3"):
                answer = _ask(function, token_event(version, sub=SUB))
                console.print(
                    f"\n[bold]Pre token generation[/], event version {version}: ada signs in. "
                    f"Answered in {_ms(answer)}. Its response:"
                )
                console.print_json(data=answer.payload["response"])


def _ask(function: LambdaRuntime, question: dict[str, Any]) -> Answer:
    answer = function.invoke(question)
    if answer.error is not None:
        said = function.stdout + function.stderr
        raise TriggerRefusedError(f"A Lambda function answered: {answer.error.get('errorMessage')}\nIts log:\n{said}")
    return answer


def _ms(answer: Answer) -> str:
    return f"{answer.seconds * 1000:.0f} ms"
