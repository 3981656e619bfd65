"""Inputs and outputs that are not with the account: real process, real HTTP, checked signatures."""

import base64
import datetime
import json
import ssl
from ipaddress import ip_address

import pytest

from scar_supervisor import contract
from scar_supervisor.contract import ObjectPath, StorageProvider
from tests.doubles.providers import CloudWithSecrets, Minio
from tests.doubles.runtime_api import RuntimeApi
from tests.doubles.supervised import Supervised, a_config, s3_event

SECRET = "scar/f/minio.mine"
COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy of it"; env'


@pytest.fixture
def cloud(tmp_path):
    cloud = CloudWithSecrets(tmp_path / "cloud")
    yield cloud
    cloud.close()


@pytest.fixture
def minio(tmp_path, cloud):
    minio = Minio(tmp_path / "minio", "minio-id", "minio+secret/key")
    for bucket in ("inbox", "out"):
        minio.client.create_bucket(Bucket=bucket)
    cloud.secrets[SECRET] = minio.value
    yield minio
    minio.close()


@pytest.fixture
def function(minio):
    """The config of a function that copies from one MinIO bucket to another."""
    provider = StorageProvider(SECRET, endpoint=minio.url)
    return {
        "inputs": (ObjectPath("minio.mine", "inbox", "in"),),
        "outputs": (ObjectPath("minio.mine", "out", "done"),),
        "providers": {"minio.mine": provider},
    }


@pytest.fixture
def run_job(tmp_path, cloud):
    started = []

    def run(event, script=COPY, **config):
        platform = {"AWS_BATCH_JOB_ID": "job-1", **cloud.environment}
        platform[contract.EVENT_VARIABLE] = json.dumps(event)
        started.append(Supervised(tmp_path / "job", a_config(**config), script, platform))
        code = started[-1].wait()
        return code, started[-1].log

    yield run
    for supervised in started:
        supervised.close()


@pytest.fixture
def api():
    api = RuntimeApi()
    yield api
    api.close()


@pytest.fixture
def start_lambda(tmp_path, cloud, api):
    started = []

    def start(script=COPY, **config):
        platform = {"AWS_LAMBDA_RUNTIME_API": api.address, **cloud.environment}
        started.append(Supervised(tmp_path / "function", a_config(**config), script, platform))
        return started[-1]

    yield start
    for supervised in started:
        supervised.close()


def minio_event(key, size=None, bucket="inbox"):
    return s3_event((bucket, key, size), source="minio:s3")


def test_a_file_comes_from_minio_and_goes_there_with_the_keys_of_the_secret(
    run_job, function, minio, cloud
):
    minio.client.put_object(Bucket="inbox", Key="in/a b+c.txt", Body=b"hello")
    code, log = run_job(minio_event("in/a b+c.txt", 5), **function)
    assert code == 0, log
    assert minio.get("out", "done/copy of it") == b"hello"
    assert minio.refused == []
    assert cloud.asked == [SECRET]  # once, for all that is staged
    assert cloud.client.list_buckets()["Buckets"] == []  # the account's own S3 has no part in it
    assert "staged in minio.mine://inbox/in/a b+c.txt" in log
    assert minio.secret_key not in log  # which holds the script's whole environment


def test_a_large_file_goes_to_minio_in_parts(run_job, function, minio):
    script = 'head -c 20000000 /dev/zero > "$TMP_OUTPUT_DIR/large"'
    code, log = run_job({}, script, **function)
    assert code == 0, log
    assert len(minio.get("out", "done/large")) == 20_000_000


def test_another_accounts_bucket_is_staged_from_beside_the_own(run_job, function, minio, cloud):
    cloud.client.create_bucket(Bucket="own")
    cloud.put("own", "in/x", b"own")
    provider = StorageProvider(SECRET, endpoint=minio.url)  # stands for AWS, asked in another name
    config = {
        "inputs": (ObjectPath("s3", "own", "in"), ObjectPath("s3.other", "inbox", "in")),
        "outputs": (ObjectPath("s3.other", "out"), ObjectPath("s3", "own", "done")),
        "providers": {"s3.other": provider},
    }
    minio.client.put_object(Bucket="inbox", Key="in/y", Body=b"theirs")
    code, log = run_job(s3_event(("inbox", "in/y", 6)), **config)
    assert code == 0, log
    assert minio.get("out", "copy of it") == cloud.get("own", "done/copy of it") == b"theirs"
    assert run_job(s3_event(("own", "in/x", 3)), **config)[0] == 0
    assert minio.get("out", "copy of it") == cloud.get("own", "done/copy of it") == b"own"


def test_keys_that_were_replaced_are_read_again_by_a_warm_function(
    start_lambda, api, function, minio, cloud
):
    start_lambda(**function)
    minio.client.put_object(Bucket="inbox", Key="in/x", Body=b"1")
    assert api.invoke(minio_event("in/x", 1)).kind == "response"
    minio.secret_key = "another"
    assert api.invoke(minio_event("in/x", 1)).body["errorType"] == "StagingFailed"
    cloud.secrets[SECRET] = minio.value
    assert api.invoke(minio_event("in/x", 1)).kind == "response"


def test_what_minio_posts_to_the_endpoint_is_an_event(start_lambda, api, function, minio):
    minio.client.put_object(Bucket="inbox", Key="in/x", Body=b"posted")
    start_lambda(**function)
    request = {"httpMethod": "POST", "body": json.dumps(minio_event("in/x", 6))}
    assert api.invoke(request).kind == "response"
    assert minio.get("out", "done/copy of it") == b"posted"


def test_a_function_without_an_input_of_minio_takes_such_a_request_as_data(start_lambda, api):
    start_lambda('cat "$INPUT_FILE_PATH"')
    posted = json.dumps(minio_event("in/x", 6))
    answered = api.invoke({"httpMethod": "POST", "body": posted})
    assert base64.b64decode(answered.body["body"]).decode() == posted


@pytest.mark.parametrize(
    "event", [minio_event("elsewhere/x"), minio_event("in/x", bucket="other"), minio_event("in")]
)
def test_the_keys_open_nothing_but_the_inputs(run_job, function, cloud, event):
    code, log = run_job(event, **function)
    assert code == contract.EXIT_CONFIG
    assert "of the event is in MinIO, and under no input of the function" in log
    assert cloud.asked == []


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "cannot be read: Secrets Manager can't find the specified secret."),
        ("not-json-but-hidden", "is not a JSON object; deploy the function again"),
        ('["hidden"]', "is not a JSON object; deploy the function again"),
        ({"access_key": "hidden"}, "has no `secret_key`; deploy the function again"),
    ],
)
def test_a_secret_that_is_of_no_use_is_named_and_not_shown(run_job, function, cloud, value, why):
    cloud.secrets = {} if value is None else {SECRET: value}
    code, log = run_job(minio_event("in/x", 1), **function)
    assert code == contract.EXIT_CONFIG
    assert f"storage provider `minio.mine`: secret `{SECRET}` {why}" in log
    assert "hidden" not in log


def test_a_role_that_may_not_read_the_secret_is_told_what_to_allow(run_job, function, cloud):
    cloud.denies = True
    code, log = run_job(minio_event("in/x", 1), **function)
    assert code == contract.EXIT_CONFIG
    assert "allow the role of the function `secretsmanager:GetSecretValue` for it" in log


def test_a_provider_that_the_config_lacks_is_told_before_any_event(run_job):
    code, log = run_job({}, outputs=(ObjectPath("minio.mine", "out"),))
    assert code == contract.EXIT_CONFIG
    assert "storage provider `minio.mine` is not in the config" in log


def test_objects_of_one_name_in_two_storages_are_two(run_job, function, minio, cloud):
    for bucket in ("inbox", "state"):
        cloud.client.create_bucket(Bucket=bucket)
    cloud.put("inbox", "in/x", b"same")
    minio.client.put_object(Bucket="inbox", Key="in/x", Body=b"same")
    function["inputs"] += (ObjectPath("s3", "inbox", "in"),)
    events = minio_event("in/x", 4), s3_event(("inbox", "in/x", 4))
    for event in events:
        event["Records"][0]["s3"]["object"]["eTag"] = "51037a4a37730f52c8732586d3aaa316"
        code, log = run_job(event, "echo ran", deployment_bucket="state", **function)
        assert code == 0
        assert "\nran\n" in f"\n{log}"


def test_a_posted_event_is_handed_over_without_what_else_came_with_it(
    start_lambda, api, function, cloud
):
    cloud.client.create_bucket(Bucket="state")
    batch = {"execution_mode": "batch", "job_queue": "q", "job_definition": "d"}
    start_lambda(**function, **batch, deployment_bucket="state")
    posted = minio_event("in/x", 6)
    program = {"script": base64.b64encode(b"id").decode(), "cmd_args": '["id"]', "scar_force": True}
    request = {"httpMethod": "POST", "body": json.dumps({**posted, **program})}
    assert api.invoke(request).kind == "response"
    [job] = cloud.submitted
    [event] = [
        json.loads(one["value"])
        for one in job["containerOverrides"]["environment"]
        if one["name"] == contract.EVENT_VARIABLE
    ]
    assert event == posted


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that nobody vouches for, and its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "minio")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        made.public_bytes(encoding)
        + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


def test_a_servers_certificate_is_checked_unless_told_otherwise(
    run_job, function, minio, cloud, certificate
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    url = minio.serve_tls(context)
    script = 'echo > "$TMP_OUTPUT_DIR/x"'
    checked = {"minio.mine": StorageProvider(SECRET, url)}
    code, log = run_job({}, script, **{**function, "providers": checked})
    assert code == contract.EXIT_STAGING
    assert "CERTIFICATE_VERIFY_FAILED" in log
    unchecked = {"minio.mine": StorageProvider(SECRET, url, verify=False)}
    code, log = run_job({}, script, **{**function, "providers": unchecked})
    assert code == 0, log
    assert minio.keys("out") == ["done/x"]
    cloud.bundle = str(certificate)  # a certificate of one's own is the better way
    code, log = run_job({}, script, **{**function, "providers": checked})
    assert code == 0, log
