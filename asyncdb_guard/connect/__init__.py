"""One server session: how it is opened, verified and logged in to. The only folder that knows asyncpg's internals."""
