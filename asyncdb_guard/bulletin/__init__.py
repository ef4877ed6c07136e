"""The fleet's bulletin: a store in which environments tell each other that the database is back."""

from asyncdb_guard.bulletin.opening import open_bulletin

__all__ = ["open_bulletin"]
