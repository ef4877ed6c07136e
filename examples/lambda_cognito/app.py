"""Both triggers of a user pool. `template.yaml` deploys them as two functions of one package."""

from __future__ import annotations

from asyncdb_guard import Connection, GuardedPool
from asyncdb_guard.cognito import CognitoClient, CognitoTriggers, CognitoUser
from asyncdb_guard.runtime import lambda_handler

pool = GuardedPool()


async def claims(conn: Connection, user: CognitoUser) -> dict[str, object]:
    row = await conn.fetchrow("SELECT role, tenant_id FROM app_user WHERE cognito_sub = $1", user.sub)
    return dict(row) if row else {}


async def provision(conn: Connection, user: CognitoUser) -> None:
    await conn.execute(
        "INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2) ON CONFLICT DO NOTHING", user.sub, user.email
    )


async def machine_claims(conn: Connection, client: CognitoClient) -> dict[str, object]:
    return {"tenant_id": await conn.fetchval("SELECT tenant_id FROM app_client WHERE client_id = $1", client.client_id)}


triggers = CognitoTriggers(pool, claims=claims, provision=provision, machine_claims=machine_claims)

pre_token = lambda_handler(triggers.load_claims, prewarm=pool)
post_confirmation = lambda_handler(triggers.provision_user)
