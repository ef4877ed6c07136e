"""Debian's PgBouncer in front of a `Cluster`, in transaction mode, on a loopback port."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

from asyncdb_guard.testing.ports import LOOPBACK, free_port
from asyncdb_guard.testing.postgres.installation import Account, Installation
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

_PROGRAMS = ("/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer")

_ADMIN = "admin's own"
_CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = {listen}
listen_port = {listen_port}
unix_socket_dir =
auth_type = {auth_type}
auth_file = {directory}/users
admin_users = admin
pool_mode = {mode}
default_pool_size = {backends}
max_client_conn = 200
ignore_startup_parameters = {ignored}
server_round_robin = 1
logfile = {directory}/log
pidfile = {directory}/pid
"""


class PgBouncer:
    """Use as `with PgBouncer(server, {user: password}) as bouncer:`; it may be stopped and started again."""

    host = LOOPBACK

    def __init__(
        self,
        server: Cluster,
        users: Mapping[str, str],
        *,
        backends: int = 2,
        auth_type: str = "trust",
        ignored: str = "",
        mode: str = "transaction",
    ) -> None:
        """`users` and their passwords; `trust` doesn't ask for them. `ignored`: startup parameters to swallow."""
        self._ignored = ignored
        self._mode = mode
        self.server = server
        self.backends = backends
        self.port = free_port()
        self._auth_type = auth_type
        self._users = {"admin": _ADMIN, **users}
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def found() -> str | None:
        """Where the program is on this machine."""
        return next((path for path in _PROGRAMS if Path(path).exists()), None)

    def __enter__(self) -> Self:
        program = self.found()
        if program is None:
            raise RuntimeError("No PgBouncer was found. Install Debian's package pgbouncer.")
        account = Account.current()
        self._program = program
        self._directory = Path(tempfile.mkdtemp(prefix="asyncdb-guard-pgbouncer-", dir=account.temporary_root()))
        account.own(self._directory)
        users = "".join(f'"{user}" "{password}"\n' for user, password in self._users.items())
        configuration = _CONFIGURATION.format(
            host=self.server.host, port=self.server.port, listen=self.host, listen_port=self.port,
            auth_type=self._auth_type, directory=self._directory, backends=self.backends,
            ignored=self._ignored, mode=self._mode,
        )  # fmt: skip
        for name, text in (("users", users), ("ini", configuration)):
            (self._directory / name).write_text(text)
            account.own(self._directory / name)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self, timeout: float = 10.0) -> None:
        """Start it, and return once its admin console answers."""
        self._process = subprocess.Popen(
            [self._program, "-q", str(self._directory / "ini")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            **Account.current().process_options(),
        )  # fmt: skip
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.admin("SHOW VERSION")
            except RuntimeError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PgBouncer did not start:\n{self.log[-2000:]}") from None
                time.sleep(0.01)
            else:
                return

    def stop(self) -> None:
        """End it at once; its clients' connections end with it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def log(self) -> str:
        path = self._directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def url(self, user: str, *, password: str = "", port: int | None = None, **query: str) -> str:
        """To the server's database postgres, through PgBouncer, or through a proxy in front of it at `port`."""
        secret = f":{quote(password, safe='')}" if password else ""
        parameters = f"?{urlencode(query)}" if query else ""
        return f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{port or self.port}/postgres{parameters}"

    def admin(self, command: str) -> list[dict[str, str]]:
        """Run one command in the admin console: PAUSE, RESUME, SHOW POOLS; the rows of the answer."""
        done = subprocess.run(
            [
                Installation.find(self.server.version).programs / "psql", "-X", "-q", "-A",
                "-F", "\t", "-P", "footer=off", "-c", command,
                f"postgresql://admin@{self.host}:{self.port}/pgbouncer?connect_timeout=5",
            ],
            capture_output=True, text=True, check=False, timeout=20.0,
            env={"PATH": os.defpath, "LC_ALL": "C", "PGPASSWORD": _ADMIN},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command} failed:\n{done.stderr}")
        names, *rows = [line.split("\t") for line in done.stdout.splitlines()] or [[]]
        return [dict(zip(names, row, strict=True)) for row in rows]
