"""The judge of recorded requests sees what is wrong with one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.doubles import model_check
from tests.doubles.recorder import Recorded

JOB = {"jobName": "j", "jobQueue": "q", "jobDefinition": "d"}
SIGNED = "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/{}/aws4_request, SignedHeaders="
NOTIFY = (
    '<NotificationConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<CloudFunctionConfiguration><CloudFunction>arn</CloudFunction>{}"
    "</CloudFunctionConfiguration></NotificationConfiguration>"
)


def a_request(
    service: str,
    method: str = "POST",
    target: str = "/",
    body: bytes | str | dict[str, Any] = b"",
    **headers: str,
) -> Recorded:
    path, _, query = target.partition("?")
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    data = data.encode() if isinstance(data, str) else data
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, dict):
        given = {"Content-Type": "application/json", **given}
    given["Authorization"] = SIGNED.format(service)
    return Recorded(method, path, query, tuple(given.items()), data, 200)


def submitted(**changes: Any) -> Recorded:
    return a_request("batch", target="/v1/submitjob", body={**JOB, **changes})


GOOD = {
    "SubmitJob": submitted(arrayProperties={"size": 2}),
    "GetObject": a_request("s3", "GET", "/bucket/a%20b", range="bytes=0-1"),
    "UploadPart": a_request("s3", "PUT", "/b-b/k?partNumber=1&uploadId=u", b"x"),
    "PutObject": a_request("s3", "PUT", "/b-b/k", b"x", x_amz_checksum_crc32="jNwWgw=="),
    "ListObjectsV2": a_request("s3", "GET", "/b-b?list-type=2&prefix=a"),
    "PutBucketNotificationConfiguration": a_request(
        "s3", "PUT", "/b-b?notification", NOTIFY.format("<Event>s3:ObjectCreated:*</Event>")
    ),
    "GetCallerIdentity": a_request(
        "sts",
        body="Action=GetCallerIdentity&Version=2011-06-15",
        content_type="application/x-www-form-urlencoded; charset=utf-8",
    ),
    "DescribeSubnets": a_request(
        "ec2",
        body="Action=DescribeSubnets&Version=2016-11-15&SubnetId.1=subnet-1"
        "&Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-1",
        content_type="application/x-www-form-urlencoded; charset=utf-8",
    ),
}


@pytest.mark.parametrize("operation", GOOD)
def test_what_fits_its_model_has_no_fault(operation: str) -> None:
    its = model_check.read(GOOD[operation])
    assert (its.operation, its.faults) == (operation, [])


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (submitted(jobname="j"), ".jobname is not in the model"),
        (submitted(jobQueue=None), ".jobQueue is null"),
        (submitted(arrayProperties={"size": "2"}), "Invalid type for parameter arrayProp"),
        (a_request("batch", target="/v1/submitjob", body={"jobName": "j"}), "Missing required"),
        (submitted(retryStrategy={"evaluateOnExit": [{"action": "NO"}]}), "none of RETRY, EXIT"),
        (a_request("batch", target="/v1/submitjob?x=1", body=JOB), "('x', '1') is not of its"),
        (a_request("batch", target="/v1/submitjob", body="{"), "the body is no JSON"),
        (a_request("s3", "GET", "/b-b/k", x_amz_rang="1"), "x-amz-rang is not in the model"),
        (a_request("s3", "PUT", "/b-b/k?partNumber=x&uploadId=u"), "'x' is no integer"),
        (a_request("s3", "GET", "/b-b/k", b"body"), "it takes no body"),
        (a_request("s3", "PUT", "/b-b/k", b"y", x_amz_checksum_crc32="jNwWgw=="), "not that of"),
        (
            a_request("s3", "PUT", "/b-b?notification", NOTIFY.format("<Evnt>e</Evnt>")),
            "Evnt is not in the model",
        ),
        (
            a_request("s3", "PUT", "/b-b?notification", NOTIFY.format("<Event>e</Event>")),
            "'e' is none of s3:",
        ),
        (a_request("sts", body="Action=GetCallerIdentity&Version=2011"), "version 2011 is not"),
        (
            a_request("sts", body="Action=GetCallerIdentity&Version=2011-06-15&X=1"),
            "X is not in the model",
        ),
        (
            a_request(
                "lambda", "POST", "/2015-03-31/functions", {"FunctionName": "a b", "Role": "r"}
            ),
            "FunctionName: 'a b' is not ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_does_not_fit_is_told(request_: Recorded, fault: str) -> None:
    assert fault in "\n".join(model_check.read(request_).faults)


def test_what_no_operation_answers_is_told() -> None:
    with pytest.raises(LookupError, match="no operation of batch"):
        model_check.read(a_request("batch", target="/v1/submitjobs", body=JOB))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"query": "list-type=2&prefix=b"}, "botocore signs"),
        ({"path": "/b-b/"}, "botocore signs"),
        ({"body": b"x"}, "x-amz-content-sha256 is not"),
    ],
    ids=str,
)
def test_a_signature_of_another_request_is_seen(changes: dict[str, Any], fault: str) -> None:
    import dataclasses

    from scar_supervisor import sigv4

    unsigned = sigv4.Unsigned(
        "GET", "/b-b", "list-type=2&prefix=a", {"Host": "h"}, sigv4.EMPTY_SHA256
    )
    headers = sigv4.signed_headers(
        unsigned,
        sigv4.Keys("local", "secret", None),
        sigv4.Scope("s3", "us-east-1", "20260101T000000Z"),
    )
    signed = Recorded("GET", "/b-b", "list-type=2&prefix=a", tuple(headers.items()), b"", 200)
    request = dataclasses.replace(signed, **changes)
    told = model_check.signature_fault(request, {"local": "secret"})
    assert told.startswith(fault)
    assert bool(told) == bool(fault)
