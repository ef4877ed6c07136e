"""The two Lambda functions of act one, as a user of the library would write them. awslambdaric imports this module."""

from __future__ import annotations

from asyncdb_guard import Connection, GuardedPool
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser
from asyncdb_guard.runtime import lambda_handler

pool = GuardedPool()


async def claims(conn: Connection, user: CognitoUser) -> dict[str, object]:
    """Return the claims for this user's tokens; none if the table does not have the user."""
    row = await conn.fetchrow("SELECT role, tenant_id FROM app_user WHERE cognito_sub = $1", user.sub)
    return dict(row) if row else {}


async def provision(conn: Connection, user: CognitoUser) -> None:
    """Insert the new user's row. Cognito may call this more than once."""
    await conn.execute(
        "INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2) ON CONFLICT DO NOTHING", user.sub, user.email
    )


triggers = CognitoTriggers(pool, claims=claims, provision=provision)

post_confirmation = lambda_handler(triggers.provision_user)
pre_token = lambda_handler(triggers.load_claims)
