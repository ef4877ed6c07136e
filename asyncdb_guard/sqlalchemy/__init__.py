"""SQLAlchemy over the guarded pool: `create_async_engine(pool)`. Needs the extra `sqlalchemy`."""

from asyncdb_guard.sqlalchemy.engine import create_async_engine

__all__ = ["create_async_engine"]
