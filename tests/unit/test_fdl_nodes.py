"""`multi_node_parallel`: what it asks for, and what cannot be is told before anything is made."""

import json

import pytest

from scar_supervisor import contract
from scar_supervisor.contract import FunctionConfig, load_config
from scar_supervisor.delegate import Batch
from tests.unit.test_fdl import faults, function_of, loaded

COW = """\
functions:
  aws:
  - lambda:
      name: cow
      execution_mode: {mode}
      container: {{image: busybox}}
    iam: {{role: "arn:aws:iam::123456789012:role/r"}}
    batch:
      vcpus: 2
      compute_resources: {{subnets: [subnet-1], security_group_ids: [sg-1], {resources}}}
      multi_node_parallel: {nodes}
"""


def cow(nodes, resources="max_v_cpus: 8", mode="batch"):
    return COW.format(nodes=nodes, resources=resources, mode=mode)


def test_a_job_of_nodes_is_described_as_the_documentation_does():
    text = cow("{enabled: true, number_nodes: 4, main_node_index: 1}")
    nodes = function_of(loaded(text)).batch.multi_node_parallel
    assert (nodes.enabled, nodes.number_nodes, nodes.main_node_index) == (True, 4, 1)
    assert (
        function_of(loaded(cow("{enable: true, number_nodes: 2}"))).batch
        == function_of(loaded(cow("{enabled: true, number_nodes: 2}"))).batch
    )


def test_what_is_not_enabled_asks_for_nothing():
    nodes = "{enabled: false, number_nodes: 100, main_node_index: 200}"
    assert not function_of(loaded(cow(nodes))).batch.multi_node_parallel.enabled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            cow("{enabled: true, number_nodes: 3, main_node_index: 3}"),
            "main_node_index must be 0 to 2, one less than number_nodes, got 3",
        ),
        (
            cow("{enabled: true, number_nodes: 2}", "type: SPOT, max_v_cpus: 8"),
            "multi-node jobs run on instances of type `EC2` only, not on `SPOT`",
        ),
        (
            cow("{enabled: true, number_nodes: 2}", "max_v_cpus: 3"),
            "2 nodes of 2 vCPUs need 4, max_v_cpus is 3: the job would wait for ever",
        ),
        (
            cow("{enabled: true, number_nodes: 2}", mode="lambda"),
            "multi_node_parallel is for jobs, but `execution_mode` is `lambda`",
        ),
        (cow("{enabled: true, number_nodes: 0}"), "number_nodes must be 1 to 1000"),
    ],
)
def test_what_cannot_be_is_told_with_its_place(text, message):
    found = faults(text)
    assert len(found) == 1, found
    assert message in found[0]
    assert found[0].startswith("a.yaml:")


def test_fargate_is_refused():
    text = cow("{enabled: true, number_nodes: 2}", "type: FARGATE, max_v_cpus: 8")
    assert any("not on `FARGATE`" in fault for fault in faults(text))


def test_the_supervisor_learns_that_its_jobs_have_nodes():
    config = FunctionConfig("f", is_multi_node=True)
    assert load_config(config.dump()).is_multi_node


def test_each_job_gets_a_secret_of_its_own_for_all_its_nodes(batch_requests):
    config = FunctionConfig("f", job_queue="q", job_definition="d", is_multi_node=True)
    secrets = set()
    for body in batch_requests(config, 2):
        assert "containerOverrides" not in body
        [every] = body["nodeOverrides"]["nodePropertyOverrides"]
        assert every["targetNodes"] == "0:"
        entries = every["containerOverrides"]["environment"]
        variables = {entry["name"]: entry["value"] for entry in entries}
        secrets.add(variables[contract.MNP_SECRET_VARIABLE])
        assert variables[contract.EVENT_VARIABLE] == "{}"
    assert len(secrets) == 2
    assert min(map(len, secrets)) >= 32


def test_other_jobs_get_no_secret(batch_requests):
    config = FunctionConfig("f", job_queue="q", job_definition="d")
    [body] = batch_requests(config, 1)
    assert contract.MNP_SECRET_VARIABLE not in json.dumps(body)


@pytest.fixture
def batch_requests():
    """The SubmitJob requests that a submission sends, taken by a server on loopback."""
    import threading

    from scar_local.http import Server
    from scar_supervisor.storage import Storages

    bodies = []

    def answer(exchange):
        bodies.append(json.loads(exchange.body.read()))
        exchange.reply(200, b'{"jobId": "j"}', content_type="application/json")

    server = Server(0, answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()

    def send(config, count):
        environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
        }
        for _ in range(count):
            Batch(environ, Storages(environ)).submit(config, "{}", "r")
        return bodies

    yield send
    server.shutdown()
    thread.join()
    server.server_close()
