"""`batch.secrets`: a job has the values, and nobody else."""

import json

from tests.e2e.conftest import Cloud
from tests.e2e.test_providers import files_holding

VALUE = "hunter2-t0ps3cret"


def test_a_job_has_its_secrets_and_nothing_else_has(cloud: Cloud, function):
    cloud.ok("ls")  # starts it
    made = cloud.client("secretsmanager").create_secret(Name="db", SecretString="{}")
    missing = made["ARN"][:-6] + "zzzzzz"
    job = {
        "name": "f",
        "execution_mode": "batch",
        "script": f'test "$WHO" = me && test "$PASSWORD" = {VALUE}',
    }
    secrets = {"PASSWORD": f"{made['ARN']}:password::", "WHO": "/who"}
    fdl = function({**job, "batch": {"secrets": secrets}})
    cloud.ok("init", "-f", fdl)
    assert json.loads(cloud.ok("init", "-f", fdl, "--plan", "--json"))["Plan"] == []

    failed = cloud.run("run", "-n", "f")
    assert failed.code == 5
    assert "did not contain json key password" in failed.err
    [its_id] = [one["jobId"] for one in jobs(cloud, "FAILED")]
    explained = cloud.ok("explain", its_id)
    assert "a secret of `batch.secrets` could not be read" in explained

    # what is put right is read by the next attempt, without another `init`
    put = {"SecretId": "db", "SecretString": json.dumps({"password": VALUE})}
    cloud.client("secretsmanager").put_secret_value(**put)
    cloud.client("ssm").put_parameter(Name="/who", Value="me", Type="SecureString")
    cloud.ok("run", "-n", "f")
    [done] = jobs(cloud, "SUCCEEDED")
    [described] = cloud.client("batch").describe_jobs(jobs=[done["jobId"]])["jobs"]
    container = described["container"]
    assert {one["name"]: one["valueFrom"] for one in container["secrets"]} == secrets
    assert container["executionRoleArn"] == "arn:aws:iam::000000000000:role/scar-local"
    assert VALUE not in json.dumps(described, default=str)
    script_and_moto = files_holding(cloud.home, VALUE)
    assert "moto.jsonl" in script_and_moto
    assert not {name for name in script_and_moto if "cloud.db" in name or "log" in name}

    gone = function({**job, "batch": {"secrets": {"PASSWORD": missing}}})
    cloud.ok("init", "-f", gone)
    told = cloud.run("run", "-n", "f").err
    assert (
        f"Fetching secret data from AWS Secrets Manager in region us-east-1: secret {missing}: "
        "ResourceNotFoundException: Secrets Manager can't find the specified secret." in told
    )


def jobs(cloud, status):
    client = cloud.client("batch")
    [queue] = client.describe_job_queues()["jobQueues"]
    listed = client.list_jobs(jobQueue=queue["jobQueueName"], jobStatus=status)
    return listed["jobSummaryList"]
