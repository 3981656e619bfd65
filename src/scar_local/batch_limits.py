"""What AWS Batch accepts: every request is checked here, purely, before anything is stored.

Sources: botocore's model of Batch, the user guide's service quotas. Where AWS's own wording of a
refusal is known it is used; what this cloud does not have yet is refused in plain words.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from scar_local.protocol import ApiError
from scar_local.scheduler import Host, Need, this_host

DEFINITION_LIMIT_BYTES = 24 * 1024
SUBMIT_LIMIT_BYTES = 30 * 1024
OVERRIDES_LIMIT_CHARACTERS = 8192
"""ECS RunTask's limit for `overrides`; Batch accepts a larger job, which fails when it starts."""
ARRAY_SIZES = (2, 10_000)
"""Least and most children of an array job."""
NODES_LIMIT, NODE_RANGES_LIMIT = 1000, 5
"""Of a multi-node parallel job."""
ENVIRONMENTS_LIMIT = 50
QUEUES_LIMIT = 50
TAGS_LIMIT = 50

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NOT_YET = (
    *("volumes", "mountPoints", "ulimits", "user", "privileged"),
    *("repositoryCredentials", "instanceType"),
)
"""Container properties that would change what runs: refused rather than ignored."""
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


@dataclass(frozen=True)
class Limits:
    """The bounds that a test, or another host, may set differently."""

    min_timeout_s: float = 60
    """AWS's least `attemptDurationSeconds`."""
    stop_grace_s: float = field(
        default_factory=lambda: float(os.environ.get("SCAR_LOCAL_STOP_GRACE_S", "30"))
    )
    """Seconds between SIGTERM and SIGKILL when a job is terminated or times out."""
    host: Host = field(default_factory=this_host)
    keep_finished: int = 100_000
    """Finished jobs kept, children of arrays included; older ones are forgotten."""
    keep_days: float = 7
    """Days that a finished job is kept at most (AWS: at least 7)."""


def refuse(message: str) -> NoReturn:
    """Answer ClientException, Batch's one error for all that the caller can mend."""
    raise ApiError("ClientException", message)


def required(params: Mapping[str, Any], key: str) -> Any:
    """The parameter, or a refusal that names it."""
    if params.get(key) in (None, ""):
        refuse(f"{key} is required")
    return params[key]


def check_name(name: str, what: str) -> None:
    """Names of compute environments, queues and definitions."""
    if not _NAME.fullmatch(name):
        refuse(f"{what} `{name}` must be 1 to 128 letters, digits, hyphens and underscores")


def check_tags(tags: Mapping[str, str]) -> None:
    """At most 50 tags on one resource."""
    if len(tags) > TAGS_LIMIT:
        refuse(f"{len(tags)} tags: a resource can have up to {TAGS_LIMIT}")


def check_environment(params: Mapping[str, Any]) -> None:
    """CreateComputeEnvironment."""
    check_name(required(params, "computeEnvironmentName"), "computeEnvironmentName")
    kind = required(params, "type")
    if kind not in ("MANAGED", "UNMANAGED"):
        refuse(f"type {kind} must be one of MANAGED | UNMANAGED")
    check_state(params)
    check_tags(params.get("tags") or {})
    if params.get("eksConfiguration"):
        refuse("compute environments on EKS are not in the local cloud yet")
    if kind == "MANAGED":
        if not params.get("computeResources"):
            refuse("computeResources must be provided for a MANAGED compute environment")
        check_resources(params["computeResources"])


def check_resources(resources: Mapping[str, Any]) -> None:
    """The compute resources of a managed environment, when it is created or after an update."""
    kind = required(resources, "type")
    if kind == "ECS_MANAGED_INSTANCES":
        refuse("compute environments on ECS Managed Instances are not in the local cloud yet")
    if kind not in ("EC2", "SPOT", "FARGATE", "FARGATE_SPOT"):
        refuse(f"computeResources.type {kind} must be one of EC2 | SPOT | FARGATE | FARGATE_SPOT")
    least, most = resources.get("minvCpus") or 0, required(resources, "maxvCpus")
    desired = resources.get("desiredvCpus")
    if least < 0 or most < 1:
        refuse("minvCpus must be 0 or more, maxvCpus 1 or more")
    if least > most:
        refuse(f"minvCpus ({least}) must not be greater than maxvCpus ({most})")
    if desired is not None and not least <= desired <= most:
        refuse(f"desiredvCpus ({desired}) must be between minvCpus and maxvCpus")
    if not resources.get("subnets"):
        refuse("subnets must be provided in computeResources: at least 1 subnet")
    if not resources.get("securityGroupIds") and not resources.get("launchTemplate"):
        refuse("securityGroupIds must be provided in computeResources: at least 1 security group")
    if kind in ("EC2", "SPOT"):
        _check_instances(resources)


def _check_instances(resources: Mapping[str, Any]) -> None:
    if not resources.get("instanceRole"):
        refuse("Error executing request, Exception : Instance role is required.")
    best_fit = resources.get("allocationStrategy", "BEST_FIT") == "BEST_FIT"
    if resources["type"] == "SPOT" and best_fit and not resources.get("spotIamFleetRole"):
        refuse(
            "spotIamFleetRole is required for SPOT with the allocation strategy BEST_FIT; "
            "or set allocationStrategy to SPOT_PRICE_CAPACITY_OPTIMIZED"
        )


def check_state(params: Mapping[str, Any]) -> None:
    """The state of a compute environment or queue, where one is given."""
    state = params.get("state", "ENABLED")
    if state not in ("ENABLED", "DISABLED"):
        refuse(f"state {state} must be one of ENABLED | DISABLED")


def check_queue(params: Mapping[str, Any]) -> None:
    """CreateJobQueue and UpdateJobQueue, without what it refers to."""
    check_state(params)
    check_tags(params.get("tags") or {})
    if params.get("schedulingPolicyArn"):
        refuse("fair-share scheduling policies are not in the local cloud yet")
    if params.get("serviceEnvironmentOrder"):
        refuse("service environments are not in the local cloud yet")
    if params.get("jobStateTimeLimitActions"):
        refuse("jobStateTimeLimitActions are not in the local cloud yet")
    priority = params.get("priority", 0)
    if priority < 0:
        refuse(f"priority ({priority}) must be 0 or more")
    order = params.get("computeEnvironmentOrder")
    if order is not None and not 1 <= len(order) <= 3:
        refuse("computeEnvironmentOrder must name 1 to 3 compute environments")


def check_definition(params: Mapping[str, Any], limits: Limits) -> None:
    """RegisterJobDefinition."""
    check_name(required(params, "jobDefinitionName"), "jobDefinitionName")
    kind = required(params, "type")
    if kind not in ("container", "multinode"):
        refuse(f"type {kind} must be one of container | multinode")
    multinode = kind == "multinode"
    if bool(params.get("nodeProperties")) != multinode:
        refuse("nodeProperties are for type multinode, and type multinode needs them")
    for key in ("ecsProperties", "eksProperties", "consumableResourceProperties"):
        if params.get(key):
            refuse(f"{key} is not in the local cloud yet; use containerProperties")
    check_tags(params.get("tags") or {})
    if multinode:
        _check_nodes(params)
    else:
        _check_container(required(params, "containerProperties"), _is_fargate(params))
    check_retries(params.get("retryStrategy"))
    check_timeout(params.get("timeout"), limits)
    size = len(compact(params).encode())
    if size > DEFINITION_LIMIT_BYTES:
        refuse(f"Job definition size must be less than 24 KiB, got {_kib(size)} KiB")


def _check_nodes(params: Mapping[str, Any]) -> None:
    if _is_fargate(params):
        refuse("multi-node parallel jobs are not supported on Fargate")
    if params.get("containerProperties"):
        refuse("containerProperties are for type container; use nodeProperties")
    properties = params["nodeProperties"]
    count, main = required(properties, "numNodes"), properties.get("mainNode")
    ranges = required(properties, "nodeRangeProperties")
    if not 1 <= count <= NODES_LIMIT:
        refuse(f"numNodes ({count}) must be between 1 and {NODES_LIMIT}")
    if main is None or not 0 <= main < count:
        refuse(f"mainNode ({main}) must be between 0 and numNodes - 1 ({count - 1})")
    if len(ranges) > NODE_RANGES_LIMIT:
        refuse(f"{len(ranges)} node ranges, at most {NODE_RANGES_LIMIT} are possible")
    for one in ranges:
        if one.get("ecsProperties") or one.get("eksProperties"):
            refuse("ecsProperties of a node range are not in the local cloud yet; use container")
        _check_container(required(one, "container"), False)
    if set(range(count)) - {i for one in ranges for i in nodes_in(one["targetNodes"], count)}:
        refuse(f"nodeRangeProperties: the ranges must account for all nodes (0:{count - 1})")


def nodes_in(text: str, count: int) -> range:
    """The indexes that `0:3`, `1:`, `:2` or `4` mean of `count` nodes."""
    match = re.fullmatch(r"(\d*)(:?)(\d*)", text)
    if not match or not text or (match[1] == "" and match[2] == ""):
        refuse(f"targetNodes `{text}` must be a range such as 0:3, 1: or 2")
    first = int(match[1] or 0)
    last = int(match[3]) if match[3] else count - 1 if match[2] else first
    if last < first or last >= count:
        refuse(f"targetNodes `{text}`: its nodes must be between 0 and {count - 1}")
    return range(first, last + 1)


def resized(properties: Mapping[str, Any], overrides: Mapping[str, Any]) -> int:
    """How many nodes a job has, as its definition or submission says."""
    wanted = overrides.get("numNodes")
    if wanted is None:
        return int(properties["numNodes"])
    ends = [one["targetNodes"] for one in properties["nodeRangeProperties"]]
    if not any(end.endswith(":") for end in ends):
        refuse("nodeOverrides: numNodes needs a node range with an open upper boundary (`0:`)")
    lower = max(int(end.partition(":")[0] or 0) for end in ends)
    if wanted <= lower or wanted <= properties["mainNode"] or wanted > NODES_LIMIT:
        refuse(
            f"nodeOverrides: numNodes ({wanted}) must be greater than the main node's index and "
            f"each range's lower boundary ({lower}), and at most {NODES_LIMIT}"
        )
    return int(wanted)


def node_containers(
    definition: Mapping[str, Any], overrides: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The containers of a job's nodes, by index; a nested range overrides the wider one."""
    properties = definition["nodeProperties"]
    count = resized(properties, overrides)
    found: dict[int, Mapping[str, Any]] = {}
    sized = [(nodes_in(r["targetNodes"], count), r) for r in properties["nodeRangeProperties"]]
    for indexes, one in sorted(sized, key=lambda pair: -len(pair[0])):
        found |= dict.fromkeys(indexes, one["container"])
    if len(found) < count:
        refuse(f"nodeRangeProperties: the ranges must account for all nodes (0:{count - 1})")
    for one in overrides.get("nodePropertyOverrides") or ():
        for index in nodes_in(one["targetNodes"], count):
            base = {"containerProperties": found[index]}
            found[index] = merge(base, one.get("containerOverrides") or {})
    return [dict(found[index]) for index in range(count)]


def _is_fargate(definition: Mapping[str, Any]) -> bool:
    return "FARGATE" in (definition.get("platformCapabilities") or ())


def _check_container(container: Mapping[str, Any], fargate: bool) -> None:
    image = required(container, "image")
    if len(image) > 255:
        refuse(f"image is {len(image)} characters long, at most 255 are possible")
    check_variables(container.get("environment") or ())
    _check_secrets(container)
    check_requirements(container, fargate)
    need = need_of(container)
    if not need.vcpus:
        refuse("container properties must contain the vCPUs (resourceRequirements VCPU)")
    if not need.memory_mib:
        refuse("container properties must contain the memory (resourceRequirements MEMORY)")
    log = container.get("logConfiguration")
    if log and log.get("logDriver") != "awslogs":
        refuse(f"log driver {log.get('logDriver')} is not in the local cloud yet; use awslogs")
    _check_platform(container, fargate)
    for key in _NOT_YET:
        if container.get(key):
            refuse(f"containerProperties: {key} is not in the local cloud yet")


def _check_platform(container: Mapping[str, Any], fargate: bool) -> None:
    linux = {key for key, value in (container.get("linuxParameters") or {}).items() if value}
    if linux - {"sharedMemorySize"}:
        refuse(f"linuxParameters: {sorted(linux)[0]} is not in the local cloud yet")
    if fargate:
        if not container.get("executionRoleArn"):
            refuse("Error executing request, Exception : EXECUTION_ROLE is required for Fargate")
        if linux:
            refuse("linuxParameters: sharedMemorySize is not applicable to Fargate")
        if need_of(container).gpus:
            refuse("GPU is not supported on Fargate")
    for key in ("networkConfiguration", "fargatePlatformConfiguration", "ephemeralStorage"):
        if container.get(key) and not fargate:
            refuse(f"{key} is only applicable to Fargate")


def check_variables(environment: Sequence[Mapping[str, Any]]) -> None:
    """Environment variables of a definition or of overrides."""
    for variable in environment:
        name = variable.get("name") or refuse("an environment variable has no name")
        if name.startswith("AWS_BATCH"):
            refuse(f"environment variable `{name}`: names cannot start with AWS_BATCH")


def _check_secrets(container: Mapping[str, Any]) -> None:
    """The wording is that of ECS (RegisterTaskDefinition), which Batch hands them to."""
    secrets = container.get("secrets") or ()
    names = [secret.get("name") or refuse("a secret has no name") for secret in secrets]
    if secrets and not container.get("executionRoleArn"):
        refuse(
            "When you are specifying container secrets, you must also specify a value for "
            "'executionRoleArn'."
        )
    variables = {variable["name"] for variable in container.get("environment") or ()}
    for name, secret in zip(names, secrets, strict=True):
        required(secret, "valueFrom")
        if name.startswith("AWS_BATCH"):
            refuse(f"secret `{name}`: names cannot start with AWS_BATCH")
        if name in variables or names.count(name) > 1:
            refuse(
                "The secret name must be unique and not shared with any new or existing "
                f"environment variables set on the container, such as '{name}'."
            )


def check_requirements(container: Mapping[str, Any], fargate: bool = False) -> None:
    """`resourceRequirements`, and the deprecated `vcpus` and `memory`."""
    seen: set[str] = set()
    for requirement in container.get("resourceRequirements") or ():
        kind, value = requirement.get("type"), str(requirement.get("value", ""))
        if kind in seen:
            refuse(f"resourceRequirements name {kind} twice")
        seen.add(kind)
        _check_requirement(kind, value, fargate)
    if container.get("vcpus") is not None:
        _check_requirement("VCPU", str(container["vcpus"]), fargate)
    if container.get("memory") is not None:
        _check_requirement("MEMORY", str(container["memory"]), fargate)


def _check_requirement(kind: str, value: str, fargate: bool) -> None:
    least = {"VCPU": 0.25 if fargate else 1, "MEMORY": 4, "GPU": 1}.get(kind)
    if least is None:
        refuse(f"resource requirement {kind} must be one of VCPU | MEMORY | GPU")
    whole = not (fargate and kind == "VCPU")
    if not re.fullmatch(r"\d+" if whole else r"\d+(\.\d+)?", value) or float(value) < least:
        form = "a whole number" if whole else "a number"
        refuse(f"resource requirement {kind} `{value}` must be {form}, {least} or more")


def check_retries(strategy: Mapping[str, Any] | None) -> None:
    """A retry strategy: 1 to 10 attempts, at most 5 rules."""
    if strategy is None:
        return
    attempts, rules = strategy.get("attempts"), strategy.get("evaluateOnExit") or []
    if rules and attempts is None:
        refuse("retryStrategy: attempts must be specified together with evaluateOnExit")
    if attempts is not None and not 1 <= attempts <= 10:
        refuse(f"retryStrategy: attempts ({attempts}) must be between 1 and 10")
    if len(rules) > 5:
        refuse(f"retryStrategy: evaluateOnExit has {len(rules)} rules, at most 5 are possible")
    for rule in rules:
        _check_rule(rule)


def _check_rule(rule: Mapping[str, Any]) -> None:
    if str(rule.get("action")).upper() not in ("RETRY", "EXIT"):
        refuse(f"evaluateOnExit: action {rule.get('action')} must be one of RETRY | EXIT")
    patterns = {
        key: rule[key] for key in ("onExitCode", "onReason", "onStatusReason") if key in rule
    }
    if not patterns:
        refuse("evaluateOnExit: a rule needs onExitCode, onReason or onStatusReason")
    for key, pattern in patterns.items():
        allowed = r"\d*\*?" if key == "onExitCode" else r"[^*]*\*?"
        if not 1 <= len(pattern) <= 512 or not re.fullmatch(allowed, pattern):
            refuse(f"evaluateOnExit: {key} `{pattern}` may have a `*` at its end only")


def check_timeout(timeout: Mapping[str, Any] | None, limits: Limits) -> None:
    """A job timeout of at least 60 seconds."""
    seconds = (timeout or {}).get("attemptDurationSeconds")
    if seconds is not None and seconds < limits.min_timeout_s:
        refuse(
            f"timeout: attemptDurationSeconds ({seconds}) must be at least "
            f"{limits.min_timeout_s:g} seconds"
        )


def check_submission(params: Mapping[str, Any], limits: Limits) -> None:
    """SubmitJob, without what it refers to."""
    name = required(params, "jobName")
    if not _JOB_NAME.fullmatch(name):
        refuse(
            f"jobName `{name}` must be 1 to 128 letters, digits, hyphens and underscores and "
            "begin with a letter or digit"
        )
    size = (params.get("arrayProperties") or {}).get("size")
    if size is not None and not ARRAY_SIZES[0] <= size <= ARRAY_SIZES[1]:
        refuse(f"arrayProperties: size ({size}) must be between 2 and 10,000")
    nodes = params.get("nodeOverrides") or {}
    if nodes and (size is not None or params.get("containerOverrides")):
        refuse("nodeOverrides cannot be used with arrayProperties or containerOverrides")
    for one in nodes.get("nodePropertyOverrides") or ():
        if one.get("ecsPropertiesOverride") or one.get("instanceTypes"):
            refuse("of nodePropertyOverrides the local cloud has containerOverrides only, yet")
        check_variables((one.get("containerOverrides") or {}).get("environment") or ())
    for key in ("eksPropertiesOverride", "ecsPropertiesOverride", "shareIdentifier"):
        if params.get(key):
            refuse(f"{key} is not in the local cloud yet")
    _check_dependencies(params.get("dependsOn") or ())
    check_tags(params.get("tags") or {})
    check_retries(params.get("retryStrategy"))
    check_timeout(params.get("timeout"), limits)
    overrides = params.get("containerOverrides") or {}
    check_variables(overrides.get("environment") or ())
    if "" in (overrides.get("command") or ()):
        refuse("containerOverrides: command cannot contain an empty string")
    size = len(compact(params).encode())
    if size > SUBMIT_LIMIT_BYTES:
        refuse(
            "Error executing request, Exception : Job size must be less than 30 KiB, "
            f"got {_kib(size)} KiB, RequestId: {uuid.uuid4()}"
        )


def _check_dependencies(dependencies: Sequence[Mapping[str, Any]]) -> None:
    if len(dependencies) > 20:
        refuse(f"dependsOn names {len(dependencies)} jobs: a job can depend upon up to 20 jobs")
    for dependency in dependencies:
        kind = dependency.get("type")
        if kind not in (None, "N_TO_N", "SEQUENTIAL"):
            refuse(f"dependsOn: type {kind} must be one of N_TO_N | SEQUENTIAL")
        if kind != "SEQUENTIAL":
            required(dependency, "jobId")
        elif dependency.get("jobId"):
            refuse("dependsOn: SEQUENTIAL is about the array's own children; leave out jobId")


def need_of(container: Mapping[str, Any]) -> Need:
    """What a container asks for; 0 where it says nothing. `resourceRequirements` wins."""
    asked = {r["type"]: r["value"] for r in container.get("resourceRequirements") or ()}
    return Need(
        vcpus=float(asked.get("VCPU") or container.get("vcpus") or 0),
        memory_mib=int(asked.get("MEMORY") or container.get("memory") or 0),
        gpus=int(asked.get("GPU") or 0),
    )


def merge(definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The container of a job: the definition's properties under the submission's overrides.

    The deprecated `vcpus` and `memory` of an override do not override resourceRequirements of the
    definition (API reference, ContainerOverrides).
    """
    container = {**definition["containerProperties"]}
    check_requirements(overrides, _is_fargate(definition))
    if overrides.get("command"):
        container["command"] = overrides["command"]
    container["environment"] = _by_key("name", container, overrides, "environment")
    for key in ("vcpus", "memory"):
        if overrides.get(key) is not None and container.get(key) is not None:
            container[key] = overrides[key]
    container["resourceRequirements"] = _by_key(
        "type", container, overrides, "resourceRequirements"
    )
    return container


def _by_key(
    key: str, base: Mapping[str, Any], over: Mapping[str, Any], member: str
) -> list[dict[str, Any]]:
    entries = [*(base.get(member) or ()), *(over.get(member) or ())]
    return list({entry[key]: dict(entry) for entry in entries}.values())


def overrides_length(overrides: Mapping[str, Any], variables: Mapping[str, str]) -> int:
    """Characters of the ECS task overrides that Batch makes of a job's overrides.

    Batch adds its own variables, so less than the limit is left to the user.
    """
    entries = [
        *(overrides.get("environment") or ()),
        *({"name": name, "value": value} for name, value in variables.items()),
    ]
    container = {**overrides, "environment": entries, "name": "default"}
    return len(compact({"containerOverrides": [container]}))


def compact(value: object) -> str:
    """JSON as it travels: no spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def _kib(size: int) -> int:
    return -(-size // 1024)
