"""S3: buckets and their triggers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote_plus, unquote_plus

from scar.aws.account import Account
from scar.aws.errors import is_absent, speaking_to
from scar.aws.waiting import retrying
from scar.errors import CloudError
from scar.plan.resources import Bucket, BucketTrigger

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import LambdaFunctionConfigurationTypeDef

_CREATED: Literal["s3:ObjectCreated:*"] = "s3:ObjectCreated:*"


class Buckets:
    """Handler of `Bucket`."""

    def __init__(self, account: Account) -> None:
        self._client, self._region = account.client("s3"), account.region

    def read(self, name: str) -> Bucket | None:
        """The bucket, or None. Raises CloudError where it is somebody else's."""
        try:
            with speaking_to("s3"):
                self._client.head_bucket(Bucket=name)
        except CloudError as exc:
            if is_absent(exc):
                return None
            if exc.code in ("403", "Forbidden"):
                raise CloudError(
                    "s3", "HeadBucket", exc.code, f"bucket `{name}` is not yours",
                    "bucket names are shared by all of AWS: choose another",
                ) from exc  # fmt: skip
            raise
        return Bucket(name)

    def create(self, wanted: Bucket) -> None:
        """Create the bucket in the account's region; ours already is as good."""
        where: Any = {}
        if self._region != "us-east-1":
            where = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        try:
            with speaking_to("s3"):
                self._client.create_bucket(Bucket=wanted.name, **where)
        except CloudError as exc:
            if exc.code != "BucketAlreadyOwnedByYou":
                raise

    def update(self, wanted: Bucket, found: Bucket) -> None:
        """Nothing: a bucket is its name."""

    def delete(self, found: Bucket) -> None:
        """Delete the bucket, which must be empty. No plan of ours does."""
        with speaking_to("s3"):
            self._client.delete_bucket(Bucket=found.name)


class BucketTriggers:
    """Handler of `BucketTrigger`.

    A bucket has one document for all its notifications: ours are read, changed and written back
    among everybody else's. Ours are known by id and function.
    """

    def __init__(self, account: Account) -> None:
        self._account, self._client = account, account.client("s3")

    def read(self, name: str) -> BucketTrigger | None:
        """Our notifications of one bucket for one function, or None."""
        bucket, _, function = name.partition("/")
        try:
            document = self._document(bucket)
        except CloudError as exc:
            if is_absent(exc):
                return None
            raise
        ours = [entry for entry in _entries(document) if _is_ours(entry, function)]
        if not ours:
            return None
        ours.sort(key=lambda entry: _number(entry.get("Id", "")))
        return BucketTrigger(
            name=name,
            bucket=bucket,
            function=function,
            function_arn=ours[0]["LambdaFunctionArn"],
            paths=tuple(map(_path, ours)),
        )

    def create(self, wanted: BucketTrigger) -> None:
        """Add our notifications."""
        ours = [_entry(wanted, n) for n in range(len(wanted.paths))]

        def write() -> None:
            self._write(wanted.bucket, wanted.function, ours)

        # S3 tests the permission at once, which may not have reached it yet.
        retrying(write, _permission_is_too_new, 30)

    def update(self, wanted: BucketTrigger, found: BucketTrigger) -> None:
        """Replace our notifications."""
        self.create(wanted)

    def delete(self, found: BucketTrigger) -> None:
        """Remove our notifications."""
        try:
            self._write(found.bucket, found.function, [])
        except CloudError as exc:
            if not is_absent(exc):
                raise

    def _document(self, bucket: str) -> dict[str, Any]:
        with speaking_to("s3"):
            answer = self._client.get_bucket_notification_configuration(Bucket=bucket)
        document: dict[str, Any] = dict(answer)
        document.pop("ResponseMetadata")
        return document

    def _write(self, bucket: str, function: str, ours: Sequence[Any]) -> None:
        # S3 has no condition for this write: two at once, and the first one's entry is lost.
        with self._account.exclusive(f"notifications of {bucket}"):
            document = self._document(bucket)
            others = [entry for entry in _entries(document) if not _is_ours(entry, function)]
            document["LambdaFunctionConfigurations"] = [*others, *ours]
            changed: Any = document
            with speaking_to("s3"):
                self._client.put_bucket_notification_configuration(
                    Bucket=bucket, NotificationConfiguration=changed
                )


def _entries(document: dict[str, Any]) -> list[LambdaFunctionConfigurationTypeDef]:
    entries: list[LambdaFunctionConfigurationTypeDef] = document.get(
        "LambdaFunctionConfigurations", []
    )
    return entries


def _entry(trigger: BucketTrigger, n: int) -> LambdaFunctionConfigurationTypeDef:
    prefix, suffix = trigger.paths[n]
    # Special characters of a filter must be URL-encoded, or it matches nothing (S3 user guide,
    # "Configuring event notifications using object key name filtering"; aws/aws-cdk#28012).
    rules: Any = [
        {"Name": name, "Value": quote_plus(value, safe="/")}
        for name, value in (("prefix", prefix), ("suffix", suffix))
        if value
    ]
    entry: LambdaFunctionConfigurationTypeDef = {
        "Id": _id(trigger.function, n),
        "LambdaFunctionArn": trigger.function_arn,
        "Events": [_CREATED],
    }
    if rules:
        entry["Filter"] = {"Key": {"FilterRules": rules}}
    return entry


def _id(function: str, n: int) -> str:
    """`scar-<function>`, then `scar-<function>.2`, …: a dot is in no function's name."""
    return f"scar-{function}" if n == 0 else f"scar-{function}.{n + 1}"


def _number(entry_id: str) -> int:
    number = entry_id.rpartition(".")[2]
    return int(number) if number.isdigit() else 1


def _is_ours(entry: LambdaFunctionConfigurationTypeDef, function: str) -> bool:
    name, _, number = entry.get("Id", "").partition(".")
    return (
        name == f"scar-{function}"
        and (not number or number.isdigit())
        and entry["LambdaFunctionArn"].endswith(f":function:{function}")
    )


def _path(entry: LambdaFunctionConfigurationTypeDef) -> tuple[str, str]:
    its: Any = entry
    rules = its.get("Filter", {}).get("Key", {}).get("FilterRules", [])
    by_name = {rule.get("Name", "").lower(): unquote_plus(rule.get("Value", "")) for rule in rules}
    return by_name.get("prefix", ""), by_name.get("suffix", "")


def _permission_is_too_new(error: CloudError) -> bool:
    return error.code == "InvalidArgument" and "validate the following destination" in str(error)
