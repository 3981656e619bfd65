"""ECR: the shared repository, and the images in it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from scar.aws.account import Account
from scar.aws.errors import is_absent, is_denied, speaking_to
from scar.errors import CloudError
from scar.images.login import Login
from scar.images.registry import Repository as RemoteRepository
from scar.plan.resources import CREATED_BY, TAG_CREATED_BY, Image, Repository

Push = Callable[[RemoteRepository, str], None]
"""Stores one image in a repository under a tag."""


UNTAGGED_DAYS = 1
_LIFECYCLE = {
    "rules": [
        {
            "rulePriority": 1,
            "description": "what a push that broke off left",
            "selection": {
                "tagStatus": "untagged",
                "countType": "sinceImagePushed",
                "countUnit": "days",
                "countNumber": UNTAGGED_DAYS,
            },
            "action": {"type": "expire"},
        }
    ]
}


class Repositories:
    """Handler of `Repository`."""

    def __init__(self, account: Account) -> None:
        self._client = account.client("ecr")

    def read(self, name: str) -> Repository | None:
        """The repository, or None."""
        try:
            with speaking_to("ecr"):
                self._client.describe_repositories(repositoryNames=[name])
        except CloudError as exc:
            if is_absent(exc):
                return None
            raise
        return Repository(name, has_lifecycle=self._has_lifecycle(name))

    def create(self, wanted: Repository) -> None:
        """Create the repository; that somebody else just did is as good."""
        try:
            with speaking_to("ecr"):
                # A scan takes time after each push, and Lambda waits for none: who wants scans
                # turns them on for the registry.
                self._client.create_repository(
                    repositoryName=wanted.name,
                    tags=[{"Key": TAG_CREATED_BY, "Value": CREATED_BY}],
                    imageScanningConfiguration={"scanOnPush": False},
                )
        except CloudError as exc:
            if exc.code != "RepositoryAlreadyExistsException":
                raise
        self._put_lifecycle(wanted.name)

    def update(self, wanted: Repository, found: Repository) -> None:
        """Give it a lifecycle policy; one that somebody else gave it stays."""
        self._put_lifecycle(wanted.name)

    def delete(self, found: Repository) -> None:
        """Delete the repository with its images."""
        with speaking_to("ecr"):
            self._client.delete_repository(repositoryName=found.name, force=True)

    def _has_lifecycle(self, name: str) -> bool:
        """Whether it has any policy, or we may not know."""
        try:
            with speaking_to("ecr"):
                self._client.get_lifecycle_policy(repositoryName=name)
        except CloudError as exc:
            if exc.code == "LifecyclePolicyNotFoundException":
                return False
            if not is_denied(exc):
                raise
        return True

    def _put_lifecycle(self, name: str) -> None:
        try:
            with speaking_to("ecr"):
                self._client.put_lifecycle_policy(
                    repositoryName=name, lifecyclePolicyText=json.dumps(_LIFECYCLE)
                )
        except CloudError as exc:
            if not is_denied(exc):  # it only keeps the repository tidy
                raise


class Images:
    """Handler of `Image`. `pushes` knows how each image that may be created is made, by name."""

    def __init__(self, account: Account, pushes: Mapping[str, Push]) -> None:
        self._account, self._client, self._pushes = account, account.client("ecr"), pushes

    def read(self, name: str) -> Image | None:
        """The tag, or None."""
        repository, _, tag = name.partition(":")
        try:
            with speaking_to("ecr"):
                self._client.describe_images(
                    repositoryName=repository, imageIds=[{"imageTag": tag}]
                )
        except CloudError as exc:
            if is_absent(exc):
                return None
            raise
        return Image(name)

    def create(self, wanted: Image) -> None:
        """Derive and push the image."""
        repository, _, tag = wanted.name.partition(":")
        self._pushes[wanted.name](remote(self._account, repository, wanted.name), tag)

    def update(self, wanted: Image, found: Image) -> None:
        """Nothing: the tag names the content."""

    def delete(self, found: Image) -> None:
        """Remove the tag; ECR drops the image with its last tag."""
        repository, _, tag = found.name.partition(":")
        with speaking_to("ecr"):
            self._client.batch_delete_image(repositoryName=repository, imageIds=[{"imageTag": tag}])


def remote(account: Account, repository: str, named: str) -> RemoteRepository:
    """A repository of the account's registry, logged in for 12 hours."""
    login, endpoint = _authorized(account)
    url = urlsplit(endpoint)
    return RemoteRepository(
        url.netloc, repository, named, lambda: login, plain=url.scheme == "http"
    )


def ecr_region(host: str) -> str:
    """The region of an ECR registry's host; empty where it is none."""
    found = re.fullmatch(r"\d{12}\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?", host)
    return found[1] if found else ""


def ecr_login(account: Account) -> Login:
    """The caller's login for the ECR registries of a region: of this account and of others."""
    return _authorized(account)[0]


def tags_of(account: Account, repository: str) -> list[str]:
    """Every tag in a repository; none where it does not exist."""
    try:
        with speaking_to("ecr"):
            pages = (
                account.client("ecr")
                .get_paginator("list_images")
                .paginate(repositoryName=repository, filter={"tagStatus": "TAGGED"})
            )
            return [image["imageTag"] for page in pages for image in page["imageIds"]]
    except CloudError as exc:
        if is_absent(exc):
            return []
        raise


def _authorized(account: Account) -> tuple[Login, str]:
    with speaking_to("ecr"):
        answer = account.client("ecr").get_authorization_token()["authorizationData"][0]
    user, _, password = base64.b64decode(answer["authorizationToken"]).decode().partition(":")
    return Login(user, password), answer["proxyEndpoint"]
