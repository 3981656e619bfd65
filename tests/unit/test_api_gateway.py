"""`api_gateway` of the FDL, from its keys to the plan, and what `scar invoke` sends."""

import dataclasses

import pytest

from scar.endpoint import Call, call
from scar.endpoint import _body as sent_body
from scar.errors import FdlError, UserError
from scar.fdl.load import load
from scar.fdl.source import Layer, Sources, from_flags, read_yaml
from scar.plan.desired import AccountFacts, ImageFacts, desired
from scar.plan.diff import to_reach, to_remove
from scar.plan.resources import Function, JobDefinition, RestApi, id_of

LOCAL = from_flags({"scar": {"target": "local"}}, {("scar", "target"): "--local"})
FACTS = AccountFacts("123456789012", "cn-north-1", "AIDA", is_local=False)
COW = """\
functions:
  aws:
  - lambda: {name: cow, execution_mode: batch, container: {image: cow}}
    api_gateway:
      name: cow-api
"""
DOCUMENTED = """
{"aws": {"api_gateway": {
  "boto_profile": "default", "region": null, "stage_name": "scar", "http_method": "ANY",
  "endpoint": "https://{api_id}.execute-api.{api_region}.amazonaws.com/{stage_name}/launch",
  "request_parameters": {"integration.request.header.X-Amz-Invocation-Type":
    "method.request.header.X-Amz-Invocation-Type"},
  "method": {"authorizationType": "NONE",
    "requestParameters": {"method.request.header.X-Amz-Invocation-Type": false}},
  "integration": {"type": "AWS_PROXY", "integrationHttpMethod": "POST",
    "uri": "arn:aws:apigateway:{api_region}:lambda:path/2015-03-31/functions/x/invocations",
    "requestParameters": {"integration.request.header.X-Amz-Invocation-Type":
      "method.request.header.X-Amz-Invocation-Type"}},
  "path_part": "{proxy+}", "service_id": "apigateway.amazonaws.com",
  "source_arn_testing": "arn:aws:execute-api:{api_region}:{account_id}:{api_id}/*",
  "source_arn_invocation": "arn:aws:execute-api:{api_region}:{account_id}:{api_id}/{stage_name}/ANY"
}}}"""


def loaded(text, config="{}"):
    return load(Sources(read_yaml(config, "scar.cfg"), read_yaml(text, "a.yaml"), Layer(), LOCAL))


def resources(text):
    image = ImageFacts(f"{FACTS.registry_host}/scar:cow-0123456789abcdef", "x86_64", True, "5")
    return desired(loaded(text).deployment, {"cow": image}, FACTS)


def test_a_function_gets_an_api_where_one_is_named():
    tags = {"createdby": "scar", "owner": "AIDA", "function": "cow"}
    found = {type(one): one for one in resources(COW)}
    arn = "arn:aws-cn:lambda:cn-north-1:123456789012:function:cow"
    assert found[RestApi] == RestApi("cow", "cow-api", arn, "scar", "ANY", "{proxy+}", tags)
    assert found[Function].tags["scar:api"] == "ANY scar/launch"
    without = resources(COW.replace("name: cow-api", "stage_name: scar"))
    assert not [one for one in without if isinstance(one, RestApi)]
    [function] = [one for one in without if isinstance(one, Function)]
    assert "scar:api" not in function.tags


def test_a_path_of_its_own_is_where_the_function_is_called():
    found = resources(f"{COW}      path_part: moo\n      stage_name: v2\n      http_method: get\n")
    [function] = [one for one in found if isinstance(one, Function)]
    assert function.tags["scar:api"] == "GET v2/moo"


def test_an_api_is_made_after_all_that_a_call_needs_and_goes_before_it():
    every = resources(COW)
    created = [type(step.resource) for step in to_reach(every, {}).steps]
    assert created.index(RestApi) > max(created.index(Function), created.index(JobDefinition))
    held = {id_of(one): one for one in every}
    removed = [type(step.resource) for step in to_remove(held).steps]
    assert removed.index(RestApi) < min(removed.index(Function), removed.index(JobDefinition))


def test_a_half_made_api_is_finished():
    every = resources(COW)
    held = {id_of(one): one for one in every}
    api = next(one for one in every if isinstance(one, RestApi))
    held[id_of(api)] = dataclasses.replace(api, is_ready=False, stage="")
    [step] = to_reach(every, held).steps
    assert (step.verb, step.why) == ("update", "stage (none) -> scar, is_ready False -> True")


def test_the_documented_block_is_taken_without_a_word():
    assert loaded(COW, DOCUMENTED).warnings == ()


def test_a_value_of_ones_own_for_what_scar_makes_is_a_warning():
    [warning] = loaded(f"{COW}      endpoint: https://mine\n").warnings
    assert warning.summary == "`api_gateway.endpoint` is ignored: SCAR makes it itself"
    [warning] = loaded(f"{COW}      region: eu-west-1\n").warnings
    assert "everything of a function is in `lambda.region`" in warning.summary


@pytest.mark.parametrize(
    ("line", "summary"),
    [
        ("stage_name: a b", "stage_name must be at most 128 letters, digits, `_` and `-`"),
        ("path_part: a/b", "path_part must be one part of a path, such as `cow`"),
        ("path_part: '{a'", "path_part must be one part of a path"),
        ("http_method: FETCH", "http_method must be `ANY`, `DELETE`"),
        ("method: {authorizationType: AWS_IAM}", "authorizationType must be `NONE`"),
        ("integration: {type: MOCK}", "type must be `AWS_PROXY`"),
        ("integration: {integrationHttpMethod: GET}", "integrationHttpMethod must be `POST`"),
        ("parameters: {a: [1]}", "a must be text or a number"),
        ("json_data: '{'", "json_data must be JSON: expecting property name"),
        ("nmae: x", "unknown key `nmae`"),
    ],
)
def test_wrong_values_are_told(line, summary):
    with pytest.raises(FdlError) as caught:
        loaded(f"{COW}      {line}\n")
    [fault] = caught.value.diagnostics
    assert fault.summary.startswith(summary)
    assert fault.place.line == 6


def test_what_invoke_sends_may_stand_in_the_file():
    text = f"{COW}      parameters: {{a: 1, b: x, c: true}}\n      json_data: {{a: [1]}}\n"
    api = loaded(text).deployment.functions.aws[0].api_gateway
    assert api.parameters == {"a": "1", "b": "x", "c": "true"}
    assert api.json_data == '{"a": [1]}'


class Asked(Exception):
    pass


class NoAccount:
    """Is not to be asked."""

    def client(self, name):
        raise Asked


def test_parameters_that_are_too_long_are_refused_before_anything_is_asked():
    with pytest.raises(UserError, match="the parameters take 9002 bytes of the URL"):
        call(NoAccount(), "cow", Call(parameters={"a": "b" * 9_000}))


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Call(b"x" * 4_706_301), True),
        (Call(b"x" * 4_706_302), False),
        (Call(b'"' * 3_150_000, is_json=True), False),
        (Call(b"x" * 770_000, asynchronous=True), True),
        (Call(b"x" * 775_000, asynchronous=True), False),
    ],
)
def test_what_an_invocation_takes_is_sent_and_no_more(tmp_path, wanted, fits):
    file = tmp_path / "body"
    file.write_bytes(wanted.body)
    assert (sent_body(wanted) is not None) == fits
    if not wanted.is_json:
        assert sent_body(dataclasses.replace(wanted, body=file)) == sent_body(wanted)
