"""Requests become proxy events, and answers of functions become HTTP answers, as on AWS."""

import base64
import json
from datetime import UTC, datetime

import pytest

from scar_local.gateway_proxy import (
    Incoming,
    MalformedAnswer,
    Match,
    Place,
    event,
    find,
    is_asynchronous,
    is_binary,
    reply,
)

PLACE = Place("abc123", "eu-west-1", "scar", "dep456", {}, ())
GREEDY = {"id": "r1", "path": "/{proxy+}", "resourceMethods": {"ANY": {}}}
ASYNC = {
    "requestParameters": {
        "integration.request.header.X-Amz-Invocation-Type": (
            "method.request.header.X-Amz-Invocation-Type"
        )
    }
}


def a_request(method="GET", path="/launch", query="", headers=(), body=b""):
    time = datetime(2026, 4, 9, 12, 34, 56, tzinfo=UTC)
    return Incoming(method, path, query, headers, body, "127.0.0.1", "id-1", time)


def resources(*paths, methods=("ANY",)):
    return [
        {"id": path, "path": path, "resourceMethods": {name: {} for name in methods}}
        for path in paths
    ]


def test_an_event_holds_what_a_rest_api_hands_over():
    headers = [("Accept", "a"), ("X-Two", "1"), ("X-Two", "2"), ("Host", "127.0.0.1:1")]
    request = a_request("POST", "/launch/x", "a=1&a=2&b=%20c&e", headers, b"text")
    got = event(request, PLACE, Match(GREEDY, {"proxy": "launch/x"}))
    trace = got["headers"].pop("X-Amzn-Trace-Id")
    assert trace.startswith("Root=1-")
    assert got["multiValueHeaders"].pop("X-Amzn-Trace-Id") == [trace]
    extended = got["requestContext"].pop("extendedRequestId")
    assert extended.endswith("=")
    own = {
        "Host": "abc123.execute-api.eu-west-1.amazonaws.com",
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Port": "443",
        "X-Forwarded-Proto": "https",
    }
    nobody = [
        *("cognitoIdentityPoolId", "accountId", "cognitoIdentityId", "caller"),
        *("principalOrgId", "accessKey", "cognitoAuthenticationType"),
        *("cognitoAuthenticationProvider", "userArn", "user", "userAgent"),
    ]
    assert got == {
        "resource": "/{proxy+}",
        "path": "/launch/x",
        "httpMethod": "POST",
        "headers": {"Accept": "a", "X-Two": "2", **own},
        "multiValueHeaders": {
            "Accept": ["a"],
            "X-Two": ["1", "2"],
            **{name: [value] for name, value in own.items()},
        },
        "queryStringParameters": {"a": "2", "b": " c", "e": ""},
        "multiValueQueryStringParameters": {"a": ["1", "2"], "b": [" c"], "e": [""]},
        "pathParameters": {"proxy": "launch/x"},
        "stageVariables": None,
        "requestContext": {
            "resourceId": "r1",
            "resourcePath": "/{proxy+}",
            "httpMethod": "POST",
            "requestTime": "09/Apr/2026:12:34:56 +0000",
            "requestTimeEpoch": 1775738096000,
            "path": "/scar/launch/x",
            "accountId": "000000000000",
            "protocol": "HTTP/1.1",
            "stage": "scar",
            "domainPrefix": "abc123",
            "domainName": "abc123.execute-api.eu-west-1.amazonaws.com",
            "deploymentId": "dep456",
            "requestId": "id-1",
            "apiId": "abc123",
            "identity": {**dict.fromkeys(nobody), "sourceIp": "127.0.0.1"},
        },
        "body": "text",
        "isBase64Encoded": False,
    }


def test_what_a_request_lacks_is_null_in_its_event():
    got = event(a_request(), PLACE, Match(resources("/launch")[0], {}))
    absent = ("queryStringParameters", "multiValueQueryStringParameters", "pathParameters")
    assert [got[key] for key in (*absent, "stageVariables", "body")] == [None] * 5


def test_binary_bodies_are_base64_only_where_the_api_has_their_media_type():
    image = a_request("POST", headers=[("Content-Type", "image/png")], body=b"\x89\xff")
    match = Match(GREEDY, {"proxy": "launch"})
    lost = event(image, PLACE, match)
    assert (lost["body"], lost["isBase64Encoded"]) == ("��", False)
    place = Place("abc123", "eu-west-1", "scar", "d", {"v": "1"}, ["image/*"])
    kept = event(image, place, match)
    assert (kept["body"], kept["isBase64Encoded"]) == ("if8=", True)
    assert kept["stageVariables"] == {"v": "1"}


@pytest.mark.parametrize(
    ("media_type", "types", "answer"),
    [
        ("image/png", ["image/png"], True),
        ("image/png; q=1, text/html", ["image/*"], True),
        ("text/html, image/png", ["image/png"], False),
        ("", ["*/*"], True),
        ("", ["image/png"], False),
        ("*/*", ["image/png"], False),
        ("IMAGE/PNG", ["image/png"], True),
        ("image/png", [], False),
    ],
)
def test_only_the_first_media_type_counts(media_type, types, answer):
    assert is_binary(media_type, types) is answer


@pytest.mark.parametrize(
    ("path", "resource", "parameters"),
    [
        ("/", "/", {}),
        ("", "/", {}),
        ("/cow", "/cow", {}),
        ("/cow/", "/cow", {}),
        ("/dog", "/{animal}", {"animal": "dog"}),
        ("/dog/tail", "/{all+}", {"all": "dog/tail"}),
        ("/cow/7", "/cow/{n}", {"n": "7"}),
        ("/cow/7/8", "/{all+}", {"all": "cow/7/8"}),
        ("/a%20b", "/{animal}", {"animal": "a%20b"}),
    ],
)
def test_static_paths_beat_variables_and_those_beat_greedy_ones(path, resource, parameters):
    match = find(resources("/{all+}", "/{animal}", "/cow/{n}", "/cow", "/"), path)
    assert match is not None
    assert (match.resource["path"], match.parameters) == (resource, parameters)


def test_a_greedy_path_does_not_match_the_root_nor_a_resource_without_methods_anything():
    assert find(resources("/{proxy+}"), "/") is None
    assert find(resources("/cow", methods=()), "/cow") is None
    assert find(resources("/cow"), "/cowboy") is None


def test_a_named_method_beats_any():
    match = find(resources("/cow", methods=("ANY", "GET")), "/cow")
    match.resource["resourceMethods"]["GET"]["named"] = True
    assert match.method("GET") == {"named": True}
    assert match.method("PUT") == {}
    assert find(resources("/cow", methods=("GET",)), "/cow").method("POST") is None


@pytest.mark.parametrize(
    ("integration", "sent", "answer"),
    [
        (ASYNC, "Event", True),
        (ASYNC, "RequestResponse", False),
        (ASYNC, None, False),
        ({}, "Event", False),
        (
            {"requestParameters": {next(iter(ASYNC["requestParameters"])): "'Event'"}},
            None,
            True,
        ),
    ],
)
def test_the_integration_says_whether_a_call_is_asynchronous(integration, sent, answer):
    headers = [("x-amz-invocation-type", sent)] if sent else []
    assert is_asynchronous(integration, a_request(headers=headers)) is answer


def answered(said, accept="*/*", types=()):
    return reply(json.dumps(said).encode(), accept, types)


def test_an_answer_without_binary_media_types_stays_base64():
    said = {
        "statusCode": 200,
        "headers": {"amz-log-group-name": "/aws/lambda/f"},
        "body": base64.b64encode(b"moo").decode(),
        "isBase64Encoded": True,
    }
    got = answered(said)
    assert (got.status, got.body) == (200, b"bW9v")
    assert got.headers == {
        "Content-Type": "application/json",
        "amz-log-group-name": ("/aws/lambda/f",),
    }
    assert answered(said, "image/png", ["image/png"]).body == b"moo"
    assert answered(said, "text/plain", ["image/png"]).body == b"bW9v"


def test_headers_may_have_several_values_and_some_are_renamed_or_dropped():
    got = answered(
        {
            "statusCode": "404",
            "headers": {"content-type": "text/plain", "Date": "x", "X-On": True, "TE": "y"},
            "multiValueHeaders": {"Set-Cookie": ["a=1", "b=2"]},
        }
    )
    assert (got.status, got.body) == (404, b"")
    assert got.headers == {
        "content-type": ("text/plain",),
        "x-amzn-Remapped-Date": ("x",),
        "X-On": ("true",),
        "Set-Cookie": ("a=1", "b=2"),
    }


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b'"text"',
        b'{"errorMessage": "x", "errorType": "y"}',
        b'{"statusCode": "many"}',
        b'{"statusCode": 99}',
        b'{"statusCode": []}',
        b'{"body": {"a": 1}}',
        b'{"headers": {"a": "x\\r\\ny: z"}}',
        b'{"headers": {"a b": "x"}}',
        b'{"headers": {"a": {}}}',
        b'{"headers": ["a"]}',
        '{"headers": {"a": "…"}}'.encode(),
    ],
)
def test_anything_else_is_malformed(payload):
    with pytest.raises(MalformedAnswer):
        reply(payload, "", ())


def test_a_body_that_is_not_the_base64_it_claims_to_be_is_malformed():
    with pytest.raises(MalformedAnswer):
        answered({"body": "!!!", "isBase64Encoded": True}, "a/b", ["*/*"])
