"""scar.cfg of older versions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scar.fdl.source import modern

_WRITTEN_BY_THE_REFERENCE: Mapping[str, Any] = {
    "lambda": {
        "runtime": "python3.7",
        "layers": [],
        "invocation_type": "RequestResponse",
        "log_type": "Tail",
        "environment": {
            "Variables": {
                "UDOCKER_BIN": "/opt/udocker/bin/",
                "UDOCKER_LIB": "/opt/udocker/lib/",
                "UDOCKER_DIR": "/tmp/shared/udocker",  # noqa: S108  # a value to recognise
                "UDOCKER_EXEC": "/opt/udocker/udocker.py",
            }
        },
        "deployment": {"max_payload_size": 52428800, "max_s3_payload_size": 262144000},
        "supervisor": {
            "version": "latest",
            "layer_name": "faas-supervisor",
            "license_info": "Apache 2.0",
        },
    },
    "s3": {
        "boto_profile": "default",
        "region": "us-east-1",
        "event": {
            "Records": [
                {
                    "eventSource": "aws:s3",
                    "s3": {
                        "bucket": {"name": "{bucket_name}", "arn": "arn:aws:s3:::{bucket_name}"},
                        "object": {"key": "{file_key}"},
                    },
                }
            ]
        },
    },
    "batch": {
        "compute_resources": {
            "instance_types": ["m3.medium"],
            "max_v_cpus": 2,
            "launch_template_name": "faas-supervisor",
        },
        "service_role": "arn:aws:iam::{account_id}:role/service-role/AWSBatchServiceRole",
    },
}
"""Defaults that the reference copied into every scar.cfg, of keys that mean nothing here or whose
default is another one here."""


def migrate(data: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The content of a scar.cfg of the reference implementation (1.x) as `version` has it.

    Every value that its user chose stays, unknown ones too. What goes is what the reference wrote
    by itself and this version has no use for, or has a better default for.
    """
    result: dict[str, Any] = {**data, "scar": {**data["scar"], "config_version": version}}
    result["scar"].setdefault("target", "aws")
    if isinstance(data.get("aws"), Mapping):
        result["aws"] = _without_leftovers(modern(data["aws"]), _WRITTEN_BY_THE_REFERENCE)
    return result


def _without_leftovers(data: Mapping[str, Any], leftovers: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in data.items():
        left = leftovers.get(key)
        if isinstance(value, Mapping) and isinstance(left, Mapping):
            value = _without_leftovers(value, left)
            if not value and data[key]:
                continue
        elif key in leftovers and value == left:
            continue
        result[key] = value
    return result
