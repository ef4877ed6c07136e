"""The fleet's bulletin: a store in which environments tell each other that the database is back."""

from asyncdb_guard.bulletin.board import Bulletin, fault_of, open_bulletin

__all__ = ["Bulletin", "fault_of", "open_bulletin"]
