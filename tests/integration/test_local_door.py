"""The door over a real socket: who gets which request, and what happens when something fails."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from scar_local.door import Control, Door
from scar_local.http import Exchange, Server
from scar_local.identity import Sts, Tagging
from scar_local.logs import Logs
from scar_local.protocol import BODY_LIMIT, Request
from scar_local.store import Store


class Echo:
    """Answers with its name, the path and the body's size; fails where the path says so."""

    def __init__(self, name: str) -> None:
        self.name = name

    def handle(self, exchange: Exchange, region: str = "-") -> None:
        if "fail" in exchange.path:
            raise RuntimeError("a fault of ours")
        if "early" in exchange.path:
            exchange.reply(403, b"no")
            return
        size = 0
        while data := exchange.body.read(1000):
            size += len(data)
        exchange.reply(200, f"{self.name} {region} {exchange.path} {size}".encode())


class Broken:
    def list_functions(self, request: Request) -> dict[str, Any]:
        raise RuntimeError("a fault of ours")


class Tagged:
    def tagged(self) -> list[tuple[str, dict[str, str]]]:
        base = "arn:aws:{}:eu-west-1:000000000000:{}"
        return [
            (base.format("lambda", "function:b"), {"owner": "me", "createdby": "scar"}),
            (base.format("lambda", "function:a"), {"owner": "you", "createdby": "scar"}),
            (base.format("batch", "job-queue/q"), {"owner": "me"}),
            (base.format("lambda", "function:bare"), {}),
        ]


class House:
    def __init__(self, directory: Path) -> None:
        self.stopped = threading.Event()
        services = {
            "lambda": Broken(),
            "logs": Logs(Store(directory)),
            "sts": Sts(),
            "tagging": Tagging([Tagged()]),
        }
        control = Control(lambda: {"pid": 7}, self.stopped.set)
        door = Door(services, Echo("s3"), Echo("registry"), Echo("others"), control, Echo("apis"))
        self.server = Server(0, door.answer)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def client(self, name: str) -> Any:
        return boto3.client(  # type: ignore[call-overload]
            name,
            region_name="eu-west-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            config=Config(retries={"max_attempts": 0}),
        )

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body, headers or {}, encode_chunked=False)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.server.shutdown()
    house.server.server_close()


def signed(service: str, region: str = "eu-west-1") -> dict[str, str]:
    scope = f"Credential=local/20261101/{region}/{service}/aws4_request"
    return {"Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=x"}


@pytest.mark.parametrize(
    ("path", "headers", "answer"),
    [
        ("/b/k", signed("s3"), b"s3 eu-west-1 /b/k 0"),
        ("/v2/x", signed("s3"), b"s3 eu-west-1 /v2/x 0"),
        ("/b//k%20/../x", {}, b"s3 us-east-1 /b//k%20/../x 0"),
        ("/b/k?AWSAccessKeyId=local&Signature=x&Expires=9", {}, b"s3 us-east-1 /b/k 0"),
        (
            "/b?X-Amz-Credential=local%2F20261101%2Feu-north-1%2Fs3%2Faws4_request",
            {},
            b"s3 eu-north-1 /b 0",
        ),
        ("/v2/", {"Authorization": "Basic QVdTOngK"}, b"registry - /v2/ 0"),
        ("/v2", {}, b"registry - /v2 0"),
        ("/", signed("iam"), b"others - / 0"),
    ],
)
def test_a_request_goes_to_the_service_it_was_signed_for(
    house: House, path: str, headers: dict[str, str], answer: bytes
) -> None:
    assert house.ask("GET", path, headers) == (200, answer)


def test_bodies_with_a_length_and_in_chunks_are_read_alike(house: House) -> None:
    assert house.ask("PUT", "/b/k", body=b"x" * 5000) == (200, b"s3 us-east-1 /b/k 5000")
    chunked = {"Transfer-Encoding": "chunked"}
    body = b"5;name=value\r\nhello\r\n7d0\r\n" + b"y" * 2000 + b"\r\n0\r\nTrailer: x\r\n\r\n"
    assert house.ask("PUT", "/v2/x", chunked, body) == (200, b"registry - /v2/x 2005")


def test_a_connection_is_used_again_after_a_chunked_body(house: House) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=10)
    for _ in range(3):
        connection.request("PUT", "/v2/x", iter([b"ab", b"c"]), encode_chunked=True)
        assert connection.getresponse().read() == b"registry - /v2/x 3"
    connection.close()


def test_a_client_that_still_sends_reads_an_early_answer(house: House) -> None:
    body = b"x" * (20 << 20)
    assert house.ask("PUT", "/b/early", body=body) == (403, b"no")


@pytest.mark.parametrize("length", ["-5", "many", "5 5"])
def test_a_broken_content_length_ends_the_connection(house: House, length: str) -> None:
    with socket.create_connection(("127.0.0.1", house.port), timeout=10) as client:
        client.sendall(f"PUT /b/k HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        assert client.recv(1000) == b""


def test_a_fault_of_ours_is_an_internal_failure_and_logged(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ClientError) as caught:
        house.client("lambda").list_functions()
    answer = caught.value.response
    assert answer["Error"]["Code"] == "InternalFailure"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 500
    assert "a fault of ours" in caplog.text
    status, body = house.ask("GET", "/b/fail")
    assert (status, b"<Code>InternalFailure</Code>" in body) == (500, True)


def test_calls_of_apis_are_told_by_their_path_or_host(house: House) -> None:
    path = "/_aws/execute-api/abc/scar/launch"
    assert house.ask("GET", path) == (200, b"apis - /_aws/execute-api/abc/scar/launch 0")
    host = {"Host": "abc.execute-api.eu-west-1.amazonaws.com"}
    assert house.ask("POST", "/scar/launch", host, b"12") == (200, b"apis - /scar/launch 2")
    assert house.ask("POST", path, signed("execute-api"), b"12")[1].startswith(b"apis")


def test_a_request_that_is_too_large_is_refused_before_it_is_parsed(house: House) -> None:
    headers = signed("logs") | {"X-Amz-Target": "Logs_20140328.CreateLogGroup"}
    status, body = house.ask("POST", "/", headers, b" " * (BODY_LIMIT + 1))
    assert (status, json.loads(body)["__type"]) == (413, "RequestEntityTooLarge")
    bomb = gzip.compress(b" " * (BODY_LIMIT + 1))
    status, _ = house.ask("POST", "/", headers | {"Content-Encoding": "gzip"}, bomb)
    assert status == 413


def test_a_packed_body_is_unpacked(house: House) -> None:
    headers = signed("logs") | {
        "X-Amz-Target": "Logs_20140328.CreateLogGroup",
        "Content-Encoding": "gzip",
    }
    body = gzip.compress(b'{"logGroupName": "g"}')
    assert house.ask("POST", "/", headers, body)[0] == 200
    assert house.ask("POST", "/", headers, b"junk")[0] == 400


def test_the_daemon_tells_its_state_and_stops_but_not_for_web_pages(house: House) -> None:
    assert house.ask("GET", "/_scar/status") == (200, b'{"pid": 7}')
    assert house.ask("GET", "/_scar/nothing")[0] == 404
    assert house.ask("POST", "/_scar/stop", {"Origin": "http://evil.example"})[0] == 403
    assert not house.stopped.is_set()
    assert house.ask("POST", "/_scar/stop")[0] == 200
    assert house.stopped.wait(1)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:80", "localhost:{}", "LocalHost", "[::1]:{}", "b.localhost:{}",
     "a.b.localhost", "b.127.0.0.1:{}", "172.18.0.1:4321", "x1.execute-api.eu-west-1.amazonaws.com",
     "x1.execute-api.cn-north-1.amazonaws.com.cn:{}"],
)  # fmt: skip
def test_the_cloud_answers_to_its_own_names(house: House, host: str) -> None:
    assert house.ask("GET", "/b/k", {"Host": host.format(house.port)})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{}", "127.0.0.1.evil.example", "localhost.evil.example", "",
     "x.execute-api.evil.example", "x.execute-api.eu-west-1.amazonaws.com.evil.example", "0.0.0.0",
     "[::]:{}", "evil.example@127.0.0.1", "127.0.0.1, evil.example", "localhost:80:{}"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/b/k", "/v2/", "/_scar/status", "/_aws/execute-api/x1/s/p"])
def test_a_name_that_somebody_else_may_point_here_is_refused(
    house: House, host: str, path: str
) -> None:
    assert house.ask("GET", path, {"Host": host.format(house.port)})[0] == 403


INVOKE = "/2015-03-31/functions/f/invocations"


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
     {"Origin": "http://localhost:{}"}, {"Sec-Fetch-Site": "cross-site"}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/b/k", INVOKE, "/v2/x", "/_aws/execute-api/x1/scar/launch"])
def test_a_web_page_of_another_site_is_refused(
    house: House, headers: dict[str, str], path: str
) -> None:
    given = {name: value.format(house.port) for name, value in headers.items()}
    status, body = house.ask("POST", path, {**given, "Content-Type": "text/plain"}, b"{}")
    assert (status, b"web page" in body) == (403, True)
    assert house.ask("OPTIONS", path, given)[0] == 403


def test_a_page_of_the_clouds_own_may_call_it(house: House) -> None:
    own = {"Origin": f"http://127.0.0.1:{house.port}", "Sec-Fetch-Site": "same-origin"}
    assert house.ask("POST", "/_aws/execute-api/x1/scar/launch", own, b"12")[0] == 200
    assert house.ask("GET", "/b/k", {"Sec-Fetch-Site": "none"})[0] == 200


@pytest.mark.parametrize("service", ["lambda", "batch", "iam", "ec2", "sts"])
@pytest.mark.parametrize("path", ["/", INVOKE])
def test_only_s3_takes_a_signature_in_the_query(house: House, service: str, path: str) -> None:
    query = f"?X-Amz-Credential=a%2F20261101%2Feu-west-1%2F{service}%2Faws4_request"
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": content_type}
        status, body = house.ask("POST", path + query, headers, b"Action=ListUsers")
        assert (status, b"Authorization header" in body) == (403, True)
    api = "/_aws/execute-api/x1/scar/launch"
    assert house.ask("POST", api + query.replace(service, "execute-api"))[0] == 200


def test_everybody_is_the_local_user(house: House) -> None:
    sts = house.client("sts")
    me = sts.get_caller_identity()
    assert (me["Account"], me["UserId"], me["Arn"]) == (
        "000000000000",
        "AIDALOCALUSER0000000",
        "arn:aws:iam::000000000000:user/local",
    )
    role = sts.assume_role(RoleArn="arn:aws:iam::000000000000:role/x/job", RoleSessionName="me")
    assert role["AssumedRoleUser"]["Arn"] == "arn:aws:sts::000000000000:assumed-role/job/me"
    assert role["Credentials"]["SessionToken"]


def test_resources_are_found_by_tags_and_types(house: House) -> None:
    client = house.client("resourcegroupstaggingapi")

    def found(**ask: Any) -> list[str]:
        pages = client.get_paginator("get_resources").paginate(**ask)
        arns = [m["ResourceARN"] for page in pages for m in page["ResourceTagMappingList"]]
        return [arn.rpartition(":")[2].rpartition("/")[2] for arn in arns]

    me = {"Key": "owner", "Values": ["me"]}
    assert found() == ["q", "a", "b"]
    assert found(PaginationConfig={"PageSize": 1}) == ["q", "a", "b"]
    assert found(TagFilters=[me]) == ["q", "b"]
    assert found(TagFilters=[me, {"Key": "createdby"}]) == ["b"]
    assert found(TagFilters=[{"Key": "owner", "Values": ["me", "you"]}]) == ["q", "a", "b"]
    assert found(ResourceTypeFilters=["lambda"]) == ["a", "b"]
    assert found(ResourceTypeFilters=["lambda:layer", "batch:job-queue"]) == ["q"]
    arn = "arn:aws:lambda:eu-west-1:000000000000:function:a"
    assert client.get_resources(ResourceARNList=[arn])["ResourceTagMappingList"] == [
        {
            "ResourceARN": arn,
            "Tags": [{"Key": "owner", "Value": "you"}, {"Key": "createdby", "Value": "scar"}],
        }
    ]
    with pytest.raises(client.exceptions.InvalidParameterException):
        client.get_resources(ResourceARNList=[arn], TagFilters=[me])
    assert client.get_tag_keys()["TagKeys"] == ["createdby", "owner"]
    assert client.get_tag_values(Key="owner")["TagValues"] == ["me", "you"]
