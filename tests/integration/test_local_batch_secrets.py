"""What jobs get of Secrets Manager and SSM: the forms of `valueFrom`, AWS's words for faults."""

import uuid

import pytest

from scar_local.batch_secrets import Secrets, SecretsFailed
from scar_local.others import Moto
from scar_local.protocol import ApiError

pytest.importorskip("moto")

REGION = "eu-west-1"


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    return Moto(tmp_path_factory.mktemp("moto"))


@pytest.fixture
def made(moto):
    """Make a secret or a parameter; its ARN or name."""

    def secret(text, region=REGION, **more):
        name = f"s-{uuid.uuid4()}"
        token = str(uuid.uuid4())
        params = {"Name": name, "ClientRequestToken": token, "SecretString": text, **more}
        status, answer = moto.call("secretsmanager.CreateSecret", region, params)
        assert status == 200, answer
        return answer["ARN"]

    return secret


def parameter(moto, name, value, region=REGION):
    params = {"Name": name, "Value": value, "Type": "SecureString"}
    assert moto.call("AmazonSSM.PutParameter", region, params)[0] == 200
    return f"arn:aws:ssm:{region}:000000000000:parameter/{name.removeprefix('/')}"


def values(moto, *value_from, is_fargate=False):
    wanted = [{"name": f"V{n}", "valueFrom": one} for n, one in enumerate(value_from)]
    found = Secrets(moto.call, REGION, is_fargate).values(wanted)
    return [found[f"V{n}"] for n in range(len(value_from))]


def test_every_form_of_value_from_gives_its_value(moto, made):
    n = uuid.uuid4().hex
    plain = made("a b\nc")
    pairs = made('{"user": "me", "port": 5432, "on": true}')
    far = made("far", "us-east-1")
    new = {"SecretId": plain, "SecretString": "newer", "ClientRequestToken": str(uuid.uuid4())}
    old_arn = f"{plain}::AWSPREVIOUS:"
    assert moto.call("secretsmanager.PutSecretValue", REGION, new)[0] == 200
    flat, deep = parameter(moto, f"p-{n}", "flat"), parameter(moto, f"/a/{n}", "deep")
    assert values(moto, plain, old_arn, far) == ["newer", "a b\nc", "far"]
    assert values(moto, f"{pairs}:user::", f"{pairs}:port::", f"{pairs}:on::", pairs) == [
        *("me", "5432", "true"),
        '{"user": "me", "port": 5432, "on": true}',
    ]
    assert values(moto, flat, f"p-{n}", deep, f"/a/{n}") == ["flat", "flat", "deep", "deep"]


ABSENT = f"arn:aws:secretsmanager:{REGION}:000000000000:secret:absent-a1b2c3"
NOT_FOUND = "ResourceNotFoundException: Secrets Manager can't find the specified secret."
FARGATE = (
    "ResourceInitializationError: unable to pull secrets or registry auth: "
    "execution resource retrieval failed: unable to retrieve "
)
ONCE = ": service call has been retried 1 time(s): "


@pytest.mark.parametrize(
    ("value_from", "on_instances", "on_fargate"),
    [
        (
            ABSENT,
            f"Fetching secret data from AWS Secrets Manager in region {REGION}: "
            f"secret {ABSENT}: {NOT_FOUND}",
            f"{FARGATE}secret from asm{ONCE}failed to fetch secret {ABSENT} from secrets manager: "
            f"{NOT_FOUND}",
        ),
        (
            "/no/such",
            f"Fetching secret data from SSM Parameter Store in {REGION}: "
            "invalid parameters: /no/such",
            f"{FARGATE}secrets from ssm{ONCE}invalid parameters: /no/such",
        ),
    ],
)
def test_what_is_not_there_is_told_as_aws_tells_it(moto, value_from, on_instances, on_fargate):
    for is_fargate, told in ((False, on_instances), (True, on_fargate)):
        with pytest.raises(SecretsFailed) as caught:
            values(moto, value_from, is_fargate=is_fargate)
        assert str(caught.value) == told


@pytest.mark.parametrize("text", ['{"user": "hidden"}', "hidden", '["hidden"]'])
def test_a_key_that_the_secret_lacks_is_told_without_its_value(moto, made, text):
    arn = f"{made(text)}:password::"
    with pytest.raises(SecretsFailed, match="did not contain json key password") as caught:
        values(moto, arn)
    assert "hidden" not in str(caught.value)


def test_a_part_of_a_suffix_is_no_arn(moto, made):
    with pytest.raises(SecretsFailed, match="an invalid ARN format"):
        values(moto, f"{made('x')}:key")


def test_a_cloud_without_its_extra_says_what_it_needs():
    def ask(operation, region, params):
        raise ApiError("NotImplemented", "pip install 'scar[local]'", 501)

    with pytest.raises(SecretsFailed, match=r"pip install 'scar\[local\]'"):
        Secrets(ask, REGION, False).values([{"name": "A", "valueFrom": ABSENT}])
