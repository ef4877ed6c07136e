"""Throw-away redis-servers, of Debian's package, on loopback ports: alone, as replicas, and as a cluster."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import trustme

from asyncdb_guard import DatabaseSettings
from asyncdb_guard.cognito.caching.redis import RedisCache
from asyncdb_guard.testing.ports import LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence


def cache_on(url: str, **settings: Any) -> RedisCache:
    """The claims cache that these settings give."""
    return RedisCache(DatabaseSettings(url="postgresql://nobody@127.0.0.1/none", claims_cache_url=url, **settings))


class RedisServer:
    """Keeps nothing on disk but a cluster's node file; lives until `close()`.

    `options` are those of redis-server. With `tls`, the server takes TLS connections only, on `port`.
    """

    host = LOOPBACK

    def __init__(self, *options: str, tls: bool = False) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("There is no redis-server: apt-get install redis-server")
        self.port = free_port()
        self._directory = tempfile.TemporaryDirectory()
        ports = ("--port", "0", "--tls-port", str(self.port)) if tls else ("--port", str(self.port))
        self._command: Sequence[str] = (
            program, "--bind", self.host, *ports, "--save", "", "--appendonly", "no", "--dir", self._directory.name,
            "--repl-diskless-sync-delay", "0", *options,
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it, and remove its files."""
        self.kill()
        self._directory.cleanup()

    def command(self, *words: str) -> list[str]:
        """Ask with redis-cli; the lines of its answer."""
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), *words], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.splitlines()

    def follow(self, primary: RedisServer) -> None:
        """Become a replica, as a former primary does after a failover, and wait for the first copy."""
        self.command("REPLICAOF", primary.host, str(primary.port))
        self.wait_for("master_link_status:up", "INFO", "replication")

    def wait_for(self, line: str, *words: str) -> None:
        """Wait until the answer to a command has this line."""
        deadline = time.monotonic() + 10
        while line not in self.command(*words):
            assert time.monotonic() < deadline, f"no {line}"
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RedisCluster:
    """Two nodes in cluster mode, which serve half of the slots each; lives until `close()`.

    `directory` is for the nodes' files.
    """

    def __init__(self, directory: Path) -> None:
        self.nodes = [
            RedisServer(
                "--cluster-enabled", "yes", "--cluster-config-file", str(directory / f"node-{number}"),
                "--cluster-port", str(free_port()),
            )
            for number in range(2)
        ]  # fmt: skip
        one, other = self.nodes
        one.command("CLUSTER", "ADDSLOTSRANGE", "0", "8191")
        other.command("CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
        one.command("CLUSTER", "SET-CONFIG-EPOCH", "1")
        other.command("CLUSTER", "SET-CONFIG-EPOCH", "2")
        bus = next(line for line in other.command("CLUSTER", "NODES") if "myself" in line)
        bus_port = bus.split()[1].partition("@")[2].partition(",")[0]
        one.command("CLUSTER", "MEET", other.host, str(other.port), bus_port)
        for node in self.nodes:
            node.wait_for("cluster_state:ok", "CLUSTER", "INFO")

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()


class Authority:
    """A certificate authority, a server's files and a client's; all in `directory`."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca = str(directory / "ca.pem")
        authority.cert_pem.write_to_path(self.ca)
        self.cert, self.key, self.both = (str(directory / f"{name}.pem") for name in ("cert", "key", "both"))
        issued = authority.issue_cert(LOOPBACK)
        issued.cert_chain_pems[0].write_to_path(self.cert)
        issued.private_key_pem.write_to_path(self.key)
        issued.private_key_and_cert_chain_pem.write_to_path(self.both)

    def server(self, clients: str) -> RedisServer:
        """One with TLS; `clients`: whether it asks them for a certificate, `yes` or `no`."""
        return RedisServer(
            "--tls-cert-file", self.cert, "--tls-key-file", self.key, "--tls-ca-cert-file", self.ca,
            "--tls-auth-clients", clients, tls=True,
        )  # fmt: skip
