"""What Lambda is asked for a function's network and file systems."""

import dataclasses

from botocore.stub import Stubber

from scar.aws.account import Target, connect
from scar.aws.functions import Functions
from scar.plan.resources import Function

LOCAL = Target("local", "http://127.0.0.1:9", None, "eu-west-1")
ACCESS_POINT = "arn:aws:elasticfilesystem:eu-west-1:000000000000:access-point/fsap-1"
PLAIN = Function("f", "image", "role", 128, 3)
INSIDE = dataclasses.replace(
    PLAIN,
    subnets=("subnet-1",),
    security_group_ids=("sg-1",),
    file_systems=((ACCESS_POINT, "/mnt/data"),),
)


def asked(wanted: Function, found: Function | None) -> dict[str, object]:
    """The surroundings in CreateFunction, or in UpdateFunctionConfiguration where it is there."""
    account = connect(LOCAL)
    client = account.client("lambda")
    requests: list[dict[str, object]] = []
    client.meta.events.register(
        "provide-client-params.lambda.*", lambda params, **_: requests.append(params)
    )
    state = {"FunctionName": "f", "State": "Active", "LastUpdateStatus": "Successful"}
    with Stubber(client) as stubber:
        stubber.add_response(
            "create_function" if found is None else "update_function_configuration", state
        )
        stubber.add_response("get_function", {"Configuration": state})
        if found is None:
            Functions(account).create(wanted)
        else:
            Functions(account).update(wanted, found)
    keys = ("VpcConfig", "FileSystemConfigs")
    return {key: requests[0][key] for key in keys if key in requests[0]}


def test_a_function_that_has_none_says_nothing_about_networks():
    assert asked(PLAIN, None) == {}


def test_network_and_file_system_are_asked_for_as_lambda_names_them():
    expected = {
        "VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
        "FileSystemConfigs": [{"Arn": ACCESS_POINT, "LocalMountPath": "/mnt/data"}],
    }
    assert asked(INSIDE, None) == expected
    assert asked(INSIDE, PLAIN) == expected


def test_a_function_that_leaves_its_network_says_so_with_empty_lists():
    assert asked(PLAIN, INSIDE) == {
        "VpcConfig": {"SubnetIds": [], "SecurityGroupIds": []},
        "FileSystemConfigs": [],
    }
