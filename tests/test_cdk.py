"""The comparison of the example's CDK app with its template: it finds each difference, and no other."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.support import cdk
from tests.support.cloudformation import read_template

SAM = """
Parameters:
  Limit: { Type: Number, Default: 25 }
Conditions:
  Own: !Equals [!Ref Limit, 25]
Globals:
  Function:
    CodeUri: build/
    ReservedConcurrentExecutions: !Ref Limit
    Environment: { Variables: { URL: !Sub "postgresql://${Limit}@db" } }
Resources:
  Sign:
    Type: AWS::Serverless::Function
    Properties:
      Handler: !If [Own, a, b]
      Environment: { Variables: { SQL: SELECT 1 } }
      Policies: [{ Statement: [{ Effect: Allow, Action: rds-db:connect, Resource: !Sub "arn:${AWS::Region}" }] }]
  Pool:
    Type: AWS::Cognito::UserPool
    DeletionPolicy: Retain
    Properties: { LambdaConfig: { PostConfirmation: !GetAtt Sign.Arn } }
  Permission:
    Type: AWS::Lambda::Permission
    Properties: { FunctionName: !Ref Sign }
  Alarm:
    Type: AWS::CloudWatch::Alarm
    Properties:
      MetricName: Failed
      Threshold: 1
      Dimensions: [{ Name: service, Value: x }, { Name: function_name, Value: !Ref Sign }]
  Board:
    Type: AWS::CloudWatch::Dashboard
    Properties:
      DashboardBody: !Sub |
        {"widgets": [{"x": 0, "properties": {"title": "all", "stat": "Sum", "period": 60,
          "metrics": [["N", "M", "service", "x", "function_name", "${Sign}"]]}}]}
Outputs:
  Id: { Value: !Ref Pool }
"""
WIDGET = '"title":"all","view":"timeSeries","yAxis":{},"period":60'
BODY = [
    f'{{"widgets":[{{"x":0,"properties":{{{WIDGET},"metrics":[["N","M","function_name","',
    {"Ref": "Sign0123ABCD"},
    '","service","x",{"stat":"Sum"}]]}}]}',
]
STATEMENT = {
    "Effect": "Allow",
    "Action": "rds-db:connect",
    "Resource": {"Fn::Join": ["", ["arn:", {"Ref": "AWS::Region"}]]},
}
MANAGED = ["arn:", {"Ref": "AWS::Partition"}, ":iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"]
SYNTHESISED: dict[str, Any] = {
    "Parameters": {"Limit": {"Type": "Number", "Default": 25}, "BootstrapVersion": {"Type": "String"}},
    "Conditions": {"Own": {"Fn::Equals": [{"Ref": "Limit"}, 25]}},
    "Outputs": {"Id": {"Value": {"Ref": "Pool"}}},
    "Resources": {
        "SignRoleFFFF0000": {
            "Type": "AWS::IAM::Role",
            "Properties": {
                "AssumeRolePolicyDocument": {},
                "ManagedPolicyArns": [{"Fn::Join": ["", MANAGED]}],
                "Policies": [{"PolicyDocument": {"Statement": [STATEMENT]}}],
            },
        },
        "Sign0123ABCD": {
            "Type": "AWS::Lambda::Function",
            "Properties": {
                "Code": {"S3Key": "x"},
                "Role": {"Fn::GetAtt": ["SignRoleFFFF0000", "Arn"]},
                "ReservedConcurrentExecutions": {"Ref": "Limit"},
                "Handler": {"Fn::If": ["Own", "a", "b"]},
                "Environment": {
                    "Variables": {
                        "URL": {"Fn::Join": ["", ["postgresql://", {"Ref": "Limit"}, "@db"]]},
                        "SQL": "SELECT 1",
                    }
                },
            },
        },
        "Pool": {
            "Type": "AWS::Cognito::UserPool",
            "DeletionPolicy": "Retain",
            "Properties": {"LambdaConfig": {"PostConfirmation": {"Fn::GetAtt": ["Sign0123ABCD", "Arn"]}}},
        },
        "Permission76543210": {
            "Type": "AWS::Lambda::Permission",
            "Properties": {"FunctionName": {"Ref": "Sign0123ABCD"}},
        },
        "Alarm89ABCDEF": {
            "Type": "AWS::CloudWatch::Alarm",
            "Properties": {
                "MetricName": "Failed",
                "Threshold": 1,
                "Dimensions": [
                    {"Name": "function_name", "Value": {"Ref": "Sign0123ABCD"}},
                    {"Name": "service", "Value": "x"},
                ],
            },
        },
        "Board00000000": {
            "Type": "AWS::CloudWatch::Dashboard",
            "Properties": {"DashboardBody": {"Fn::Join": ["", BODY]}},
        },
    },
}


@pytest.fixture
def sam(tmp_path: Any) -> dict[str, Any]:
    path = tmp_path / "template.yaml"
    path.write_text(SAM, encoding="utf-8")
    return cdk.from_sam(read_template(path))


def test_the_same_stack_in_both_spellings_has_no_differences(sam: dict[str, Any]) -> None:
    assert cdk.differences(sam, cdk.from_cdk(copy.deepcopy(SYNTHESISED))) == []


FUNCTION, ALARM = "Resources.Sign.Properties", "Resources.Alarm.Properties"


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('"Threshold": 1', '"Threshold": 2', f"{ALARM}.Threshold"),
        ('"MetricName": "Failed"', '"MetricName": "Rejected"', f"{ALARM}.MetricName"),
        ('"Value": "x"', '"Value": "y"', f"{ALARM}.Dimensions.service"),
        ('"SQL": "SELECT 1"', '"SQL": "SELECT 2"', f"{FUNCTION}.Environment.Variables.SQL"),
        ('"postgresql://"', '"postgres://"', f"{FUNCTION}.Environment.Variables.URL"),
        ('Executions": {"Ref": "Limit"}', 'Executions": 25', f"{FUNCTION}.ReservedConcurrentExecutions"),
        ('"rds-db:connect"', '"*"', "Resources.SignRole.Properties.Statement[0].Action"),
        ("AWSLambdaVPCAccess", "AWSLambdaBasic", "Resources.SignRole.Properties.ManagedPolicyArns[0]"),
        ('\\"Sum\\"', '\\"Average\\"', "Resources.Board.Properties.DashboardBody[0].metrics[0].stat"),
        ('"Default": 25', '"Default": 26', "Parameters.Limit.Default"),
        ('"BootstrapVersion"', '"Other"', "Parameters.Other"),
        ('{"Ref": "Limit"}, 25]', '{"Ref": "Limit"}, 26]', "Conditions.Own.Equals[1]"),
        ('"DeletionPolicy": "Retain"', '"DeletionPolicy": "Delete"', "Resources.Pool.DeletionPolicy"),
        ('"AWS::Cognito::UserPool"', '"AWS::Cognito::IdentityPool"', "Resources.Pool.Type"),
        ('"Id": {', '"Other": {"Value": 1}, "Id": {', "Outputs.Other"),
        ('"Pool": {', '"Extra": {"Type": "x", "Properties": {}}, "Pool": {', "Resources.Extra"),
    ],
)
def test_a_difference_is_told_with_its_place(sam: dict[str, Any], old: str, new: str, where: str) -> None:
    changed = json.dumps(SYNTHESISED).replace(old, new)
    assert changed != json.dumps(SYNTHESISED)
    (line,) = cdk.differences(sam, cdk.from_cdk(json.loads(changed)))
    assert line.startswith(f"{where}: template.yaml has ")


def test_a_resource_that_the_app_lacks_is_told(sam: dict[str, Any]) -> None:
    changed = copy.deepcopy(SYNTHESISED)
    del changed["Resources"]["Alarm89ABCDEF"]
    (line,) = cdk.differences(sam, cdk.from_cdk(changed))
    assert line.startswith("Resources.Alarm: ")
