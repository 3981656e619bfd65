"""Deploying to a real local cloud: plans, changes of mind, failures, removal."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from scar.aws.functions import list_functions, using
from scar.deploy import carry_out, prepare, prepare_removal
from scar.errors import ApplyError, FdlError, Missing, NotDeployed, UserError
from scar.fdl.schema import Deployment
from tests.doubles.cloud import local_cloud

S3 = {"storage_provider": "s3"}


@pytest.fixture
def account(tmp_path_factory):
    with local_cloud(tmp_path_factory.mktemp("cloud")) as account:
        yield account


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "script.sh").write_text("true\n")
    return tmp_path


def a_function(name="split", mode="lambda", batch=None, **lambda_):
    its = {
        "name": name,
        "execution_mode": mode,
        "init_script": "script.sh",
        "container": {"image": "host"},
    }
    return {"lambda": {**its, **lambda_}, "batch": batch or {}}


def a_deployment(*functions):
    return Deployment.model_validate({"functions": {"aws": list(functions)}})


def prepared(account, folder, *functions):
    return prepare(a_deployment(*functions), folder, account, lambda text: None)


def deploy(account, folder, *functions):
    carry_out(prepared(account, folder, *functions), lambda step, state: None)


def steps(found):
    return [str(step) for step in found.plan.steps]


def test_a_second_time_there_is_nothing_to_do(account, folder):
    functions = [
        a_function("one", input=[{**S3, "path": "video/in"}], output=[{**S3, "path": "video/mid"}]),
        a_function("two", "batch", input=[{**S3, "path": "video/mid"}]),
    ]
    deploy(account, folder, *functions)
    assert steps(prepared(account, folder, *functions)) == []


def test_preparing_changes_nothing(account, folder):
    prepared(account, folder, a_function(mode="batch", input=[{**S3, "path": "video/in"}]))
    assert list_functions(account) == []
    assert account.client("s3").list_buckets()["Buckets"] == []


def test_another_script_is_another_image_and_updates_its_users(account, folder):
    deploy(account, folder, a_function(mode="batch"))
    (folder / "script.sh").write_text("false\n")
    kinds = [
        step.partition(" '")[0]
        for step in steps(prepared(account, folder, a_function(mode="batch")))
    ]
    assert kinds == ["create image", "update function", "update job definition"]


def test_init_after_a_failure_continues(account, folder):
    function = a_function(input=[{**S3, "path": "video/in"}])
    found = prepared(account, folder, function)
    # Somebody's trigger for the same objects: S3 refuses ours.
    other = a_function("other", input=[{**S3, "path": "video"}])
    deploy(account, folder, other)
    with pytest.raises(ApplyError) as caught:
        carry_out(found, lambda step, state: None)
    assert str(caught.value) == "could not create trigger 'video/split'"
    assert "create function 'split'" in caught.value.done
    carry_out(prepare_removal(["other"], account), lambda step, state: None)
    assert steps(prepared(account, folder, function)) == ["create trigger 'video/split'"]
    deploy(account, folder, function)
    assert steps(prepared(account, folder, function)) == []


def test_back_in_mode_lambda_the_queue_and_definition_go(account, folder):
    deploy(account, folder, a_function(mode="batch"))
    found = steps(prepared(account, folder, a_function()))
    assert [s.split(" '")[0] for s in found if s.startswith("delete")] == [
        "delete job definition",
        "delete job queue",
        "delete compute environment",
    ]
    deploy(account, folder, a_function())
    assert steps(prepared(account, folder, a_function())) == []
    assert account.client("batch").describe_job_queues()["jobQueues"] == []


def test_other_hardware_is_another_queue_and_the_unused_one_goes(account, folder):
    deploy(account, folder, a_function("a", "batch"), a_function("b", "batch"))
    larger = {"compute_resources": {"max_v_cpus": 8}}
    found = steps(prepared(account, folder, a_function("a", "batch", larger)))
    assert not [s for s in found if s.startswith("delete")], "b still uses the old queue"
    both = a_function("a", "batch", larger), a_function("b", "batch", larger)
    deploy(account, folder, *both)
    assert len(account.client("batch").describe_job_queues()["jobQueues"]) == 1
    assert steps(prepared(account, folder, *both)) == []


def test_rm_takes_what_the_function_owns_and_leaves_data_and_neighbours(account, folder):
    one = a_function("one", "batch", input=[{**S3, "path": "video/in"}])
    two = a_function("one-two", "batch", input=[{**S3, "path": "video/other"}])
    deploy(account, folder, one, two)
    account.client("s3").put_object(Bucket="video", Key="kept", Body=b"data")
    carry_out(prepare_removal(["one"], account), lambda step, state: None)
    assert [f.name for f in list_functions(account)] == ["one-two"]
    assert steps(prepared(account, folder, two)) == []
    carry_out(prepare_removal(None, account), lambda step, state: None)
    assert list_functions(account) == []
    batch, logs = account.client("batch"), account.client("logs")
    assert batch.describe_job_queues()["jobQueues"] == []
    assert batch.describe_compute_environments()["computeEnvironments"] == []
    assert batch.describe_job_definitions(status="ACTIVE")["jobDefinitions"] == []
    assert logs.describe_log_groups()["logGroups"] == []
    assert account.client("ecr").list_images(repositoryName="scar")["imageIds"] == []
    assert "LambdaFunctionConfigurations" not in account.client(
        "s3"
    ).get_bucket_notification_configuration(Bucket="video")
    assert account.client("s3").get_object(Bucket="video", Key="kept")["Body"].read() == b"data"
    assert prepare_removal(None, account).plan.steps == ()


def test_rm_of_a_name_that_is_not_there_says_what_was_perhaps_meant(account, folder):
    deploy(account, folder, a_function("split"))
    with pytest.raises(NotDeployed, match="`splitt`") as caught:
        prepare_removal(["splitt"], account)
    assert caught.value.hint == "did you mean `split`?"


def test_rm_leaves_functions_that_scar_did_not_make(account, folder):
    deploy(account, folder, a_function("split"))
    client = account.client("lambda")
    arn = client.get_function(FunctionName="split")["Configuration"]["FunctionArn"]
    client.untag_resource(Resource=arn, TagKeys=["createdby"])
    with pytest.raises(UserError, match="not made by SCAR"):
        prepare_removal(["split"], account)
    assert prepare_removal(None, account).plan.steps == ()


def test_rm_keeps_images_where_the_fdl_says_so(account, folder):
    deploy(account, folder, {**a_function("split"), "ecr": {"delete_image": False}})
    carry_out(prepare_removal(["split"], account), lambda step, state: None)
    assert len(account.client("ecr").list_images(repositoryName="scar")["imageIds"]) == 1


def test_several_deployments_at_once_do_not_disturb_each_other(account, folder):
    names = ["a", "b", "c", "d"]
    functions = [a_function(n, "batch", input=[{**S3, "path": f"video/{n}"}]) for n in names]
    found = [prepared(account, folder, function) for function in functions]
    start = threading.Barrier(len(found))

    def one(plan):
        start.wait()
        carry_out(plan, lambda step, state: None)

    with ThreadPoolExecutor(len(found)) as pool:
        list(pool.map(one, found))
    assert steps(prepared(account, folder, *functions)) == []


def test_a_missing_script_is_told_before_anything_is_made(account, folder):
    with pytest.raises(Missing, match=r"no\.sh"):
        prepared(account, folder, a_function(init_script="no.sh"))


def test_limits_are_told_all_at_once(account, folder):
    big = {"Variables": {"AA": "x" * 5000}}
    with pytest.raises(FdlError) as caught:
        prepared(
            account, folder, a_function("a", environment=big), a_function("b", environment=big)
        )
    assert len(caught.value.diagnostics) == 2


def test_ls_shows_what_was_deployed(account, folder):
    deploy(account, folder, a_function("split", "batch", memory=256, timeout=20))
    (info,) = list_functions(account)
    assert (info.name, info.memory_mb, info.timeout_s, info.image) == ("split", 256, 20, "host")
    assert info.execution_mode == "batch"
    assert using(account, "createdby", "scar") == ["split"]
