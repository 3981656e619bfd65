"""The supervisor's AWS client where the network and the service are not kind; over real HTTP."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from scar_local.http import Server
from scar_supervisor.aws import ATTEMPTS, Client
from scar_supervisor.credentials import Credentials
from scar_supervisor.faults import StagingFailed
from scar_supervisor.sigv4 import Keys
from scar_supervisor.storage.s3 import PART_BYTES, S3

DATA = bytes(range(256)) * 4096 * 20  # 20 MiB: three parts


class Rough:
    """An S3 with one object that does to each request what `plan` says next."""

    def __init__(self):
        self.plan, self.seen, self.lock = [], [], threading.Lock()
        self.server = Server(0, self.answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def answer(self, exchange):
        if exchange.method == "PUT":
            body = exchange.body.read()
            self.seen.append(len(body))
        with self.lock:
            what = self.plan.pop(0) if self.plan else "good"
        if isinstance(what, int):
            exchange.reply(what, b"<Error><Code>X</Code><Message>m</Message></Error>")
        elif what == "close":
            exchange.socket.close()
            raise ConnectionError
        elif exchange.method == "PUT":
            exchange.reply(200)
        else:
            self.get(exchange, what)

    def get(self, exchange, what):
        data, headers = DATA, {"ETag": '"1"'}
        start, end = 0, len(data) - 1
        if asked := exchange.headers.get("Range"):
            self.seen.append(asked)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last) if last else end)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        if what == "changed":
            exchange.reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        if what == "spoilt":
            headers["x-amz-checksum-crc32"] = "AAAAAA=="
        body = data[start : end + 1]
        if what == "half":
            headers["Content-Length"] = str(len(body))
            body = body[: len(body) // 2]
        exchange.reply(206 if asked else 200, body, headers)
        if what == "half":
            exchange.socket.close()
            raise ConnectionError

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Patient:
    def room(self, size_bytes):
        pass

    def time(self):
        pass


@pytest.fixture
def rough():
    rough = Rough()
    yield rough
    rough.close()


@pytest.fixture
def s3(rough):
    environ = {
        "AWS_ENDPOINT_URL": rough.url,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    return S3(Client("s3", environ, Credentials(environ), pause=lambda seconds: None))


@pytest.mark.parametrize(
    "plan",
    [
        ["half"],
        [503, "half", 429],
        ["close", "good", "close", "half", "good", "half"],
        ["half", "half", "half", "half"],
    ],
)
def test_a_download_goes_on_where_it_broke(rough, s3, tmp_path, plan):
    rough.plan = plan
    assert s3.fetch("b", "k", str(tmp_path / "f"), Patient()) == len(DATA)
    assert (tmp_path / "f").read_bytes() == DATA
    if plan == ["half"]:
        assert f"bytes={PART_BYTES // 2}-{PART_BYTES - 1}" in rough.seen


def test_an_upload_is_sent_again_from_its_beginning(rough, s3, tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 1000)
    rough.plan = [500, "close"]
    s3.store("b", "k", str(tmp_path / "f"), {})
    assert rough.seen == [1000, 1000, 1000]


def test_a_service_that_stays_down_is_told_after_bounded_attempts(rough, s3, tmp_path):
    rough.plan = [503] * 100
    with pytest.raises(StagingFailed, match=r"s3://b/k: m \(X\)"):
        s3.fetch("b", "k", str(tmp_path / "f"), Patient())
    assert len(rough.plan) == 100 - ATTEMPTS


def test_a_refusal_is_not_tried_again(rough, s3, tmp_path):
    rough.plan = [403, 403]
    with pytest.raises(StagingFailed):
        s3.fetch("b", "k", str(tmp_path / "f"), Patient())
    assert len(rough.plan) == 1


def test_an_object_that_changes_while_it_is_read_is_refused(rough, s3, tmp_path):
    rough.plan = ["good", "changed"]
    with pytest.raises(StagingFailed, match="it changed while it was read"):
        s3.fetch("b", "k", str(tmp_path / "f"), Patient())


def test_bytes_that_do_not_have_their_checksum_are_refused(rough, s3, tmp_path):
    rough.plan = ["spoilt"]
    with pytest.raises(StagingFailed, match="do not have the checksum"):
        s3.fetch("b", "k", str(tmp_path / "f"), Patient(), size=100)


def test_nobody_at_the_address_is_a_staging_fault(tmp_path):
    environ = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "us-east-1"}
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    nobody = S3(Client("s3", environ, Credentials(keys), pause=lambda seconds: None))
    with pytest.raises(StagingFailed, match="Connection refused"):
        nobody.fetch("b", "k", str(tmp_path / "f"), Patient())


class Metadata:
    """Container credentials and an instance's metadata, counting how often they are asked."""

    def __init__(self):
        self.asked, self.valid_s = [], 3600
        self.server = Server(0, self.answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def answer(self, exchange):
        self.asked.append((exchange.method, exchange.path, dict(exchange.headers.items())))
        texts = {
            "/latest/api/token": "TOKEN",
            "/latest/meta-data/iam/security-credentials/": "role",
            "/latest/meta-data/placement/region": "eu-south-1",
        }
        expires = datetime.now(UTC) + timedelta(seconds=self.valid_s)
        keys = {
            "AccessKeyId": f"A{len(self.asked)}",
            "SecretAccessKey": "S",
            "Token": "T",
            "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        exchange.reply(200, texts.get(exchange.path, json.dumps(keys)).encode())

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def metadata():
    metadata = Metadata()
    yield metadata
    metadata.close()


def test_container_credentials_are_fetched_once_and_again_before_they_expire(metadata):
    now = [time.time()]
    environ = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{metadata.url}/creds?x=1",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "secret",
    }
    credentials = Credentials(environ, clock=lambda: now[0])
    assert credentials.keys() == Keys("A1", "S", "T")
    assert credentials.keys() == Keys("A1", "S", "T")
    now[0] += 3600 - 300
    assert credentials.keys() == Keys("A2", "S", "T")
    assert metadata.asked[0][2]["Authorization"] == "secret"


def test_an_instances_role_is_asked_with_a_session_token(metadata):
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url}
    assert Credentials(environ).keys().token == "T"
    methods = [(method, path) for method, path, _ in metadata.asked]
    assert methods[0] == ("PUT", "/latest/api/token")
    last = metadata.asked[-1]
    assert last[1] == "/latest/meta-data/iam/security-credentials/role"
    assert last[2]["X-aws-ec2-metadata-token"] == "TOKEN"


def test_without_a_region_the_instance_is_asked(metadata):
    from scar_supervisor.aws import find_region

    assert find_region({"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url}) == "eu-south-1"
