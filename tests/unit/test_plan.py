import dataclasses
import json

import pytest

from scar.fdl.schema import Deployment, StorageProviders
from scar.plan.desired import AccountFacts, ImageFacts, desired, function_config
from scar.plan.diff import Plan, Step, Verb, to_reach, to_remove, waits_for
from scar.plan.limits import check
from scar.plan.resources import (
    Bucket,
    BucketSetup,
    BucketTrigger,
    ComputeEnvironment,
    FailureDestination,
    Function,
    Image,
    JobDefinition,
    JobQueue,
    LogGroup,
    Permission,
    Repository,
    ResourceId,
    Secret,
    id_of,
)
from scar_supervisor.contract import ImageDefaults

LOCAL = AccountFacts("000000000000", "us-east-1", "me", is_local=True)
AWS = AccountFacts("123456789012", "eu-west-1", "AIDA", is_local=False)


MINE = {"minio": {"mine": {"endpoint": "m:9000", "access_key": "id", "secret_key": "t0ps3cret"}}}


def a_deployment(*functions: dict) -> Deployment:
    return Deployment.model_validate({"functions": {"aws": list(functions)}})


def a_function(name="split", mode="lambda", image="debian", batch=None, **lambda_) -> dict:
    its = {"name": name, "execution_mode": mode, "container": {"image": image}, **lambda_}
    role = "arn:aws:iam::{account_id}:role/scar"
    compute = {"subnets": ["subnet-1"], "security_group_ids": ["sg-1"]}
    return {
        "lambda": its,
        "iam": {"role": role},
        "batch": {"compute_resources": compute, **(batch or {})},
    }


def images(*names: str, account=AWS, content="0123456789abcdef") -> dict[str, ImageFacts]:
    uri = f"{account.registry_host}/scar"
    return {n: ImageFacts(f"{uri}:{n}-{content}", "x86_64", True, "5.0") for n in names}


def resources(*functions: dict, account=AWS, content="0123456789abcdef"):
    names = [f["lambda"]["name"] for f in functions]
    return desired(
        a_deployment(*functions), images(*names, account=account, content=content), account
    )


def held(some):
    return {id_of(resource): resource for resource in some}


S3 = {"storage_provider": "s3"}
INPUT = [{**S3, "path": "video/input"}]
OUTPUT = [{**S3, "path": "video/frames/"}]


def test_a_lambda_function_needs_no_batch_resources():
    kinds = [type(r) for r in resources(a_function(input=INPUT, output=OUTPUT))]
    assert kinds == [
        *(LogGroup, Bucket, BucketSetup, Repository, Image, Function),
        *(Bucket, Permission, BucketTrigger),
    ]


def test_a_batch_function_has_queue_definition_bucket_and_a_log_of_its_own():
    found = resources(a_function(mode="batch"))
    names = {type(r): r.name for r in found}
    assert names[JobDefinition] == "split"
    assert names[JobQueue] == names[ComputeEnvironment]
    assert names[Bucket] == "scar-123456789012-eu-west-1"
    assert [r.name for r in found if isinstance(r, LogGroup)] == [
        "/aws/lambda/split",
        "/aws/batch/split",
    ]
    (function,) = (r for r in found if isinstance(r, Function))
    assert function.tags["scar:queue"] == names[JobQueue]
    assert function.role_arn == "arn:aws:iam::123456789012:role/scar"


def test_functions_on_equal_hardware_share_one_queue_and_other_hardware_gets_another():
    def queues(*functions):
        return [r.name for r in resources(*functions) if isinstance(r, JobQueue)]

    same = a_function("a", "batch"), a_function("b", "batch", batch={"vcpus": 2})
    assert (
        len(
            queues(
                *[
                    {**f, "batch": {"compute_resources": f["batch"]["compute_resources"]}}
                    for f in same
                ]
            )
        )
        == 1
    )
    other = {"compute_resources": {"subnets": ["subnet-2"], "security_group_ids": ["sg-1"]}}
    assert len(queues(a_function("a", "batch"), a_function("b", "batch", batch=other))) == 2


def test_the_local_cloud_fills_in_what_only_an_account_can_give():
    found = desired(
        a_deployment(
            {"lambda": {"name": "f", "execution_mode": "batch", "container": {"image": "host"}}}
        ),
        images("f", account=LOCAL),
        LOCAL,
    )
    (compute,) = (r for r in found if isinstance(r, ComputeEnvironment))
    (function,) = (r for r in found if isinstance(r, Function))
    assert (compute.subnets, compute.security_group_ids) == (("subnet-local",), ("sg-local",))
    assert function.role_arn == "arn:aws:iam::000000000000:role/scar-local"


def test_lambda_keeps_failed_events_where_the_role_is_ours():
    def destinations(account, **iam):
        function = {**a_function(), "iam": iam}
        found = resources(function, account=account)
        return [one.destination for one in found if isinstance(one, FailureDestination)]

    role = "arn:aws:iam::123456789012:role/scar"
    assert destinations(AWS) == ["arn:aws:s3:::scar-123456789012-eu-west-1"]
    assert destinations(AWS, role=role) == []
    assert destinations(LOCAL, role=role) == ["arn:aws:s3:::scar-000000000000-us-east-1"]
    china = dataclasses.replace(AWS, region="cn-north-1")
    assert destinations(china) == ["arn:aws-cn:s3:::scar-123456789012-cn-north-1"]


def test_a_prepared_image_is_neither_pushed_nor_deleted():
    facts = {"split": ImageFacts("1.dkr.ecr/x:y", "x86_64", is_ours=False, supervisor="")}
    found = desired(a_deployment(a_function()), facts, AWS)
    assert not [r for r in found if isinstance(r, Image | Repository)]


def test_several_inputs_in_one_bucket_are_one_trigger_with_several_paths():
    paths = [{**S3, "path": "vid/a"}, {**S3, "path": "vid/b", "suffix": [".avi", ".mp4"]}]
    (trigger,) = (r for r in resources(a_function(input=paths)) if isinstance(r, BucketTrigger))
    assert trigger.paths == (("a/", ""), ("b/", ".avi"), ("b/", ".mp4"))


def test_state_is_kept_in_one_bucket_in_every_mode_and_expires_by_rules_of_its_own():
    found = resources(
        a_function("a"),
        a_function("b", output=[{**S3, "path": "mine"}]),
        a_function("c", deployment={"bucket": "mine"}),
    )
    buckets = [r.name for r in found if isinstance(r, Bucket)]
    setups = [r for r in found if isinstance(r, BucketSetup)]
    assert buckets == [one.name for one in setups] == ["scar-123456789012-eu-west-1", "mine"]
    assert {str(rule) for rule in setups[1].rules.values()} == {
        *(
            f"expire .scar/{kind}/ after 90 days"
            for kind in ("arrays", "claims", "done", "events", "retried")
        ),
        "abort uploads to .scar/ after 7 days",
    }


def test_the_config_names_queue_and_definition_only_where_there_is_batch():
    def config(mode):
        (function,) = a_deployment(a_function(mode=mode, output=OUTPUT)).functions.aws
        return function_config(function, AWS, ImageDefaults(), StorageProviders())

    assert config("lambda").job_queue == config("lambda").job_definition == ""
    assert config("lambda").deployment_bucket == "scar-123456789012-eu-west-1"
    assert config("batch").job_definition == "split"
    assert config("batch").job_queue.startswith("scar-")
    assert (config("batch").outputs[0].bucket, config("batch").outputs[0].prefix) == (
        "video",
        "frames",
    )


def test_a_plan_for_an_empty_account_creates_everything_after_what_it_needs():
    plan = to_reach(resources(a_function(mode="batch", input=INPUT)), {})
    kinds = [step.resource.kind for step in plan.steps]
    assert {step.verb for step in plan.steps} == {Verb.CREATE}
    for first, then in [
        ("repository", "image"),
        ("image", "function"),
        ("function", "permission"),
        ("permission", "trigger"),
        ("bucket", "trigger"),
        ("job definition", "trigger"),
        ("compute environment", "job queue"),
        ("job queue", "job definition"),
    ]:
        assert kinds.index(first) < kinds.index(then)


def test_what_is_as_it_should_be_needs_no_step():
    wanted = resources(a_function(mode="batch", input=INPUT))
    assert to_reach(wanted, held(wanted)).steps == ()


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ({"memory": 512}, {"memory": 1024}, "memory_mb 512 -> 1024"),
        ({}, {"description": "cuts"}, "description (none) -> cuts"),
        (
            {"environment": {"Variables": {"AA": "1", "BB": "1"}}},
            {"environment": {"Variables": {"AA": "2"}}},
            "environment.AA 1 -> 2, environment.BB 1 -> (none)",
        ),
    ],
)
def test_a_change_is_an_update_that_says_what_changes(before, after, why):
    observed = held(resources(a_function(**before)))
    (step,) = to_reach(resources(a_function(**after)), observed).steps
    assert (step.verb, step.resource.kind, step.why) == (Verb.UPDATE, "function", why)
    assert str(step) == "update function 'split'"


def test_a_new_image_updates_the_function_and_the_job_definition():
    observed = held(resources(a_function(mode="batch")))
    plan = to_reach(resources(a_function(mode="batch"), content="f" * 16), observed)
    assert [str(step).partition(" '")[0] for step in plan.steps] == [
        "create image",
        "update function",
        "update job definition",
    ]


def test_what_aws_moves_by_itself_is_no_change():
    wanted = resources(a_function(mode="batch"))
    observed = held(
        dataclasses.replace(r, desired_vcpus=2) if isinstance(r, ComputeEnvironment) else r
        for r in wanted
    )
    assert to_reach(wanted, observed).steps == ()


def test_removing_goes_the_other_way_round():
    kinds = [
        s.resource.kind
        for s in to_remove(held(resources(a_function(mode="batch", input=INPUT)))).steps
    ]
    assert kinds.index("trigger") < kinds.index("permission") < kinds.index("function")
    assert (
        kinds.index("job definition")
        < kinds.index("job queue")
        < kinds.index("compute environment")
    )
    assert kinds.index("function") < kinds.index("image")


def test_independent_steps_wait_for_nothing_and_deletions_for_every_change():
    group, function = LogGroup("/aws/lambda/f", 1), Function("f", "h/scar:f-1", "r", 128, 3)
    old_queue, old_environment = (
        JobQueue("q", "q"),
        ComputeEnvironment("q", "EC2", 2, 0, 0, (), "", (), ()),
    )
    plan = Plan(
        (
            Step(Verb.CREATE, group, ""),
            Step(Verb.CREATE, LogGroup("/aws/batch/f", 1), ""),
            Step(Verb.UPDATE, function, "", function),
            Step(Verb.DELETE, old_queue, "", old_queue),
            Step(Verb.DELETE, old_environment, "", old_environment),
        )
    )
    assert waits_for(plan) == [set(), set(), {0}, {0, 1, 2}, {0, 1, 2, 3}]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (a_function(environment={"Variables": {"AA": "x" * 4095}}), "4097 bytes"),
        (a_function(container={"image": "debian", "create_image": False}), "must be in ECR"),
    ],
)
def test_a_limit_of_aws_is_told_before_anything_is_touched(function, says):
    (found,) = check(a_deployment(function))
    assert says in found.summary


def test_two_triggers_for_the_same_objects_are_refused_unless_suffixes_part_them():
    def both(one, other):
        return check(
            a_deployment(
                a_function("a", input=[{**S3, **one}]), a_function("b", input=[{**S3, **other}])
            )
        )

    assert both({"path": "vid/in"}, {"path": "vid/in"})
    assert both({"path": "vid"}, {"path": "vid/in"})
    assert not both({"path": "vid/in"}, {"path": "vid/input"})
    assert not both({"path": "vid/in", "suffix": [".a"]}, {"path": "vid/in", "suffix": [".b"]})


def test_a_trigger_is_deleted_before_anything_changes():
    trigger = BucketTrigger("b/f", "b", "f", "arn:f", (("in/", ""),))
    gone = to_remove({id_of(trigger): trigger}).steps[0]
    change = Step(Verb.CREATE, LogGroup("/aws/lambda/f", 30), "does not exist")
    assert waits_for(Plan((change, gone))) == [{1}, set()]


def with_providers(*functions: dict, mine=MINE):
    names = [f["lambda"]["name"] for f in functions]
    asked = {"functions": {"aws": list(functions)}, "storage_providers": mine}
    return desired(Deployment.model_validate(asked), images(*names), AWS)


def test_every_function_has_a_secret_for_each_provider_that_it_names():
    mine = {"storage_provider": "minio.mine", "path": "theirs/x"}
    found = with_providers(
        a_function(input=[mine], output=[mine, {**S3, "path": "own/x"}]), a_function("other")
    )
    [secret] = [one for one in found if isinstance(one, Secret)]
    assert secret.name == "scar/split/minio.mine"
    assert json.loads(secret.value) == {"access_key": "id", "secret_key": "t0ps3cret"}
    assert secret.tags == {"createdby": "scar", "owner": "AIDA", "function": "split"}
    assert "t0ps3cret" not in repr(found)
    functions = {one.name: one for one in found if isinstance(one, Function)}
    assert functions["split"].tags["scar:providers"] == "minio.mine"
    assert "scar:providers" not in functions["other"].tags
    # the account's own S3 has nothing to do with their bucket
    assert "theirs" not in [one.name for one in found if isinstance(one, Bucket)]
    assert not [one for one in found if isinstance(one, (Permission, BucketTrigger))]
    steps = to_reach(found, {}).steps
    order = [id_of(step.resource) for step in steps]
    assert order.index(ResourceId("secret", secret.name)) < order.index(
        ResourceId("function", "split")
    )


def test_the_image_is_told_where_a_provider_is_and_nothing_secret():
    mine = {"storage_provider": "minio.mine", "path": "theirs/x"}
    [function] = a_deployment(a_function(output=[mine])).functions.aws
    storages = StorageProviders.model_validate(MINE)
    told = function_config(function, AWS, ImageDefaults(), storages).dump()
    assert json.loads(told)["providers"] == {
        "minio.mine": {
            "secret": "scar/split/minio.mine",
            "endpoint": "https://m:9000",
            "region": "",
            "verify": True,
        }
    }
    assert "t0ps3cret" not in told


def test_other_credentials_are_told_by_a_fingerprint_that_differs_by_function():
    mine = {"storage_provider": "minio.mine", "path": "theirs/x"}
    both = a_function(output=[mine]), a_function("other", output=[mine])
    secrets = [one for one in with_providers(*both) if isinstance(one, Secret)]
    assert len({one.credentials for one in secrets}) == 2
    other = {"minio": {"mine": {**MINE["minio"]["mine"], "secret_key": "new"}}}
    changed = [one for one in with_providers(*both, mine=other) if isinstance(one, Secret)]
    steps = to_reach(changed, held(secrets)).steps
    assert [step.why for step in steps] == ["credentials changed"] * 2
    moved = {"minio": {"mine": {**MINE["minio"]["mine"], "endpoint": "elsewhere"}}}
    same = [one for one in with_providers(*both, mine=moved) if isinstance(one, Secret)]
    assert to_reach(same, held(secrets)).steps == ()


def test_a_bucket_of_minio_and_one_of_s3_may_have_one_name():
    path = {"path": "data/in"}
    function = a_function(input=[{**S3, **path}, {"storage_provider": "minio.mine", **path}])
    asked = {"functions": {"aws": [function]}, "storage_providers": MINE}
    assert check(Deployment.model_validate(asked)) == []


def test_the_names_of_providers_fit_into_a_tag():
    names = [f"{n}-{'x' * 50}" for n in range(5)]
    output = [{"storage_provider": f"minio.{name}", "path": "theirs/x"} for name in names]
    [fault] = check(a_deployment(a_function(output=output)))
    assert "the names of 5 storage providers must have 256 characters together" in fault.summary


def test_a_job_with_secrets_has_an_execution_role_that_may_read_them_and_no_others():
    arn = "arn:aws:secretsmanager:eu-west-1:{account_id}:secret:db-a1b2c3"
    secrets = {"PASSWORD": f"{arn}:password::", "USER": f"{arn}:user::", "KEY": "/service/key"}
    function = a_function(mode="batch", batch={"secrets": secrets})
    found = with_providers({**function, "iam": {}})
    [definition] = [one for one in found if isinstance(one, JobDefinition)]
    full = arn.replace("{account_id}", AWS.id)
    assert definition.secrets["PASSWORD"] == f"{full}:password::"
    [role] = [one for one in found if getattr(one, "name", "") == "scar-split-eu-west-1-task"]
    assert definition.execution_role_arn.endswith(f":role/{role.name}")
    parameter = f"arn:aws:ssm:eu-west-1:{AWS.id}:parameter/service/key"
    assert role.policy["Secrets"]["Resource"] == [full]
    assert role.policy["Parameters"]["Resource"] == [parameter]
    [given] = [one for one in with_providers(function) if isinstance(one, JobDefinition)]
    assert given.execution_role_arn == f"arn:aws:iam::{AWS.id}:role/scar"
    without = with_providers({**a_function(mode="batch"), "iam": {}})
    assert not [one for one in without if getattr(one, "name", "") == role.name]
