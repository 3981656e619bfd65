"""The supervisor as a Lambda runtime: real process, real HTTP, real S3."""

import base64
import json
import signal
import time

import pytest

from scar_supervisor import contract
from tests.doubles.runtime_api import RuntimeApi
from tests.doubles.supervised import Cloud, Supervised, a_config, processes_with, s3_event


@pytest.fixture
def api():
    api = RuntimeApi()
    yield api
    api.close()


@pytest.fixture(scope="module")
def one_cloud(tmp_path_factory):
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    yield cloud
    cloud.close()


@pytest.fixture
def cloud(one_cloud):
    one_cloud.start_over("inbox", "out")
    return one_cloud


@pytest.fixture
def start(tmp_path, api):
    started = []

    def start(script, told=None, **config):
        function = a_config(has_script=script is not None, **config)
        platform = {"AWS_LAMBDA_RUNTIME_API": api.address, **(told or {})}
        started.append(Supervised(tmp_path, function, script, platform))
        return started[-1]

    yield start
    for supervised in started:
        supervised.close()


def text_of(answered):
    assert answered.kind == "response", answered.body
    return base64.b64decode(answered.body["body"]).decode()


def test_the_output_of_the_script_is_the_answer_and_the_log(start, api):
    told = {"AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/f", "AWS_LAMBDA_LOG_STREAM_NAME": "s"}
    supervised = start("echo out; echo err >&2", told)
    request_id = api.push({})
    answered = api.answer(request_id)
    assert answered.body == {
        "statusCode": 200,
        "headers": {
            "amz-lambda-request-id": request_id,
            "amz-log-group-name": "/aws/lambda/f",
            "amz-log-stream-name": "s",
        },
        "body": base64.b64encode(b"out\nerr\n").decode(),
        "isBase64Encoded": True,
    }
    supervised.wait_for("out\nerr\n")


def test_an_exit_code_is_a_failed_invocation_with_the_end_of_the_log(start, api):
    start("echo before; echo why >&2; exit 7")
    answered = api.invoke({})
    assert answered.kind == "error"
    assert answered.body["errorType"] == "ScriptFailed"
    assert answered.body["errorMessage"] == ("the script ended with exit code 7\n\nbefore\nwhy")
    assert answered.headers["lambda-runtime-function-error-type"] == "ScriptFailed"


def test_a_signal_is_told_as_128_and_its_number(start, api):
    start("kill -SEGV $$")
    assert api.invoke({}).body["errorMessage"] == "the script ended with exit code 139"


def test_nothing_of_one_event_is_there_for_the_next(start, api):
    supervised = start(
        'echo "${STORAGE_OBJECT_KEY-none} ${EVENT_TIME-none}" $(ls $TMP_OUTPUT_DIR)\n'
        "touch $TMP_OUTPUT_DIR/left; mkdir -p $TMP_INPUT_DIR/a/b; chmod 0 $TMP_INPUT_DIR/a",
        stages_in=False,
    )
    first = text_of(api.invoke(s3_event(("inbox", "k", 1))))
    second = text_of(api.invoke({}))
    assert first.startswith("k 2026-01-31T12:00:00.000Z")
    assert second.startswith("none none")
    assert "left" not in second
    assert list(supervised.scratch.iterdir()) == []


def test_the_script_sees_the_variables_of_the_contract_and_none_of_ours(start, api):
    start(
        "env -0 | sort -z | tr '\\0' '\\n'",
        {"_HANDLER": "h", "LC_CTYPE": "C.UTF-8"},
        environment={"MINE": "a=b c"},
        batch_environment={"JOBS": "1"},
    )
    request_id = api.push({"a": 1})
    seen = dict(line.split("=", 1) for line in text_of(api.answer(request_id)).splitlines())
    assert seen["MINE"] == "a=b c"
    assert seen["EVENT"] == '{"a": 1}'
    assert seen["REQUEST_ID"] == seen["AWS_LAMBDA_REQUEST_ID"] == request_id
    assert seen["AWS_LAMBDA_FUNCTION_NAME"] == "f"
    assert seen["INPUT_FILE_PATH"] == f"{seen['TMP_INPUT_DIR']}/event_file"
    assert seen["_X_AMZN_TRACE_ID"] == "Root=1-2-3"
    assert seen["INSTANCE_IP"].count(".") == 3
    absent = {"JOBS", "STORAGE_OBJECT_KEY", "EXTRA_PAYLOAD", "AWS_LAMBDA_RUNTIME_API", "_HANDLER"}
    assert not absent & seen.keys()
    assert not [name for name in seen if name.startswith("SCAR_")]


def test_arguments_win_over_a_script_and_a_script_over_the_configs(start, api):
    start("echo config")
    script = base64.b64encode(b"#!/bin/sh\necho event").decode()
    arguments = json.dumps(["printf", "%s|", "a b", "$HOME"])
    assert text_of(api.invoke({})) == "config\n"
    assert text_of(api.invoke({"script": script})) == "event\n"
    assert text_of(api.invoke({"script": script, "cmd_args": arguments})) == "a b|$HOME|"


def test_without_a_script_the_images_entrypoint_and_command_run(start, api):
    image = contract.ImageDefaults(("echo", "hi"), ("there",), {"LD_LIBRARY_PATH": "/x"})
    start(None, image=image)
    assert text_of(api.invoke({})) == "hi there\n"
    assert text_of(api.invoke({"cmd_args": '["you"]'})) == "hi you\n"


def test_a_script_with_windows_line_ends_or_a_missing_interpreter_is_a_clear_fault(start, api):
    start("#!/bin/none\n")
    crlf = base64.b64encode(b"#!/bin/sh\r\necho\r\n").decode()
    missing = api.invoke({}).body
    assert missing["errorType"] == "ConfigFault"
    assert missing["errorMessage"].startswith("the image has no /bin/none to run the script with")
    assert "Windows line ends" in api.invoke({"script": crlf}).body["errorMessage"]


def test_a_command_that_is_not_there_ends_with_127(start, api):
    start("true")
    answered = api.invoke({"cmd_args": '["no-such-program"]'})
    assert answered.body["errorMessage"] == (
        "the script ended with exit code 127\n\n"
        "cannot start `no-such-program` is not in the image's PATH"
    )


def test_a_storage_provider_we_do_not_know_is_told_before_any_event(start, api):
    supervised = start("true", inputs=(contract.ObjectPath("onedata.x", "b"),))
    told = api.answer("init")
    assert told.body["errorType"] == "ConfigFault"
    assert "storage provider `onedata.x` is not supported yet" in told.body["errorMessage"]
    assert supervised.wait() == contract.EXIT_CONFIG


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (b"not json", "the event is not JSON"),
        ({"script": "%%%"}, "`script` of the event is not base64 text"),
        ({"cmd_args": ["ls"]}, "`cmd_args` of the event is not JSON in a string"),
        ({"cmd_args": "[1]"}, "`cmd_args` of the event: 1 cannot be an argument"),
        ({"Records": [{"eventSource": "aws:s3"}]}, "has no bucket or key"),
    ],
)
def test_a_malformed_event_is_an_event_fault(start, api, event, why):
    start("true")
    answered = api.invoke(event)
    assert answered.body["errorType"] == "EventFault"
    assert why in answered.body["errorMessage"]


def test_a_deadline_ends_the_script_and_every_child_of_it(start, api):
    marker = f"SCAR_TEST_MARK={time.monotonic_ns()}"
    start(
        "trap '' TERM\n"
        "sleep 300 & setsid sleep 301 & (setsid sh -c 'trap \"\" TERM; sleep 302; sleep 303' &)\n"
        "echo started\nsleep 304\n",
        environment={"MARK": marker},
        timeout_threshold_s=28,
    )
    began = time.monotonic()
    answered = api.invoke({}, seconds=29)
    assert answered.body["errorType"] == "ScriptTimedOut"
    assert answered.body["errorMessage"].endswith("the time it may take\n\nstarted")
    assert time.monotonic() - began < 8
    assert processes_with(marker) == []


def test_background_children_do_not_hold_the_answer_back(start, api):
    marker = f"SCAR_TEST_MARK={time.monotonic_ns()}"
    start("sleep 300 & setsid sleep 300 & echo done", environment={"MARK": marker})
    began = time.monotonic()
    assert text_of(api.invoke({})) == "done\n"
    assert time.monotonic() - began < 3
    assert processes_with(marker) == []


def test_a_threshold_longer_than_the_invocation_leaves_80_percent(start, api):
    supervised = start("sleep 30", timeout_threshold_s=60)
    began = time.monotonic()
    assert api.invoke({}, seconds=2).body["errorType"] == "ScriptTimedOut"
    assert 1.4 < time.monotonic() - began < 4
    supervised.wait_for("the script gets 80 % of it")


def test_an_answer_too_large_for_lambda_says_that_it_is_cut(start, api):
    start("head -c 9000000 /dev/zero | tr '\\0' x")
    answered = api.invoke({})
    assert answered.size < 6_291_556
    text = text_of(answered)
    assert text.startswith("xxxx")
    assert "the output has 9,000,000 bytes, more than an answer can hold" in text[-200:]


def test_an_event_too_large_for_a_variable_is_in_a_file(start, api):
    supervised = start('test -z "${EVENT+x}" && wc -c < $EVENT_FILE')
    raw = json.dumps({"a": "x" * 200_000}).encode()
    assert int(text_of(api.invoke(raw))) == len(raw)
    supervised.wait_for("$EVENT_FILE instead of $EVENT")


def test_api_gateway_gives_its_body_as_the_input_and_parameters_as_variables(start, api):
    start('cat $INPUT_FILE_PATH; echo " $who $PATH $LD_PRELOAD $REQUEST_ID"')
    event = {
        "httpMethod": "POST",
        "headers": {"content-type": "application/json"},
        "body": '{"k": 1}',
        "isBase64Encoded": False,
        "queryStringParameters": {
            "who": "me",
            "PATH": "/evil",
            "LD_PRELOAD": "x",
            "REQUEST_ID": "1",
        },
        "script": base64.b64encode(b"echo stolen").decode(),
    }
    text = text_of(api.invoke(event))
    assert text.startswith('{"k": 1} me ')
    assert "evil" not in text
    assert "stolen" not in text


def test_every_record_is_run_in_order_and_the_outputs_are_joined(start, api, cloud):
    for key in ("b", "a", "folder/"):
        cloud.put("inbox", key, b"" if key.endswith("/") else key.encode() * 3)
    supervised = start(
        "cat $INPUT_FILE_PATH; echo; cp $INPUT_FILE_PATH $TMP_OUTPUT_DIR/$STORAGE_OBJECT_KEY.out",
        cloud.environment,
        outputs=(contract.ObjectPath("s3", "out", "res"),),
    )
    answered = api.invoke(s3_event(("inbox", "b", 3), ("inbox", "folder/", 0), ("inbox", "a", 3)))
    assert text_of(answered) == "bbb\naaa\n"
    assert cloud.keys("out") == ["res/a.out", "res/b.out"]
    supervised.wait_for("`folder/` only marks a folder")


def test_the_first_failing_record_fails_the_event_and_uploads_nothing_of_it(start, api, cloud):
    for key in ("a", "b", "c"):
        cloud.put("inbox", key, key.encode())
    start(
        "cp $INPUT_FILE_PATH $TMP_OUTPUT_DIR; test $STORAGE_OBJECT_KEY != b",
        cloud.environment,
        outputs=(contract.ObjectPath("s3", "out"),),
    )
    answered = api.invoke(s3_event(("inbox", "a", 1), ("inbox", "b", 1), ("inbox", "c", 1)))
    assert answered.body["errorMessage"] == "the script ended with exit code 1"
    assert cloud.keys("out") == ["a"]


def test_a_missing_input_is_a_staging_fault_that_names_it(start, api, cloud):
    start("true", cloud.environment)
    answered = api.invoke(s3_event(("inbox", "gone/x y", 5)))
    assert answered.body["errorType"] == "StagingFailed"
    assert answered.body["errorMessage"].startswith("s3://inbox/gone/x y: ")
    assert "NoSuchKey" in answered.body["errorMessage"]


BATCH = {"job_queue": "q", "job_definition": "f", "deployment_bucket": "inbox"}


def test_mode_batch_hands_the_event_over_as_it_is(start, api, cloud):
    supervised = start("echo never", cloud.environment, execution_mode="batch", **BATCH)
    event = {**s3_event(("inbox", "a b", 1)), "cmd_args": '["df"]'}
    request_id = api.push(event)
    answered = api.answer(request_id)
    job_id = "11111111-2222-3333-4444-000000000001"
    assert text_of(answered) == (
        f"Job delegated to batch.\nCheck batch logs with:\n  scar log -n f -ri {job_id}\n"
    )
    assert answered.body["headers"][contract.JOB_ID_HEADER] == job_id
    assert cloud.submitted == [
        {
            "jobName": "f",
            "jobQueue": "q",
            "jobDefinition": "f",
            "containerOverrides": {
                "environment": [
                    {"name": "SCAR_EVENT", "value": json.dumps(event)},
                    {"name": "AWS_LAMBDA_REQUEST_ID", "value": request_id},
                ]
            },
        }
    ]
    supervised.wait_for(f"delegated to Batch job {job_id}")


def test_a_large_event_is_handed_over_by_reference(start, api, cloud):
    start("true", cloud.environment, execution_mode="batch", **BATCH)
    event = {"a": "é" * 5000}
    api.invoke(event)
    (variable, _) = cloud.submitted[0]["containerOverrides"]["environment"]
    assert variable["name"] == "SCAR_EVENT"
    reference = json.loads(variable["value"])["scar_event_reference"]
    address, _, digest = reference.partition("#sha256=")
    assert address == f"s3://inbox/.scar/events/f/{digest}"
    assert json.loads(cloud.get("inbox", f".scar/events/f/{digest}")) == event


def test_a_folder_marker_alone_starts_no_job(start, api, cloud):
    start("true", cloud.environment, execution_mode="batch", **BATCH)
    assert text_of(api.invoke(s3_event(("inbox", "folder/", 0)))) == ""
    assert cloud.submitted == []


def test_a_refused_job_is_a_delegation_fault(start, api, cloud):
    cloud.batch_status = 400
    start("true", cloud.environment, execution_mode="batch", **BATCH)
    answered = api.invoke({})
    assert answered.body["errorType"] == "DelegationFailed"
    assert "JobQueue q not found (ClientException)" in answered.body["errorMessage"]


def test_lambda_batch_delegates_at_the_deadline_and_only_then(start, api, cloud):
    start(
        '[ "$EVENT" = "{}" ] || sleep 300',
        cloud.environment,
        execution_mode="lambda-batch",
        timeout_threshold_s=28,
        **BATCH,
    )
    assert text_of(api.invoke({})) == ""
    assert cloud.submitted == []
    assert text_of(api.invoke({"slow": 1}, seconds=29)).startswith("Job delegated to batch.")
    assert len(cloud.submitted) == 1


def test_sigterm_ends_an_idle_runtime_at_once(start, api):
    supervised = start("true")
    api.invoke({})
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.wait(5) == 143
