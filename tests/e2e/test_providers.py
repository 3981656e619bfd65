"""Files that come from, and go to, storage with credentials of its own: nobody else sees those."""

import base64
import gzip
import json
import re
from pathlib import Path

import pytest

from tests.doubles.providers import Minio
from tests.doubles.supervised import s3_event
from tests.doubles.webdav import WebDavServer
from tests.e2e.conftest import Cloud, s3_path, wait_for

SECRET = "t0p+s3cret/key"
COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"; env\n'


@pytest.fixture
def minio(tmp_path):
    minio = Minio(tmp_path / "minio", "minio-id", SECRET)
    minio.client.create_bucket(Bucket="theirs")
    yield minio
    minio.close()


@pytest.fixture
def fdl(function, minio):
    """Write an FDL whose provider `minio.mine` is that server; its path."""

    def write(secret_key=SECRET, **keys):
        path = function({"name": "f", "script": COPY, **keys})
        data = json.loads(path.read_text())
        mine = {"endpoint": minio.url, "access_key": "minio-id", "secret_key": secret_key}
        path.write_text(json.dumps({**data, "storage_providers": {"minio": {"mine": mine}}}))
        return path

    return write


def theirs(path="theirs/out"):
    return {"storage_provider": "minio.mine", "path": path}


def names_of_secrets(cloud):
    return [one["Name"] for one in cloud.client("secretsmanager").list_secrets()["SecretList"]]


def files_holding(folder: Path, text: str) -> set[str]:
    """Names of the files with that text in them, also of compressed ones."""
    found = set()
    for path in filter(Path.is_file, folder.rglob("*")):
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        whole = b"".join(base64.b64decode(one) for one in re.findall(rb'"body": "([^"]*)"', data))
        if text.encode() in data or text.encode() in whole:
            found.add(path.name)
    return found


@pytest.mark.parametrize("mode", ["lambda", "batch"])
def test_results_go_to_minio_and_its_keys_nowhere(cloud: Cloud, fdl, minio, tmp_path, mode):
    file = fdl(execution_mode=mode, input=[s3_path("data/in")], output=[theirs()])
    planned = cloud.run("init", "-f", file, "--plan")
    assert "create secret 'scar/f/minio.mine'" in " ".join(planned.out.split())
    told = [planned, cloud.run("init", "-f", file, "-v")]
    (tmp_path / "hello.txt").write_text("hello")
    cloud.ok("put", "-b", "data/in", "-p", tmp_path / "hello.txt")
    wait_for("the output", lambda: "out/hello.txt" in minio.keys("theirs"))
    assert minio.get("theirs", "out/hello.txt") == b"hello"
    assert minio.refused == []
    told += [cloud.run("log", "-n", "f"), cloud.run("init", "-f", file, "--plan", "--json")]
    assert json.loads(told[-1].out)["Plan"] == []  # what is kept is told apart without being read
    assert all(one.code == 0 and SECRET not in one.out + one.err for one in told), told
    # The local cloud's Secrets Manager keeps it in clear text, for its owner alone.
    assert files_holding(cloud.home, SECRET) == {"moto.jsonl"}
    assert (cloud.home / "local" / "moto.jsonl").stat().st_mode & 0o077 == 0
    cloud.ok("rm", "-f", file)
    assert names_of_secrets(cloud) == []


def test_new_keys_are_an_update_of_the_secret_alone_and_used_at_once(cloud: Cloud, fdl, minio):
    output = {"output": [theirs()]}
    cloud.ok("init", "-f", fdl(**output))
    script = 'echo "$1" > "$TMP_OUTPUT_DIR/result"'
    cloud.ok("run", "-n", "f", "sh", "-c", script, "sh", "old")
    minio.secret_key = "another"
    refused = cloud.run("run", "-n", "f", "sh", "-c", script, "sh", "new")
    assert refused.code == 5
    assert "minio.mine://theirs/out/result: who are you? (SignatureDoesNotMatch)" in refused.err
    changed = fdl("another", **output)
    [step] = json.loads(cloud.ok("init", "-f", changed, "--plan", "--json"))["Plan"]
    assert step["Verb"] == "update"
    assert step["Kind"] == "secret"
    assert step["Why"] == "credentials changed"
    cloud.ok("init", "-f", changed)
    cloud.ok("run", "-n", "f", "sh", "-c", script, "sh", "new")
    minio.client = minio._own_client()
    assert minio.get("theirs", "out/result") == b"new\n"


def test_a_secret_goes_with_its_last_output_and_can_come_back(cloud: Cloud, fdl):
    cloud.ok("init", "-f", fdl(output=[theirs()]))
    assert names_of_secrets(cloud) == ["scar/f/minio.mine"]
    cloud.ok("init", "-f", fdl())
    assert names_of_secrets(cloud) == []
    cloud.ok("init", "-f", fdl(output=[theirs()]))
    assert names_of_secrets(cloud) == ["scar/f/minio.mine"]
    cloud.client("lambda").delete_function(FunctionName="f")  # by somebody, by hand
    cloud.ok("rm", "-n", "f")
    assert names_of_secrets(cloud) == []


def test_a_secret_that_somebody_deletes_is_taken_back(cloud: Cloud, fdl, minio):
    file = fdl(output=[theirs()])
    cloud.ok("init", "-f", file)
    client = cloud.client("secretsmanager")
    client.delete_secret(SecretId="scar/f/minio.mine", RecoveryWindowInDays=7)
    refused = cloud.run("run", "-n", "f", "sh", "-c", 'echo > "$TMP_OUTPUT_DIR/x"')
    assert "secret `scar/f/minio.mine` cannot be read" in refused.err
    cloud.ok("init", "-f", file)
    cloud.ok("run", "-n", "f", "sh", "-c", 'echo > "$TMP_OUTPUT_DIR/x"')
    assert minio.keys("theirs") == ["out/x"]


def test_what_minio_posts_to_the_functions_endpoint_runs_it(cloud: Cloud, fdl, minio):
    file = fdl(input=[theirs("theirs/in")], output=[theirs()])
    warned = cloud.run("init", "-f", file)
    assert "new files of `minio.mine` do not trigger the function by themselves" in warned.err
    data = json.loads(file.read_text())
    data["functions"]["aws"][0]["api_gateway"] = {"name": "f"}
    file.write_text(json.dumps(data))
    assert cloud.run("init", "-f", file).err.count("warning") == 0
    minio.client.put_object(Bucket="theirs", Key="in/new file", Body=b"posted")
    event = s3_event(("theirs", "in/new file", 6), source="minio:s3")
    cloud.ok("invoke", "-n", "f", "-jd", json.dumps(event))
    assert minio.get("theirs", "out/new file") == b"posted"
    assert "data" not in [one["Name"] for one in cloud.client("s3").list_buckets()["Buckets"]]


def test_results_go_to_a_webdav_server(cloud: Cloud, function, tmp_path):
    server = WebDavServer(tmp_path / "dav", "me", SECRET)
    try:
        output = [{"storage_provider": "webdav.home", "path": "My Results/today"}]
        path = function({"name": "f", "script": 'echo hi > "$TMP_OUTPUT_DIR/x"', "output": output})
        home = {"hostname": server.url, "login": "me", "password": SECRET}
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "storage_providers": {"webdav": {"home": home}}}))
        cloud.ok("init", "-f", path)
        cloud.ok("run", "-n", "f")
        assert server.files() == {"My Results/today/x": b"hi\n"}
        assert files_holding(cloud.home, SECRET) == {"moto.jsonl"}
    finally:
        server.close()


def test_another_account_is_the_local_cloud_itself_here(cloud: Cloud, function):
    output = [{"storage_provider": "s3.other", "path": "theirs/out"}]
    path = function({"name": "f", "script": 'echo hi > "$TMP_OUTPUT_DIR/x"', "output": output})
    other = {"access_key": "AKIATHEIRS", "secret_key": SECRET, "region": "eu-west-1"}
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "storage_providers": {"s3": {"other": other}}}))
    cloud.ok("init", "-f", path)
    refused = cloud.run("run", "-n", "f")
    assert "s3.other://theirs/out/x: " in refused.err  # a bucket of others is not made
    assert "NoSuchBucket" in refused.err
    cloud.client("s3").create_bucket(Bucket="theirs")
    cloud.ok("run", "-n", "f")
    assert cloud.content("theirs", "out/x") == b"hi\n"
