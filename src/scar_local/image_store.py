"""Images in the data directory: repositories, manifests, tags, and blobs kept once for all."""

from __future__ import annotations

import hashlib
import json
import platform
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scar_local.store import Store

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
UNUSED_BLOB_S = 24 * 3600
"""A blob that no manifest names after this long was part of a push that never ended."""

Tag = tuple[str, str]
"""A repository's tag: key and value."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64", "amd64": "amd64"}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS registry_repositories (
    name TEXT PRIMARY KEY, region TEXT NOT NULL, created REAL NOT NULL,
    settings TEXT NOT NULL, tags TEXT NOT NULL, lifecycle TEXT);
CREATE TABLE IF NOT EXISTS registry_blobs (
    digest TEXT PRIMARY KEY, blob TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS registry_links (
    repository TEXT NOT NULL, digest TEXT NOT NULL, linked REAL NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS registry_links_by_digest ON registry_links (digest);
CREATE TABLE IF NOT EXISTS registry_manifests (
    repository TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL, body BLOB NOT NULL,
    image_size INTEGER NOT NULL, pushed REAL NOT NULL, PRIMARY KEY (repository, digest));
CREATE TABLE IF NOT EXISTS registry_references (
    repository TEXT NOT NULL, manifest TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (repository, manifest, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS registry_references_by_digest
    ON registry_references (repository, digest);
CREATE TABLE IF NOT EXISTS registry_tags (
    repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (repository, tag)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS registry_tags_by_digest ON registry_tags (repository, digest);
"""


class ImageFault(Exception):
    """What was asked of the images cannot be; `code` is the distribution specification's."""

    def __init__(self, code: str, message: str, status: int = 400, detail: object = None) -> None:
        super().__init__(message)
        self.code, self.message, self.status, self.detail = code, message, status, detail


@dataclass(frozen=True)
class Manifest:
    """One manifest or index as it was pushed."""

    digest: str
    media_type: str
    body: bytes
    image_size: int
    """Bytes of what it names: config and (compressed) layers, or the manifests of an index."""
    pushed: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class StoredImage:
    """One image for one platform, ready to be run."""

    repository: str
    manifest_digest: str
    config: dict[str, Any]
    """The image's config blob: `config["config"]` says how to run it."""
    layers: tuple[Path, ...]
    """Files as they were pushed (tar, mostly gzip), base first."""
    layer_digests: tuple[str, ...]
    media_types: tuple[str, ...]


class ImageStore:
    """Every repository of this local cloud. A blob belongs to the repositories it is linked to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.install(_SCHEMA)
        with store.write() as db:
            db.execute(
                "DELETE FROM registry_links WHERE linked < ? AND NOT EXISTS ("
                " SELECT 1 FROM registry_references r WHERE r.repository ="
                " registry_links.repository AND r.digest = registry_links.digest)",
                (time.time() - UNUSED_BLOB_S,),
            )
            unused = _take_unused_blobs(db)
        self._delete_files(unused)

    def has_repository(self, name: str) -> bool:
        """Whether the repository was created."""
        query = "SELECT 1 FROM registry_repositories WHERE name = ?"
        return self.store.read().execute(query, (name,)).fetchone() is not None

    def delete_repository(self, name: str) -> None:
        """Remove a repository and all that only it holds."""
        with self.store.write() as db:
            for table in ("tags", "references", "manifests", "links"):
                db.execute(f"DELETE FROM registry_{table} WHERE repository = ?", (name,))  # noqa: S608
            db.execute("DELETE FROM registry_repositories WHERE name = ?", (name,))
            unused = _take_unused_blobs(db)
        self._delete_files(unused)

    def blob(self, repository: str, digest: str) -> tuple[Path, int] | None:
        """File and size of a blob of this repository."""
        row = (
            self.store.read()
            .execute(
                "SELECT b.blob, b.size FROM registry_blobs b JOIN registry_links l"
                " ON l.digest = b.digest WHERE l.repository = ? AND b.digest = ?",
                (repository, digest),
            )
            .fetchone()
        )
        return (self.store.blob(row["blob"]), row["size"]) if row else None

    def add_blob(self, repository: str, digest: str, blob: str, size: int) -> None:
        """Keep a file of the blob folder as this digest; the same bytes are kept once."""
        with self.store.write() as db:
            known = db.execute(
                "INSERT OR IGNORE INTO registry_blobs VALUES (?, ?, ?)", (digest, blob, size)
            )
            _link(db, repository, digest)
        if known.rowcount == 0:
            self.store.delete_blob(blob)

    def mount(self, repository: str, digest: str, source: str) -> bool:
        """Link a blob of another repository into this one; False where the other has it not."""
        with self.store.write() as db:
            found = db.execute(
                "SELECT 1 FROM registry_links WHERE repository = ? AND digest = ?",
                (source, digest),
            ).fetchone()
            if found:
                _link(db, repository, digest)
        return found is not None

    def delete_blob(self, repository: str, digest: str) -> None:
        """Take a blob out of a repository. Raises ImageFault where an image still needs it."""
        with self.store.write() as db:
            used = db.execute(
                "SELECT 1 FROM registry_references WHERE repository = ? AND digest = ?",
                (repository, digest),
            ).fetchone()
            if used:
                raise ImageFault("DENIED", f"blob {digest} is part of an image", 405)
            db.execute(
                "DELETE FROM registry_links WHERE repository = ? AND digest = ?",
                (repository, digest),
            )
            unused = _take_unused_blobs(db)
        self._delete_files(unused)

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        """A manifest by tag or digest."""
        db = self.store.read()
        digest: str | None = reference
        if not is_digest(reference):
            digest = _tagged(db, repository, reference)
        row = db.execute(
            "SELECT digest, media_type, body, image_size, pushed FROM registry_manifests"
            " WHERE repository = ? AND digest = ?",
            (repository, digest),
        ).fetchone()
        return Manifest(*row) if row else None

    def manifests(self, repository: str) -> Iterator[tuple[Manifest, tuple[str, ...]]]:
        """Every manifest of a repository with its tags, oldest first."""
        db = self.store.read()
        tags: dict[str, list[str]] = {}
        for tag, digest in self.tags(repository):
            tags.setdefault(digest, []).append(tag)
        rows = db.execute(
            "SELECT digest, media_type, body, image_size, pushed FROM registry_manifests"
            " WHERE repository = ? ORDER BY pushed, digest",
            (repository,),
        ).fetchall()
        return ((Manifest(*row), tuple(tags.get(row["digest"], ()))) for row in rows)

    def tags(self, repository: str) -> list[tuple[str, str]]:
        """Tags and the digests they stand for, in the tags' order."""
        query = "SELECT tag, digest FROM registry_tags WHERE repository = ? ORDER BY tag"
        return [(row[0], row[1]) for row in self.store.read().execute(query, (repository,))]

    def put_manifest(
        self, repository: str, body: bytes, media_type: str, tag: str | None, immutable: bool
    ) -> str:
        """Keep a manifest, and let `tag` stand for it; answers its digest.

        Raises ImageFault where it is no manifest, or names what this repository has not.
        """
        digest = digest_of(body)
        content = _parse(body, media_type)
        parts = _references(content, media_type)
        with self.store.write() as db:
            before = _tagged(db, repository, tag) if tag else None
            if immutable and before not in (None, digest):
                raise ImageFault("TAG_INVALID", f"tag `{tag}` is there and tags are immutable")
            _check_parts(db, repository, parts, media_type in INDEX_TYPES)
            size = sum(int(part.get("size", 0)) for part in parts)
            db.execute(
                "INSERT OR IGNORE INTO registry_manifests VALUES (?, ?, ?, ?, ?, ?)",
                (repository, digest, media_type, body, size, time.time()),
            )
            db.executemany(
                "INSERT OR IGNORE INTO registry_references VALUES (?, ?, ?)",
                [(repository, digest, part["digest"]) for part in parts],
            )
            if tag:
                db.execute(
                    "INSERT OR REPLACE INTO registry_tags VALUES (?, ?, ?)",
                    (repository, tag, digest),
                )
        return digest

    def delete_tag(self, repository: str, tag: str) -> None:
        """Take a tag away; an image that has no other tag goes with it, as in ECR."""
        with self.store.write() as db:
            digest = _tagged(db, repository, tag)
            db.execute(
                "DELETE FROM registry_tags WHERE repository = ? AND tag = ?", (repository, tag)
            )
            left = db.execute(
                "SELECT 1 FROM registry_tags WHERE repository = ? AND digest = ?",
                (repository, digest),
            ).fetchone()
            unused = _delete_manifest(db, repository, digest) if digest and not left else []
        self._delete_files(unused)

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Remove an image, its tags, and the blobs that nothing else needs."""
        with self.store.write() as db:
            unused = _delete_manifest(db, repository, digest)
        self._delete_files(unused)

    def delete_unused(self, keep: Collection[tuple[str, str]], before: float, tag: Tag) -> int:
        """Remove the images but those to keep (repository, digest), and their blobs; how many.

        Only from repositories with that tag, only what was pushed before that time (seconds since
        the epoch). What an image to keep belongs to, or consists of, stays too.
        """
        kept = set(keep)
        with self.store.write() as db:
            rows = db.execute(
                "SELECT m.repository, m.digest, m.pushed, r.tags FROM registry_manifests m"
                " JOIN registry_repositories r ON r.name = m.repository"
            ).fetchall()
            for row in db.execute("SELECT repository, manifest, digest FROM registry_references"):
                if (row["repository"], row["digest"]) in keep:
                    kept.add((row["repository"], row["manifest"]))
                elif (row["repository"], row["manifest"]) in keep:
                    kept.add((row["repository"], row["digest"]))
            gone = [
                (row["repository"], row["digest"])
                for row in rows
                if row["pushed"] < before
                and (row["repository"], row["digest"]) not in kept
                and json.loads(row["tags"]).get(tag[0]) == tag[1]
            ]
            unused = [blob for key in gone for blob in _delete_manifest(db, *key)]
        self._delete_files(unused)
        return len(gone)

    def bytes_in_use(self) -> int:
        """The size of all blobs."""
        query = "SELECT coalesce(sum(size), 0) FROM registry_blobs"
        size: int = self.store.read().execute(query).fetchone()[0]
        return size

    def parents(self, repository: str, digest: str) -> list[str]:
        """The digests of the indexes that name this manifest."""
        rows = self.store.read().execute(
            "SELECT manifest FROM registry_references WHERE repository = ? AND digest = ?",
            (repository, digest),
        )
        return [row[0] for row in rows]

    def image(self, repository: str, reference: str) -> StoredImage | None:
        """The image of this machine's platform, or None where there is none."""
        manifest = self.manifest(repository, reference)
        if manifest and manifest.media_type in INDEX_TYPES:
            child = _for_this_machine(json.loads(manifest.body)["manifests"])
            manifest = self.manifest(repository, child) if child else None
        if not manifest or manifest.media_type not in MANIFEST_TYPES:
            return None
        content = json.loads(manifest.body)
        config = self._path(repository, content["config"]["digest"])
        layers = content["layers"]
        return StoredImage(
            repository=repository,
            manifest_digest=manifest.digest,
            config=json.loads(config.read_bytes()),
            layers=tuple(self._path(repository, layer["digest"]) for layer in layers),
            layer_digests=tuple(layer["digest"] for layer in layers),
            media_types=tuple(layer["mediaType"] for layer in layers),
        )

    def layer_chains(self) -> set[tuple[str, ...]]:
        """The layers' digests of every image there is, for knowing what can go."""
        rows = self.store.read().execute("SELECT media_type, body FROM registry_manifests")
        return {
            tuple(layer["digest"] for layer in json.loads(row["body"])["layers"])
            for row in rows
            if row["media_type"] in MANIFEST_TYPES
        }

    def manifest_digests(self) -> set[str]:
        """The digest of every manifest there is."""
        rows = self.store.read().execute("SELECT DISTINCT digest FROM registry_manifests")
        return {row[0] for row in rows}

    def blobs_in_use(self) -> set[str]:
        """Ids in the blob folder that belong to images."""
        return {row[0] for row in self.store.read().execute("SELECT blob FROM registry_blobs")}

    def _path(self, repository: str, digest: str) -> Path:
        found = self.blob(repository, digest)
        if found is None:
            raise ImageFault("BLOB_UNKNOWN", f"blob {digest} is gone", 404)
        return found[0]

    def _delete_files(self, blobs: Iterable[str]) -> None:
        for blob in blobs:
            self.store.delete_blob(blob)


def digest_of(data: bytes) -> str:
    """The digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(reference: str) -> bool:
    """Whether a reference is a digest (tags have no colon)."""
    return ":" in reference


def _link(db: sqlite3.Connection, repository: str, digest: str) -> None:
    db.execute(
        "INSERT OR REPLACE INTO registry_links VALUES (?, ?, ?)", (repository, digest, time.time())
    )


def _tagged(db: sqlite3.Connection, repository: str, tag: str) -> str | None:
    row = db.execute(
        "SELECT digest FROM registry_tags WHERE repository = ? AND tag = ?", (repository, tag)
    ).fetchone()
    return row["digest"] if row else None


def _parse(body: bytes, media_type: str) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError as exc:
        raise ImageFault("MANIFEST_INVALID", f"manifest is no JSON: {exc}") from exc
    if media_type not in MANIFEST_TYPES + INDEX_TYPES:
        raise ImageFault(
            "MANIFEST_INVALID", f"media type `{media_type}` is none of an OCI or Docker manifest"
        )
    if not isinstance(content, dict) or content.get("schemaVersion") != 2:
        raise ImageFault("MANIFEST_INVALID", "manifest has no `schemaVersion` 2")
    if content.get("mediaType", media_type) != media_type:
        raise ImageFault("MANIFEST_INVALID", "`mediaType` differs from the Content-Type")
    return content


def _references(content: dict[str, Any], media_type: str) -> list[dict[str, Any]]:
    if media_type in INDEX_TYPES:
        parts = content.get("manifests")
    else:
        parts = [content.get("config"), *(content.get("layers") or [])]
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and isinstance(part.get("digest"), str) for part in parts
    ):
        raise ImageFault("MANIFEST_INVALID", "manifest names parts without a digest")
    return parts


def _check_parts(
    db: sqlite3.Connection, repository: str, parts: list[dict[str, Any]], index: bool
) -> None:
    table = "registry_manifests" if index else "registry_links"
    query = f"SELECT 1 FROM {table} WHERE repository = ? AND digest = ?"  # noqa: S608
    for part in parts:
        if db.execute(query, (repository, part["digest"])).fetchone() is None:
            raise ImageFault(
                "MANIFEST_BLOB_UNKNOWN",
                "manifest names what this repository has not",
                detail={"digest": part["digest"]},
            )


def _delete_manifest(db: sqlite3.Connection, repository: str, digest: str) -> list[str]:
    key = (repository, digest)
    parts = [
        row[0]
        for row in db.execute(
            "SELECT digest FROM registry_references WHERE repository = ? AND manifest = ?", key
        )
    ]
    db.execute("DELETE FROM registry_tags WHERE repository = ? AND digest = ?", key)
    db.execute("DELETE FROM registry_references WHERE repository = ? AND manifest = ?", key)
    db.execute("DELETE FROM registry_manifests WHERE repository = ? AND digest = ?", key)
    db.executemany(
        "DELETE FROM registry_links WHERE repository = ?1 AND digest = ?2 AND NOT EXISTS ("
        " SELECT 1 FROM registry_references WHERE repository = ?1 AND digest = ?2)",
        [(repository, part) for part in parts],
    )
    return _take_unused_blobs(db)


def _take_unused_blobs(db: sqlite3.Connection) -> list[str]:
    rows = db.execute(
        "DELETE FROM registry_blobs WHERE NOT EXISTS (SELECT 1 FROM registry_links l"
        " WHERE l.digest = registry_blobs.digest) RETURNING blob"
    ).fetchall()
    return [row["blob"] for row in rows]


def _for_this_machine(children: list[dict[str, Any]]) -> str | None:
    wanted = _ARCHITECTURES.get(platform.machine(), platform.machine())
    for child in children:
        where = child.get("platform", {})
        if where.get("os") == "linux" and where.get("architecture") == wanted:
            digest: str = child["digest"]
            return digest
    return None
