"""S3's calls on buckets: create, list, delete, notification configuration, documents."""

from __future__ import annotations

import json
import re
import sqlite3
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address

from scar_local import events
from scar_local.events import Notification
from scar_local.s3.body import read_document
from scar_local.s3.call import (
    NAMESPACE,
    OWNER_ID,
    Call,
    Element,
    Elements,
    S3Error,
    document,
    integer,
    iso,
    malformed,
    parse_xml,
)
from scar_local.s3.listing import OWNER
from scar_local.s3.multipart import forget_uploads
from scar_local.s3.objects import Writer, no_acls
from scar_local.s3.state import Blobs, find_bucket
from scar_local.store import Store

CanInvoke = Callable[[str, str], bool]
"""(bucket, function ARN): the function exists and its policy lets S3 invoke it for the bucket."""

_US_EAST_1 = "us-east-1"


def _default(name: str, content: Elements) -> bytes:
    return document(name, content, NAMESPACE)


_AES256: Element = ("ApplyServerSideEncryptionByDefault", [("SSEAlgorithm", "AES256")])

NEW_BUCKET = {
    "publicAccessBlock": _default(
        "PublicAccessBlockConfiguration",
        [
            ("BlockPublicAcls", True),
            ("IgnorePublicAcls", True),
            ("BlockPublicPolicy", True),
            ("RestrictPublicBuckets", True),
        ],
    ),
    "ownershipControls": _default(
        "OwnershipControls", [("Rule", [("ObjectOwnership", "BucketOwnerEnforced")])]
    ),
}
"""Documents every bucket is made with, as on S3 since April 2023."""

DEFAULTS = {
    "encryption": _default(
        "ServerSideEncryptionConfiguration",
        [("Rule", [_AES256, ("BucketKeyEnabled", False)])],
    ),
    "versioning": _default("VersioningConfiguration", []),
    "logging": _default("BucketLoggingStatus", []),
    "accelerate": _default("AccelerateConfiguration", []),
    "requestPayment": _default("RequestPaymentConfiguration", [("Payer", "BucketOwner")]),
}
"""What S3 answers where nothing was put."""

ABSENT = {
    "cors": ("NoSuchCORSConfiguration", "The CORS configuration does not exist"),
    "lifecycle": ("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"),
    "object-lock": (
        "ObjectLockConfigurationNotFoundError",
        "Object Lock configuration does not exist for this bucket",
    ),
    "ownershipControls": (
        "OwnershipControlsNotFoundError",
        "The bucket ownership controls were not found",
    ),
    "policy": ("NoSuchBucketPolicy", "The bucket policy does not exist"),
    "publicAccessBlock": (
        "NoSuchPublicAccessBlockConfiguration",
        "The public access block configuration was not found",
    ),
    "replication": (
        "ReplicationConfigurationNotFoundError",
        "The replication configuration was not found",
    ),
    "tagging": ("NoSuchTagSet", "The TagSet does not exist"),
    "website": (
        "NoSuchWebsiteConfiguration",
        "The specified bucket does not have a website configuration",
    ),
}
"""The error where S3 has no answer for nothing."""

KEPT_DOCUMENTS = {
    "cors", "encryption", "lifecycle", "ownershipControls", "policy", "publicAccessBlock",
    "tagging",
}  # fmt: skip
"""Documents that may be put: kept word by word and without effect here."""


@dataclass(frozen=True)
class BucketCalls:
    """The calls. Each answers its exchange or raises S3Error."""

    writer: Writer
    can_invoke: CanInvoke

    @property
    def _store(self) -> Store:
        return self.writer.store

    def list_buckets(self, call: Call) -> None:
        """ListBuckets."""
        most = integer(call.query, "max-buckets", 10000, 1, 10000)
        after, prefix = call.query.get("continuation-token", ""), call.query.get("prefix", "")
        region = call.query.get("bucket-region", "")
        rows = self._store.read().execute(
            "SELECT name, region, created FROM s3_buckets WHERE name > ? ORDER BY name", (after,)
        )
        found = [
            row for row in rows
            if row["name"].startswith(prefix) and region in ("", row["region"])
        ]  # fmt: skip
        shown: list[Element] = [("Bucket", _bucket_elements(row)) for row in found[:most]]
        content: list[Element] = [OWNER, ("Buckets", shown)]
        if len(found) > most:
            content.append(("ContinuationToken", found[most - 1]["name"]))
        if prefix:
            content.append(("Prefix", prefix))
        call.reply_xml("ListAllMyBucketsResult", content)

    def create_bucket(self, call: Call) -> None:
        """CreateBucket. Making one's own bucket again is fine in us-east-1 only, as on S3."""
        _check_name(call.bucket)
        region, tags = _wished(read_document(call), call.region)
        if call.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true":
            raise S3Error("NotImplemented", "CreateBucket: the local cloud has no Object Lock", 501)
        with self._store.write() as db:
            made = db.execute(
                "INSERT OR IGNORE INTO s3_buckets VALUES (?, ?, ?)",
                (call.bucket, region, int(time.time())),
            ).rowcount
            if made:
                documents = NEW_BUCKET | ({"tagging": tags} if tags else {})
                for name, body in documents.items():
                    _keep(db, call.bucket, name, body)
        if not made and region != _US_EAST_1:
            raise S3Error(
                "BucketAlreadyOwnedByYou",
                "Your previous request to create the named bucket succeeded and you already own "
                "it.",
                409,
                BucketName=call.bucket,
            )
        call.reply(headers={"Location": f"/{call.bucket}"})

    def head_bucket(self, call: Call) -> None:
        """HeadBucket."""
        bucket = find_bucket(self._store.read(), call.bucket)
        call.reply(
            headers={
                "x-amz-bucket-region": bucket.region,
                "x-amz-bucket-arn": f"arn:aws:s3:::{bucket.name}",
                "x-amz-access-point-alias": "false",
            }
        )

    def delete_bucket(self, call: Call) -> None:
        """DeleteBucket; uploads in progress go with it."""
        freed: Blobs = []
        with self._store.write() as db:
            find_bucket(db, call.bucket)
            if db.execute(
                "SELECT 1 FROM s3_objects WHERE bucket = ? LIMIT 1", (call.bucket,)
            ).fetchone():
                raise S3Error(
                    "BucketNotEmpty",
                    "The bucket you tried to delete is not empty",
                    409,
                    BucketName=call.bucket,
                )
            forget_uploads(db, call.bucket, freed)
            events.replace_notifications(db, call.bucket, [])
            db.execute("DELETE FROM s3_documents WHERE bucket = ?", (call.bucket,))
            db.execute("DELETE FROM s3_buckets WHERE name = ?", (call.bucket,))
        self.writer.free(freed)
        call.reply(204)

    def get_bucket_location(self, call: Call) -> None:
        """GetBucketLocation; us-east-1 is an empty answer, as on S3."""
        region = find_bucket(self._store.read(), call.bucket).region
        body = document("LocationConstraint", [], NAMESPACE)
        if region != _US_EAST_1:
            body = body.replace(b"</", region.encode() + b"</")
        call.reply_document(body)

    def get_bucket_notification_configuration(self, call: Call) -> None:
        """GetBucketNotificationConfiguration."""
        find_bucket(self._store.read(), call.bucket)
        entries = events.notifications(self._store.read(), call.bucket)
        call.reply_xml(
            "NotificationConfiguration",
            [("CloudFunctionConfiguration", _notification_elements(entry)) for entry in entries],
        )

    def put_bucket_notification_configuration(self, call: Call) -> None:
        """PutBucketNotificationConfiguration: functions only; replaces the whole document."""
        find_bucket(self._store.read(), call.bucket)
        entries = _notifications(parse_xml(read_document(call)))
        if call.headers.get("x-amz-skip-destination-validation", "").lower() != "true":
            refused = [e.function_arn for e in entries if not self._accepts(call.bucket, e)]
            if refused:
                raise S3Error(
                    "InvalidArgument",
                    "Unable to validate the following destination configurations",
                    ArgumentName=", ".join(refused),
                    ArgumentValue="Not authorized to invoke function, or there is no such function",
                )
        with self._store.write() as db:
            find_bucket(db, call.bucket)
            events.replace_notifications(db, call.bucket, entries)
        call.reply()

    def get_acl(self, call: Call) -> None:
        """GetBucketAcl and GetObjectAcl: the owner has full control, as without ACLs on S3."""
        find_bucket(self._store.read(), call.bucket)
        grantee = (
            '<Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
            f'xsi:type="CanonicalUser"><ID>{OWNER_ID}</ID></Grantee>'
        )
        grant: Elements = [("Grant", [("Grantee", ""), ("Permission", "FULL_CONTROL")])]
        body = document("AccessControlPolicy", [OWNER, ("AccessControlList", grant)], NAMESPACE)
        call.reply_document(body.replace(b"<Grantee></Grantee>", grantee.encode()))

    def put_acl(self, call: Call) -> None:
        """PutBucketAcl and PutObjectAcl: `private` is what is, all else is refused."""
        find_bucket(self._store.read(), call.bucket)
        if call.headers.get("x-amz-acl", "") not in ("private", "bucket-owner-full-control"):
            raise no_acls()
        call.reply()

    def get_document(self, call: Call, name: str) -> None:
        """A sub-resource document as it was put, or what S3 answers without one."""
        find_bucket(self._store.read(), call.bucket)
        row = (
            self._store.read()
            .execute("SELECT body FROM s3_documents WHERE bucket = ? AND name = ?",
                     (call.bucket, name))
            .fetchone()
        )  # fmt: skip
        if row is None and name in ABSENT:
            code, message = ABSENT[name]
            raise S3Error(code, message, 404, BucketName=call.bucket)
        kind = "application/json" if name == "policy" else "application/xml"
        call.reply_document(DEFAULTS[name] if row is None else row["body"], content_type=kind)

    def put_document(self, call: Call, name: str) -> None:
        """Keep a sub-resource document."""
        find_bucket(self._store.read(), call.bucket)
        body = read_document(call)
        if name == "policy":
            _check_policy(body)
        else:
            parse_xml(body)
        with self._store.write() as db:
            find_bucket(db, call.bucket)
            _keep(db, call.bucket, name, body)
        call.reply(204 if name in ("policy", "tagging") else 200)

    def delete_document(self, call: Call, name: str) -> None:
        """Forget a sub-resource document; none there is fine, as on S3."""
        with self._store.write() as db:
            find_bucket(db, call.bucket)
            db.execute(
                "DELETE FROM s3_documents WHERE bucket = ? AND name = ?", (call.bucket, name)
            )
        call.reply(204)

    def _accepts(self, bucket: str, entry: Notification) -> bool:
        return self.can_invoke(bucket, entry.function_arn)


def _bucket_elements(row: sqlite3.Row) -> list[Element]:
    return [
        ("Name", row["name"]),
        ("CreationDate", iso(row["created"])),
        ("BucketRegion", row["region"]),
        ("BucketArn", f"arn:aws:s3:::{row['name']}"),
    ]


def _keep(db: sqlite3.Connection, bucket: str, name: str, body: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO s3_documents VALUES (?, ?, ?)", (bucket, name, body))


def _check_name(name: str) -> None:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html."""
    fits = (
        re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name)
        and ".." not in name
        and not _is_address(name)
        and not name.startswith(("xn--", "sthree-", "amzn-s3-demo-"))
        and not name.endswith(("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"))
    )
    if not fits:
        raise S3Error("InvalidBucketName", "The specified bucket is not valid.", BucketName=name)


def _is_address(name: str) -> bool:
    try:
        IPv4Address(name)
    except AddressValueError:
        return False
    return True


def _wished(body: bytes, region: str) -> tuple[str, bytes]:
    """The region a bucket is to be in, and its tagging document."""
    root = parse_xml(body) if body.strip() else ET.Element("CreateBucketConfiguration")
    if root.tag != "CreateBucketConfiguration":
        raise malformed()
    wish = root.findtext("LocationConstraint", "").strip()
    wish = "eu-west-1" if wish == "EU" else wish
    if wish == _US_EAST_1:
        raise S3Error(
            "InvalidLocationConstraint",
            "The specified location-constraint is not valid",
            LocationConstraint=wish,
        )
    if region != _US_EAST_1 and wish != region:
        raise S3Error(
            "IllegalLocationConstraintException",
            f"The {wish or 'unspecified'} location constraint is incompatible for the region "
            "specific endpoint this request was sent to.",
        )
    tags: list[Element] = [
        ("Tag", [("Key", tag.findtext("Key", "")), ("Value", tag.findtext("Value", ""))])
        for tag in root.findall("Tags/Tag")
    ]
    return wish or region, document("Tagging", [("TagSet", tags)], NAMESPACE) if tags else b""


def _check_policy(body: bytes) -> None:
    try:
        policy = json.loads(body)
    except ValueError as exc:
        raise S3Error("MalformedPolicy", "This policy contains invalid Json") from exc
    if not isinstance(policy, dict):
        raise S3Error("MalformedPolicy", "Policies must be valid JSON objects")


def _notification_elements(entry: Notification) -> list[Element]:
    content: list[Element] = [
        ("Id", entry.id),
        ("CloudFunction", entry.function_arn),
        *(("Event", event) for event in entry.events),
    ]
    rules: list[Element] = [
        ("FilterRule", [("Name", name), ("Value", value)]) for name, value in entry.rules
    ]
    return [*content, ("Filter", [("S3Key", rules)])] if rules else content


def _notifications(root: ET.Element) -> list[Notification]:
    """The entries of a notification document. Raises S3Error for what S3 or we refuse."""
    if root.tag != "NotificationConfiguration":
        raise malformed()
    for element in root:
        if element.tag != "CloudFunctionConfiguration":
            raise S3Error(
                "NotImplemented",
                "PutBucketNotificationConfiguration: the local cloud sends events to functions "
                f"only (LambdaFunctionConfigurations), not to {element.tag}",
                501,
            )
    entries = [_notification(element) for element in root]
    if len({entry.id for entry in entries}) < len(entries):
        raise S3Error(
            "InvalidArgument", "Same ID used for multiple configurations. IDs must be unique"
        )
    for n, entry in enumerate(entries):
        if any(entry.overlaps(other) for other in entries[:n]):
            raise S3Error(
                "InvalidArgument",
                "Configurations overlap. Configurations on the same bucket cannot share a common "
                "event type.",
            )
    return entries


_EVENTS = {
    "s3:ObjectCreated:*", "s3:ObjectCreated:Put", "s3:ObjectCreated:Post", "s3:ObjectCreated:Copy",
    "s3:ObjectCreated:CompleteMultipartUpload", "s3:ObjectRemoved:*", "s3:ObjectRemoved:Delete",
}  # fmt: skip
"""Events that happen here; S3 has more."""


def _notification(element: ET.Element) -> Notification:
    arn, found = (
        element.findtext("CloudFunction", ""),
        [e.text or "" for e in element.iter("Event")],
    )
    if not re.fullmatch(
        r"arn:aws[a-z-]*:lambda:[a-z0-9-]+:\d{12}:function:[\w$-]+(:[\w$-]+)?", arn
    ):
        raise S3Error(
            "InvalidArgument", "The ARN could not be parsed", ArgumentName="CloudFunction",
            ArgumentValue=arn,
        )  # fmt: skip
    if not found:
        raise malformed()
    for event in found:
        if event not in _EVENTS:
            raise S3Error(
                "NotImplemented" if event.startswith("s3:") else "InvalidArgument",
                f"the event `{event}` does not happen here; valid are {', '.join(sorted(_EVENTS))}",
                501 if event.startswith("s3:") else 400,
            )
    rules = tuple(
        (rule.findtext("Name", ""), rule.findtext("Value", ""))
        for rule in element.iterfind("Filter/S3Key/FilterRule")
    )
    _check_rules([name.lower() for name, _ in rules])
    return Notification(element.findtext("Id", "") or str(uuid.uuid4()), arn, tuple(found), rules)


def _check_rules(names: list[str]) -> None:
    if not {"prefix", "suffix"}.issuperset(names):
        raise S3Error("InvalidArgument", "filter rule name must be either prefix or suffix")
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise S3Error("InvalidArgument", f"Cannot specify more than one {twice} rule in a filter.")
