"""Images in a file: what `docker save` writes (old and new), and OCI layouts in a tar."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from scar.errors import ImageError
from scar.images.derive import MANIFEST_TYPES, Base, Blob, digest_of
from scar.images.registry import base_of, pick

GZIP_LEVEL = 3
"""Plain layers are compressed here: level 6 takes 2.5 times as long for 10 % less."""


class Archive:
    """A source of one image. Plain layers are compressed, always to the same bytes, in `work`.

    Raises ImageError where `path` is no image archive.
    """

    mounts: tuple[str, str] | None = None

    def __init__(self, path: Path, work: Path) -> None:
        self._path, self._work = path, work
        self._blobs: dict[str, bytes | Path | tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.open(path)  # noqa: SIM115
            self._members = {m.name.removeprefix("./"): m for m in self._tar.getmembers()}
        except (OSError, tarfile.TarError) as exc:
            raise ImageError(str(path), f"cannot be read as a tar: {exc}", _HINT) from exc

    def base(self, version: str, architecture: str) -> Base:
        """The image in the archive; `version` plays no part."""
        try:
            if "manifest.json" in self._members:
                return self._saved(architecture)
            if "index.json" in self._members:
                return self._layout(architecture)
        except (KeyError, ValueError, IndexError, tarfile.TarError, gzip.BadGzipFile) as exc:
            raise ImageError(str(self._path), f"it is damaged: {exc!r}", _HINT) from exc
        raise ImageError(str(self._path), "it holds no image", _HINT)

    def open(self, blob: Blob) -> BinaryIO:
        """The content of one of the image's blobs."""
        content = self._blobs[blob.digest]
        if isinstance(content, bytes):
            return io.BytesIO(content)
        if isinstance(content, Path):
            return content.open("rb")
        return cast(BinaryIO, _Section(self._path, content))

    def _saved(self, architecture: str) -> Base:
        images = json.loads(self._read("manifest.json"))
        if len(images) != 1:
            raise ImageError(
                str(self._path), f"it holds {len(images)} images", "save one image to a file"
            )
        config_bytes = self._read(images[0]["Config"])
        config = json.loads(config_bytes)
        layers = [self._layer(name, n) for n, name in enumerate(images[0]["Layers"])]
        manifest = {
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                 "digest": blob.digest, "size": blob.size_bytes}
                for blob in layers
            ]
        }  # fmt: skip
        digest = digest_of(config_bytes)
        return base_of(
            manifest, MANIFEST_TYPES["oci"], config, digest, architecture, str(self._path)
        )

    def _layout(self, architecture: str) -> Base:
        body = self._read("index.json")
        manifest = json.loads(body)
        while "manifests" in manifest:
            entries = manifest["manifests"]
            only = entries[0]["digest"] if len(entries) == 1 else None
            digest = only or pick(manifest, architecture, str(self._path))
            body = self._read(_blob_name(digest))
            manifest = json.loads(body)
        config = json.loads(self._read(_blob_name(manifest["config"]["digest"])))
        manifest["layers"] = [
            self._plain_or_gzip(layer, n) for n, layer in enumerate(manifest["layers"])
        ]
        said = manifest.get("mediaType", MANIFEST_TYPES["oci"])
        return base_of(manifest, said, config, digest_of(body), architecture, str(self._path))

    def _plain_or_gzip(self, layer: dict[str, Any], n: int) -> dict[str, Any]:
        if layer["mediaType"].endswith((".tar", "diff.tar")):
            blob = self._layer(_blob_name(layer["digest"]), n)
            media_type = layer["mediaType"]
            suffix = ".gzip" if "docker" in media_type else "+gzip"
            return {
                "mediaType": media_type + suffix,
                "digest": blob.digest,
                "size": blob.size_bytes,
            }
        self._blobs[layer["digest"]] = self._members[_blob_name(layer["digest"])]
        return layer

    def _layer(self, name: str, n: int) -> Blob:
        """One layer of the archive as a gzip blob: as it is, or compressed."""
        member = self._members[name]
        while member.issym() or member.islnk():  # `docker save` links layers that images share
            target = member.linkname
            if member.issym():
                target = str(Path(name).parent / target)
            name = _normal(target)
            member = self._members[name]
        stream = self._tar.extractfile(member)
        if stream is None:
            raise ValueError(f"{name} is no file")
        is_gzip = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        if is_gzip:
            digest = hashlib.sha256()
            for part in iter(lambda: stream.read(1 << 20), b""):
                digest.update(part)
            blob = Blob(f"sha256:{digest.hexdigest()}", member.size)
            self._blobs[blob.digest] = member
            return blob
        return self._compressed(stream, self._work / f"layer-{n}.tar.gz")

    def _compressed(self, stream: Any, path: Path) -> Blob:
        with path.open("wb") as raw, gzip.GzipFile("", "wb", GZIP_LEVEL, raw, 0) as packed:
            for part in iter(lambda: stream.read(1 << 20), b""):
                packed.write(part)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                digest.update(part)
        blob = Blob(f"sha256:{digest.hexdigest()}", path.stat().st_size)
        self._blobs[blob.digest] = path
        return blob

    def _read(self, name: str) -> bytes:
        stream = self._tar.extractfile(self._members[name])
        if stream is None:
            raise ValueError(f"{name} is no file")
        return stream.read()


class _Section(io.RawIOBase):
    """A member of an uncompressed or compressed tar, read on its own so that threads may."""

    def __init__(self, path: Path, member: tarfile.TarInfo) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115
        stream = self._tar.extractfile(member)
        if stream is None:
            raise ValueError(f"{member.name} is no file")
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def close(self) -> None:
        self._tar.close()
        super().close()


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _normal(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


_HINT = "make it with `docker save --output FILE IMAGE`"
