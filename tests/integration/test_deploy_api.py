"""The handler of REST APIs where things are not as they should be, on a local cloud of its own."""

import dataclasses
import uuid

import pytest

from scar.apply import apply, observe
from scar.aws.gateway import endpoint_of
from scar.aws.handlers import handlers
from scar.errors import NotDeployed, UserError
from scar.images.derive import derive, host_base
from scar.images.push import push
from scar.plan.diff import to_reach
from scar.plan.resources import Function, Image, Repository, RestApi, id_of
from tests.doubles.cloud import local_cloud


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    with local_cloud(tmp_path_factory.mktemp("cloud")) as account:
        yield account


def push_empty_image(to, tag):
    base = host_base("x86_64")
    push(derive(base, [], "5.0"), None, to, tag)


@pytest.fixture
def api(account):
    """A function, and the API that it should have."""
    name = f"f-{uuid.uuid4().hex[:8]}"
    image = Image(f"scar:{name}")
    uri = f"{account.facts().registry_host}/{image.name}"
    role = f"arn:aws:iam::{account.account_id}:role/scar"
    tags = {"createdby": "scar", "function": name}
    function = Function(name, uri, role, 256, 30, tags={**tags, "scar:api": "ANY scar/launch"})
    wanted = [Repository("scar"), image, function]
    keepers = handlers(account, {image.name: push_empty_image})
    plan = to_reach(wanted, observe(map(id_of, wanted), keepers))
    apply(plan, keepers, lambda step, state: None)
    arn = account.facts().arn("lambda", f"function:{name}")
    return RestApi(name, "web", arn, "scar", "ANY", "{proxy+}", tags)


@pytest.fixture
def handler(account):
    return lambda: handlers(account)[RestApi.kind]


def ids(account, api):
    items = account.client("apigateway").get_rest_apis(limit=500)["items"]
    return [one["id"] for one in items if one.get("tags", {}).get("function") == api.name]


def test_an_api_whose_making_broke_off_is_finished(account, api, handler):
    client = account.client("apigateway")
    client.create_rest_api(name="web", tags=api.tags)
    half = handler().read(api.name)
    assert (half.is_ready, half.stage, half.path_part) == (False, "", "")
    handler().update(api, half)
    assert handler().read(api.name) == api
    assert len(ids(account, api)) == 1


def test_a_change_that_was_not_deployed_is_seen(account, api, handler):
    handler().create(api)
    [api_id] = ids(account, api)
    client = account.client("apigateway")
    resource = client.get_resources(restApiId=api_id)["items"][1]
    client.delete_method(restApiId=api_id, resourceId=resource["id"], httpMethod="ANY")
    found = handler().read(api.name)
    assert not found.is_ready
    handler().update(api, found)
    assert handler().read(api.name) == api


def test_a_permission_that_was_taken_away_comes_back(account, api, handler):
    handler().create(api)
    lambdas = account.client("lambda")
    lambdas.remove_permission(FunctionName=api.name, StatementId="scar-apigateway")
    found = handler().read(api.name)
    assert found == dataclasses.replace(api, is_ready=False)
    handler().update(api, found)
    assert handler().read(api.name) == api
    [api_id] = ids(account, api)
    policy = lambdas.get_policy(FunctionName=api.name)["Policy"]
    assert f"arn:aws:execute-api:eu-south-2:000000000000:{api_id}/*" in policy


def test_a_second_stage_goes_and_apis_of_others_stay(account, api, handler):
    client = account.client("apigateway")
    foreign = client.create_rest_api(name="web")["id"]
    handler().create(api)
    [api_id] = ids(account, api)
    deployment = client.get_deployments(restApiId=api_id)["items"][0]["id"]
    client.create_stage(restApiId=api_id, stageName="old", deploymentId=deployment)
    found = handler().read(api.name)
    assert not found.is_ready
    handler().update(api, found)
    assert [one["stageName"] for one in client.get_stages(restApiId=api_id)["item"]] == ["scar"]
    handler().delete(api)
    assert ids(account, api) == []
    assert client.get_rest_api(restApiId=foreign)["name"] == "web"


def test_all_apis_of_a_function_go_with_it(account, api, handler):
    handler().create(api)
    account.client("apigateway").create_rest_api(name="again", tags=api.tags)
    handler().delete(api)
    assert ids(account, api) == []
    handler().delete(api)


def test_an_endpoint_is_known_only_where_there_is_one(account, api, handler):
    with pytest.raises(UserError, match="has no HTTP endpoint") as caught:
        endpoint_of(account, api.name)
    assert "api_gateway: {name: …}" in caught.value.hint
    with pytest.raises(NotDeployed, match="does not exist"):
        endpoint_of(account, f"{api.name}-other")
    handler().create(api)
    [api_id] = ids(account, api)
    endpoint = endpoint_of(account, api.name)
    assert endpoint.http_method == "ANY"
    assert endpoint.url == f"{account.endpoint_url}/_aws/execute-api/{api_id}/scar/launch"
