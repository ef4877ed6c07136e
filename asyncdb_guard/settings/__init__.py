"""The settings: from keywords, the environment and the database URL, checked together."""

from asyncdb_guard.settings.building import DatabaseSettings
from asyncdb_guard.settings.target import ConnectTarget

__all__ = ["ConnectTarget", "DatabaseSettings"]
