"""`asyncdb-guard simulate`, from outside: what it prints, writes and exits with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asyncdb_guard.cli.main import main

SMALL = ("simulate", "--concurrency", "20", "--vcpu", "1", "--runs", "1")
PNG = b"\x89PNG"


def row(said: str, policy: str) -> list[str]:
    """The cells of the row that begins with `policy`."""
    (line,) = [line for line in said.splitlines() if line.strip().startswith(policy)]
    return line.strip().removeprefix(policy).split()


def test_each_policy_has_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--policy", "set,fitted,10000/60000,no-gate"]) == 0
    said = capsys.readouterr().out
    assert "restart: the server is away for 4 s" in said
    assert "20 environments, 1 requests a second each; a server that takes 200 logins a second" in said
    rows = {name: row(said, name) for name in ("set 2000/5000", "fitted 500/2000", "10000/60000", "no gate")}
    back = {name: float(cells[2]) for name, cells in rows.items()}
    assert back["no gate"] <= back["fitted 500/2000"] < back["set 2000/5000"] < back["10000/60000"]


def test_set_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_BREAKER_RESET_TIMEOUT_MS", "3000")
    assert main([*SMALL, "--policy", "set"]) == 0
    assert "set 3000/5000" in capsys.readouterr().out


def test_a_wrong_setting_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_BREAKER_FAIL_MAX", "none")
    assert main([*SMALL, "--policy", "set"]) == 2
    captured = capsys.readouterr()
    assert "LAMBDA_DATABASE_BREAKER_FAIL_MAX" in captured.err
    assert "Traceback" not in captured.err


def test_a_full_server_names_what_no_setting_mends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--outage", "full", "--policy", "fitted"]) == 0
    said = capsys.readouterr().out
    assert "CONNECTION LIMIT" in said
    assert "never" in row(said, "fitted 500/2000")
    assert main([*SMALL, "--outage", "full", "--policy", "fitted", "--role-limit", "10"]) == 0
    assert row(capsys.readouterr().out, "fitted 500/2000")[-1] == "0%"


@pytest.mark.parametrize(
    ("options", "capacity"),
    [
        (["--vcpu", "4"], "800"),
        (["--connects-per-second", "350"], "350"),
        (["--vcpu", "4", "--iam"], "200"),
        (["--vcpu", "64"], "12,800"),
    ],
)
def test_the_server_is_as_fast_as_one_says(
    options: list[str], capacity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--concurrency", "5", "--runs", "1", "--policy", "fitted", *options]) == 0
    assert f"a server that takes {capacity} logins a second" in capsys.readouterr().out


def test_it_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "fleet.png"
    assert main([*SMALL, "--png", str(picture)]) == 0
    assert picture.read_bytes().startswith(PNG)
    assert str(picture) in capsys.readouterr().out.replace("\n", "")


def test_a_picture_that_cannot_be_written_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--png", str(tmp_path / "missing" / "fleet.png")]) == 2
    captured = capsys.readouterr()
    assert "does not exist" in captured.err
    assert captured.out == ""


def test_settings_with_a_store_are_simulated_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts: list[float] = []
    for url in ("", "redis://127.0.0.1:1"):
        monkeypatch.setenv("LAMBDA_DATABASE_FLEET_URL", url)
        assert main(["simulate", "--concurrency", "60", "--vcpu", "1", "--runs", "2", "--policy", "set"]) == 0
        (row,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("set ")]
        attempts.append(float(row.split()[2]))
    without, with_store = attempts
    assert with_store < without


@pytest.mark.parametrize("policy", ["sometimes", "0/5000", "5000/2000", "5000", "a/b"])
def test_another_policy_is_refused_with_the_ones_there_are(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--policy", policy]) == 2
    assert "Use set, fitted, store, no-gate, or FIRST/LONGEST" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    "options",
    [
        ["--concurrency", "0", "--vcpu", "1"],
        ["--concurrency", "100001", "--vcpu", "1"],
        ["--concurrency", "5", "--vcpu", "0"],
        ["--concurrency", "5", "--vcpu", "inf"],
        ["--concurrency", "5"],
        ["--concurrency", "5", "--vcpu", "1", "--connects-per-second", "3"],
        ["--vcpu", "1"],
    ],
)
def test_a_wrong_option_ends_with_the_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *options])
    assert ended.value.code == 2
    assert "usage: asyncdb-guard simulate" in capsys.readouterr().err


def test_it_is_a_module_to_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asyncdb_guard", *SMALL, "--policy", "fitted"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "fitted 500/2000" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("package", "arguments", "remedy"),
    [
        ("rich", SMALL, "pip install 'asyncdb-guard[cli]'"),
        ("matplotlib", [*SMALL, "--png", "fleet.png"], "pip install matplotlib"),
    ],
)
def test_a_missing_package_is_one_sentence_that_says_what_to_install(
    package: str, arguments: list[str], remedy: str
) -> None:
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == {package!r} else find(name, *more)
from asyncdb_guard.cli.main import main
sys.exit(main({list(arguments)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interruption_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asyncdb_guard.cli.simulate.simulate", interrupt)
    assert main([*SMALL]) == 130
