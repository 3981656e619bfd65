"""ECR: the control plane over `ImageStore`, and the door to the data plane of `distribution`.

There is one registry for all regions: a repository's ARN and URI name the region it was made in.
"""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from scar_local.distribution import Distribution
from scar_local.engines import EngineError
from scar_local.http import Exchange
from scar_local.image_store import (
    INDEX_TYPES,
    ImageFault,
    ImageStore,
    Manifest,
    StoredImage,
)
from scar_local.protocol import ACCOUNT_ID, ApiError, Request
from scar_local.store import Store

OWNED = ("createdby", "scar")
"""The tag of the repositories that `scar init` creates."""

TOKEN_VALID_S = 12 * 3600
_PASSWORD = "local"
_PAGE = 100
_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_HOST = re.compile(r"[^/]*[.:][^/]*|localhost")


class Registry:
    """ECR's operations, the distribution API (`handle`), and images for the engines (`resolve`).

    `endpoint` gives the local cloud's URL.
    """

    def __init__(self, store: Store, endpoint: Callable[[], str]) -> None:
        self._store = store
        self._endpoint = endpoint
        self._images = ImageStore(store)
        self._distribution = Distribution(self._images, self._is_immutable)

    def handle(self, exchange: Exchange) -> None:
        """Answer a request under `/v2/`."""
        self._distribution.handle(exchange)

    def resolve(self, image_uri: str) -> StoredImage:
        """The image that a function or a job definition names. Raises EngineError: no such image.

        Its files stay as long as the image is in the registry.
        """
        name, reference = split_uri(image_uri)
        try:
            image = self._images.image(name, reference)
        except (ImageFault, OSError) as exc:
            raise EngineError(f"CannotPullContainerError: image `{image_uri}`: {exc}") from exc
        if image is None:
            raise EngineError(
                f"CannotPullContainerError: image `{image_uri}` is not in this local cloud's"
                " registry; push it there, or let `scar init` do it"
            )
        return image

    def address(self) -> str:
        """Host and port that a container engine of this machine pulls from."""
        return urlsplit(self._endpoint()).netloc

    def layer_chains(self) -> set[tuple[str, ...]]:
        """The layers' digests of every image there is."""
        return self._images.layer_chains()

    def manifest_digests(self) -> set[str]:
        """The digest of every image there is."""
        return self._images.manifest_digests()

    def prune(self, keep: Collection[StoredImage], before: float) -> int:
        """Remove the images but those to keep from SCAR's repositories; how many.

        Only what was pushed before that time (seconds since the epoch).
        """
        names = {(image.repository, image.manifest_digest) for image in keep}
        return self._images.delete_unused(names, before, OWNED)

    def disk_bytes(self) -> int:
        """The size of all images."""
        return self._images.bytes_in_use()

    def blobs_in_use(self) -> set[str]:
        """Ids in the store's blob folder that belong to the registry."""
        return self._images.blobs_in_use() | self._distribution.uploads_in_use()

    def tagged(self) -> Iterable[tuple[str, dict[str, str]]]:
        """ARN and tags of every repository, for the tagging service."""
        rows = self._store.read().execute("SELECT * FROM registry_repositories ORDER BY name")
        return [(_arn(row), json.loads(row["tags"])) for row in rows]

    def create_repository(self, request: Request) -> dict[str, Any]:
        """ECR CreateRepository."""
        params = request.params
        name = params["repositoryName"]
        if not (2 <= len(name) <= 256 and _NAME.fullmatch(name)):
            raise ApiError(
                "InvalidParameterException",
                "Invalid parameter at 'repositoryName' failed to satisfy constraint: 'must"
                f" satisfy regular expression '{_NAME.pattern}''",
            )
        settings = {
            "imageTagMutability": params.get("imageTagMutability", "MUTABLE"),
            "imageScanningConfiguration": {
                "scanOnPush": False,
                **params.get("imageScanningConfiguration", {}),
            },
            "encryptionConfiguration": params.get(
                "encryptionConfiguration", {"encryptionType": "AES256"}
            ),
        }
        tags = {tag["Key"]: tag["Value"] for tag in params.get("tags", ())}
        values = (name, request.region, time.time(), json.dumps(settings), json.dumps(tags))
        with self._store.write() as db:
            made = db.execute(
                "INSERT OR IGNORE INTO registry_repositories"
                " (name, region, created, settings, tags) VALUES (?, ?, ?, ?, ?)",
                values,
            )
        if made.rowcount == 0:
            raise ApiError(
                "RepositoryAlreadyExistsException",
                f"The repository with name '{name}' already exists in the registry with id"
                f" '{ACCOUNT_ID}'",
            )
        return {"repository": _description(self._repository(name))}

    def describe_repositories(self, request: Request) -> dict[str, Any]:
        """ECR DescribeRepositories."""
        names = request.params.get("repositoryNames")
        if names:
            return {"repositories": [_description(self._repository(name)) for name in names]}
        rows = self._store.read().execute("SELECT * FROM registry_repositories ORDER BY name")
        return _page(request, "repositories", [_description(row) for row in rows])

    def delete_repository(self, request: Request) -> dict[str, Any]:
        """ECR DeleteRepository; one with images only when forced."""
        row = self._named(request)
        name = row["name"]
        if not request.params.get("force") and any(True for _ in self._images.manifests(name)):
            raise ApiError(
                "RepositoryNotEmptyException",
                f"The repository with name '{name}' in registry with id '{ACCOUNT_ID}' cannot be"
                " deleted because it still contains images",
            )
        self._images.delete_repository(name)
        return {"repository": _description(row)}

    def get_authorization_token(self, request: Request) -> dict[str, Any]:
        """ECR GetAuthorizationToken; the proxy endpoint is this local cloud itself."""
        token = base64.b64encode(f"AWS:{_PASSWORD}".encode()).decode()
        data = {
            "authorizationToken": token,
            "expiresAt": time.time() + TOKEN_VALID_S,
            "proxyEndpoint": self._endpoint(),
        }
        return {"authorizationData": [data]}

    def describe_images(self, request: Request) -> dict[str, Any]:
        """ECR DescribeImages."""
        name = self._named(request)["name"]
        wanted = request.params.get("imageIds")
        details = [
            _detail(name, manifest, tags)
            for manifest, tags in self._images.manifests(name)
            if _has_status(request, tags)
        ]
        if wanted:
            return {"imageDetails": [self._one(name, details, image) for image in wanted]}
        return _page(request, "imageDetails", details)

    def list_images(self, request: Request) -> dict[str, Any]:
        """ECR ListImages: one entry a tag, and one for each image without."""
        name = self._named(request)["name"]
        images = [
            {"imageDigest": manifest.digest, **({"imageTag": tag} if tag else {})}
            for manifest, tags in self._images.manifests(name)
            if _has_status(request, tags)
            for tag in tags or ("",)
        ]
        return _page(request, "imageIds", images)

    def batch_get_image(self, request: Request) -> dict[str, Any]:
        """ECR BatchGetImage: manifests by tag or digest."""
        name = self._named(request)["name"]
        images, failures = [], []
        for image in request.params["imageIds"]:
            found = self._find(name, image)
            if isinstance(found, Manifest):
                images.append(
                    {
                        "registryId": ACCOUNT_ID,
                        "repositoryName": name,
                        "imageId": {**image, "imageDigest": found.digest},
                        "imageManifest": found.body.decode(),
                        "imageManifestMediaType": found.media_type,
                    }
                )
            else:
                failures.append(found)
        return {"images": images, "failures": failures}

    def batch_delete_image(self, request: Request) -> dict[str, Any]:
        """ECR BatchDeleteImage: a tag, or by digest the image with all its tags."""
        name = self._named(request)["name"]
        deleted, failures = [], []
        for image in request.params["imageIds"]:
            found = self._find(name, image)
            if not isinstance(found, Manifest):
                failures.append(found)
            elif "imageTag" in image:
                self._images.delete_tag(name, image["imageTag"])
                deleted.append({"imageDigest": found.digest, "imageTag": image["imageTag"]})
            elif self._images.parents(name, found.digest):
                failures.append(
                    _failure(image, "ImageReferencedByManifestList", "an index names this image")
                )
            else:
                deleted.extend(_identifiers(found, self._images.tags(name)))
                self._images.delete_manifest(name, found.digest)
        return {"imageIds": deleted, "failures": failures}

    def put_lifecycle_policy(self, request: Request) -> dict[str, Any]:
        """ECR PutLifecyclePolicy. It is kept and given back; no image expires here."""
        name, text = self._named(request)["name"], request.params["lifecyclePolicyText"]
        try:
            json.loads(text)
        except ValueError as exc:
            raise ApiError(
                "InvalidParameterException",
                "Invalid parameter at 'LifecyclePolicyText' failed to satisfy constraint:"
                f" 'Lifecycle policy validation failure: {exc}'",
            ) from exc
        self._update(name, "lifecycle", text)
        return {
            "registryId": ACCOUNT_ID,
            "repositoryName": name,
            "lifecyclePolicyText": text,
        }

    def get_lifecycle_policy(self, request: Request) -> dict[str, Any]:
        """ECR GetLifecyclePolicy."""
        row = self._named(request)
        if row["lifecycle"] is None:
            raise ApiError(
                "LifecyclePolicyNotFoundException",
                f"Lifecycle policy does not exist for the repository with name '{row['name']}' in"
                f" the registry with id '{ACCOUNT_ID}'",
            )
        return {
            "registryId": ACCOUNT_ID,
            "repositoryName": row["name"],
            "lifecyclePolicyText": row["lifecycle"],
        }

    def delete_lifecycle_policy(self, request: Request) -> dict[str, Any]:
        """ECR DeleteLifecyclePolicy."""
        answer = self.get_lifecycle_policy(request)
        self._update(answer["repositoryName"], "lifecycle", None)
        return answer

    def put_image_scanning_configuration(self, request: Request) -> dict[str, Any]:
        """ECR PutImageScanningConfiguration. It is kept and given back; nothing is scanned."""
        return self._set(request, "imageScanningConfiguration")

    def put_image_tag_mutability(self, request: Request) -> dict[str, Any]:
        """ECR PutImageTagMutability."""
        return self._set(request, "imageTagMutability")

    def tag_resource(self, request: Request) -> dict[str, Any]:
        """ECR TagResource."""
        row = self._by_arn(request)
        new = {tag["Key"]: tag["Value"] for tag in request.params["tags"]}
        self._update(row["name"], "tags", json.dumps({**json.loads(row["tags"]), **new}))
        return {}

    def untag_resource(self, request: Request) -> dict[str, Any]:
        """ECR UntagResource."""
        row = self._by_arn(request)
        gone = set(request.params["tagKeys"])
        left = {key: value for key, value in json.loads(row["tags"]).items() if key not in gone}
        self._update(row["name"], "tags", json.dumps(left))
        return {}

    def list_tags_for_resource(self, request: Request) -> dict[str, Any]:
        """ECR ListTagsForResource."""
        tags = json.loads(self._by_arn(request)["tags"])
        return {"tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    def _repository(self, name: str) -> sqlite3.Row:
        query = "SELECT * FROM registry_repositories WHERE name = ?"
        row: sqlite3.Row | None = self._store.read().execute(query, (name,)).fetchone()
        if row is None:
            raise ApiError(
                "RepositoryNotFoundException",
                f"The repository with name '{name}' does not exist in the registry with id"
                f" '{ACCOUNT_ID}'",
            )
        return row

    def _named(self, request: Request) -> sqlite3.Row:
        return self._repository(request.params["repositoryName"])

    def _by_arn(self, request: Request) -> sqlite3.Row:
        return self._repository(request.params["resourceArn"].partition(":repository/")[2])

    def _update(self, name: str, column: str, value: str | None) -> None:
        with self._store.write() as db:
            db.execute(
                f"UPDATE registry_repositories SET {column} = ? WHERE name = ?",  # noqa: S608
                (value, name),
            )

    def _set(self, request: Request, key: str) -> dict[str, Any]:
        row = self._named(request)
        settings = {**json.loads(row["settings"]), key: request.params[key]}
        self._update(row["name"], "settings", json.dumps(settings))
        return {"registryId": ACCOUNT_ID, "repositoryName": row["name"], key: settings[key]}

    def _is_immutable(self, name: str) -> bool:
        settings = json.loads(self._repository(name)["settings"])
        return bool(settings["imageTagMutability"] == "IMMUTABLE")

    def _find(self, name: str, image: Mapping[str, str]) -> Manifest | dict[str, Any]:
        tag, digest = image.get("imageTag"), image.get("imageDigest")
        reference = tag or digest
        if reference is None:
            return _failure(image, "MissingDigestAndTag", "neither a digest nor a tag was given")
        found = self._images.manifest(name, reference)
        if found is None:
            return _failure(image, "ImageNotFound", "Requested image not found")
        if digest not in (None, found.digest):
            return _failure(
                image, "ImageTagDoesNotMatchDigest", f"tag '{tag}' stands for {found.digest}"
            )
        return found

    def _one(
        self, name: str, details: list[dict[str, Any]], image: Mapping[str, str]
    ) -> dict[str, Any]:
        found = self._find(name, image)
        for detail in details:
            if isinstance(found, Manifest) and detail["imageDigest"] == found.digest:
                return detail
        raise ApiError(
            "ImageNotFoundException",
            f"The image with imageId {dict(image)} does not exist within the repository with name"
            f" '{name}' in the registry with id '{ACCOUNT_ID}'",
        )


def split_uri(image_uri: str) -> tuple[str, str]:
    """Repository and tag or digest of an image URI; the host in front of it does not matter."""
    first, _, rest = image_uri.partition("/")
    path = rest if rest and _HOST.fullmatch(first) else image_uri
    name, _, digest = path.partition("@")
    repository, _, tag = name.partition(":")
    return repository, digest or tag or "latest"


def _arn(row: sqlite3.Row) -> str:
    return f"arn:aws:ecr:{row['region']}:{ACCOUNT_ID}:repository/{row['name']}"


def _description(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "repositoryArn": _arn(row),
        "registryId": ACCOUNT_ID,
        "repositoryName": row["name"],
        "repositoryUri": f"{ACCOUNT_ID}.dkr.ecr.{row['region']}.amazonaws.com/{row['name']}",
        "createdAt": row["created"],
        **json.loads(row["settings"]),
    }


def _detail(name: str, manifest: Manifest, tags: tuple[str, ...]) -> dict[str, Any]:
    detail = {
        "registryId": ACCOUNT_ID,
        "repositoryName": name,
        "imageDigest": manifest.digest,
        "imagePushedAt": manifest.pushed,
        "imageManifestMediaType": manifest.media_type,
    }
    if tags:
        detail["imageTags"] = list(tags)
    if manifest.media_type not in INDEX_TYPES:
        detail["imageSizeInBytes"] = manifest.image_size
        detail["artifactMediaType"] = json.loads(manifest.body)["config"].get("mediaType", "")
    return detail


def _has_status(request: Request, tags: tuple[str, ...]) -> bool:
    status = request.params.get("filter", {}).get("tagStatus", "ANY")
    return bool(status == "ANY" or (status == "TAGGED") == bool(tags))


def _identifiers(manifest: Manifest, tags: list[tuple[str, str]]) -> Iterator[dict[str, str]]:
    names = [tag for tag, digest in tags if digest == manifest.digest]
    if not names:
        yield {"imageDigest": manifest.digest}
    for name in names:
        yield {"imageDigest": manifest.digest, "imageTag": name}


def _failure(image: Mapping[str, str], code: str, reason: str) -> dict[str, Any]:
    return {"imageId": dict(image), "failureCode": code, "failureReason": reason}


def _page(request: Request, key: str, items: list[Any]) -> dict[str, Any]:
    size = request.params.get("maxResults", _PAGE)
    try:
        start = int(request.params.get("nextToken", "0"))
    except ValueError as exc:
        raise ApiError("InvalidParameterException", "Invalid parameter at 'nextToken'") from exc
    end = start + size
    more = {"nextToken": str(end)} if end < len(items) else {}
    return {key: items[start:end], **more}
