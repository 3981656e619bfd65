"""Secrets Manager: the credentials of storage providers. They are written, and never read back."""

from __future__ import annotations

from typing import Any

from scar.aws.account import Account
from scar.aws.errors import is_absent, is_denied, speaking_to
from scar.aws.waiting import retrying
from scar.errors import CloudError
from scar.plan.resources import TAG_FINGERPRINT, Secret, secret_name


class Secrets:
    """Handler of `Secret`. Whether a value is another one is told by a tag."""

    def __init__(self, account: Account) -> None:
        self._account = account

    @property
    def _client(self) -> Any:
        return self._account.client("secretsmanager")

    def read(self, name: str) -> Secret | None:
        """The secret as it is, without its value; None where there is none, or soon none."""
        try:
            with speaking_to("secretsmanager"):
                its = self._client.describe_secret(SecretId=name)
        except CloudError as exc:
            if is_absent(exc):
                return None
            raise
        if "DeletedDate" in its:
            return None
        tags = {tag["Key"]: tag["Value"] for tag in its.get("Tags", [])}
        return Secret(name, tags.pop(TAG_FINGERPRINT, ""), tags)

    def create(self, wanted: Secret) -> None:
        """Keep the value; a secret of the name that is about to be deleted is taken back."""
        # One that is gone just now can neither be made nor taken back for a moment.
        retrying(lambda: self._create(wanted), is_absent)

    def _create(self, wanted: Secret) -> None:
        try:
            with speaking_to("secretsmanager"):
                self._client.create_secret(
                    Name=wanted.name,
                    Description="Credentials of a storage provider, kept by scar",
                    SecretString=wanted.value,
                    Tags=_tags(wanted),
                )
        except CloudError as exc:
            if not _is_there(exc):
                raise
            with speaking_to("secretsmanager"):
                if "DeletedDate" in self._client.describe_secret(SecretId=wanted.name):
                    self._client.restore_secret(SecretId=wanted.name)
            self.update(wanted, Secret(wanted.name, ""))

    def update(self, wanted: Secret, found: Secret) -> None:
        """Replace the value, then say in the tags which one it is."""
        with speaking_to("secretsmanager"):
            if wanted.credentials != found.credentials:
                self._client.put_secret_value(SecretId=wanted.name, SecretString=wanted.value)
            if gone := [key for key in found.tags if key not in wanted.tags]:
                self._client.untag_resource(SecretId=wanted.name, TagKeys=gone)
            self._client.tag_resource(SecretId=wanted.name, Tags=_tags(wanted))

    def delete(self, found: Secret) -> None:
        """Delete it for good: the FDL has what it held, and the name is free again at once."""
        try:
            with speaking_to("secretsmanager"):
                self._client.delete_secret(SecretId=found.name, ForceDeleteWithoutRecovery=True)
        except CloudError as exc:
            if not is_absent(exc):
                raise


def secrets_of(account: Account, function: str) -> list[str]:
    """Names of a function's secrets; none for a caller who may not list secrets."""
    prefix = secret_name(function, "")
    try:
        with speaking_to("secretsmanager"):
            pages = (
                account.client("secretsmanager")
                .get_paginator("list_secrets")
                .paginate(Filters=[{"Key": "name", "Values": [prefix]}])
            )
            return [one["Name"] for page in pages for one in page["SecretList"] if "Name" in one]
    except CloudError as exc:
        if is_denied(exc) or exc.code == "NotImplemented":  # a local cloud without its extra
            return []
        raise


def _tags(wanted: Secret) -> list[dict[str, str]]:
    tags = {**wanted.tags, TAG_FINGERPRINT: wanted.credentials}
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _is_there(error: CloudError) -> bool:
    """Whether the name is taken, if only by what will be deleted."""
    is_said = error.code == "InvalidRequestException" and "scheduled for deletion" in str(error)
    return is_said or error.code == "ResourceExistsException"
