"""What the code on the pages expects to find: a database with their tables, and its URL in the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

TABLES = """
    CREATE TABLE app_user (
        cognito_sub uuid PRIMARY KEY, email text, role text NOT NULL DEFAULT 'user', plan text NOT NULL DEFAULT 'free',
        tenant_id uuid, extra jsonb NOT NULL DEFAULT '{"one": 1}'
    );
    CREATE TABLE app_client (client_id text PRIMARY KEY, tenant_id uuid);
    CREATE TABLE account (id int PRIMARY KEY, seen timestamptz);
    CREATE TYPE mood AS ENUM ('calm', 'keen');
    CREATE TABLE person (id int PRIMARY KEY, mood mood);
    INSERT INTO person VALUES (1, 'calm'), (2, 'keen');
"""
"""The tables of all pages."""


@pytest.fixture
def environment(server: Cluster, url: str, role: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a database with the pages' tables."""
    server.psql(f"SET search_path = {role}; SET ROLE {role}; {TABLES}")
    monkeypatch.setenv("LAMBDA_DATABASE_URL", url)
    return url
