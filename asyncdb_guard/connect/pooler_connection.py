"""A connection through a transaction pooler."""

from __future__ import annotations

from typing import Any

import asyncpg


class PoolerConnection(asyncpg.Connection):
    """Changes no setting, and knows whether the pooler may still be holding a backend for it.

    asyncpg/protocol/coreproto.pyx: asyncpg sends Parse, Describe and Flush, and Sync only with the Bind that follows. A
    pooler holds the backend in between. If no Bind follows, because the arguments do not fit or the borrower was
    cancelled, an idle connection would hold that backend for good, and a few of those stop a fleet.
    """

    keeps_backend = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        bare: Any = self
        # asyncpg/connection.py: asyncpg would turn jit off and on around each type lookup, which pins RDS Proxy and
        # leaves jit off on one of PgBouncer's backends
        bare._server_caps = bare._server_caps._replace(jit=False)

    async def _get_statement(self, *arguments: Any, **options: Any) -> Any:
        self.keeps_backend = True
        bare: Any = super()
        return await bare._get_statement(*arguments, **options)

    async def _do_execute(self, *arguments: Any, **options: Any) -> Any:
        bare: Any = super()
        answer = await bare._do_execute(*arguments, **options)
        self.keeps_backend = False
        return answer
