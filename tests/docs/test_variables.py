"""The variables on the pages are those that the settings read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from asyncdb_guard import DatabaseSettings
from asyncdb_guard.settings.fields import ENV_PREFIX
from tests.support.pages import BLOCKS, PAGES, ROOT, Block, taken

FILES = [block for block in BLOCKS if block.language == "ini" and not block.file]
TEMPLATES = [block for block in BLOCKS if block.language == "yaml"]
taken.update([*FILES, *TEMPLATES])

KNOWN = {f"{ENV_PREFIX}{name.upper()}" for name in DatabaseSettings.model_fields}
URL = "postgresql://user@db.eu-west-1.rds.amazonaws.com/app"


class Loader(yaml.SafeLoader):
    """Reads CloudFormation's tags as their text."""


Loader.add_multi_constructor("!", lambda loader, _, node: re.sub(r"\$\{[^}]+\}|^[\w.]+$", "x", str(node.value)))


@pytest.mark.parametrize("block", FILES, ids=str)
def test_a_file_of_variables_is_read(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(line.split("=", 1) for line in block.text.splitlines())
    monkeypatch.setenv(f"{ENV_PREFIX}URL", URL)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = DatabaseSettings()
    for name in given:
        assert name.removeprefix(ENV_PREFIX).lower() in settings.model_fields_set


@pytest.mark.parametrize("block", TEMPLATES, ids=str)
def test_a_part_of_a_template_is_one(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    part: dict[str, Any] = yaml.load(block.text, Loader)
    template = yaml.load((ROOT / "examples/lambda_cognito/template.yaml").read_text(encoding="utf-8"), Loader)
    if "LambdaConfig" in part:
        assert part["LambdaConfig"] == template["Resources"]["UserPool"]["Properties"]["LambdaConfig"]
        return
    for name, value in part["Environment"]["Variables"].items():
        arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:x"
        monkeypatch.setenv(name, arn if name.endswith("_ARN") else value)
    assert DatabaseSettings().ssl_root_cert == "/var/task/global-bundle.pem"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_variable_of_a_page_exists(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(rf"\b{ENV_PREFIX}[A-Z_]*[A-Z]\b(?!_?\*)", text))
    assert named - KNOWN == set()
    for name, value in re.findall(rf"`({ENV_PREFIX}\w+)=([^`\s]+)`", text):
        with monkeypatch.context() as environment:
            environment.setenv(f"{ENV_PREFIX}URL", URL)
            environment.setenv(name, value)
            assert name.removeprefix(ENV_PREFIX).lower() in DatabaseSettings().model_fields_set
