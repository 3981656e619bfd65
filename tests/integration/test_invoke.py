"""Running functions and reading their logs, on a real local cloud with the image `host`."""

import pytest

from scar import logs
from scar.deploy import carry_out, prepare
from scar.errors import FunctionFailed, NotDeployed, UserError
from scar.fdl.schema import Deployment
from scar.invoke import run
from tests.doubles.cloud import local_cloud


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fdl")
    (folder / "script.sh").write_text("echo from the script\n")
    functions = [
        {"lambda": {"name": mode, "execution_mode": mode, "init_script": "script.sh", "timeout": 20,
                    "container": {"image": "host"}}}
        for mode in ("lambda", "batch")
    ]  # fmt: skip
    deployment = Deployment.model_validate({"functions": {"aws": functions}})
    with local_cloud(tmp_path_factory.mktemp("cloud")) as account:
        found = prepare(deployment, folder, account, lambda text: None)
        carry_out(found, lambda step, state: None)
        yield account


class Talk:
    """Runs a function and keeps what was told meanwhile."""

    def __init__(self, account):
        self.account, self.jobs, self.lines = account, [], []

    def run(self, name, script=None, arguments=(), asynchronous=False):
        return run(
            self.account, name, script=script, arguments=arguments, asynchronous=asynchronous,
            on_delegated=self.jobs.append, on_log=self.lines.append,
        )  # fmt: skip


@pytest.fixture
def talk(account):
    return Talk(account)


def messages(account, name, request_id=None, stream=None):
    return [e.message for e in logs.read(account, name, stream=stream, request_id=request_id)]


def test_a_synchronous_run_gives_the_output_and_where_its_log_is(account, talk):
    result = talk.run("lambda")
    assert (result.status_code, result.output, result.job_id) == (200, b"from the script\n", None)
    found = messages(account, "lambda", stream=result.log_stream)
    assert any(result.request_id in one for one in found)


def test_a_script_or_arguments_replace_the_functions_own(talk):
    assert talk.run("lambda", script=b"echo mine\n").output == b"mine\n"
    assert talk.run("lambda", arguments=["echo", "a b", "$HOME"]).output == b"a b $HOME\n"


def test_a_failing_script_fails_the_run_with_code_and_log(talk):
    with pytest.raises(FunctionFailed, match="exit code 7") as caught:
        talk.run("lambda", script=b"echo last words; exit 7\n")
    assert "last words" in caught.value.log_tail
    assert caught.value.request_id in caught.value.hint


def test_a_delegated_run_waits_for_its_job_and_tells_its_log(account, talk):
    result = talk.run("batch")
    assert talk.jobs == [result.job_id]
    assert "from the script" in talk.lines
    assert result.output.startswith(b"Job delegated to batch.")
    for request_id in (result.request_id, result.job_id):
        assert "from the script" in messages(account, "batch", request_id=request_id)
    assert messages(account, "batch", request_id=result.request_id)[0].startswith("START")
    assert not messages(account, "batch", request_id=result.job_id)[0].startswith("START")


def test_a_failing_job_fails_the_run_with_code_and_log(talk):
    with pytest.raises(FunctionFailed, match=r"job .* failed with exit code 7") as caught:
        talk.run("batch", script=b"echo last words; exit 7\n")
    assert "last words" in caught.value.log_tail
    assert talk.jobs[0] in caught.value.hint


def test_an_asynchronous_run_gives_a_request_id_that_finds_its_log(account, talk):
    result = talk.run("lambda", asynchronous=True)
    assert (result.status_code, result.output) == (202, b"")
    found = logs.follow(account, "lambda", stream=None, request_id=result.request_id)
    assert "from the script" in [event.message for event in found]


def test_following_a_job_ends_when_it_has_ended(account, talk):
    result = talk.run("batch", asynchronous=True)
    found = logs.follow(account, "batch", stream=None, request_id=result.request_id)
    lines = [event.message for event in found]
    assert any("delegated to Batch job" in line for line in lines)
    assert "from the script" in lines
    assert len(lines) == len(messages(account, "batch", request_id=result.request_id))


def test_the_whole_log_is_one_story_oldest_first(account, talk):
    talk.run("batch")
    found = list(logs.read(account, "batch", stream=None, request_id=None))
    assert [e.timestamp_ms for e in found] == sorted(e.timestamp_ms for e in found)
    assert len({e.stream for e in found}) >= 2


def test_a_request_that_never_was_has_no_log(account):
    assert messages(account, "lambda", request_id="00000000-0000-0000-0000-000000000000") == []


def test_a_function_that_is_not_there_is_told_with_the_name_perhaps_meant(account, talk):
    for call in (lambda: talk.run("lambd"), lambda: messages(account, "lambd")):
        with pytest.raises(NotDeployed, match="`lambd` does not exist") as caught:
            call()
        assert caught.value.hint == "did you mean `lambda`?"


def test_a_script_too_large_to_send_travels_through_the_deployment_bucket(account, talk):
    script = b"echo large\n" + b"#" * 5_000_000
    assert talk.run("lambda", script=script).output == b"large\n"
    later = talk.run("lambda", script=script[:1_000_000], asynchronous=True)
    found = logs.follow(account, "lambda", stream=None, request_id=later.request_id)
    assert "large" in [event.message for event in found]


def test_a_function_whose_bucket_is_gone_is_told_how_it_comes_back(account, talk):
    s3, name = account.client("s3"), account.facts().default_bucket
    for item in s3.list_objects_v2(Bucket=name).get("Contents", []):
        s3.delete_object(Bucket=name, Key=item["Key"])
    s3.delete_bucket(Bucket=name)
    with pytest.raises(UserError, match=r"deployment bucket .* does not exist") as caught:
        talk.run("lambda", script=b"#" * 5_000_000)
    assert "scar init" in caught.value.hint
