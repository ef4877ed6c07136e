"""Reads a CloudFormation template in YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path


class CloudFormation(yaml.SafeLoader):
    """Reads `!Ref x` as {"Ref": x}."""


def _intrinsic(loader: CloudFormation, tag: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.SequenceNode):
        return {tag: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.ScalarNode)
    return {tag: loader.construct_scalar(node)}


CloudFormation.add_multi_constructor("!", _intrinsic)


def read_template(path: Path) -> dict[str, Any]:
    """The template, with the short forms of the intrinsic functions under their names: {"GetAtt": "Pool.Arn"}."""
    loaded: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), CloudFormation)
    return loaded
