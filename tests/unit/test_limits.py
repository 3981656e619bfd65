"""AWS's limits on counts and bytes are told before anything is touched."""

from __future__ import annotations

from typing import Any

import pytest

from scar.fdl.load import NO_RULES, load
from scar.fdl.source import Layer, Sources
from scar.plan.limits import check

ECR = "000000000000.dkr.ecr.us-east-1.amazonaws.com/"


def function(name: str = "a", batch: dict[str, Any] | None = None, **its: Any) -> dict[str, Any]:
    container = its.pop("container", {"image": "x"})
    return {"lambda": {"name": name, "container": container, **its}, "batch": batch or {}}


def found(*functions: dict[str, Any]) -> list[str]:
    layer = Layer({"functions": {"aws": list(functions)}})
    return [f"{d.path}: {d.summary}" for d in check(load(Sources(fdl=layer), NO_RULES).deployment)]


def test_variables_of_the_function_are_counted_in_bytes_with_their_names():
    assert found(function(environment={"Variables": {"AA": "x" * 4094}})) == []
    assert found(function(environment={"Variables": {"AA": "é" * 2048}})) == [
        "functions.aws[0].lambda.environment.Variables: "
        "the function's variables take 4098 bytes, Lambda allows 4096"
    ]
    # Those of the container are in the image.
    container = {"image": "x", "environment": {"Variables": {"A": "x" * 9999}}}
    assert found(function(container=container)) == []


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({f"t{i}": "x" for i in range(41)}, "at most 40 tags, got 41"),
        ({"k" * 129: "x"}, "a tag's name has 1 to 128 characters, got 129"),
        ({"": "x"}, "a tag's name has 1 to 128 characters, got 0"),
        ({"k": "v" * 257}, "a tag has at most 256 characters, `k` has 257"),
        ({"AWS:k": "v"}, "tag `AWS:k` is reserved: names that start with `aws:` are AWS's own"),
        ({"scar:queue": "v"}, "tag `scar:queue` is reserved: SCAR finds its functions by it"),
    ],
)
def test_tags_have_limits(tags: dict[str, str], says: str):
    [fault] = found(function(tags=tags))
    assert fault.endswith(f": {says}")


def test_as_many_and_as_long_tags_as_allowed_are_no_fault():
    tags = {f"{i:03}" + "k" * 125: "v" * 256 for i in range(40)}
    assert found(function(tags=tags)) == []


def test_the_policy_of_a_role_is_as_long_as_iam_takes():
    def writing(count: int, **beside: Any) -> list[str]:
        output = [{"path": f"results/{'x' * 60}{n:03}"} for n in range(count)]
        return found({**function(output=output), **beside})

    assert writing(80) == []
    [fault] = writing(120)
    assert fault.startswith("functions.aws[0].lambda.output: the policy of the function's role has")
    assert fault.endswith("IAM allows 10240")
    assert writing(120, iam={"role": "arn:aws:iam::123456789012:role/mine"}) == []


def test_a_prepared_image_has_a_name_that_batch_takes():
    def prepared(length: int, mode: str) -> list[str]:
        image = ECR + "r" * (length - len(ECR))
        container = {"image": image, "create_image": False}
        return found(function(execution_mode=mode, container=container))

    assert prepared(255, "batch") == prepared(256, "lambda") == []
    assert prepared(256, "batch") == [
        "functions.aws[0].lambda.container.image: "
        "Batch allows 255 characters for an image's name, got 256"
    ]


def test_a_region_has_fifty_compute_environments_which_functions_share():
    def many(count: int) -> list[str]:
        functions = [
            function(f"f{i}", {"compute_resources": {"max_v_cpus": 2 + i}}, execution_mode="batch")
            for i in range(count)
        ]
        return found(*functions, *(dict(functions[0]) for _ in range(9)), function("l"))

    assert many(50) == []
    [fault] = many(51)
    assert fault.startswith("functions.aws[50].batch.compute_resources: the file asks for more")


def test_what_scar_keeps_is_no_input():
    def kept(path: str, bucket: str | None = None, **filters: Any) -> list[str]:
        deployment = {"bucket": bucket} if bucket else {}
        keeper = function("keeper", deployment=deployment)
        return found(keeper, function("b", input=[{"path": path, **filters}]))

    default = "scar-123456789012-eu-west-1"
    for path in ("mine", "mine/.scar", "mine/.scar/done/keeper", "mine/aws", "mine/aws/lambda"):
        [fault] = kept(path, "mine")
        assert fault.startswith("functions.aws[1].lambda.input[0].path: the input takes in `")
        assert "keeps what belongs to function `keeper`" in fault
    for found_in in (
        kept("mine", "mine", prefix=["aws"]),
        kept("mine", "mine", suffix=[".jsonl"]),
        kept(default),
    ):
        assert len(found_in) == 1
    for free in (
        kept("mine"),
        kept(f"{default}/in"),
        kept("mine/in", "mine"),
        kept("mine", "mine", prefix=["in"]),
        kept("mine/.scars", "mine"),
    ):
        assert free == []
