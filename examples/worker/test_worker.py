"""The worker as a process of its own, through an outage of its database, and to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyncdb_guard.testing.postgres.server import TemporaryPostgres

HERE = Path(__file__).parent
SCHEMA = """
    CREATE TABLE job (id bigint GENERATED ALWAYS AS IDENTITY, payload text NOT NULL);
    CREATE TABLE result (text text NOT NULL);
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.text = 'SLOW' THEN PERFORM pg_sleep(0.5); END IF; RETURN NEW; END $$;
    CREATE TRIGGER dawdle BEFORE INSERT ON result FOR EACH ROW EXECUTE FUNCTION dawdle();
"""
LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^LISTEN'"


@pytest.fixture
def database():
    with TemporaryPostgres.start() as server:
        server.psql(SCHEMA)
        yield server


@pytest.fixture
def worker(database):
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "worker.py"], cwd=HERE,
        env=os.environ | {"LAMBDA_DATABASE_URL": database.url(), "LAMBDA_DATABASE_POOL_MAX": "2"},
    )  # fmt: skip
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def write(database, payload):
    database.psql(f"INSERT INTO job (payload) VALUES ('{payload}'); NOTIFY jobs")


def until(database, sql, expected, within=15.0):
    deadline = time.monotonic() + within
    while (seen := database.psql(sql)) != expected:
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


def test_jobs_are_done_as_they_come(database, worker):
    write(database, "before")
    until(database, LISTENING, "1")
    write(database, "after")
    until(database, "SELECT string_agg(text, ' ') FROM result", "BEFORE AFTER")
    assert database.psql("SELECT count(*) FROM job") == "0"


def test_it_goes_on_after_an_outage(database, worker):
    until(database, LISTENING, "1")
    database.stop("immediate")
    time.sleep(0.1)
    database.restart()
    write(database, "after")
    until(database, "SELECT string_agg(text, ' ') FROM result", "AFTER")
    assert worker.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_the_job_that_is_being_done_and_leaves_the_others(database, worker, number):
    until(database, LISTENING, "1")
    database.psql("INSERT INTO job (payload) VALUES ('slow'), ('next'); NOTIFY jobs")
    until(database, "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^INSERT INTO result'", "1")
    worker.send_signal(number)
    assert worker.wait(10) == 0
    assert database.psql("SELECT string_agg(text, ' ') FROM result") == "SLOW"
    assert database.psql("SELECT payload FROM job") == "next"
    assert database.psql(LISTENING) == "0"
