"""The service through an outage of its database, and to its end."""

from __future__ import annotations

import signal


def names(database):
    return database.psql("SELECT string_agg(name, ',' ORDER BY id) FROM item")


def test_what_was_answered_is_committed(client, database):
    for number in range(20):
        assert client.post(f"/items/{number}").status_code == 201
        assert database.psql("SELECT count(*) FROM item") == str(number + 1)
    assert client.get("/items").json() == [str(number) for number in range(20)]


def test_what_fails_at_the_commit_is_not_answered_with_success(client, database):
    assert client.post("/items/one").status_code == 201
    assert client.post("/items/one").status_code == 409  # a deferred constraint, which only the COMMIT checks
    assert names(database) == "one"


def test_a_statement_that_takes_too_long_is_answered_with_504_and_rolled_back(client, database):
    database.psql(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(9); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION dawdle()"
    )
    assert client.post("/items/one").status_code == 504
    assert client.get("/items").json() == []


def test_an_outage_is_answered_with_503_until_it_is_over(client, database, until):
    assert client.get("/ready").json() == {"status": "ready", "circuit": "closed"}
    database.stop("immediate")
    for _ in range(5):
        answer = client.get("/items")
        assert answer.status_code in (500, 503)  # 500 once: a session that was lost in the middle of a statement
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert client.get("/ready").status_code == 503
    assert client.get("/live").status_code == 200
    database.restart()
    until(lambda: client.get("/ready").status_code == 200)
    assert client.post("/items/after").status_code == 201


def test_the_end_of_the_service_ends_its_sessions(client, service, database):
    assert client.get("/items").status_code == 200
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    assert database.psql(sessions) == "1"
    service.send_signal(signal.SIGTERM)
    assert service.wait(10) in (0, -signal.SIGTERM)
    assert database.psql(sessions) == "0"
