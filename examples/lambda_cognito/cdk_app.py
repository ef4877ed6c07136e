"""The stack of `template.yaml` as an AWS CDK app: a user pool, both triggers in a VPC, alarms and a dashboard.

It needs Node.js, and `pip install aws-cdk-lib constructs`. Build the zip with `package.py`, then deploy:
`npx aws-cdk deploy --app "python cdk_app.py" --context package=build.zip --parameters VpcId=vpc-…`, with `--parameters`
for each parameter that has no default. Without the context value, PackageBucket and PackageKey say where the zip is.
"""

from __future__ import annotations

from typing import Any

import aws_cdk as cdk
from aws_cdk import Aws, CfnParameter, Duration, Fn
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cognito as cognito
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk.aws_s3_assets import Asset
from constructs import Construct

NAMESPACE = "SignIn"


class SignIn(cdk.Stack):
    """All of it. High-level constructs where their result is the template's, else CloudFormation's own resources."""

    def __init__(self, scope: Construct, name: str) -> None:
        super().__init__(
            scope,
            name,
            description="A user pool whose tokens carry claims from PostgreSQL, and whose sign-ups write a row there.",
        )
        self.add_parameters()
        self.statements = self.condition("Statements", Fn.condition_equals(self.code, "statements"))
        self.has_topic = self.condition(
            "HasTopic", Fn.condition_not(Fn.condition_equals(self.alarm_topic.value_as_string, ""))
        )
        self.add_security_group()
        self.add_functions()
        self.add_user_pool()
        self.add_alarms()
        self.add_dashboard()

    def add_parameters(self) -> None:
        self.vpc_id = self.parameter("VpcId", "AWS::EC2::VPC::Id")
        self.subnet_ids = self.parameter(
            "SubnetIds", "List<AWS::EC2::Subnet::Id>", description="Private subnets that reach the database"
        )
        self.database_group = self.parameter(
            "DatabaseSecurityGroupId",
            "AWS::EC2::SecurityGroup::Id",
            description="The database's security group, which gets one rule for the functions",
        )
        self.host = self.parameter(
            "DatabaseHost", description="The endpoint of the RDS instance, the cluster's writer or the RDS Proxy"
        )
        self.port = self.parameter("DatabasePort", "Number", default=5432)
        self.database = self.parameter("DatabaseName")
        self.user = self.parameter(
            "DatabaseUser", default="app_login", description="A role with: GRANT rds_iam TO app_login"
        )
        self.resource_id = self.parameter(
            "DatabaseResourceId",
            description="Of the instance (db-…), the cluster (cluster-…) or the proxy (prx-…), for rds-db:connect",
        )
        self.code = self.parameter(
            "Code",
            allowed_values=["app", "statements"],
            default="app",
            description="app.py, or the ready-made handlers with the two SQL statements below",
        ).value_as_string
        self.claims_sql = self.parameter(
            "ClaimsSql", default="SELECT role, tenant_id FROM app_user WHERE cognito_sub = $1"
        )
        self.provision_sql = self.parameter(
            "ProvisionSql",
            default="INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        self.reserved_concurrency = self.parameter(
            "ReservedConcurrency",
            "Number",
            default=25,
            min_value=1,
            description="Of each function. One environment holds one connection, so the role needs a CONNECTION LIMIT"
            " of at least twice this: ALTER ROLE app_login CONNECTION LIMIT 50",
        )
        self.on_unavailable = self.parameter(
            "OnUnavailable",
            allowed_values=["deny", "unchanged", "stale"],
            default="deny",
            description="What happens to a sign-in while the database is unavailable",
        )
        self.alarm_topic = self.parameter(
            "AlarmTopicArn", default="", description="SNS topic for the alarms; empty for none"
        )

    def add_security_group(self) -> None:
        # If the port is a parameter, `ec2.SecurityGroup` makes its rule a separate resource. AWS lets a group that has
        # no rule itself send anything anywhere.
        port, database_group = self.port.value_as_number, self.database_group.value_as_string
        self.group = ec2.CfnSecurityGroup(
            self,
            "FunctionSecurityGroup",
            group_description="The functions of the user pool",
            vpc_id=self.vpc_id.value_as_string,
            security_group_egress=[
                ec2.CfnSecurityGroup.EgressProperty(
                    ip_protocol="tcp",
                    from_port=port,
                    to_port=port,
                    destination_security_group_id=database_group,
                    description="PostgreSQL",
                )
            ],
        )
        ec2.CfnSecurityGroupIngress(
            self,
            "DatabaseIngress",
            group_id=database_group,
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            source_security_group_id=self.group.ref,
            description="The functions of the user pool",
        )

    def add_functions(self) -> None:
        # `lambda_.Function` takes only a list of subnets that is known at synthesis, and a parameter's is not.
        self.package = self.add_package()
        self.pre_token = self.function(
            "PreToken",
            "Adds claims from the database to the tokens",
            handlers=("asyncdb_guard.handlers.load_claims", "app.pre_token"),
            statement=("LAMBDA_DATABASE_CLAIMS_SQL", self.claims_sql),
        )
        self.post_confirmation = self.function(
            "PostConfirmation",
            "Writes the row of a user who has confirmed the sign-up",
            handlers=("asyncdb_guard.handlers.provision_user", "app.post_confirmation"),
            statement=("LAMBDA_DATABASE_PROVISION_SQL", self.provision_sql),
        )

    def add_package(self) -> lambda_.CfnFunction.CodeProperty:
        """The zip that the CDK uploads, or one that is in a bucket."""
        if path := self.node.try_get_context("package"):
            asset = Asset(self, "Package", path=path)
            return lambda_.CfnFunction.CodeProperty(s3_bucket=asset.s3_bucket_name, s3_key=asset.s3_object_key)
        bucket = self.parameter("PackageBucket", description="The bucket of the zip that package.py built")
        key = self.parameter("PackageKey", description="The zip's key, a new one for each version")
        return lambda_.CfnFunction.CodeProperty(s3_bucket=bucket.value_as_string, s3_key=key.value_as_string)

    def function(
        self, name: str, description: str, *, handlers: tuple[str, str], statement: tuple[str, CfnParameter]
    ) -> lambda_.CfnFunction:
        user, host, port, database, resource_id = (
            one.value_as_string for one in (self.user, self.host, self.port, self.database, self.resource_id)
        )
        login = self.format_arn(
            service="rds-db",
            resource="dbuser",
            resource_name=f"{resource_id}/{user}",
            arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME,
        )
        role = iam.CfnRole(
            self,
            f"{name}Role",
            assume_role_policy_document=policy(
                {"Action": "sts:AssumeRole", "Principal": {"Service": "lambda.amazonaws.com"}}
            ),
            managed_policy_arns=[
                f"arn:{Aws.PARTITION}:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"  # logs, too
            ],
            policies=[
                iam.CfnRole.PolicyProperty(
                    policy_name="Connect", policy_document=policy({"Action": "rds-db:connect", "Resource": login})
                )
            ],
        )
        variable, sql = statement
        return lambda_.CfnFunction(
            self,
            name,
            description=description,
            handler=self.either(self.statements, *handlers),
            runtime="python3.13",
            architectures=["arm64"],
            code=self.package,
            role=role.attr_arn,
            memory_size=512,  # more memory means more CPU and a shorter cold start
            timeout=6,  # a little more than the 5 s that Cognito waits
            reserved_concurrent_executions=self.reserved_concurrency.value_as_number,
            logging_config=lambda_.CfnFunction.LoggingConfigProperty(
                log_format="JSON", application_log_level="WARN", system_log_level="WARN"
            ),
            vpc_config=lambda_.CfnFunction.VpcConfigProperty(
                subnet_ids=self.subnet_ids.value_as_list, security_group_ids=[self.group.ref]
            ),
            environment=lambda_.CfnFunction.EnvironmentProperty(
                variables={
                    "LAMBDA_DATABASE_URL": f"postgresql://{user}@{host}:{port}/{database}",
                    "LAMBDA_DATABASE_IAM_AUTH": "true",
                    "LAMBDA_DATABASE_SSL_ROOT_CERT": "/var/task/global-bundle.pem",  # for an RDS Proxy: system
                    "LAMBDA_DATABASE_ON_UNAVAILABLE": self.on_unavailable.value_as_string,
                    "POWERTOOLS_METRICS_NAMESPACE": NAMESPACE,
                    "POWERTOOLS_SERVICE_NAME": Aws.STACK_NAME,
                    variable: self.either(self.statements, sql.value_as_string, Aws.NO_VALUE),
                }
            ),
        )

    def add_user_pool(self) -> None:
        # The high-level constructs would also set texts of e-mails, an account recovery and OAuth flows.
        pool = cognito.CfnUserPool(
            self,
            "UserPool",
            user_pool_name=Aws.STACK_NAME,
            user_pool_tier="ESSENTIALS",  # V2_0 and V3_0 need it
            username_attributes=["email"],
            auto_verified_attributes=["email"],
            lambda_config=cognito.CfnUserPool.LambdaConfigProperty(
                pre_token_generation_config=cognito.CfnUserPool.PreTokenGenerationConfigProperty(
                    lambda_version="V3_0",  # users and machines; V2_0: users; V1_0: the ID token only, in any tier
                    lambda_arn=self.pre_token.attr_arn,
                ),
                post_confirmation=self.post_confirmation.attr_arn,
            ),
        )
        pool.apply_removal_policy(cdk.RemovalPolicy.RETAIN)
        client = cognito.CfnUserPoolClient(
            self,
            "UserPoolClient",
            user_pool_id=pool.ref,
            explicit_auth_flows=["ALLOW_USER_SRP_AUTH", "ALLOW_REFRESH_TOKEN_AUTH"],
            prevent_user_existence_errors="ENABLED",
        )
        for name, function in ("PreToken", self.pre_token), ("PostConfirmation", self.post_confirmation):
            lambda_.CfnPermission(
                self,
                f"{name}Permission",
                action="lambda:InvokeFunction",
                function_name=function.ref,
                principal="cognito-idp.amazonaws.com",
                source_arn=pool.attr_arn,
            )
        cdk.CfnOutput(self, "UserPoolId", value=pool.ref)
        cdk.CfnOutput(self, "UserPoolClientId", value=client.ref)

    def add_alarms(self) -> None:
        cdk.Validations.of(self).acknowledge(
            cdk.Acknowledgment(
                id="CloudFormation-Validate::F3033",
                reason="Without a topic, AlarmActions is left out; it is never empty.",
            )
        )
        pre_token, post_confirmation = self.pre_token, self.post_confirmation
        self.alarm(
            "SignInsFail",
            "Users cannot sign in. The log of the function names the cause and its remedy.",
            self.metric("Failed", pre_token),
            evaluation_periods=5,
            datapoints_to_alarm=3,
        )
        self.alarm(
            "UsersNotWritten",
            "A confirmed user has no row, and Cognito does not try again after its third try.",
            self.metric("Failed", post_confirmation),
            evaluation_periods=1,
        )
        self.alarm(
            "TokensDegraded",
            "Sign-ins succeed with stale claims or none, because the database is unavailable.",
            self.metric("Degraded", pre_token),
            evaluation_periods=5,
            datapoints_to_alarm=3,
        )
        self.alarm(
            "CircuitOpens",
            "Consecutive failures opened the circuit. Look at the database first, then at its connections.",
            self.metric("CircuitOpened", pre_token),
            evaluation_periods=5,
            datapoints_to_alarm=2,
        )
        self.alarm(
            "CacheUnused",
            "Nearly every sign-in queries the database. Set the threshold above your own normal rate.",
            self.metric("CacheMiss", pre_token, "Average", minutes=10),
            evaluation_periods=3,
            above=0.9,
        )
        self.alarm(
            "ConnectsSlow",
            "Connections are slow to open, because of a busy server, the DNS, or too little memory.",
            self.metric("ConnectTime", pre_token, "p90", minutes=5),
            evaluation_periods=2,
            above=1000,
        )

    def alarm(
        self,
        name: str,
        description: str,
        metric: cloudwatch.Metric,
        *,
        evaluation_periods: int,
        datapoints_to_alarm: int | None = None,
        above: float | None = None,
    ) -> None:
        """An alarm for one event or more in a period, or for a value above a threshold."""
        operator = cloudwatch.ComparisonOperator
        alarm = cloudwatch.Alarm(
            self,
            name,
            alarm_description=description,
            metric=metric,
            evaluation_periods=evaluation_periods,
            datapoints_to_alarm=datapoints_to_alarm,
            threshold=1 if above is None else above,
            comparison_operator=operator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
            if above is None
            else operator.GREATER_THAN_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        # `add_alarm_action` takes no condition.
        resource = alarm.node.default_child
        assert isinstance(resource, cloudwatch.CfnAlarm)
        topic = Fn.condition_if(self.has_topic, [self.alarm_topic.value_as_string], Aws.NO_VALUE)
        resource.alarm_actions = cdk.Token.as_list(topic)

    def add_dashboard(self) -> None:
        def widget(title: str, *metrics: cloudwatch.Metric) -> cloudwatch.GraphWidget:
            return cloudwatch.GraphWidget(
                title=title, left=list(metrics), width=12, height=6, period=Duration.minutes(1)
            )

        metric, pre_token, post_confirmation = self.metric, self.pre_token, self.post_confirmation
        sign_ins = widget(
            "Sign-ins",
            metric("CacheMiss", pre_token, "SampleCount", label="all"),
            metric("Failed", pre_token),
            metric("Degraded", pre_token),
            metric("Rejected", pre_token),
        )
        sign_ups = widget("Sign-ups", metric("Provisioned", post_confirmation), metric("Failed", post_confirmation))
        waiting = widget(
            "Waiting for a connection (ms)",
            metric("AcquireTime", pre_token, "p90"),
            metric("ConnectTime", pre_token, "p90"),
        )
        others = widget(
            "Miss rate, trips and cold starts",
            metric("CacheMiss", pre_token, "Average"),
            metric("CircuitOpened", pre_token),
            metric("ColdStart", pre_token),
        )
        cloudwatch.Dashboard(
            self,
            "Dashboard",
            dashboard_name=f"{Aws.STACK_NAME}-sign-in",
            widgets=[[sign_ins, sign_ups], [waiting, others]],
        )

    def metric(
        self,
        name: str,
        function: lambda_.CfnFunction,
        statistic: str = "Sum",
        *,
        minutes: int = 1,
        label: str | None = None,
    ) -> cloudwatch.Metric:
        """One that the function prints in its log."""
        return cloudwatch.Metric(
            namespace=NAMESPACE,
            metric_name=name,
            dimensions_map={"service": Aws.STACK_NAME, "function_name": function.ref},
            statistic=statistic,
            period=Duration.minutes(minutes),
            label=label,
        )

    def parameter(self, name: str, kind: str = "String", **options: Any) -> CfnParameter:
        return CfnParameter(self, name, type=kind, **options)

    def condition(self, name: str, expression: Any) -> str:
        return cdk.CfnCondition(self, name, expression=expression).logical_id

    def either(self, condition: str, yes: str, no: str) -> str:
        return Fn.condition_if(condition, yes, no).to_string()


def policy(statement: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]}


app = cdk.App()
SignIn(app, "SignIn")
app.synth()
