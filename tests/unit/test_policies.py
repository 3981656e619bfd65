"""What roles allow and what they refuse, by evaluating the documents that IAM is given."""

import json

import pytest

from scar.fdl.schema import Deployment
from scar.plan.desired import AccountFacts, roles
from scar.plan.policies import document, role_name, trust
from tests.doubles.iam import FROM_LAMBDA, is_allowed

ACCOUNT = AccountFacts("123456789012", "eu-west-1", "AIDA", is_local=False)
BUCKET = "arn:aws:s3:::scar-123456789012-eu-west-1"
S3, BATCH = "arn:aws:s3:::", "arn:aws:batch:eu-west-1:123456789012:"
LOGS = "arn:aws:logs:eu-west-1:123456789012:log-group:"
ID = "0" * 32
EFS = "arn:aws:elasticfilesystem:eu-west-1:123456789012:"


def a_function(name="split", mode="batch", batch=None, iam=None, **lambda_):
    its = {
        "name": name,
        "execution_mode": mode,
        "container": {"image": "debian"},
        "input": [{"path": "video/input"}],
        "output": [{"path": "video/frames"}],
        **lambda_,
    }
    compute = {"subnets": ["subnet-1"], "security_group_ids": ["sg-1"]}
    batch = {**(batch or {})}
    batch["compute_resources"] = {**compute, **batch.get("compute_resources", {})}
    return {"lambda": its, "batch": batch, "iam": iam or {}}


def needed(function, account=ACCOUNT, **deployment):
    its = Deployment.model_validate({"functions": {"aws": [function]}, **deployment})
    return {one.use: one for one in roles(its.functions.aws[0], account, its.storage_providers)}


def policies(function=None, **deployment):
    """The documents of a function's roles, by use."""
    every = needed(function or a_function(), **deployment)
    return {use: [document(one.role.policy)] for use, one in every.items()}


def queue(function=None):
    policy = needed(function or a_function())["function"].role.policy
    return policy["Jobs"]["Resource"][0]


ALLOWED = [
    ("function", "logs:CreateLogStream", f"{LOGS}/aws/lambda/split:log-stream:2026/11/22/[1]a"),
    ("function", "logs:PutLogEvents", f"{LOGS}/aws/lambda/split:log-stream:2026/11/22/[1]a"),
    ("function", "s3:GetObject", f"{S3}video/input/a/b.avi"),
    ("function", "s3:GetObjectVersion", f"{S3}video/input/b.avi"),
    ("function", "s3:PutObject", f"{S3}video/frames/1.png"),
    ("function", "s3:AbortMultipartUpload", f"{S3}video/frames/1.png"),
    ("function", "s3:GetObject", f"{S3}video/frames/1.png"),
    ("function", "batch:SubmitJob", f"{BATCH}job-definition/split"),
    ("function", "batch:SubmitJob", f"{BATCH}job-definition/split:7"),
    ("function", "batch:DescribeJobs", "*"),
    ("function", "batch:ListJobs", "*"),
    ("job", "batch:DescribeJobs", "*"),
    ("job", "s3:GetObject", f"{S3}video/input/a.avi"),
    ("job", "s3:PutObject", f"{S3}video/frames/1.png"),
    *(
        (use, action, f"{BUCKET}/.scar/{key}")
        for use in ("function", "job")
        for action in ("s3:GetObject", "s3:PutObject")
        for key in (
            *(
                f"events/split/{ID}",
                f"arrays/split/{ID}.jsonl",
                f"claims/split/{ID}",
                f"done/split/1/{ID}",
            ),
            *("failed/split/a.json", "routes/split.json", f"bursts/split/waiting/{ID}"),
        )
    ),
    ("function", "s3:DeleteObject", f"{BUCKET}/.scar/bursts/split/waiting/{ID}"),
    ("function", "s3:ListBucket", BUCKET),
    ("job", "s3:ListBucket", BUCKET),
]


@pytest.mark.parametrize(("use", "action", "resource"), ALLOWED)
def test_a_role_allows_what_its_user_does(use, action, resource):
    assert is_allowed(policies()[use], action, resource)


def test_lambda_keeps_failed_events_where_the_functions_own_code_cannot_write():
    record = f"{BUCKET}/aws/lambda/async/split/2026/11/22/record"
    every = policies()
    assert is_allowed(every["function"], "s3:PutObject", record, FROM_LAMBDA)
    assert is_allowed(every["function"], "s3:ListBucket", BUCKET, FROM_LAMBDA)
    assert not is_allowed(every["function"], "s3:PutObject", record)
    assert not is_allowed(every["job"], "s3:PutObject", record, FROM_LAMBDA)
    # A bucket of that name which is another account's now.
    elsewhere = {**FROM_LAMBDA, "s3:ResourceAccount": "999999999999"}
    assert not is_allowed(every["function"], "s3:PutObject", record, elsewhere)


def test_a_function_submits_to_its_own_queue():
    larger = a_function(batch={"compute_resources": {"max_v_cpus": 64}})
    assert is_allowed(policies()["function"], "batch:SubmitJob", queue())
    assert not is_allowed(policies()["function"], "batch:SubmitJob", queue(larger))


REFUSED = [
    ("s3:GetObject", f"{S3}other/input/a.avi"),
    ("s3:GetObject", f"{S3}video/secret/a.avi"),
    ("s3:GetObject", f"{S3}video/input2/a.avi"),
    ("s3:GetObject", f"{S3}video/inputs"),
    ("s3:GetObject", f"{S3}my-video/input/a.avi"),
    ("s3:PutObject", f"{S3}video/input/a.avi"),
    ("s3:DeleteObject", f"{S3}video/input/a.avi"),
    ("s3:DeleteObjectVersion", f"{S3}video/input/a.avi"),
    ("s3:PutObject", f"{S3}video/frames2/1.png"),
    ("s3:DeleteObject", f"{S3}video/frames/1.png"),
    ("s3:PutObjectAcl", f"{S3}video/frames/1.png"),
    ("s3:PutObjectTagging", f"{S3}video/frames/1.png"),
    ("s3:ListBucket", f"{S3}video"),
    ("s3:ListAllMyBuckets", "*"),
    ("s3:PutBucketPolicy", f"{S3}video"),
    ("s3:PutBucketPolicy", BUCKET),
    ("s3:PutBucketNotification", f"{S3}video"),
    ("s3:PutLifecycleConfiguration", BUCKET),
    ("s3:DeleteBucket", BUCKET),
    ("s3:CreateBucket", f"{S3}new"),
    ("s3:GetObject", f"{BUCKET}/.scar/claims/other/{ID}"),
    ("s3:PutObject", f"{BUCKET}/.scar/claims/other/{ID}"),
    ("s3:PutObject", f"{BUCKET}/.scar/done/other/1/{ID}"),
    ("s3:GetObject", f"{BUCKET}/.scar/failed/other/a.json"),
    ("s3:PutObject", f"{BUCKET}/.scar/routes/other.json"),
    ("s3:GetObject", f"{BUCKET}/.scar/bursts/other/waiting/{ID}"),
    ("s3:DeleteObject", f"{BUCKET}/.scar/bursts/other/waiting/{ID}"),
    ("s3:DeleteObject", f"{BUCKET}/.scar/claims/split/{ID}"),
    ("s3:DeleteObject", f"{BUCKET}/.scar/events/split/{ID}"),
    ("s3:GetObject", f"{BUCKET}/.scar/events/other/{ID}"),
    ("s3:GetObject", f"{BUCKET}/.scar/arrays/other/{ID}.jsonl"),
    ("s3:PutObject", f"{BUCKET}/.scar/runs/split.json"),
    ("s3:GetObject", f"{BUCKET}/.scar/runs/split.json"),
    ("s3:GetObject", f"{BUCKET}/aws/lambda/async/split/2026/11/22/record"),
    ("s3:PutObject", f"{BUCKET}/aws/lambda/async/other/2026/11/22/record"),
    ("s3:PutObject", f"{BUCKET}/aws/lambda/async/split/2026/11/22/record"),
    ("s3:PutObject", f"{BUCKET}/anything"),
    ("logs:PutLogEvents", f"{LOGS}/aws/lambda/other:log-stream:a"),
    ("logs:PutLogEvents", f"{LOGS}/aws/lambda/split2:log-stream:a"),
    ("logs:CreateLogGroup", f"{LOGS}/aws/lambda/split"),
    ("logs:DeleteLogGroup", f"{LOGS}/aws/lambda/split:*"),
    ("logs:GetLogEvents", f"{LOGS}/aws/lambda/split:log-stream:a"),
    ("batch:SubmitJob", f"{BATCH}job-queue/other"),
    ("batch:SubmitJob", f"{BATCH}job-definition/other"),
    ("batch:SubmitJob", f"{BATCH}job-definition/split2"),
    ("batch:SubmitJob", f"{BATCH}job-definition/split2:1"),
    ("batch:TerminateJob", f"{BATCH}job/1f0c"),
    ("batch:CancelJob", f"{BATCH}job/1f0c"),
    ("batch:RegisterJobDefinition", f"{BATCH}job-definition/split"),
    ("batch:TagResource", f"{BATCH}job/1f0c"),
    ("iam:PassRole", "arn:aws:iam::123456789012:role/scar-split-eu-west-1-function"),
    ("iam:PutRolePolicy", "arn:aws:iam::123456789012:role/scar-split-eu-west-1-function"),
    ("iam:CreateUser", "arn:aws:iam::123456789012:user/x"),
    ("sts:AssumeRole", "arn:aws:iam::123456789012:role/scar-split-eu-west-1-job"),
    ("lambda:InvokeFunction", "arn:aws:lambda:eu-west-1:123456789012:function:split"),
    (
        "lambda:UpdateFunctionConfiguration",
        "arn:aws:lambda:eu-west-1:123456789012:function:split",
    ),
    ("ecr:PutImage", "arn:aws:ecr:eu-west-1:123456789012:repository/scar"),
    ("ecr:BatchGetImage", "arn:aws:ecr:eu-west-1:123456789012:repository/other"),
    ("secretsmanager:GetSecretValue", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:a-b"),
    ("ec2:CreateNetworkInterface", "*"),
    ("ec2:RunInstances", "*"),
    ("elasticfilesystem:ClientMount", f"{EFS}file-system/fs-1"),
    ("kms:Decrypt", "arn:aws:kms:eu-west-1:123456789012:key/1"),
]


@pytest.mark.parametrize(("action", "resource"), REFUSED)
def test_no_role_allows_what_it_need_not(action, resource):
    for use, documents in policies(a_function(batch=FARGATE)).items():
        assert not is_allowed(documents, action, resource), use


FARGATE = {"memory": 2048, "compute_resources": {"type": "FARGATE"}}


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("batch:SubmitJob", f"{BATCH}job-definition/split"),
        ("batch:ListJobs", "*"),
        ("logs:PutLogEvents", f"{LOGS}/aws/batch/split:log-stream:a"),
        ("logs:PutLogEvents", f"{LOGS}/aws/lambda/split:log-stream:a"),
        ("ecr:BatchGetImage", "arn:aws:ecr:eu-west-1:123456789012:repository/scar"),
    ],
)
def test_a_job_has_less_than_its_function(action, resource):
    assert not is_allowed(policies(a_function(batch=FARGATE))["job"], action, resource)


def test_the_agent_that_starts_a_job_on_fargate_pulls_its_image_and_writes_its_log():
    task = policies(a_function(batch=FARGATE))["task"]
    ours = "arn:aws:ecr:eu-west-1:123456789012:repository/scar"
    assert is_allowed(task, "ecr:GetAuthorizationToken", "*")
    assert is_allowed(task, "ecr:BatchGetImage", ours)
    assert is_allowed(task, "logs:PutLogEvents", f"{LOGS}/aws/batch/split:log-stream:a")
    for action, resource in (
        ("s3:GetObject", f"{S3}video/input/a.avi"),
        ("ecr:BatchGetImage", f"{ours}-2"),
        ("logs:PutLogEvents", f"{LOGS}/aws/batch/split2:log-stream:a"),
    ):
        assert not is_allowed(task, action, resource)


def test_the_agent_pulls_a_prepared_image_from_where_it_is():
    image = "999999999999.dkr.ecr.us-east-1.amazonaws.com/team/tools:3@sha256:ab"
    container = {"image": image, "create_image": False}
    task = policies(a_function(batch=FARGATE, container=container))["task"]
    theirs = "arn:aws:ecr:us-east-1:999999999999:repository/team/tools"
    assert is_allowed(task, "ecr:BatchGetImage", theirs)
    ours = "arn:aws:ecr:eu-west-1:123456789012:repository/scar"
    assert not is_allowed(task, "ecr:BatchGetImage", ours)


@pytest.mark.parametrize("mode", ["lambda", "lambda-batch", "batch"])
def test_a_function_has_the_roles_of_its_mode_and_jobs_only_where_there_are_some(mode):
    every = policies(a_function(mode=mode))
    assert set(every) == ({"function"} if mode == "lambda" else {"function", "job"})
    submits = is_allowed(every["function"], "batch:SubmitJob", f"{BATCH}job-definition/split")
    assert submits == (mode != "lambda")


def test_a_function_named_like_the_beginning_of_another_does_not_reach_it():
    function = policies(a_function("a"))["function"]
    for action, resource in (
        ("s3:PutObject", f"{BUCKET}/.scar/claims/ab/{ID}"),
        ("s3:PutObject", f"{BUCKET}/.scar/routes/ab.json"),
        ("logs:PutLogEvents", f"{LOGS}/aws/lambda/ab:log-stream:x"),
        ("batch:SubmitJob", f"{BATCH}job-definition/ab"),
        ("batch:SubmitJob", f"{BATCH}job-definition/ab:1"),
    ):
        assert is_allowed(function, action, resource.replace("/ab", "/a"))
        assert not is_allowed(function, action, resource)


@pytest.mark.parametrize("path", ["video/a*", "video/*", "video/a?c", "video/${aws:userid}"])
def test_a_path_means_itself_though_it_has_wildcards_of_iam(path):
    function = policies(a_function(input=[{"path": path}]))["function"]
    assert is_allowed(function, "s3:GetObject", f"{S3}{path}/x.avi")
    for other in ("video/abc/x.avi", "video/a/x.avi", "video/other/x.avi"):
        assert not is_allowed(function, "s3:GetObject", f"{S3}{other}")


def test_a_document_is_ascii_though_a_path_is_not():
    """IAM takes no character above 255 (botocore's pattern of policyDocumentType)."""
    function = policies(a_function(output=[{"path": "video/日本"}]))["function"]
    assert is_allowed(function, "s3:PutObject", f"{S3}video/日本/x.avi")
    assert json.dumps(function).isascii()


def test_a_whole_bucket_is_all_of_its_keys():
    function = policies(a_function(input=[{"path": "video"}]))["function"]
    assert is_allowed(function, "s3:GetObject", f"{S3}video/any/x.avi")
    assert not is_allowed(function, "s3:GetObject", f"{S3}video2/any/x.avi")


def test_interfaces_in_a_network_are_made_by_lambda_and_not_by_the_functions_code():
    network = {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    every = policies(a_function(vpc=network))
    assert is_allowed(every["function"], "ec2:CreateNetworkInterface", "*", FROM_LAMBDA)
    assert not is_allowed(every["function"], "ec2:CreateNetworkInterface", "*")
    assert not is_allowed(every["job"], "ec2:CreateNetworkInterface", "*")


def test_a_file_system_is_reached_through_its_access_point_only():
    network = {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    mounts = [{"Arn": f"{EFS}access-point/fsap-1", "LocalMountPath": "/mnt/data"}]
    function = policies(a_function(vpc=network, file_system=mounts))["function"]

    def mounting(point):
        context = {"elasticfilesystem:AccessPointArn": f"{EFS}access-point/{point}"}
        return is_allowed(
            function, "elasticfilesystem:ClientMount", f"{EFS}file-system/fs-1", context
        )

    assert mounting("fsap-1")
    assert not mounting("fsap-2")
    assert not is_allowed(function, "elasticfilesystem:ClientMount", f"{EFS}file-system/fs-1")


def test_only_who_stages_with_another_provider_reads_a_secret_and_only_its_own():
    mine = {"minio": {"mine": {"access_key": "a", "secret_key": "b"}}}
    function = a_function(output=[{"path": "video/frames", "storage_provider": "minio.mine"}])
    every = policies(function, storage_providers=mine)
    start = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:scar"
    read = "secretsmanager:GetSecretValue"
    for use in ("function", "job"):
        assert is_allowed(every[use], read, f"{start}/split/minio.mine-aB3dE6")
        assert not is_allowed(every[use], read, f"{start}/split/minio.other-aB3dE6")
        assert not is_allowed(every[use], read, f"{start}/other/minio.mine-aB3dE6")
        assert not is_allowed(every[use], read, f"{start}/split/minio.mine-2-aB3dE6")
        assert not is_allowed(every[use], "s3:PutObject", f"{S3}video/frames/x")


def test_a_given_role_is_taken_and_none_is_made():
    own = "arn:aws:iam::{account_id}:role/mine"
    task = "arn:aws:iam::123456789012:role/pulls"
    every = needed(a_function(iam={"role": own}, batch=FARGATE))
    assert [(one.arn.rpartition("/")[2], one.is_made) for one in every.values()] == [
        ("mine", False)
    ] * 3
    every = needed(a_function(batch={**FARGATE, "execution_role": task}))
    assert [(one.arn.rpartition("/")[2], one.is_made) for one in every.values()] == [
        ("scar-split-eu-west-1-function", True),
        ("scar-split-eu-west-1-job", True),
        ("pulls", False),
    ]


def test_the_local_cloud_makes_no_roles():
    local = AccountFacts("000000000000", "us-east-1", "me", is_local=True)
    assert [one.is_made for one in needed(a_function(), local).values()] == [False, False]


def test_names_of_roles_are_short_enough_and_differ():
    names = {
        role_name(function, use, AccountFacts("1", region, "", is_local=False))
        for function in ("a", "f" * 63, "f" * 64, "f" * 63 + "g")
        for use in ("function", "job", "task")
        for region in ("eu-west-1", "us-gov-west-1")
    }
    assert len(names) == 24
    assert max(map(len, names)) <= 64
    assert "scar-a-eu-west-1-job" in names


def test_a_role_is_for_one_service():
    every = needed(a_function(batch=FARGATE))
    assert {use: one.role.service for use, one in every.items()} == {
        "function": "lambda.amazonaws.com",
        "job": "ecs-tasks.amazonaws.com",
        "task": "ecs-tasks.amazonaws.com",
    }
    [statement] = trust("lambda.amazonaws.com")["Statement"]
    assert statement["Principal"] == {"Service": "lambda.amazonaws.com"}


def test_in_other_partitions_the_arns_are_theirs():
    china = AccountFacts("123456789012", "cn-north-1", "AIDA", is_local=False)
    text = json.dumps(needed(a_function(), china)["function"].role.policy)
    assert "arn:aws-cn:s3:::video/input/*" in text
    assert "arn:aws:" not in text
