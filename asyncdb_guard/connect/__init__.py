"""One server session: how it is dialled, verified and logged in to, and all that knows asyncpg's insides."""
