"""S3: buckets and their triggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote_plus, unquote_plus

from scar.aws.account import Account
from scar.aws.errors import is_absent, speaking_to
from scar.aws.waiting import retrying
from scar.errors import CloudError
from scar.plan.resources import Bucket, BucketSetup, BucketTrigger, LifecycleRule

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import (
        LambdaFunctionConfigurationTypeDef,
        LifecycleRuleTypeDef,
        PublicAccessBlockConfigurationTypeDef,
    )

_CREATED: Literal["s3:ObjectCreated:*"] = "s3:ObjectCreated:*"
_OUR_RULES = "scar-state-"
_BLOCKED: PublicAccessBlockConfigurationTypeDef = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}


class Buckets:
    """Handler of `Bucket`."""

    def __init__(self, account: Account) -> None:
        self._account = account
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
        """Create the bucket in the account's region; ours already is as good.

        Its objects are encrypted and private: S3 does so for every new bucket (since April 2023);
        of the default deployment bucket it is said once more, here and by `BucketSetups`.
        """
        where: Any = {}
        if self._region != "us-east-1":
            where = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        try:
            with speaking_to("s3"):
                self._client.create_bucket(Bucket=wanted.name, **where)
        except CloudError as exc:
            if exc.code != "BucketAlreadyOwnedByYou":
                raise
            return
        if wanted.name == self._account.facts().default_bucket:
            retrying(lambda: self._encrypt(wanted.name), _is_being_changed, 30)

    def update(self, wanted: Bucket, found: Bucket) -> None:
        """Nothing: a bucket is its name."""

    def delete(self, found: Bucket) -> None:
        """Delete the bucket, which must be empty. No plan of ours does."""
        with speaking_to("s3"):
            self._client.delete_bucket(Bucket=found.name)

    def _encrypt(self, name: str) -> None:
        default: Any = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
        with speaking_to("s3"):
            self._client.put_bucket_encryption(
                Bucket=name, ServerSideEncryptionConfiguration={"Rules": [default]}
            )


class BucketSetups:
    """Handler of `BucketSetup`.

    A bucket has one document for all its lifecycle rules: ours, known by id, are read, changed and
    written back among everybody else's. Block Public Access is put on the default bucket alone.
    """

    def __init__(self, account: Account) -> None:
        self._account, self._client = account, account.client("s3")

    def read(self, name: str) -> BucketSetup | None:
        """What is there of our settings; None where there is nothing, or no bucket."""
        try:
            document = self._lifecycle(name)
            is_private = not self._is_default(name) or self._blocks_public_access(name)
        except CloudError as exc:
            if is_absent(exc):
                return None
            raise
        ours = {
            entry["ID"]: rule
            for entry in document["Rules"]
            if _is_our_rule(entry) and (rule := _rule(entry))
        }
        return BucketSetup(name, ours, is_private) if ours else None

    def create(self, wanted: BucketSetup) -> None:
        """Add our settings."""

        def write() -> None:
            if self._is_default(wanted.name):
                with speaking_to("s3"):
                    self._client.put_public_access_block(
                        Bucket=wanted.name, PublicAccessBlockConfiguration=_BLOCKED
                    )
            self._write(wanted.name, wanted.rules)

        retrying(write, _is_being_changed, 30)

    def update(self, wanted: BucketSetup, found: BucketSetup) -> None:
        """Replace our settings."""
        self.create(wanted)

    def delete(self, found: BucketSetup) -> None:
        """Remove our lifecycle rules. No plan of ours does: functions share the bucket."""
        try:
            self._write(found.name, {})
        except CloudError as exc:
            if not is_absent(exc):
                raise

    def _is_default(self, name: str) -> bool:
        return name == self._account.facts().default_bucket

    def _lifecycle(self, name: str) -> dict[str, Any]:
        """Parameters to write the document back with."""
        try:
            with speaking_to("s3"):
                answer = self._client.get_bucket_lifecycle_configuration(Bucket=name)
        except CloudError as exc:
            if exc.code == "NoSuchLifecycleConfiguration":
                return {"Rules": []}
            raise
        document: dict[str, Any] = dict(answer)
        document.pop("ResponseMetadata")
        return {"Rules": [], **document}

    def _blocks_public_access(self, name: str) -> bool:
        try:
            with speaking_to("s3"):
                answer = self._client.get_public_access_block(Bucket=name)
        except CloudError as exc:
            if exc.code == "NoSuchPublicAccessBlockConfiguration":
                return False
            raise
        return dict(answer["PublicAccessBlockConfiguration"]) == _BLOCKED

    def _write(self, name: str, rules: Mapping[str, LifecycleRule]) -> None:
        # S3 has no condition for this write: two at once, and the first one's rules are lost.
        with self._account.exclusive(f"lifecycle of {name}"):
            document = self._lifecycle(name)
            others = [entry for entry in document.pop("Rules") if not _is_our_rule(entry)]
            every = [*others, *(_rule_entry(key, rule) for key, rule in rules.items())]
            with speaking_to("s3"):
                if every:
                    self._client.put_bucket_lifecycle_configuration(
                        Bucket=name, LifecycleConfiguration={"Rules": every}, **document
                    )
                else:
                    self._client.delete_bucket_lifecycle(Bucket=name)


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


def _is_being_changed(error: CloudError) -> bool:
    """S3 takes one change of a bucket at a time, its creation included."""
    return error.code == "OperationAborted"


def _is_our_rule(entry: Mapping[str, Any]) -> bool:
    return str(entry.get("ID", "")).startswith(_OUR_RULES)


def _rule_entry(key: str, rule: LifecycleRule) -> LifecycleRuleTypeDef:
    entry: LifecycleRuleTypeDef = {
        "ID": key,
        "Status": "Enabled",
        "Filter": {"Prefix": rule.prefix},
    }
    if rule.expires_days is not None:
        entry["Expiration"] = {"Days": rule.expires_days}
    if rule.aborts_uploads_days is not None:
        entry["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": rule.aborts_uploads_days}
    return entry


def _rule(entry: Mapping[str, Any]) -> LifecycleRule | None:
    """The rule as we would write it; None for one that somebody has changed to be none."""
    if entry["Status"] != "Enabled":
        return None
    return LifecycleRule(
        entry.get("Filter", {}).get("Prefix", ""),
        entry.get("Expiration", {}).get("Days"),
        entry.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation"),
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
