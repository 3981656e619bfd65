"""What a request's conditions and ranges mean: If-Match and its kin, Range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from scar_local.s3.call import S3Error
from scar_local.s3.state import StoredObject


def check_write_conditions(headers: Mapping[str, str], old: StoredObject | None) -> None:
    """Raises S3Error when If-Match or If-None-Match does not let this write happen."""
    none_match, match = headers.get("if-none-match"), headers.get("if-match")
    if none_match is not None:
        if none_match.strip() != "*":
            raise S3Error(
                "NotImplemented",
                "A header you provided implies functionality that is not implemented",
                501,
                Header="If-None-Match",
            )
        if old:
            raise precondition_failed("If-None-Match")
    if match is not None:
        if old is None:
            raise S3Error("NoSuchKey", "The specified key does not exist.", 404)
        if not _etag_in(match, old.etag):
            raise precondition_failed("If-Match")


def check_read_conditions(headers: Mapping[str, str], found: StoredObject) -> int:
    """200 or 304. Raises S3Error PreconditionFailed. RFC 9110 section 13.2.2 gives the order."""
    if (match := headers.get("if-match")) is not None:
        if not _etag_in(match, found.etag):
            raise precondition_failed("If-Match")
    elif (since := _date(headers.get("if-unmodified-since"))) is not None and (
        found.modified > since
    ):
        raise precondition_failed("If-Unmodified-Since")
    if (none_match := headers.get("if-none-match")) is not None:
        return 304 if _etag_in(none_match, found.etag) else 200
    since = _date(headers.get("if-modified-since"))
    return 304 if since is not None and found.modified <= since else 200


def _etag_in(header: str, etag: str) -> bool:
    given = {part.strip().removeprefix("W/").strip('"') for part in header.split(",")}
    return bool(given & {"*", etag})


def precondition_failed(condition: str) -> S3Error:
    """The error for a condition that does not hold."""
    return S3Error(
        "PreconditionFailed",
        "At least one of the pre-conditions you specified did not hold",
        412,
        Condition=condition,
    )


def _date(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None  # RFC 9110: a date that cannot be read is as if it were not there


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """(first byte, count) of a Range header; None for the whole object, also when it is no range.

    Raises S3Error InvalidRange for a range beyond the end.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.replace(" ", ""), re.ASCII)
    if match is None or match.groups() == ("", ""):
        return None
    first_text, last_text = match.groups()
    if not first_text:
        count = min(int(last_text), size)
        first = size - count
    else:
        first = int(first_text)
        last = int(last_text) if last_text else size - 1
        if last_text and last < first:
            return None
        count = min(last, size - 1) - first + 1
    if count <= 0:
        raise S3Error(
            "InvalidRange",
            "The requested range is not satisfiable",
            416,
            RangeRequested=header,
            ActualObjectSize=size,
        )
    return first, count
