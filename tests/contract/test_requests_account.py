"""How clients are made: what the user's own configuration of AWS may and may not change."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.stub import Stubber

from scar.aws.account import Account, Target, connect
from scar.aws.batch import ComputeEnvironments
from scar.aws.batch import _role_is_too_new as _role_is_unknown
from scar.aws.functions import _role_is_too_new, statement_id
from scar.aws.roles import InstanceProfiles, Roles, ServiceLinkedRoles
from scar.aws.waiting import retrying, until
from scar.errors import CloudError, UserError
from scar.plan.resources import ComputeEnvironment, InstanceProfile, Role, ServiceLinkedRole

LOCAL = Target("local", "http://127.0.0.1:9", None, "eu-west-1")


def test_the_local_cloud_is_reached_whatever_the_user_has_configured(tmp_path, monkeypatch):
    config = tmp_path / "config"
    config.write_text(
        "[profile other]\nregion = xx\n[default]\nregion = yy\nendpoint_url = http://no\n"
    )
    for name, value in {
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_PROFILE": "not-there",
        "AWS_ACCESS_KEY_ID": "real",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "token",
        "AWS_ENDPOINT_URL_S3": "http://no",
        "AWS_CA_BUNDLE": str(tmp_path / "none"),
        "AWS_USE_FIPS_ENDPOINT": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = connect(LOCAL).client("s3")
    assert client.meta.endpoint_url == "http://127.0.0.1:9"
    assert client.meta.region_name == "eu-west-1"
    credentials = client._request_signer._credentials
    assert (credentials.access_key, credentials.secret_key, credentials.token) == (
        "local",
        "local",
        None,
    )


def test_a_profile_that_does_not_exist_is_the_users_to_mend(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="nobody"):
        connect(Target("aws", None, "nobody", "us-east-1")).client("s3")


def test_missing_credentials_say_what_to_do(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match="no AWS credentials") as caught:
        _ = connect(Target("aws", None, None, "us-east-1")).account_id
    assert "scar --local" in caught.value.hint


def test_a_cloud_that_does_not_answer_is_a_cloud_error():
    with pytest.raises(CloudError, match=r"http://127.0.0.1:9/ does not answer"):
        _ = connect(LOCAL).account_id


class LoginPage(BaseHTTPRequestHandler):
    """What a hotel's network answers."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Welcome</title><p>Please log in")

    def log_message(self, *_):
        pass


def test_an_answer_that_is_not_awss_is_a_cloud_error():
    with ThreadingHTTPServer(("127.0.0.1", 0), LoginPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = Target("local", f"http://127.0.0.1:{server.server_port}", None, "eu-west-1")
        with pytest.raises(CloudError, match="what answers is not AWS") as caught:
            _ = connect(target).account_id
        server.shutdown()
    assert "proxy" in caught.value.hint


def test_a_compute_environment_that_becomes_invalid_tells_batchs_reason():
    account = Account(LOCAL)
    wanted = ComputeEnvironment(
        "q", "SPOT", 4, 0, 0, ("optimal",), "role", ("subnet-1",), ("sg-1",),
        allocation_strategy="SPOT_PRICE_CAPACITY_OPTIMIZED",
    )  # fmt: skip
    described = {
        "computeEnvironmentName": "q",
        "computeEnvironmentArn": "arn",
        "status": "INVALID",
        "statusReason": "CLIENT_ERROR - subnet-1 does not exist",
    }
    with Stubber(account.client("batch")) as stub:
        stub.add_response(
            "create_compute_environment",
            {},
            {
                "computeEnvironmentName": "q",
                "type": "MANAGED",
                "state": "ENABLED",
                "tags": {},
                "computeResources": {
                    "type": "SPOT",
                    "allocationStrategy": "SPOT_PRICE_CAPACITY_OPTIMIZED",
                    "minvCpus": 0,
                    "maxvCpus": 4,
                    "desiredvCpus": 0,
                    "instanceTypes": ("optimal",),
                    "instanceRole": "role",
                    "subnets": ("subnet-1",),
                    "securityGroupIds": ("sg-1",),
                },
            },
        )
        stub.add_response("describe_compute_environments", {"computeEnvironments": [described]})
        with pytest.raises(CloudError, match="subnet-1 does not exist"):
            ComputeEnvironments(account).create(wanted)


def test_a_fresh_role_is_waited_for_and_other_refusals_are_not():
    def refuse(code, message):
        tries = []

        def call():
            tries.append(1)
            if len(tries) < 3:
                raise CloudError("lambda", "CreateFunction", code, message)

        return tries, call

    tries, call = refuse(
        "InvalidParameterValueException",
        "The role defined for the function cannot be assumed by Lambda.",
    )
    retrying(call, _role_is_too_new, first_pause_s=0.001)
    assert len(tries) == 3
    assert _role_is_too_new(
        CloudError(
            *("lambda", "CreateFunction", "InvalidParameterValueException"),
            "The provided execution role does not have permissions to call CreateNetworkInterface",
        )
    )
    text = "User: x is not authorized to perform: iam:PassRole on resource: y"
    assert _role_is_unknown(CloudError("batch", "RegisterJobDefinition", "AccessDenied", text))
    text = text.replace("iam:PassRole", "batch:RegisterJobDefinition")
    assert not _role_is_unknown(CloudError("batch", "RegisterJobDefinition", "AccessDenied", text))
    tries, call = refuse("InvalidParameterValueException", "something else")
    with pytest.raises(CloudError):
        retrying(call, _role_is_too_new, first_pause_s=0.001)
    assert len(tries) == 1


NO_RIGHT = {"service_error_code": "AccessDenied", "http_status_code": 403}


def test_who_may_not_make_roles_is_told_to_give_one():
    account = Account(LOCAL)
    with Stubber(account.client("iam")) as stub:
        stub.add_client_error("create_role", **NO_RIGHT)
        with pytest.raises(CloudError) as caught:
            Roles(account).create(Role("scar-f-eu-west-1-job", "ecs-tasks.amazonaws.com", {}))
    assert "iam: {role: …}" in caught.value.hint


def test_who_may_not_look_at_roles_can_deploy_with_those_that_are_given():
    """His own account's profile and linked role are taken to be there: an admin made them."""
    account = Account(LOCAL)
    with Stubber(account.client("iam")) as stub:
        stub.add_client_error("get_role", **NO_RIGHT)
        stub.add_client_error("get_instance_profile", **NO_RIGHT)
        stub.add_client_error("list_roles", **NO_RIGHT)
        assert Roles(account).read("scar-f-eu-west-1-job") is None
        profile, linked = InstanceProfile("ecsInstanceRole"), ServiceLinkedRole("batch")
        assert InstanceProfiles(account).read(profile.name) == profile
        assert ServiceLinkedRoles(account).read(linked.name) == linked


def test_a_linked_role_that_somebody_makes_at_the_same_time_is_as_good():
    account, wanted = Account(LOCAL), ServiceLinkedRole("batch.amazonaws.com")
    text = "Service role name AWSServiceRoleForBatch has been taken in this account, please try"
    with Stubber(account.client("iam")) as stub:
        stub.add_client_error("create_service_linked_role", "InvalidInput", text)
        ServiceLinkedRoles(account).create(wanted)
        stub.add_client_error("create_service_linked_role", "InvalidInput", "no such service")
        with pytest.raises(CloudError):
            ServiceLinkedRoles(account).create(wanted)


def test_waiting_has_a_limit():
    with pytest.raises(CloudError, match="took more than 0 s"):
        until(lambda: False, "it", "batch", limit_s=0)


@pytest.mark.parametrize("bucket", ["video", "a.b.c", "x" * 63])
def test_a_statement_id_holds_only_what_lambda_allows(bucket):
    import re

    assert re.fullmatch(r"[A-Za-z0-9_-]{1,100}", statement_id(bucket))


def test_every_answer_is_told_to_who_asks_but_no_password():
    told: list[dict[str, object]] = []
    account = connect(Target("local", "http://127.0.0.1:9", None, "eu-west-1", told.append))
    for service, operation, answer in (
        ("sts", "get_caller_identity", {"Account": "000000000000"}),
        ("ecr", "get_authorization_token", {"authorizationData": [{"authorizationToken": "x"}]}),
    ):
        client = account.client(service)
        with Stubber(client) as stubber:
            stubber.add_response(operation, answer)
            getattr(client, operation)()
    assert [(one["Service"], one["Operation"]) for one in told] == [
        ("sts", "GetCallerIdentity"),
        ("ecr", "GetAuthorizationToken"),
    ]
    assert told[0]["Answer"]["Account"] == "000000000000"
    assert told[1]["Answer"] == {"authorizationData": "not shown"}
