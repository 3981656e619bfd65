"""The laws of every handler, against the project's own local cloud in a process of its own."""

import dataclasses
import json
import uuid

import pytest

from scar.apply import apply, observe
from scar.aws.buckets import BucketTriggers
from scar.aws.errors import speaking_to
from scar.aws.handlers import handlers
from scar.errors import CloudError
from scar.images.derive import derive, host_base
from scar.images.push import push
from scar.plan.diff import to_reach, to_remove
from scar.plan.resources import (
    Bucket,
    BucketSetup,
    BucketTrigger,
    ComputeEnvironment,
    FailureDestination,
    Function,
    Image,
    InstanceProfile,
    JobDefinition,
    JobQueue,
    LifecycleRule,
    LogGroup,
    Permission,
    Repository,
    RestApi,
    Role,
    Secret,
    ServiceLinkedRole,
    id_of,
)
from tests.doubles.cloud import local_cloud


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    with local_cloud(tmp_path_factory.mktemp("cloud")) as account:
        yield account


def push_empty_image(to, tag):
    base = host_base("x86_64")
    push(derive(base, [], "5.0"), None, to, tag)


@pytest.fixture
def cloud(account):
    """Handlers, and what cases need to stand before them."""
    n = uuid.uuid4().hex[:8]
    images = [Image(f"scar:f-{n}{one}") for one in "ab"]
    keepers = handlers(account, dict.fromkeys((image.name for image in images), push_empty_image))
    return n, images, keepers


def uri(account, image):
    return f"{account.facts().registry_host}/{image.name}"


def cases(account, n, images):
    """By kind: the resource, how it is after a change (None: it cannot change), what it needs."""
    role, tags = f"arn:aws:iam::{account.account_id}:role/scar", {"createdby": "scar"}
    function = Function(
        f"f-{n}", uri(account, images[0]), role, 256, 30, 512, "x86_64", "does", {"AA": "1"}, tags
    )
    bucket = Bucket(f"bucket-{n}")
    permission = Permission(f"{function.name}/{bucket.name}", function.name, bucket.name, "0" * 12)
    arn = account.facts().arn("lambda", f"function:{function.name}")
    trigger = BucketTrigger(
        f"{bucket.name}/{function.name}",
        bucket.name,
        function.name,
        arn,
        (("in/", ""), ("b/", ".x")),
    )
    environment = ComputeEnvironment(
        f"scar-{n}", "EC2", 2, 0, 0, ("optimal",), "role", ("subnet-1",), ("sg-1",), tags=tags
    )
    queue = JobQueue(environment.name, environment.name, tags=tags)
    group = LogGroup(f"/aws/batch/{n}", 30, tags)
    definition = JobDefinition(
        f"f-{n}",
        uri(account, images[0]),
        role,
        2,
        512,
        0,
        group.name,
        account.region,
        {"AA": "1"},
        tags,
    )
    api = RestApi(
        function.name,
        f"api-{n}",
        arn,
        "scar",
        "ANY",
        "{proxy+}",
        {**tags, "function": function.name},
    )
    secret = Secret(f"scar/f-{n}/minio.mine", "01", tags, '{"a": "b"}')
    statement = {
        "Sid": "Inputs", "Effect": "Allow",
        "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::video/in/*"],
    }  # fmt: skip
    others = {"owner": "me"}
    own_role = Role(f"scar-f-{n}", "lambda.amazonaws.com", {"Inputs": statement}, tags)
    images = [Repository("scar"), *images]
    return {
        "log group": (group, dataclasses.replace(group, retention_days=7, tags=others), []),
        "bucket": (bucket, None, []),
        "bucket setup": (
            BucketSetup(bucket.name),
            BucketSetup(bucket.name, {"scar-state-events": LifecycleRule(".scar/events/", 30)}),
            [bucket],
        ),
        "role": (
            own_role,
            Role(
                own_role.name, "ecs-tasks.amazonaws.com",
                {"Outputs": {**statement, "Sid": "Outputs", "Action": ["s3:PutObject"]}}, others,
            ),
            [],
        ),
        "repository": (Repository(f"repo-{n}"), None, []),
        "image": (images[1], None, [images[0]]),
        "function": (
            function,
            dataclasses.replace(
                function, image_uri=uri(account, images[2]), memory_mb=512, timeout_s=60,
                ephemeral_storage_mb=1024, description="", environment={}, tags={"owner": "me"},
                subnets=("subnet-1", "subnet-2"), security_group_ids=("sg-1",),
            ),
            images,
        ),
        "failure destination": (
            FailureDestination(function.name, f"arn:aws:s3:::{bucket.name}"),
            FailureDestination(function.name, f"arn:aws:s3:::{bucket.name}-2"),
            [*images, function, bucket, Bucket(f"{bucket.name}-2")],
        ),
        "permission": (permission, None, [*images, function]),
        "trigger": (
            trigger,
            dataclasses.replace(trigger, paths=(("other/", ""),)),
            [*images, bucket, function, permission],
        ),
        "compute environment": (
            environment, dataclasses.replace(environment, state="DISABLED", tags=others), []
        ),
        "job queue": (
            queue, dataclasses.replace(queue, state="DISABLED", priority=2), [environment]
        ),
        "job definition": (
            definition,
            dataclasses.replace(definition, memory_mib=1024, vcpus=1, environment={}),
            [],
        ),
        "secret": (
            secret,
            dataclasses.replace(secret, credentials="02", value='{"a": "c"}', tags=others),
            [],
        ),
        "REST API": (
            api,
            dataclasses.replace(
                api, api_name="other", stage="v2", http_method="GET", path_part="cow",
                tags={**api.tags, **others},
            ),
            [*images, function],
        ),
    }  # fmt: skip


def run(resources, keepers):
    seen = observe(map(id_of, resources), keepers)
    apply(to_reach(resources, seen), keepers, lambda step, state: None)


KINDS = [
    *("log group", "bucket", "bucket setup", "role", "repository", "image", "function"),
    *("permission", "failure destination", "trigger", "compute environment", "job queue"),
    *("job definition", "REST API", "secret"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_created_updated_and_deleted_reads_back(account, cloud, kind):
    n, images, keepers = cloud
    resource, changed, needed = cases(account, n, images)[kind]
    run(needed, keepers)
    handler = keepers[kind]
    assert handler.read(resource.name) is None
    handler.create(resource)
    assert handler.read(resource.name) == resource
    if changed is not None:
        handler.update(changed, resource)
        assert handler.read(resource.name) == changed
    handler.delete(changed or resource)
    assert handler.read(resource.name) is None


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_plan_ran_the_next_is_empty(account, cloud, kind):
    n, images, keepers = cloud
    resource, changed, needed = cases(account, n, images)[kind]
    run(needed, keepers)
    for wanted in (resource, changed or resource):
        run([wanted], keepers)
        seen = observe([id_of(wanted)], keepers)
        assert to_reach([wanted], seen).steps == ()
    apply(to_remove(seen), keepers, lambda step, state: None)
    assert observe([id_of(resource)], keepers) == {}


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("bucket", "repository", "image")])
def test_deleting_what_is_gone_is_as_good(account, cloud, kind):
    n, images, keepers = cloud
    resource, _, _ = cases(account, n, images)[kind]
    keepers[kind].delete(resource)


def test_creating_again_what_everybody_shares_is_as_good(account, cloud):
    n, _, keepers = cloud
    every = (
        Bucket(f"bucket-{n}"),
        Repository(f"repo-{n}"),
        ServiceLinkedRole("batch.amazonaws.com"),
    )
    for resource in every:
        keepers[resource.kind].create(resource)
        keepers[resource.kind].create(resource)


THEIRS = {
    "ID": "logs",
    "Status": "Enabled",
    "Filter": {"Prefix": "logs/"},
    "Expiration": {"Days": 1},
}


def put_lifecycle(account, bucket, *rules):
    account.client("s3").put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": list(rules)}
    )


def lifecycle(account, bucket):
    return account.client("s3").get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]


def test_a_bucket_keeps_the_lifecycle_rules_of_others(account, cloud):
    n, _, keepers = cloud
    setup = BucketSetup(f"bucket-{n}")
    run([Bucket(setup.name)], keepers)
    put_lifecycle(account, setup.name, THEIRS)
    assert keepers["bucket setup"].read(setup.name) is None
    run([setup], keepers)
    assert [one["ID"] for one in lifecycle(account, setup.name)] == ["logs", *setup.rules]
    keepers["bucket setup"].delete(setup)
    assert lifecycle(account, setup.name) == [THEIRS]


def test_a_rule_of_ours_that_somebody_changed_is_mended_and_told(account, cloud):
    n, _, keepers = cloud
    setup = BucketSetup(f"bucket-{n}")
    run([Bucket(setup.name), setup], keepers)
    rules = lifecycle(account, setup.name)
    rules[0]["Status"] = "Disabled"
    rules[1]["Expiration"]["Days"] = 1
    put_lifecycle(account, setup.name, *rules)
    [step] = to_reach([setup], observe([id_of(setup)], keepers)).steps
    assert step.why == (
        "rules.scar-state-arrays (none) -> expire .scar/arrays/ after 90 days, "
        "rules.scar-state-claims expire .scar/claims/ after 1 days "
        "-> expire .scar/claims/ after 90 days"
    )
    run([setup], keepers)
    assert keepers["bucket setup"].read(setup.name) == setup


def test_the_default_bucket_alone_is_kept_from_the_public(account, cloud):
    n, _, keepers = cloud
    s3 = account.client("s3")
    for name in (account.facts().default_bucket, f"bucket-{n}"):
        setup = BucketSetup(name)
        run([Bucket(name), setup], keepers)
        encryption = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]
        [rule] = encryption["Rules"]
        assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
        s3.delete_public_access_block(Bucket=name)
    assert keepers["bucket setup"].read(name) == setup  # the user's: the user's matter
    default = BucketSetup(account.facts().default_bucket)
    [step] = to_reach([default], observe([id_of(default)], keepers)).steps
    assert step.why == "is_private False -> True"
    run([default], keepers)
    assert keepers["bucket setup"].read(default.name) == default
    blocked = s3.get_public_access_block(Bucket=default.name)["PublicAccessBlockConfiguration"]
    assert list(blocked.values()) == [True] * 4


def test_what_batch_needs_in_an_account_is_made_once_and_stays(account, cloud):
    n, _, keepers = cloud
    iam = account.client("iam")
    profile, linked = InstanceProfile(f"p-{n}"), ServiceLinkedRole("batch.amazonaws.com")
    run([profile, linked], keepers)
    assert to_reach([profile, linked], observe(map(id_of, (profile, linked)), keepers)).steps == ()
    its = iam.get_instance_profile(InstanceProfileName=profile.name)["InstanceProfile"]["Roles"][0]
    trusted = its["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]
    attached = iam.list_attached_role_policies(RoleName=profile.name)["AttachedPolicies"]
    assert trusted == {"Service": "ec2.amazonaws.com"}
    assert [one["PolicyName"] for one in attached] == ["AmazonEC2ContainerServiceforEC2Role"]
    for kept in (profile, linked):
        keepers[kept.kind].delete(kept)
        assert keepers[kept.kind].read(kept.name) == kept


def test_a_profile_that_was_half_made_is_finished(account, cloud):
    n, _, keepers = cloud
    profile = InstanceProfile(f"p-{n}")
    account.client("iam").create_instance_profile(InstanceProfileName=profile.name)
    assert keepers[profile.kind].read(profile.name) is None
    keepers[profile.kind].create(profile)
    assert keepers[profile.kind].read(profile.name) == profile


def test_a_role_that_somebody_opened_to_others_is_closed_again(account, cloud):
    n, images, keepers = cloud
    role, _, _ = cases(account, n, images)["role"]
    run([role], keepers)
    iam, document = account.client("iam"), {"Version": "2012-10-17"}
    anybody = {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    iam.update_assume_role_policy(
        RoleName=role.name, PolicyDocument=json.dumps({**document, "Statement": [anybody]})
    )
    iam.put_role_policy(
        RoleName=role.name, PolicyName="scar",
        PolicyDocument=json.dumps({**document, "Statement": everything}),
    )  # fmt: skip
    (step,) = to_reach([role], observe([id_of(role)], keepers)).steps
    assert "service (none) -> lambda.amazonaws.com" in step.why
    run([role], keepers)
    assert keepers["role"].read(role.name) == role


def test_a_role_goes_with_all_that_others_attached_to_it(account, cloud):
    n, images, keepers = cloud
    role, _, _ = cases(account, n, images)["role"]
    run([role], keepers)
    iam = account.client("iam")
    iam.attach_role_policy(RoleName=role.name, PolicyArn="arn:aws:iam::aws:policy/ReadOnlyAccess")
    keepers["role"].delete(role)
    assert keepers["role"].read(role.name) is None


def test_a_bucket_keeps_the_notifications_of_others(account, cloud):
    n, images, keepers = cloud
    trigger, _, needed = cases(account, n, images)["trigger"]
    run(needed, keepers)
    other = Function(
        f"{trigger.function}-2", uri(account, images[0]), "arn:aws:iam::000000000000:role/r", 128, 3
    )
    permission = Permission(f"{other.name}/{trigger.bucket}", other.name, trigger.bucket, "0" * 12)
    run([other, permission], keepers)
    arn = trigger.function_arn + "-2"
    # Somebody's own entry, and that of a function whose name is ours with a number.
    theirs = [
        {"Id": "mine", "LambdaFunctionArn": arn, "Events": ["s3:ObjectRemoved:*"]},
        {
            "Id": f"scar-{other.name}",
            "LambdaFunctionArn": arn,
            "Events": ["s3:ObjectCreated:*"],
            "Filter": {"Key": {"FilterRules": [{"Name": "Prefix", "Value": "theirs/"}]}},
        },
    ]
    with speaking_to("s3"):
        account.client("s3").put_bucket_notification_configuration(
            Bucket=trigger.bucket,
            NotificationConfiguration={"LambdaFunctionConfigurations": theirs},
        )
    keepers["trigger"].create(trigger)
    assert keepers["trigger"].read(trigger.name) == trigger
    keepers["trigger"].delete(trigger)
    left = account.client("s3").get_bucket_notification_configuration(Bucket=trigger.bucket)
    assert [one["Id"] for one in left["LambdaFunctionConfigurations"]] == [
        "mine",
        f"scar-{other.name}",
    ]
    assert isinstance(keepers["trigger"], BucketTriggers)


def test_a_failure_destination_leaves_other_settings_as_they_are(account, cloud):
    n, images, keepers = cloud
    wanted, _, needed = cases(account, n, images)["failure destination"]
    run(needed, keepers)
    client = account.client("lambda")
    client.put_function_event_invoke_config(FunctionName=wanted.name, MaximumRetryAttempts=1)
    assert keepers["failure destination"].read(wanted.name) is None
    run([wanted], keepers)
    keepers["failure destination"].delete(wanted)
    found = client.get_function_event_invoke_config(FunctionName=wanted.name)
    assert found["MaximumRetryAttempts"] == 1
    assert not found["DestinationConfig"]["OnFailure"]


def test_old_revisions_of_a_job_definition_are_removed(account, cloud):
    n, images, keepers = cloud
    definition, changed, _ = cases(account, n, images)["job definition"]
    keepers["job definition"].create(definition)
    keepers["job definition"].update(changed, definition)
    answer = account.client("batch").describe_job_definitions(
        jobDefinitionName=definition.name, status="ACTIVE"
    )
    assert [one["revision"] for one in answer["jobDefinitions"]] == [2]


def test_what_the_cloud_refuses_is_told_in_its_own_words(account, cloud):
    n, images, keepers = cloud
    queue, _, _ = cases(account, n, images)["job queue"]
    with pytest.raises(CloudError) as caught:
        keepers["job queue"].create(queue)
    assert (caught.value.service, caught.value.operation) == ("batch", "CreateJobQueue")
    assert caught.value.code == "ClientException"
