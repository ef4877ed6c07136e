"""The settings: the knobs, the URL, and what is wrong with them."""

from asyncdb_guard.settings.model import DatabaseSettings
from asyncdb_guard.settings.target import ConnectTarget

__all__ = ["ConnectTarget", "DatabaseSettings"]
