"""What Lambda accepts as a function, and what of it the local cloud can run. Pure.

Bounds: https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html, botocore's model.
VpcConfig, TracingConfig and EphemeralStorage are kept and shown but do nothing here; whatever else
the local cloud cannot do is refused by name.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from typing import Any

from scar_local.protocol import ACCOUNT_ID, ApiError

SYNC_PAYLOAD_BYTES = 6_291_456
ASYNC_PAYLOAD_BYTES = 1_048_576
ENVIRONMENT_BYTES = 4096

_NAME = re.compile(
    r"(?:arn:aws[a-zA-Z-]*:lambda:)?(?:(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d):)?(?:(?P<account>\d{12}):)?"
    r"(?:function:)?(?P<name>[a-zA-Z0-9-_]+)(?::(?P<qualifier>\$LATEST|[a-zA-Z0-9-_]+))?"
)
_ROLE = re.compile(r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
_VARIABLE = re.compile(r"[a-zA-Z][a-zA-Z0-9_]+")
_NUMBERS = {
    "MemorySize": (128, 10_240),
    "Timeout": (1, 900),
}
_RESERVED = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
    }
)
"""https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html, reserved variables."""

_CONFIGURATION = (
    "Role",
    "Description",
    "Timeout",
    "MemorySize",
    "VpcConfig",
    "Environment",
    "EphemeralStorage",
    "ImageConfig",
    "LoggingConfig",
    "TracingConfig",
)
_ELSEWHERE = ("FunctionName", "PackageType", "Code", "Tags", "Architectures", "RevisionId")


def split_name(given: str, qualifier: str | None, region: str) -> tuple[str, str]:
    """The function's name, and the ARN under which it was asked for.

    `given` is a name, a partial ARN or an ARN. Raises ApiError where it is none, or names another
    version than $LATEST, since the local cloud keeps no versions.
    """
    match = _NAME.fullmatch(given)
    if match is None or len(match["name"]) > 64:
        raise _refused(
            "functionName",
            given,
            "be a function's name of at most 64 letters, digits, - and _, or its ARN",
        )
    region = match["region"] or region
    arn = function_arn(region, match["name"])
    wanted = qualifier or match["qualifier"] or "$LATEST"
    if wanted != "$LATEST":
        raise not_found(f"{arn}:{wanted}")
    return match["name"], arn


def bare_name(given: str) -> str:
    """The name in a function's name, partial ARN or ARN."""
    return given.rpartition("function:")[2].partition(":")[0]


def function_arn(region: str, name: str) -> str:
    """The ARN of a function of this account."""
    return f"arn:aws:lambda:{region}:{ACCOUNT_ID}:function:{name}"


def not_found(arn: str) -> ApiError:
    """The error for a function that does not exist, as Lambda words it."""
    return ApiError("ResourceNotFoundException", f"Function not found: {arn}", 404)


def check_image(code: Mapping[str, Any], package_type: str | None = "Image") -> str:
    """The image URI of `Code` (or of UpdateFunctionCode). Raises ApiError where there is none."""
    if package_type != "Image" or not code.get("ImageUri"):
        raise invalid(
            "the local cloud runs images: give PackageType=Image and an ImageUri"
            " (functions from Zip files are not in the local cloud)"
        )
    return str(code["ImageUri"])


def check_architectures(wanted: list[str] | None) -> list[str]:
    """The architecture that the function runs on: this machine's. Raises ApiError for another."""
    here = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}.get(
        platform.machine().lower(), platform.machine()
    )
    if wanted and wanted != [here]:
        raise invalid(
            f"this machine is {here} and cannot run {', '.join(wanted)}:"
            f" give Architectures=[{here}]"
        )
    return [here]


def check_configuration(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a function's configuration that were given, in bounds.

    Raises ApiError for the first that Lambda or the local cloud refuses.
    """
    _refuse_unknown(params)
    given = {key: params[key] for key in _CONFIGURATION if key in params}
    for key, (low, high) in _NUMBERS.items():
        _check_number(key, given.get(key), low, high)
    _check_number(
        "EphemeralStorage.Size", given.get("EphemeralStorage", {}).get("Size"), 512, 10_240
    )
    if "Role" in given and not _ROLE.fullmatch(given["Role"]):
        raise _refused("role", given["Role"], f"match {_ROLE.pattern}")
    if len(given.get("Description", "")) > 256:
        raise _refused("description", given["Description"], "have at most 256 characters")
    _check_variables(given.get("Environment", {}).get("Variables", {}))
    _check_image_config(given.get("ImageConfig", {}))
    _check_logging(given.get("LoggingConfig", {}))
    return given


def check_payload(payload: bytes, invocation_type: str) -> bytes:
    """The event of an invocation. Raises ApiError when it is too large or no JSON."""
    limit = ASYNC_PAYLOAD_BYTES if invocation_type == "Event" else SYNC_PAYLOAD_BYTES
    if len(payload) > limit:
        raise ApiError(
            "RequestEntityTooLargeException",
            f"{len(payload)} byte payload is too large for the {invocation_type} invocation type"
            f" (limit {limit} bytes)",
            413,
        )
    if not payload:
        return b"{}"
    try:
        json.loads(payload)
    except (ValueError, RecursionError) as exc:
        text = f"Could not parse request body into json: {exc}"
        raise ApiError("InvalidRequestContentException", text, 400) from exc
    return payload


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags within Lambda's bounds: 50 of them, keys up to 128 characters, values up to 256."""
    if len(tags) > 50:
        raise invalid(f"a function has at most 50 tags, not {len(tags)}")
    for key, value in tags.items():
        if not 1 <= len(key) <= 128 or len(value) > 256:
            raise invalid(f"tag {key!r}: keys have 1 to 128 characters, values at most 256")
    return dict(tags)


def invalid(message: str) -> ApiError:
    """A value that Lambda refuses."""
    return ApiError("InvalidParameterValueException", message, 400)


def _refused(member: str, value: str, constraint: str) -> ApiError:
    text = (
        f"1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint:"
        f" Member must {constraint}"
    )
    return ApiError("ValidationException", text, 400)


def _refuse_unknown(params: Mapping[str, Any]) -> None:
    for key, value in params.items():
        known = key in _CONFIGURATION or key in _ELSEWHERE
        harmless = not value or value in (
            {"ApplyOn": "None"},
            {"TargetArn": ""},
        )
        if not known and not harmless:
            raise invalid(f"{key} is not in the local cloud: leave it out")


def _check_number(member: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        side, bound = ("less", high) if value > high else ("greater", low)
        raise invalid(
            f"'{member}' value failed to satisfy constraint: Member must have value {side} than or"
            f" equal to {bound}"
        )


def _check_variables(variables: Mapping[str, str]) -> None:
    for name in variables:
        if not _VARIABLE.fullmatch(name):
            raise _refused("environment.variables", name, f"match {_VARIABLE.pattern}")
    cannot = "Lambda was unable to configure your environment variables because the environment"
    reserved = sorted(_RESERVED & set(variables))
    if reserved:
        raise invalid(
            f"{cannot} variables you have provided contains reserved keys that are currently not"
            " supported for modification. Reserved keys used in this request: "
            + ", ".join(reserved)
        )
    measured = json.dumps(variables, separators=(",", ":"), ensure_ascii=False)
    if len(measured.encode()) > ENVIRONMENT_BYTES:
        raise invalid(
            f"{cannot} variables you have provided exceeded the 4KB limit."
            f" String measured: {measured}"
        )


def _check_image_config(config: Mapping[str, Any]) -> None:
    for key in ("EntryPoint", "WorkingDirectory"):
        if config.get(key):
            raise invalid(
                f"ImageConfig.{key} is not in the local cloud, which uses the image's own:"
                " leave it out"
            )


def _check_logging(config: Mapping[str, Any]) -> None:
    if config.get("LogFormat", "Text") != "Text":
        raise invalid("LoggingConfig.LogFormat: the local cloud writes Text only")
