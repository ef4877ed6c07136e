"""Lambda entry points without code of the user's: the statements are LAMBDA_DATABASE_CLAIMS_SQL and _PROVISION_SQL.

Handlers: `asyncdb_guard.handlers.load_claims` for pre token generation, and `asyncdb_guard.handlers.provision_user`
for post confirmation. In Lambda, importing them opens the connection, as `lambda_handler(prewarm=)` does; elsewhere
nothing is read before the first event.
"""

from __future__ import annotations

from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.runtime import lambda_handler

pool = GuardedPool()
"""The pool of both; one Lambda function uses one of them."""

triggers = CognitoTriggers(pool)

# Whichever of the two is used, this opens its connection in the init phase: both are made here.
load_claims = lambda_handler(triggers.load_claims, prewarm=pool)
provision_user = lambda_handler(triggers.provision_user)
