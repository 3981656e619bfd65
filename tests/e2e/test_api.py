"""A user can: give a function an HTTP endpoint, call it with anything, and remove it."""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.conftest import Cloud, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "api-cow"

SHOW = """#!/bin/sh
echo "colour=$colour"
if [ -f "$INPUT_FILE_PATH" ]; then cat "$INPUT_FILE_PATH"; fi
"""
"""Shows a query parameter and the body."""


def http(url, data=None, headers=None):
    """Status, headers and body of one plain HTTP request."""
    request = urllib.request.Request(url, data, headers or {})  # loopback
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.headers, refusal.read()


def an_api(function, script=SHOW, **api):
    return function({"name": "cow", "script": script, "api_gateway": {"name": "cow-api", **api}})


def url_of(cloud, name="cow"):
    infos = json.loads(cloud.ok("ls", "--json"))["Functions"]
    return next(info["Api_gateway"] for info in infos if info["Name"] == name)


def test_the_example_answers_as_its_readme_says(cloud: Cloud, tmp_path):
    out = cloud.ok("init", "-f", EXAMPLE / "api-cow.yaml")
    url = url_of(cloud, "api-cow")
    assert f"API Gateway endpoint: {url}\n" in out
    assert url.endswith("/scar/launch")
    assert "Moo! I answer over HTTP." in cloud.ok("invoke", "-n", "api-cow")
    words, cow = tmp_path / "words.txt", tmp_path / "cow.txt"
    words.write_text("I come from a file\n")
    cloud.ok("invoke", "-n", "api-cow", "-db", words, "-p", '{"eyes": "^^"}', "-o", cow)
    assert "< I come from a file >" in cow.read_text()
    assert "(^^)" in cow.read_text()
    status, headers, body = http(f"{url}?eyes=@@")
    assert status == 200
    assert headers["amz-log-group-name"] == "/aws/lambda/api-cow"
    assert b"(@@)" in base64.b64decode(body, validate=True)
    sent = base64.encodebytes(words.read_bytes())
    _, _, body = http(url, sent, {"Content-Type": "application/x-www-form-urlencoded"})
    assert b"< I come from a file >" in base64.b64decode(body)
    cloud.ok("rm", "-f", EXAMPLE / "api-cow.yaml")
    assert http(url)[0] == 403
    assert cloud.client("apigateway").get_rest_apis()["items"] == []


def test_invoke_sends_what_its_flags_say(cloud: Cloud, function, tmp_path):
    cloud.ok("init", "-f", an_api(function))
    told = cloud.ok("invoke", "-n", "cow")
    assert [line.partition(":")[0] for line in told.splitlines()] == [
        *("Request Id", "Log Group Name", "Log Stream Name", "colour="),
    ]
    data, answer = tmp_path / "data.bin", tmp_path / "answer"
    data.write_bytes(bytes(range(256)) * 100)
    cloud.ok("invoke", "-n", "cow", "-db", data, "-p", '{"colour": "très brun"}', "-o", answer)
    assert answer.read_bytes() == "colour=très brun\n".encode() + data.read_bytes()
    text = '{"say": "moo", "n": [1]}'
    said = json.loads(cloud.ok("invoke", "-n", "cow", "--json-data", text, "--json"))
    assert said["LambdaOutput"]["Payload"] == f"colour=\n{text}"
    assert said["LambdaOutput"]["StatusCode"] == 200
    log = cloud.ok("log", "-n", "cow", "-ri", said["LambdaOutput"]["RequestId"])
    assert "colour=" in log
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert cloud.ok("invoke", "-n", "cow", "-db", empty).endswith("colour=\n")


def test_invoke_of_a_file_takes_its_data_from_there(cloud: Cloud, function, tmp_path):
    (tmp_path / "hay").write_bytes(b"hay\n")
    fdl = an_api(function, data_binary="hay", parameters={"colour": 7})
    cloud.ok("init", "-f", fdl)
    assert cloud.ok("invoke", "-f", fdl).endswith("colour=7\nhay\n")
    assert cloud.ok("invoke", "-f", fdl, "-jd", "{}", "-p", "{}").endswith("colour=\n{}")


def test_an_asynchronous_call_is_launched_and_found_in_the_log(cloud: Cloud, function):
    cloud.ok("init", "-f", an_api(function, 'sleep 1; echo "later $colour"'))
    started = time.monotonic()
    out = cloud.ok("invoke", "-n", "cow", "-a", "-p", '{"colour": "red"}')
    assert time.monotonic() - started < 5
    assert out == "Function 'cow' launched correctly\n"
    wait_for("its log", lambda: "later red" in cloud.ok("log", "-n", "cow"))
    answer = json.loads(cloud.ok("invoke", "-n", "cow", "-a", "--json"))
    assert answer == {"LambdaOutput": {"StatusCode": 202, "RequestId": ""}}


def test_a_function_that_fails_is_a_bad_gateway_and_exit_code_5(cloud: Cloud, function):
    cloud.ok("init", "-f", an_api(function, "echo a secret; exit 7"))
    status, _, body = http(url_of(cloud))
    assert (status, json.loads(body)) == (502, {"message": "Internal server error"})
    result = cloud.run("invoke", "-n", "cow")
    assert result.code == 5
    assert "function `cow` answers HTTP status 502: Internal server error" in result.err
    assert "scar --local log -n cow" in result.err
    assert "exit code 7" in cloud.ok("log", "-n", "cow")


def test_a_function_that_takes_too_long_is_a_gateway_timeout(cloud: Cloud, function):
    cloud.ok("init", "-f", an_api(function, "sleep 3; echo done"))
    shorten_the_limit(cloud)
    status, _, body = http(url_of(cloud))
    assert (status, json.loads(body)) == (504, {"message": "Endpoint request timed out"})
    result = cloud.run("invoke", "-n", "cow")
    assert result.code == 5
    assert "504: Endpoint request timed out" in result.err
    wait_for("it goes on", lambda: "done" in cloud.ok("log", "-n", "cow"))


def shorten_the_limit(cloud, milliseconds=500):
    """29 s is a long time for a test: say less, as a user of AWS can."""
    apis = cloud.client("apigateway")
    [api] = apis.get_rest_apis()["items"]
    resources = apis.get_resources(restApiId=api["id"], embed=["methods"])["items"]
    resource = next(one for one in resources if "resourceMethods" in one)
    its = resource["resourceMethods"]["ANY"]["methodIntegration"]
    apis.put_integration(
        restApiId=api["id"],
        resourceId=resource["id"],
        httpMethod="ANY",
        type="AWS_PROXY",
        integrationHttpMethod="POST",
        uri=its["uri"],
        requestParameters=its["requestParameters"],
        timeoutInMillis=milliseconds,
    )
    apis.create_deployment(restApiId=api["id"], stageName="scar")


def test_what_is_not_there_is_forbidden(cloud: Cloud, function):
    cloud.ok("init", "-f", an_api(function, path_part="cow", http_method="get"))
    url = url_of(cloud)
    assert url.endswith("/scar/cow")
    assert http(url)[0] == 200
    for wrong in (f"{url}x", url.removesuffix("/cow"), f"{url}/deeper"):
        status, _, body = http(wrong)
        assert (status, json.loads(body)) == (403, {"message": "Missing Authentication Token"})
    assert http(url, b"data")[0] == 403
    assert http(url.replace("/scar/", "/prod/"))[0] == 403


def test_a_second_init_changes_nothing_and_changes_are_made_in_place(cloud: Cloud, function):
    fdl = an_api(function)
    steps = json.loads(cloud.ok("init", "-f", fdl, "--plan", "--json"))["Plan"]
    assert {"Verb": "create", "Kind": "REST API", "Name": "cow", "Why": "does not exist"} in steps
    first = json.loads(cloud.ok("init", "-f", fdl, "--json"))
    url = first["Endpoints"]["cow"]
    assert json.loads(cloud.ok("init", "-f", fdl, "--plan", "--json"))["Plan"] == []
    assert json.loads(cloud.ok("init", "-f", fdl, "--json"))["Steps"] == []
    changed = an_api(function, name="farm", stage_name="v2", path_part="moo")
    plan = cloud.ok("init", "-f", changed, "--plan")
    assert "api_name cow-api -> farm" in plan
    assert "stage scar -> v2" in plan
    cloud.ok("init", "-f", changed)
    assert json.loads(cloud.ok("init", "-f", changed, "--plan", "--json"))["Plan"] == []
    assert url_of(cloud) == url.replace("/scar/launch", "/v2/moo")
    assert http(url)[0] == 403
    assert http(url_of(cloud))[0] == 200


def test_an_api_that_is_not_wanted_any_more_goes_and_the_function_stays(cloud: Cloud, function):
    cloud.ok("init", "-f", an_api(function))
    url = url_of(cloud)
    plain = function({"name": "cow", "script": SHOW})
    assert "delete REST API 'cow'" in cloud.ok("init", "-f", plain, "--plan")
    cloud.ok("init", "-f", plain)
    assert http(url)[0] == 403
    assert "colour=" in cloud.ok("run", "-n", "cow")
    assert json.loads(cloud.ok("init", "-f", plain, "--plan", "--json"))["Plan"] == []
    result = cloud.run("invoke", "-n", "cow")
    assert result.code == 2
    assert "function `cow` has no HTTP endpoint" in result.err
    assert "api_gateway: {name: …}" in result.err


def test_an_endpoint_survives_a_crash_of_the_cloud(cloud: Cloud, function):
    cloud.ok("init", "-f", an_api(function))
    url = url_of(cloud)
    cloud.kill()
    assert cloud.ok("invoke", "-n", "cow", "-p", '{"colour": "grey"}').endswith("colour=grey\n")
    assert url_of(cloud).rpartition("/_aws/")[2] == url.rpartition("/_aws/")[2]


def test_init_by_flags_and_rm_by_name(cloud: Cloud, tmp_path):
    (tmp_path / "s.sh").write_text(SHOW)
    cloud.ok("init", "-i", "host", "-n", "cow", "-s", tmp_path / "s.sh", "-api", "web")
    apis = cloud.client("apigateway")
    assert [api["name"] for api in apis.get_rest_apis()["items"]] == ["web"]
    assert "colour=" in cloud.ok("invoke", "-n", "cow")
    told = cloud.run("rm", "-n", "cow")
    assert "deleted REST API 'cow'" in told.err
    assert apis.get_rest_apis()["items"] == []


def test_a_batch_function_hands_a_call_over(cloud: Cloud, function, tmp_path):
    wanted = {"name": "cow", "script": SHOW, "execution_mode": "batch"}
    cloud.ok("init", "-f", function({**wanted, "api_gateway": {"name": "cow-api"}}))
    (tmp_path / "hay").write_bytes(b"hay in a job\n")
    said = cloud.ok("invoke", "-n", "cow", "-db", tmp_path / "hay", "-p", '{"colour": "red"}')
    assert "Job delegated to batch." in said
    job = said.split("-ri ")[1].strip()
    log = wait_for(
        "the job", lambda: "hay in" in (t := cloud.ok("log", "-n", "cow", "-ri", job)) and t
    )
    assert "colour=red" in log


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["-jd", "{moo"], "`--json-data` is not JSON: expecting property name"),
        (["-p", "[1]"], "`--parameters` is not a JSON object"),
        (["-p", "x"], "`--parameters` is not JSON"),
        (["-db", "a", "-jd", "{}"], "`-db` and `-jd` both say what to send"),
        (["-a", "-o", "a"], "`-o` needs the output, `-a` does not wait for it"),
        (["-db", "nowhere"], "no file `nowhere`"),
        ([], "function `cow` does not exist"),
    ],
)
def test_a_wrong_invoke_touches_nothing(cloud: Cloud, tmp_path, line, message):
    result = cloud.run("invoke", "-n", "cow", *line, cwd=tmp_path)
    assert (result.code, message in result.err) == (2, True), result


SEND = """
import sys
from scar.__main__ import main
code = main()
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(peak.split()[1], file=sys.stderr)
sys.exit(code)
"""
"""The command, and then the most memory that its process had, in KiB."""


def test_a_body_of_any_size_takes_little_memory(cloud: Cloud, function, tmp_path):
    script = 'wc -c < "$INPUT_FILE_PATH"'
    cloud.ok("init", "-f", an_api(function, script))
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.truncate(400_000_000)

    sent = subprocess.run(
        [sys.executable, "-c", SEND, "--local", "invoke", "-n", "cow", "-db", str(body)],
        env={**os.environ, "SCAR_CONFIG_FOLDER": str(cloud.home)},
        capture_output=True,
        check=True,
    )

    assert sent.stdout.split()[-1] == b"400000000"
    assert int(sent.stderr.split()[-1]) < 200 * 1024
