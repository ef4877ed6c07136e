"""The example for Lambda: its handlers answer, and its template and its page name only what exists."""

from __future__ import annotations

import json
import re
import sys
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from asyncdb_guard import DatabaseSettings
from asyncdb_guard.emf import DIMENSIONS, UNITS
from asyncdb_guard.testing import access_claims, id_claims, machine_event
from examples.lambda_cognito import package
from tests.cognito.conftest import SUB
from tests.cognito.events import confirmation_event, token_event
from tests.support.cloudformation import read_template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncdb_guard.testing.lambda_runtime.api import RuntimeApi
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/lambda_cognito"


@pytest.fixture
def url(server: Cluster) -> Iterator[str]:
    """A database with the example's tables, for the example's login."""
    name = f"example_{uuid.uuid4().hex[:8]}"
    server.psql(f"CREATE DATABASE {name}")
    server.psql((EXAMPLE / "schema.sql").read_text(encoding="utf-8").replace("app_login", name), database=name)
    yield server.url(user=name, database=name)
    server.psql(f"DROP DATABASE {name} WITH (FORCE)")
    server.psql(f"DROP ROLE {name}")


@pytest.mark.slow
def test_the_functions_write_and_read_users_and_machines(url: str, server: Cluster, runtime_api: RuntimeApi) -> None:
    env = {"LAMBDA_DATABASE_URL": url, "PYTHONPATH": f"{EXAMPLE}:{ROOT}"}
    tenant = str(uuid.uuid4())
    database = url.rpartition("/")[2].partition("?")[0]
    server.psql(f"INSERT INTO app_client VALUES ('batch', '{tenant}')", database=database)
    with (
        runtime_api.environment("app.post_confirmation", env=env, cwd=EXAMPLE) as sign_up,
        runtime_api.environment("app.pre_token", env=env, cwd=EXAMPLE) as sign_in,
    ):
        assert sign_up.invoke(confirmation_event(SUB)).payload == confirmation_event(SUB)
        assert id_claims(sign_in.invoke(token_event("3", sub=SUB)).payload) == {"role": "user"}
        assert access_claims(sign_in.invoke(machine_event(client_id="batch")).payload) == {"tenant_id": tenant}
        assert [line["Provisioned"] for line in sign_up.metrics] == [1]
        assert [line["CacheMiss"] for line in sign_in.metrics] == [1, 1]


# -- the template ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return read_template(EXAMPLE / "template.yaml")


def resources(template: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {name: one["Properties"] for name, one in template["Resources"].items() if one["Type"] == kind}


def test_the_alarms_watch_metrics_that_the_functions_print(template: dict[str, Any]) -> None:
    variables = template["Globals"]["Function"]["Environment"]["Variables"]
    functions = resources(template, "AWS::Serverless::Function")
    alarms = resources(template, "AWS::CloudWatch::Alarm")
    assert {alarm["MetricName"] for alarm in alarms.values()} >= {"CacheMiss", "Degraded", "Failed", "CircuitOpened"}
    for alarm in alarms.values():
        assert alarm["MetricName"] in UNITS
        assert alarm["Namespace"] == variables["POWERTOOLS_METRICS_NAMESPACE"]
        values = {one["Name"]: one["Value"] for one in alarm["Dimensions"]}
        assert tuple(values) == DIMENSIONS
        assert values["service"] == variables["POWERTOOLS_SERVICE_NAME"]
        assert values["function_name"]["Ref"] in functions


def test_the_dashboard_shows_metrics_that_the_functions_print(template: dict[str, Any]) -> None:
    (dashboard,) = resources(template, "AWS::CloudWatch::Dashboard").values()
    widgets = json.loads(dashboard["DashboardBody"]["Sub"])["widgets"]
    shown = [metric for widget in widgets for metric in widget["properties"]["metrics"]]
    assert {metric[1] for metric in shown} == set(UNITS)
    for metric in shown:
        assert (metric[2], metric[4]) == DIMENSIONS


def test_the_functions_set_settings_that_exist_and_name_handlers_that_exist(template: dict[str, Any]) -> None:
    from asyncdb_guard import handlers
    from examples.lambda_cognito import app

    functions = resources(template, "AWS::Serverless::Function").values()
    shared = template["Globals"]["Function"]
    for function in (shared, *functions):
        names = [name for name in function["Environment"]["Variables"] if name.startswith("LAMBDA_DATABASE_")]
        known = {f"LAMBDA_DATABASE_{name.upper()}" for name in DatabaseSettings.model_fields}
        assert not set(names) - known
    for function in functions:
        _, ready_made, own = function["Handler"]["If"]
        assert callable(getattr(handlers, ready_made.removeprefix("asyncdb_guard.handlers.")))
        assert callable(getattr(app, own.removeprefix("app.")))
    assert 5 < shared["Timeout"] < 10
    assert shared["Runtime"].removeprefix("python") in package.GLIBC


def test_two_functions_at_their_limit_fit_the_roles_connections(template: dict[str, Any]) -> None:
    concurrency = template["Parameters"]["ReservedConcurrency"]["Default"]
    limit = re.search(r"CONNECTION LIMIT (\d+)", (EXAMPLE / "schema.sql").read_text(encoding="utf-8"))
    assert limit is not None
    assert int(limit[1]) >= 2 * concurrency


def test_no_alias_which_cloudformation_refuses() -> None:
    text = (EXAMPLE / "template.yaml").read_text(encoding="utf-8")
    assert not [token for token in yaml.scan(text) if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]


# -- the package -----------------------------------------------------------------------------------------------------


def test_the_page_has_the_runtimes_of_the_command() -> None:
    page = (ROOT / "docs/packaging.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `python(3\.\d+)` ", page, re.MULTILINE) == list(package.GLIBC)


def test_the_same_content_gives_the_same_zip(tmp_path: Path) -> None:
    """Compiled for a Python whose `.pyc` files are valid whatever time the sources get when they are unpacked."""
    archives: list[bytes] = []
    for time in 1, 2:
        folder = tmp_path / str(time)
        folder.mkdir()
        (folder / "app.py").write_text("answer = 42\n")
        assert package.compile_all(folder, f"{sys.version_info.major}.{sys.version_info.minor}")
        package.compress(folder, tmp_path / "build.zip")
        archives.append((tmp_path / "build.zip").read_bytes())
    assert archives[0] == archives[1]
    with zipfile.ZipFile(tmp_path / "build.zip") as archive:
        compiled = next(name for name in archive.namelist() if name.endswith(".pyc"))
        assert archive.read(compiled)[4] & 0b11 == 0b01  # PEP 552: hash-based and not checked
        assert b"/var/task/app.py" in archive.read(compiled)
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o644}


def test_a_python_that_is_not_here_is_told(tmp_path: Path) -> None:
    assert not package.compile_all(tmp_path, "3.99")
