"""Act one: a user signs up and signs in, through two Lambda functions in the real runtime client, awslambdaric."""

from __future__ import annotations

import uuid
from typing import Any

from rich.console import Console

from asyncdb_guard.testing.lambda_runtime.api import RuntimeApi
from asyncdb_guard.testing.lambda_runtime.endpoint import Answer
from asyncdb_guard.testing.lambda_runtime.process import LambdaRuntime as Environment
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from examples.burst.fleet import ROOT
from examples.burst.scenario import FLEET

SUB = str(uuid.uuid5(uuid.NAMESPACE_DNS, "ada.example.com"))
ATTRIBUTES = {"sub": SUB, "email": "ada@example.com", "email_verified": "true"}


class TriggerRefusedError(Exception):
    """A Lambda function answered with an error."""


def event(version: str, source: str, request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """The envelope that Cognito puts around every trigger's event."""
    return {
        "version": version,
        "triggerSource": source,
        "region": "eu-central-1",
        "userPoolId": "eu-central-1_Example",
        "userName": "ada",
        "callerContext": {"awsSdkVersion": "aws-sdk-unknown-unknown", "clientId": "example-client"},
        "request": {"userAttributes": ATTRIBUTES, **request},
        "response": response,
    }


def confirmation() -> dict[str, Any]:
    """Cognito's word that the user has confirmed her address."""
    return event("1", "PostConfirmation_ConfirmSignUp", {}, {})


def token_request(version: str) -> dict[str, Any]:
    """Cognito's question, in each of its three versions, what to write into the tokens that it is about to sign."""
    groups = {"groupsToOverride": ["editors"], "iamRolesToOverride": [], "preferredRole": None}
    request: dict[str, Any] = {"groupConfiguration": groups}
    if version == "1":
        details = "claimsOverrideDetails"
    else:
        details = "claimsAndScopeOverrideDetails"
        request["scopes"] = ["openid", "email"]
    return event(version, "TokenGeneration_Authentication", request, {details: None})


def act(server: Cluster, console: Console) -> None:
    """Provision one user and issue her claims; print what Cognito would get back."""
    environment = {"LAMBDA_DATABASE_URL": server.url(user=FLEET, sslmode="disable")}
    with RuntimeApi.start() as api:
        with api.environment("examples.burst.lambda_app.post_confirmation", env=environment, cwd=ROOT) as function:
            answer = _ask(function, confirmation())
            console.print(f"\n[bold]Post confirmation[/]: ada has signed up. Answered in {_ms(answer)}; of the event:")
            console.print_json(data={key: answer.payload[key] for key in ("version", "triggerSource", "response")})
            row = server.psql("SELECT email, role, tenant_id FROM app_user")
            console.print(f"Her row in app_user: {row.replace('|', ', ')}", soft_wrap=True)
        with api.environment("examples.burst.lambda_app.pre_token", env=environment, cwd=ROOT) as function:
            for version in ("1", "2", "3"):
                answer = _ask(function, token_request(version))
                console.print(
                    f"\n[bold]Pre token generation[/], event version {version}: ada signs in. "
                    f"Answered in {_ms(answer)}; the event's response:"
                )
                console.print_json(data=answer.payload["response"])


def _ask(function: Environment, question: dict[str, Any]) -> Answer:
    answer = function.invoke(question)
    if answer.error is not None:
        said = function.stdout + function.stderr
        raise TriggerRefusedError(f"A Lambda function answered: {answer.error.get('errorMessage')}\nIts log:\n{said}")
    return answer


def _ms(answer: Answer) -> str:
    return f"{answer.seconds * 1000:.0f} ms"
