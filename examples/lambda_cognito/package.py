"""Build the folder and the zip of a Lambda function: `python package.py --python 3.13 --architecture arm64 app.py`.

It needs only pip, runs on any machine, and downloads wheels for the runtime that you name. Copy it into your project.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
"""Lambda's name of an architecture, and that of the wheels."""

GLIBC = {"3.11": 26, "3.12": 34, "3.13": 34, "3.14": 34}
"""The runtimes: 3.11 is Amazon Linux 2 (glibc 2.26), the later ones Amazon Linux 2023 (glibc 2.34)."""

UNNEEDED = (
    "bin",  # commands
    "asyncdb_guard_pytest.py",
    "asyncdb_guard/cli",
    "asyncdb_guard/fleet",
    "asyncdb_guard/testing",
    "asyncpg/_testbase",
    "**/__pycache__",
    "**/*.c",
    "**/*.h",
    "**/*.pxd",
    "**/*.pxi",
    "**/*.pyi",
    "**/*.pyx",
    "**/tests",
    "test",  # aiobreaker's
    "*.dist-info/RECORD",
    "*.dist-info/licenses",
)
"""What no function needs at run time."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every entry, so that the same content gives the same zip, and SAM uploads only what has changed."""


def main(arguments: list[str] | None = None) -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description="Build the folder and the zip of a Lambda function.")
    parser.add_argument("files", nargs="*", type=Path, help="your modules, folders and certificates")
    parser.add_argument("--python", choices=GLIBC, default="3.13", help="the runtime's Python")
    parser.add_argument("--architecture", choices=MACHINES, default="x86_64")
    parser.add_argument("--requirement", action="append", help="default: asyncdb-guard; several are possible")
    parser.add_argument("--output", type=Path, default=Path("build"), help="the folder; the zip stands beside it")
    options = parser.parse_args(arguments)
    if missing := [str(file) for file in options.files if not file.exists()]:
        parser.error(f"not found: {', '.join(missing)}. Run it where your files are, or leave them out.")
    requirements = options.requirement or ["asyncdb-guard"]
    build(options.files, requirements, options.output, options.python, options.architecture)


def build(files: list[Path], requirements: list[str], folder: Path, python: str, architecture: str) -> Path:
    """Fill the folder, and return the zip."""
    shutil.rmtree(folder, ignore_errors=True)
    install(requirements, folder, python, architecture)
    for pattern in UNNEEDED:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for file in files:
        shutil.copytree(file, folder / file.name) if file.is_dir() else shutil.copy(file, folder)
    if not compile_all(folder, python):
        print(f"There is no python{python} here to compile with: each cold start will compile what it imports.")
    archive = folder.with_name(f"{folder.name}.zip")
    compress(folder, archive)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB, unpacked {size / 1e6:.1f} MB")
    return archive


def install(requirements: list[str], folder: Path, python: str, architecture: str) -> None:
    """Install wheels for the runtime. pip knows only the tags that it is told, so it is told all that fit."""
    machine = MACHINES[architecture]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC[python], 16, -1)]
    platforms = [word for tag in (*tags, f"manylinux2014_{machine}") for word in ("--platform", tag)]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check",
            "--target", str(folder), "--only-binary", ":all:", "--implementation", "cp",
            "--python-version", python, *platforms, *requirements,
        ],
        check=True,
    )  # fmt: skip


def compile_all(folder: Path, python: str) -> bool:
    """Write the `.pyc` files, if that Python is here: without them an import takes more than twice as long.

    They do not depend on the time of the sources, which unpacking changes, and name them as Lambda finds them.
    """
    command = sys.executable if python == f"{sys.version_info.major}.{sys.version_info.minor}" else f"python{python}"
    paths = ["-s", str(folder), "-p", "/var/task", str(folder)]
    compiler = [command, "-m", "compileall", "-q", "--invalidation-mode=unchecked-hash", *paths]
    try:
        done = subprocess.run(compiler, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def compress(folder: Path, archive: Path) -> None:
    """Write the zip, readable by everybody, as Lambda's own user is another one."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    main()
