"""Serve both triggers from a Lambda package, unpacked, under awslambdaric: `python -m tests.support.packaged x.zip`."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from asyncdb_guard.testing import LambdaRuntime, TemporaryPostgres, confirmation_event, id_claims, token_event

SUB = "8b1f6a52-6f0e-4b65-9d6c-0a2d1b3c4d5e"
SCHEMA = Path(__file__).parents[2] / "examples/lambda_cognito/schema.sql"
APP = ("app.post_confirmation", "app.pre_token")
READY_MADE = ("asyncdb_guard.handlers.provision_user", "asyncdb_guard.handlers.load_claims")
STATEMENTS = {
    "LAMBDA_DATABASE_PROVISION_SQL": "INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    "LAMBDA_DATABASE_CLAIMS_SQL": "SELECT role FROM app_user WHERE cognito_sub = $1",
}


def main(archive: Path) -> None:
    """Unpack it as Lambda does, and let each pair of handlers write a user and read the claims."""
    with tempfile.TemporaryDirectory() as directory, TemporaryPostgres.start() as server:
        folder = Path(directory).resolve()
        with zipfile.ZipFile(archive) as package:
            package.extractall(folder)
        server.psql(SCHEMA.read_text(encoding="utf-8"))
        url = {"LAMBDA_DATABASE_URL": server.url(user="app_login")}
        for handlers, env in (APP, url), (READY_MADE, url | STATEMENTS):
            server.psql("TRUNCATE app_user")
            serve(folder, handlers, env)
            assert server.psql(f"SELECT role FROM app_user WHERE cognito_sub = '{SUB}'") == "user"
            sys.stdout.write(f"{archive.name}: {' and '.join(handlers)} answer\n")


def serve(folder: Path, handlers: tuple[str, str], env: dict[str, str]) -> None:
    """Confirm a sign-up, then sign in."""
    write, read = handlers
    answer(folder, write, env, confirmation_event(sub=SUB))
    claims = id_claims(answer(folder, read, env, token_event(2, sub=SUB)))
    assert claims == {"role": "user"}, claims


def answer(folder: Path, handler: str, env: dict[str, str], event: dict[str, Any]) -> dict[str, Any]:
    """What the handler answers, from the package alone."""
    with LambdaRuntime.start(handler, env=env, cwd=folder) as runtime:
        answered = runtime.invoke(event, timeout=30)
        assert answered.error is None, runtime.logs
        mapped = Path(f"/proc/{runtime.pid}/maps")
        if mapped.exists():
            drivers = {line.split()[-1] for line in mapped.read_text().splitlines() if "asyncpg" in line}
            assert drivers
            assert all(Path(driver).is_relative_to(folder) for driver in drivers), drivers
    return dict(answered.payload)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
