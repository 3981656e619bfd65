"""The supervisor as one Batch job, and what it stages: real process, real HTTP, real S3."""

import base64
import hashlib
import json
import os
import signal
import time
from urllib.parse import quote_plus

import pytest

from scar_supervisor import contract
from scar_supervisor.contract import ObjectPath
from tests.doubles.supervised import Cloud, Supervised, a_config, processes_with, s3_event


@pytest.fixture(scope="module")
def one_cloud(tmp_path_factory):
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    yield cloud
    cloud.close()


@pytest.fixture
def cloud(one_cloud):
    one_cloud.start_over("inbox", "out", "more")
    return one_cloud


@pytest.fixture
def start(tmp_path):
    started = []

    def start(script, event=None, told=None, **config):
        platform = {"AWS_BATCH_JOB_ID": "job-1", "AWS_LAMBDA_REQUEST_ID": "req-1", **(told or {})}
        if event is not None:
            platform[contract.EVENT_VARIABLE] = json.dumps(event)
        started.append(Supervised(tmp_path, a_config(**config), script, platform))
        return started[-1]

    yield start
    for supervised in started:
        supervised.close()


def test_the_scripts_exit_code_is_the_jobs(start):
    job = start("echo $REQUEST_ID $JOBS; exit 7", {}, batch_environment={"JOBS": "yes"})
    assert job.wait() == 7
    assert job.log.startswith("req-1 yes\n")


def test_a_signal_that_kills_the_script_is_128_and_its_number(start):
    assert start("kill -9 $$", {}).wait() == 137


def test_the_containers_variables_win_over_the_jobs(start):
    both = {"environment": {"WHO": "container"}, "batch_environment": {"WHO": "batch"}}
    job = start("echo $WHO", {}, **both)
    assert job.wait() == 0
    assert "container\n" in job.log


def test_outside_of_lambda_and_batch_it_says_so(start):
    job = start("true", told={"AWS_BATCH_JOB_ID": ""})
    job.wait()
    from tests.doubles.supervised import HOST_COMMAND

    lost = Supervised(job.directory, a_config(), "true", {}, HOST_COMMAND)
    assert lost.wait() == contract.EXIT_CONFIG
    assert "neither AWS_LAMBDA_RUNTIME_API nor AWS_BATCH_JOB_ID is set" in lost.log
    lost.close()


def test_a_broken_event_ends_with_121_and_a_missing_input_with_120(start, cloud):
    assert start("true", told={contract.EVENT_VARIABLE: "{"}).wait() == contract.EXIT_CONFIG
    job = start("true", s3_event(("inbox", "gone", 1)), cloud.environment)
    assert job.wait() == contract.EXIT_STAGING
    assert "StagingFailed: s3://inbox/gone: " in job.log


def test_sigterm_reaches_the_script_and_the_job_ends_with_143(start):
    marker = f"SCAR_TEST_MARK={time.monotonic_ns()}"
    job = start(
        "trap 'echo ending; exit 0' TERM; sleep 300 & echo ready; wait",
        {},
        environment={"MARK": marker},
    )
    job.wait_for("ready")
    job.process.send_signal(signal.SIGTERM)
    assert job.wait(10) == 143
    assert "ending\n" in job.log
    assert processes_with(marker) == []
    assert list(job.scratch.iterdir()) == []


def test_a_script_that_ignores_sigterm_is_killed_after_the_grace(start):
    marker = f"SCAR_TEST_MARK={time.monotonic_ns()}"
    job = start(
        "trap '' TERM; echo ready; sleep 300; sleep 300",
        {},
        {"SCAR_STOP_GRACE_S": "0.3"},
        environment={"MARK": marker},
    )
    job.wait_for("ready")
    job.process.send_signal(signal.SIGTERM)
    assert job.wait(10) == 143
    assert processes_with(marker) == []


def test_the_output_is_in_the_log_while_the_script_runs(start):
    job = start("echo first; sleep 30", {})
    began = time.monotonic()
    job.wait_for("first\n")
    assert time.monotonic() - began < 10


def test_an_event_by_reference_is_fetched_and_its_hash_is_checked(start, cloud):
    body = json.dumps({"a": "x" * 3000}).encode()
    digest = hashlib.sha256(body).hexdigest()
    cloud.put("inbox", f".scar/events/f/{digest}", body)
    reference = f"s3://inbox/.scar/events/f/{digest}#sha256={digest}"
    event = {contract.EVENT_REFERENCE: reference}
    job = start("cat $INPUT_FILE_PATH", event, cloud.environment, deployment_bucket="inbox")
    assert job.wait() == 0
    assert body.decode() in job.log
    cloud.put("inbox", f".scar/events/f/{digest}", b"{}")
    changed = start("true", event, cloud.environment, deployment_bucket="inbox")
    assert changed.wait() == contract.EXIT_CONFIG
    assert "has been changed" in changed.log


ODD_KEYS = [
    "a b+c%20d%2F.txt",
    "ünï/日本語 ☃.txt",
    "../../etc/passwd",
    "x/..",
    "a//b//c",
    "./.",
    "-rf",
    "line\nbreak",
    "*'\"$(x)`y`\\",
    "é" * 500 + ".tar.gz",
    "k" * 1024,
]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_arrive_intact_and_stay_in_the_directory(start, cloud, key):
    cloud.put("inbox", key, b"content")
    job = start(
        'test "$(cat "$INPUT_FILE_PATH")" = content || exit 3\n'
        'test "$(dirname "$INPUT_FILE_PATH")" = "$TMP_INPUT_DIR" || exit 4\n'
        'printf %s "$STORAGE_OBJECT_KEY" > "$TMP_OUTPUT_DIR/key"',
        s3_event(("inbox", key, 7)),
        cloud.environment,
        outputs=(ObjectPath("s3", "out"),),
    )
    assert job.wait() == 0, job.log
    assert cloud.get("out", "key").decode() == key


@pytest.mark.parametrize(
    ("size", "hint"),
    [
        *((0, True), (0, False), (1, True), (8 << 20, True), (8 << 20, False)),
        *(((8 << 20) + 1, True), ((40 << 20) + 5, False)),
    ],
)
def test_objects_of_every_size_arrive_and_leave_byte_for_byte(start, cloud, size, hint):
    data = os.urandom(1 << 20) * (size // (1 << 20) + 1)
    data = data[:size]
    cloud.put("inbox", "big", data)
    job = start(
        "cp $INPUT_FILE_PATH $TMP_OUTPUT_DIR/copy",
        s3_event(("inbox", "big", size if hint else None)),
        cloud.environment,
        outputs=(ObjectPath("s3", "out"),),
    )
    assert job.wait() == 0, job.log
    assert cloud.get("out", "copy") == data
    etag = cloud.client.head_object(Bucket="out", Key="copy")["ETag"]
    assert ("-" in etag) == (size > 16 << 20)


def test_outputs_keep_their_folders_and_filters_choose_by_name(start, cloud):
    job = start(
        "cd $TMP_OUTPUT_DIR; mkdir -p d/e; touch 'd/e/a b+%.txt' d/x.txt a.log b.txt empty; "
        "mkfifo pipe; ln -s d/x.txt a.link",
        {},
        cloud.environment,
        outputs=(
            ObjectPath("s3", "out", "res/all"),
            ObjectPath("s3", "more", "", ("a", "x"), (".txt", ".log")),
        ),
    )
    assert job.wait() == 0, job.log
    names = ["a.link", "a.log", "b.txt", "d/e/a b+%.txt", "d/x.txt", "empty"]
    assert cloud.keys("out") == [f"res/all/{name}" for name in names]
    assert cloud.keys("more") == ["a.log", "d/e/a b+%.txt", "d/x.txt"]
    assert "`pipe` is not a regular file" in job.log


@pytest.mark.parametrize(
    ("make", "why"),
    [
        ("ln -s /etc/passwd secret", "output `secret`: is a link that leaves"),
        ("mkdir d; ln -s ../.. d/up", "output `d/up`: is a link that leaves"),
        ("ln -s nothing dangling", "output `dangling`: is a link to nothing"),
        ("touch \"$(printf 'bad\\377')\"", "output b'bad\\xff': its name is not UTF-8"),
        ("n=$(printf %0250d 1); mkdir -p $n/$n/$n/$n/$n; touch $n/$n/$n/$n/$n/f", "S3 takes 1024"),
    ],
)
def test_outputs_that_cannot_go_are_refused_by_name_before_any_upload(start, cloud, make, why):
    job = start(
        f"cd $TMP_OUTPUT_DIR; touch fine; {make}",
        {},
        cloud.environment,
        outputs=(ObjectPath("s3", "out"),),
    )
    assert job.wait() == contract.EXIT_STAGING
    assert why in job.log
    assert cloud.keys("out") == []


def test_links_within_the_output_are_followed_once(start, cloud):
    job = start(
        "cd $TMP_OUTPUT_DIR; mkdir d; echo 1 > d/f; ln -s . d/loop; ln -s d e",
        {},
        cloud.environment,
        outputs=(ObjectPath("s3", "out"),),
    )
    assert job.wait() == 0, job.log
    assert cloud.keys("out") == ["d/f", "d/loop/f", "e/f"]


def test_a_failed_upload_says_what_was_and_was_not_uploaded(start, cloud):
    job = start(
        "cd $TMP_OUTPUT_DIR; touch a b",
        {},
        cloud.environment,
        outputs=(ObjectPath("s3", "out"), ObjectPath("s3", "absent")),
    )
    assert job.wait() == contract.EXIT_STAGING
    assert "of 4 files uploaded; failed: s3://absent/" in job.log
    assert "NoSuchBucket" in job.log
    assert "uploaded: s3://out/a, s3://out/b" in job.log


def test_a_failed_script_uploads_nothing(start, cloud):
    job = start(
        "touch $TMP_OUTPUT_DIR/part; exit 7",
        {},
        cloud.environment,
        outputs=(ObjectPath("s3", "out"),),
    )
    assert job.wait() == 7
    assert cloud.keys("out") == []


def test_run_arguments_and_a_script_reach_the_job_too(start):
    arguments = start("exit 1", {"cmd_args": '["echo", "a  b"]'})
    assert arguments.wait() == 0
    assert "a  b\n" in arguments.log
    script = base64.b64encode(b"echo from the event").decode()
    sent = start("exit 1", {"script": script})
    assert sent.wait() == 0
    assert "from the event\n" in sent.log


def test_a_key_is_decoded_exactly_once(start):
    event = s3_event(("inbox", "k", 1))
    event["Records"][0]["s3"]["object"]["key"] = quote_plus("100%25+done")
    job = start('printf "%s\\n" "$STORAGE_OBJECT_KEY"', event, stages_in=False)
    assert job.wait() == 0
    assert "100%25+done\n" in job.log
