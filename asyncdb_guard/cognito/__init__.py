"""Amazon Cognito's pre token generation and post confirmation triggers, answered from the database."""

from asyncdb_guard.cognito.caching.key import CacheKey
from asyncdb_guard.cognito.caching.memory import MemoryCache
from asyncdb_guard.cognito.caching.protocol import ClaimsCache
from asyncdb_guard.cognito.claims import TokenClaims
from asyncdb_guard.cognito.event import CognitoClient, CognitoUser
from asyncdb_guard.cognito.triggers import CognitoTriggers

__all__ = ["CacheKey", "ClaimsCache", "CognitoClient", "CognitoTriggers", "CognitoUser", "MemoryCache", "TokenClaims"]
