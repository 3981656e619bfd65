"""AWS's errors as ours: the one place where botocore's exceptions are caught."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scar.errors import CloudError, UserError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

ABSENT = frozenset(
    {
        "ResourceNotFoundException",
        "RepositoryNotFoundException",
        "ImageNotFoundException",
        "NoSuchBucket",
        "NoSuchKey",
        "NoSuchEntity",
        "404",
        "NotFound",
        "NotFoundException",
    }
)
"""Codes that say: there is no such thing."""

DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
"""Codes that say: the caller may not do that."""


@contextmanager
def speaking_to(service: str) -> Iterator[None]:
    """Turn what botocore raises into CloudError, or UserError where the set-up is wrong."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from s3transfer.exceptions import RetriesExceededError

    try:
        yield
    except boto.ClientError as exc:
        raise _refused(service, exc) from exc
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as exc:
        hint = "run `aws configure`, or try without an account: `scar --local`"
        raise UserError("no AWS credentials found", hint) from exc
    except boto.ProfileNotFound as exc:
        raise UserError(str(exc), "list the profiles with `aws configure list-profiles`") from exc
    except boto.WaiterError as exc:
        raise CloudError(service, exc.kwargs["name"], "NotReady", _waited(exc)) from exc
    except boto.EndpointConnectionError as exc:
        where = exc.kwargs["endpoint_url"]
        hint = "is the network up? for the local cloud see `scar local status`"
        raise CloudError(
            service, "connect", "Unreachable", f"{where} does not answer", hint
        ) from exc
    except ResponseParserError as exc:
        text = f"what answers is not AWS: {' '.join(str(exc).split())[:200]}"
        hint = "is there a proxy between, or a network that asks for a login?"
        raise CloudError(service, "call", "NotUnderstood", text, hint) from exc
    except (boto.BotoCoreError, Boto3Error, RetriesExceededError) as exc:
        code, operation = type(exc).__name__, "call"
        raise CloudError(service, operation, code, " ".join(str(exc).split())) from exc


def is_absent(error: CloudError) -> bool:
    """Whether AWS says that the thing asked for does not exist."""
    return error.code in ABSENT


def is_denied(error: CloudError) -> bool:
    """Whether the caller may not do what was asked."""
    return error.code in DENIED


def _refused(service: str, exc: ClientError) -> CloudError:
    error: Any = exc.response.get("Error", {})
    hint = ""
    if error.get("Code") in DENIED:
        hint = "the credentials in use lack this permission"
    elif error.get("Code") in ("ExpiredToken", "ExpiredTokenException"):
        hint = "log in again: the credentials in use have expired"
    return CloudError(
        service, exc.operation_name, error.get("Code", "?"), error.get("Message", ""), hint
    )


def _waited(exc: Any) -> str:
    """Why a waiter gave up, in AWS's own words where it has some."""
    last = exc.last_response or {}
    configuration = last.get("Configuration", last)
    reason = configuration.get("StateReason") or configuration.get("LastUpdateStatusReason")
    return str(reason or exc.kwargs["reason"])
