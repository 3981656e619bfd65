"""The codec against real boto3 clients: what they send arrives, what is answered they read."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.awsrequest import AWSResponse, HeadersDict
from botocore.exceptions import ClientError
from botocore.parsers import create_parser
from hypothesis import given
from hypothesis import strategies as st

from scar_local.codec import Codec, codec
from scar_local.protocol import Answer, ApiError, Call, Request, error_answer


class Recorder:
    """A service with every method: it remembers the request and gives one prepared answer."""

    def __init__(self, answer: dict[str, Any] | ApiError) -> None:
        self.answer, self.request = answer, Request("", "", {})

    def __getattr__(self, name: str) -> Callable[[Request], dict[str, Any]]:
        def method(request: Request) -> dict[str, Any]:
            self.request = request
            if isinstance(self.answer, ApiError):
                raise self.answer
            return self.answer

        return method


class _Raw:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def stream(self, **_: object) -> list[bytes]:
        return [self.body]

    def read(self, *_: object) -> bytes:
        body, self.body = self.body, b""
        return body


def client_of(name: str, service: object) -> Any:
    """A boto3 client whose requests go through the codec instead of a socket."""
    client: Any = boto3.client(  # type: ignore[call-overload]
        name,
        region_name="eu-west-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
        endpoint_url="http://127.0.0.1:9",
    )

    def send(request: Any, **_: object) -> AWSResponse:
        url = urlsplit(request.url)
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        headers = {k: v.decode() if isinstance(v, bytes) else v for k, v in request.headers.items()}
        call = Call(request.method, url.path, url.query, headers, body)
        answer = codec(name).serve(service, call, "eu-west-1")
        lower = {k.lower(): v for k, v in answer.headers.items()}
        return AWSResponse(request.url, answer.status, lower, _Raw(answer.body))

    client.meta.events.register("before-send", send)
    return client


def test_a_rest_json_body_with_blobs_lists_and_maps_arrives_as_boto3_got_it() -> None:
    sent = {
        "FunctionName": "resize",
        "Role": "arn:aws:iam::000000000000:role/r",
        "PackageType": "Zip",
        "Code": {"ZipFile": b"\x00\xffzip"},
        "Environment": {"Variables": {"A b": "ü"}},
        "Layers": ["one", "two"],
        "Timeout": 30,
        "Publish": True,
    }
    service = Recorder({"FunctionName": "resize", "FunctionArn": "arn:x", "CodeSize": 5})
    answer = client_of("lambda", service).create_function(**sent)
    assert service.request == Request("CreateFunction", "eu-west-1", sent)
    assert (answer["CodeSize"], answer["ResponseMetadata"]["HTTPStatusCode"]) == (5, 201)


def test_invoke_carries_payload_headers_status_and_the_invocations_request_id() -> None:
    service = Recorder(
        {
            "StatusCode": 200,
            "FunctionError": "Unhandled",
            "LogResult": "bG9n",
            "ExecutedVersion": "$LATEST",
            "Payload": b'{"x":1}',
            "ResponseMetadata": {"RequestId": "11111111-2222-3333-4444-555555555555"},
        }
    )
    answer = client_of("lambda", service).invoke(
        FunctionName="arn:aws:lambda:eu-west-1:000000000000:function:f",
        InvocationType="RequestResponse",
        LogType="Tail",
        Payload=b'{"a": 1}',
        Qualifier="$LATEST",
    )
    assert service.request.params == {
        "FunctionName": "arn:aws:lambda:eu-west-1:000000000000:function:f",
        "InvocationType": "RequestResponse",
        "LogType": "Tail",
        "Payload": b'{"a": 1}',
        "Qualifier": "$LATEST",
    }
    assert answer["Payload"].read() == b'{"x":1}'
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    assert (answer["LogResult"], answer["ExecutedVersion"]) == ("bG9n", "$LATEST")
    assert answer["ResponseMetadata"]["RequestId"] == "11111111-2222-3333-4444-555555555555"


def test_an_answer_of_204_has_no_body() -> None:
    service = Recorder({"StatusCode": 204})
    answer = client_of("lambda", service).delete_function(FunctionName="f")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204


def test_lists_in_a_query_string_and_slashes_in_a_path_label_arrive_whole() -> None:
    service = Recorder({})
    arn = "arn:aws:batch:eu-west-1:000000000000:job-queue/a b"
    client_of("batch", service).untag_resource(resourceArn=arn, tagKeys=["a", "b&c"])
    assert service.request.params == {"resourceArn": arn, "tagKeys": ["a", "b&c"]}


def test_static_paths_win_over_labels() -> None:
    service = Recorder({})
    lambda_ = client_of("lambda", service)
    lambda_.get_account_settings()
    assert service.request.operation == "GetAccountSettings"
    lambda_.list_functions(MaxItems=7)
    assert (service.request.operation, service.request.params) == ("ListFunctions", {"MaxItems": 7})
    lambda_.get_function(FunctionName="f")
    assert service.request.operation == "GetFunction"
    lambda_.get_policy(FunctionName="f", Qualifier="1")
    assert service.request.params == {"FunctionName": "f", "Qualifier": "1"}


@pytest.mark.parametrize("service", ["lambda", "batch"])
def test_every_operation_of_a_rest_service_is_found_by_its_own_path(service: str) -> None:
    own = codec(service)
    model = own._model
    for name in model.operation_names:
        http = model.operation_model(name).http
        path, _, query = http["requestUri"].partition("?")
        filled = path.replace("{", "x").replace("+}", "/y").replace("}", "")
        assert own._find(Call(http["method"], filled, query, {}, b""))[0] == name


def test_json_services_are_addressed_by_their_target() -> None:
    when = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
    answer = {
        "repositories": [{"repositoryName": "scar", "createdAt": when}],
        "nextToken": "n",
    }
    service = Recorder(answer)
    got = client_of("ecr", service).describe_repositories(repositoryNames=["scar"])
    assert service.request.params == {"repositoryNames": ["scar"]}
    assert got["repositories"][0]["createdAt"] == when
    service.answer = {"logGroups": [{"logGroupName": "g", "creationTime": 1700000000123}]}
    got = client_of("logs", service).describe_log_groups(limit=3)
    assert got["logGroups"] == [{"logGroupName": "g", "creationTime": 1700000000123}]


def test_the_tagging_client_speaks_a_protocol_we_do() -> None:
    service = Recorder(
        {"ResourceTagMappingList": [{"ResourceARN": "arn:x", "Tags": [{"Key": "a", "Value": ""}]}]}
    )
    filters = [{"Key": "owner", "Values": ["me", "you"]}]
    client = client_of("resourcegroupstaggingapi", service)
    got = client.get_resources(TagFilters=filters, ResourceTypeFilters=["lambda:function"])
    assert service.request.params == {
        "TagFilters": filters,
        "ResourceTypeFilters": ["lambda:function"],
    }
    assert got["ResourceTagMappingList"][0]["Tags"] == [{"Key": "a", "Value": ""}]


def test_query_parameters_and_xml_answers_keep_their_nesting() -> None:
    until = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
    service = Recorder(
        {
            "Credentials": {
                "AccessKeyId": "A",
                "SecretAccessKey": "<&>",
                "SessionToken": "t",
                "Expiration": until,
            },
            "PackedPolicySize": 6,
        }
    )
    sent = {
        "RoleArn": "arn:aws:iam::000000000000:role/role-of-tests",
        "RoleSessionName": "s s",
        "DurationSeconds": 900,
        "Tags": [{"Key": "a", "Value": "b"}, {"Key": "c", "Value": ""}],
        "PolicyArns": [{"arn": "arn:aws:iam::aws:policy/ReadOnlyAccess"}],
    }
    got = client_of("sts", service).assume_role(**sent)
    assert service.request == Request("AssumeRole", "eu-west-1", sent)
    assert got["Credentials"]["Expiration"] == until
    assert (got["Credentials"]["SecretAccessKey"], got["PackedPolicySize"]) == ("<&>", 6)
    assert len(got["ResponseMetadata"]["RequestId"]) == 36


@pytest.mark.parametrize(
    ("name", "operation", "params", "code", "status"),
    [
        ("lambda", "get_function", {"FunctionName": "f"}, "ResourceNotFoundException", 404),
        ("batch", "describe_job_queues", {}, "ClientException", 400),
        ("logs", "delete_log_group", {"logGroupName": "g"}, "ResourceNotFoundException", 400),
        ("ecr", "describe_images", {"repositoryName": "scar"}, "ImageNotFoundException", 400),
        ("sts", "get_caller_identity", {}, "ExpiredTokenException", 400),
    ],
)
def test_errors_raise_the_clients_own_exception(
    name: str, operation: str, params: dict[str, Any], code: str, status: int
) -> None:
    client = client_of(name, Recorder(ApiError(code, "no <such> thing: ü")))
    expected = getattr(client.exceptions, code, ClientError)
    with pytest.raises(expected) as caught:
        getattr(client, operation)(**params)
    answer = caught.value.response
    assert (answer["Error"]["Code"], answer["Error"]["Message"]) == (code, "no <such> thing: ü")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == status


def test_lambda_errors_say_whose_fault_it_was() -> None:
    answer = codec("lambda").failure(ApiError("ResourceNotFoundException", "gone"))
    assert json.loads(answer.body) == {"message": "gone", "Type": "User"}


def test_what_is_not_there_is_said_plainly() -> None:
    for name, operation, wire in (
        ("sts", "get_session_token", "sts.GetSessionToken"),
        ("logs", "describe_queries", "logs.DescribeQueries"),
        ("lambda", "list_layers", "lambda.ListLayers"),
    ):
        with pytest.raises(ClientError) as caught:
            getattr(client_of(name, object()), operation)()
        assert caught.value.response["Error"] == {
            "Code": "NotImplemented",
            "Message": f"{wire} is not in the local cloud",
            **({"Type": "Receiver"} if name == "sts" else {}),
        }
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501
    answer = codec("lambda").serve(object(), Call("GET", "/nowhere", "", {}, b""), "us-east-1")
    assert (answer.status, b"GET /nowhere" in answer.body) == (501, True)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b'{"limit": "many"}', "InvalidParameterException", "Invalid type for parameter limit"),
        (b"{", "SerializationException", "cannot be read"),
        (b"[1]", "SerializationException", "must be a JSON object"),
        (b'{"logGroupNamePrefix": null, "future": 1}', None, ""),
        (b"", None, ""),
    ],
)
def test_parameters_that_do_not_fit_the_model_are_refused(
    body: bytes, code: str | None, words: str
) -> None:
    service = Recorder({"logGroups": []})
    answer = _json_call("logs", "Logs_20140328.DescribeLogGroups", body, service)
    assert (answer.status, json.loads(answer.body).get("__type")) == (400 if code else 200, code)
    assert words in json.loads(answer.body).get("message", "")


def test_a_missing_required_parameter_is_named() -> None:
    call = Call("POST", "/v1/submitjob", "", {}, b'{"jobName": "j"}')
    answer = codec("batch").serve(Recorder({}), call, "us-east-1")
    assert answer.headers["x-amzn-ErrorType"] == "ClientException"
    assert 'Missing required parameter in input: "jobQueue"' in json.loads(answer.body)["message"]


def test_an_answer_outside_the_model_is_a_fault_of_ours() -> None:
    with pytest.raises(TypeError, match="DescribeLogGroups answers"):
        _json_call("logs", "Logs_20140328.DescribeLogGroups", b"{}", Recorder({"groups": []}))


@pytest.mark.parametrize("protocol", ["json", "rest-json", "query", "ec2", "rest-xml"])
def test_an_error_can_be_said_without_a_model(protocol: str) -> None:
    answer = error_answer(protocol, ApiError("NotImplemented", "not <here>", 501))
    response = {"status_code": 501, "headers": HeadersDict(answer.headers), "body": answer.body}
    parsed = create_parser(protocol).parse(response, None)
    assert parsed["Error"]["Code"] == "NotImplemented"
    assert parsed["Error"]["Message"] == "not <here>"


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1)


@given(name=_texts.filter(lambda t: t.strip("/.") != ""), qualifier=_texts)
def test_any_text_survives_path_labels_and_query_strings(name: str, qualifier: str) -> None:
    service = Recorder({})
    client = _lambda_client(service)
    client.get_function(FunctionName=name, Qualifier=qualifier)
    assert service.request.params == {"FunctionName": name, "Qualifier": qualifier}


@given(st.binary(), st.dictionaries(_texts, _texts, max_size=3))
def test_any_bytes_and_maps_survive_a_json_body(data: bytes, variables: dict[str, str]) -> None:
    service = Recorder({"Environment": {"Variables": variables}})
    client = _lambda_client(service)
    code = {"ZipFile": data}
    got = client.create_function(
        FunctionName="f", Role="r", Code=code, Environment={"Variables": variables}
    )
    assert service.request.params["Code"] == code
    assert service.request.params["Environment"] == got["Environment"] == {"Variables": variables}


_shared = Recorder({})
_clients: list[Any] = []


def _lambda_client(service: Recorder) -> Any:
    """One client for all generated examples: making one takes 50 ms."""
    if not _clients:
        _clients.append(client_of("lambda", _Forward()))
    _Forward.target = service
    return _clients[0]


class _Forward:
    target: Recorder = _shared

    def __getattr__(self, name: str) -> Any:
        return getattr(_Forward.target, name)


def _json_call(service: str, target: str, body: bytes, implementation: object) -> Answer:
    own: Codec = codec(service)
    return own.serve(implementation, Call("POST", "/", "", {"X-Amz-Target": target}, body), "x")
