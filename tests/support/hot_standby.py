"""A primary, and a hot standby that streams from it."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from asyncdb_guard.testing.postgres.installation import Account
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Pair(NamedTuple):
    """Two servers with the same data."""

    primary: Cluster
    standby: Cluster


@contextmanager
def hot_standby(sql: str = "") -> Iterator[Pair]:
    """Start both; `sql` is run on the primary first."""
    settings = {"wal_level": "replica", "max_wal_senders": "4"}
    with Cluster.start(18, settings=settings) as primary, Cluster.start(18, settings=settings) as standby:
        if sql:
            primary.psql(sql)
        for server in (primary, standby):
            server.stop()
        with (primary.data_directory / "pg_hba.conf").open("a") as rules:
            rules.write(f"host replication postgres {primary.host}/32 trust\n")
        _make_equal(standby.data_directory, primary.data_directory)
        with (standby.data_directory / "postgresql.conf").open("a") as configuration:
            configuration.write(f"primary_conninfo = 'host={primary.host} port={primary.port} user=postgres'\n")
        (standby.data_directory / "standby.signal").touch()
        primary.restart()
        standby.restart()
        yield Pair(primary, standby)


def _make_equal(copy: Path, original: Path) -> None:
    """Copy what differs. Most files are still those of the template that both were made from, times included."""
    wanted = {path.relative_to(original): path for path in original.rglob("*")}
    for path in copy.rglob("*"):
        if path.relative_to(copy) not in wanted and not path.is_dir():
            path.unlink()
    for name, path in sorted(wanted.items()):
        target = copy / name
        if path.is_dir():
            target.mkdir(mode=0o700, exist_ok=True)
        elif not target.exists() or _changed(target, path):
            shutil.copy2(path, target)
        Account.current().own(target)


def _changed(one: Path, other: Path) -> bool:
    seen, known = one.stat(), other.stat()
    return (seen.st_size, seen.st_mtime_ns) != (known.st_size, known.st_mtime_ns)
