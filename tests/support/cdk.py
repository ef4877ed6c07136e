"""Compares what the example's CDK app synthesises with template.yaml: `python -m tests.support.cdk x.template.json`.

Both are brought into one form: intrinsic functions as text (`${PreToken.Arn}`), each function of SAM's with its role,
logical IDs without the hash that the CDK adds, metrics with their statistic. Then everything has to be equal.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.support.cloudformation import read_template

TEMPLATE = Path(__file__).parents[2] / "examples/lambda_cognito/template.yaml"
ADDED = {"BootstrapVersion", "PackageBucket", "PackageKey"}
"""Parameters of the CDK app alone: SAM uploads the package itself."""
VPC_ACCESS = "arn:${AWS::Partition}:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"
"""SAM adds it to the role of a function in a VPC."""


def main(synthesised: Path) -> None:
    found = differences(from_sam(read_template(TEMPLATE)), from_cdk(json.loads(synthesised.read_text("utf-8"))))
    if found:
        sys.exit("\n".join(["The CDK app and template.yaml differ. Change one of them:", *found]))
    sys.stdout.write("The CDK app and template.yaml are the same stack.\n")


def from_sam(template: dict[str, Any]) -> dict[str, Any]:
    """The stack of a SAM template."""
    plain = _plain(template)
    resources: dict[str, Any] = {}
    for name, one in plain["Resources"].items():
        if one["Type"] == "AWS::Serverless::Function":
            resources |= _function_and_role(name, plain["Globals"]["Function"], one["Properties"])
        else:
            resources[name] = one
    return _stack(plain, resources)


def from_cdk(template: dict[str, Any]) -> dict[str, Any]:
    """The stack of a template that the CDK has synthesised."""
    # The CDK's logical ID of `PreToken` is `PreToken`, or that with eight hexadecimal digits.
    names = {name: re.sub(r"(?<=[a-z])[0-9A-F]{8}$", "", name) for name in template["Resources"]}
    plain = _plain(template, names)
    resources = {names[name]: one for name, one in plain["Resources"].items()}
    assert len(resources) == len(names), "Two resources differ only in the hash of their logical IDs"
    for one in resources.values():
        properties = one["Properties"]
        if one["Type"] == "AWS::Lambda::Function":
            del properties["Code"]
        elif one["Type"] == "AWS::IAM::Role":
            del properties["AssumeRolePolicyDocument"]
            documents = [policy["PolicyDocument"] for policy in properties.pop("Policies")]
            properties["Statement"] = [statement for document in documents for statement in document["Statement"]]
    parameters = {name: one for name, one in plain["Parameters"].items() if name not in ADDED}
    return _stack(plain | {"Parameters": parameters}, resources)


def differences(sam: Any, cdk: Any, path: str = "") -> list[str]:
    """Where two stacks differ, a line for each."""
    if isinstance(sam, dict) and isinstance(cdk, dict):
        keys = sorted(sam.keys() | cdk.keys())
        return [line for key in keys for line in differences(sam.get(key), cdk.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(sam, list) and isinstance(cdk, list) and len(sam) == len(cdk):
        pairs = enumerate(zip(sam, cdk, strict=True))
        return [line for number, pair in pairs for line in differences(*pair, f"{path}[{number}]")]
    return [] if sam == cdk else [f"{path}: template.yaml has {json.dumps(sam)}, the CDK app has {json.dumps(cdk)}"]


def _plain(value: Any, names: dict[str, str] | None = None) -> Any:
    """With intrinsic functions in one spelling, and those that give a text as a text."""
    names = names or {}
    if isinstance(value, list):
        return [_plain(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        return {key: _plain(one, names) for key, one in value.items()}
    ((key, argument),) = value.items()
    match key.removeprefix("Fn::"):
        case "Ref":
            return f"${{{names.get(argument, argument)}}}"
        case "GetAtt":
            name, attribute = argument.split(".", 1) if isinstance(argument, str) else argument
            return f"${{{names.get(name, name)}.{attribute}}}"
        case "Sub":
            return argument
        case "Join":
            separator, parts = argument
            return separator.join(map(str, _plain(parts, names)))
        case function:
            return {function: _plain(argument, names)}


def _function_and_role(name: str, shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What SAM makes of a function."""
    merged = shared | own
    variables = shared["Environment"]["Variables"] | own["Environment"]["Variables"]
    statements = [statement for policy in merged.pop("Policies") for statement in policy["Statement"]]
    del merged["CodeUri"]
    function = merged | {"Environment": {"Variables": variables}, "Role": f"${{{name}Role.Arn}}"}
    return {
        name: {"Type": "AWS::Lambda::Function", "Properties": function},
        f"{name}Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {"ManagedPolicyArns": [VPC_ACCESS], "Statement": statements},
        },
    }


def _stack(plain: dict[str, Any], resources: dict[str, Any]) -> dict[str, Any]:
    for one in resources.values():
        properties = one["Properties"]
        if one["Type"] == "AWS::CloudWatch::Alarm":
            properties["Dimensions"] = {one["Name"]: one["Value"] for one in properties["Dimensions"]}
        elif one["Type"] == "AWS::CloudWatch::Dashboard":
            properties["DashboardBody"] = [_widget(one) for one in json.loads(properties["DashboardBody"])["widgets"]]
    sections = ("Parameters", "Conditions", "Outputs")
    return {section: plain[section] for section in sections} | {"Resources": resources}


def _widget(widget: dict[str, Any]) -> dict[str, Any]:
    """A widget whose metrics each have their own period and statistic, with the defaults of CloudWatch."""
    shown = widget.pop("properties")
    period, statistic = shown.pop("period", 300), shown.pop("stat", "Average")
    metrics: list[dict[str, Any]] = []
    for one in shown.pop("metrics"):
        *words, options = one if isinstance(one[-1], dict) else [*one, {}]
        namespace, name, *dimensions = words
        pairs = dict(zip(dimensions[::2], dimensions[1::2], strict=True))
        metrics.append({"period": period, "stat": statistic, **options, "name": [namespace, name], "of": pairs})
    if shown.get("view") == "timeSeries":
        del shown["view"]
    if shown.get("yAxis") == {}:
        del shown["yAxis"]
    return {**widget, **shown, "metrics": metrics}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
