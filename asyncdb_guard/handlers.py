"""Ready Lambda handlers that need no code, only the statements in LAMBDA_DATABASE_CLAIMS_SQL and _PROVISION_SQL.

Use `asyncdb_guard.handlers.load_claims` for pre token generation and `asyncdb_guard.handlers.provision_user` for post
confirmation. In Lambda, importing this module opens the connection, as `lambda_handler(prewarm=)` does. Elsewhere,
nothing is read or opened before the first event.
"""

from __future__ import annotations

from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.runtime import lambda_handler

pool = GuardedPool()
"""The pool of both handlers; one Lambda function uses one of them."""

triggers = CognitoTriggers(pool)
"""The triggers, whose statements are those of the environment."""

# A function uses one handler but imports both, so one `prewarm=` opens its connection in the init phase.
load_claims = lambda_handler(triggers.load_claims, prewarm=pool)
"""The Lambda handler for pre token generation. It runs the statement in LAMBDA_DATABASE_CLAIMS_SQL."""
provision_user = lambda_handler(triggers.provision_user)
"""The Lambda handler for post confirmation. It runs the statement in LAMBDA_DATABASE_PROVISION_SQL."""
