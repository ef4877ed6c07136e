"""The two Lambda functions behind the Cognito user pool."""

from __future__ import annotations

from asyncdb_guard import GuardedPool
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.runtime import lambda_handler

from . import notes

triggers = CognitoTriggers(GuardedPool(), claims=notes.claims, provision=notes.provision)

pre_token = lambda_handler(triggers.load_claims)
post_confirmation = lambda_handler(triggers.provision_user)
