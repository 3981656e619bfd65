"""Images in files: what `docker save` writes (old and new), OCI layouts in a tar or in a folder."""

from __future__ import annotations

import errno
import hashlib
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from scar.errors import ImageError
from scar.images.derive import Base, Blob, digest_of
from scar.images.manifests import (
    DOCUMENT_LIMIT_BYTES,
    Document,
    base_of,
    check_layers,
    check_platform,
    config_blob,
    find,
    parsed,
)
from scar.images.streams import (
    MAGIC_BYTES,
    PART_BYTES,
    Checked,
    Packing,
    Reading,
    damaged,
    forget,
    packing_of,
    unpacked,
)

_LINKS_LIMIT = 40
_REF_NAME = "org.opencontainers.image.ref.name"
_HINT = "make it with `docker save --output FILE IMAGE`"


class Archive:
    """A source of one image: a tar, itself compressed or not, or a folder with an OCI layout.

    What must be unpacked goes to `work`, once. Raises ImageError where `path` holds no image.
    """

    mounts: tuple[str, str] | None = None

    def __init__(self, path: Path, work: Path) -> None:
        self._named = str(path)
        self._files: _Files = _Folder(path) if path.is_dir() else _Tar(path, work)
        self._layers: dict[str, str] = {}

    def base(self, version: str, architecture: str) -> Base:
        """The image in the archive; `version` plays no part."""
        with self._telling_damage():
            if self._files.has("manifest.json") and not isinstance(self._files, _Folder):
                return self._saved(architecture)
            if self._files.has("index.json"):
                return self._layout(architecture)
        raise ImageError(self._named, "it holds no image", _HINT)

    def open(self, blob: Blob) -> BinaryIO:
        """The content of one of the image's blobs, checked."""
        with self._telling_damage():
            stream = self._files.open(self._layers[blob.digest])
        return cast(BinaryIO, Checked(stream, blob.digest, blob.size_bytes, self._named))

    def open_plain(self, blob: Blob) -> BinaryIO:
        """The content of a layer, decompressed, not checked."""
        return unpacked(self.open(blob), blob.packing)

    def _saved(self, architecture: str) -> Base:
        """By the names that `docker save` gave: an image is as its config says."""
        images = parsed(b'{"images":' + self._files.read("manifest.json") + b"}", "list", "")
        if len(images["images"]) != 1:
            why = f"it holds {len(images['images'])} images"
            raise ImageError(self._named, why, "save one image to a file")
        its = images["images"][0]
        body = self._files.read(its["Config"])
        config = parsed(body, "config", self._named)
        check_platform(config, architecture, self._named)
        diff_ids = check_layers(config, len(its["Layers"]), self._named)
        layers = list(map(self._layer, its["Layers"], diff_ids))
        return Base(digest_of(body), "oci", config, tuple(layers))

    def _layer(self, name: str, diff_id: str) -> Blob:
        packing = packing_of(self._files.head(name))
        digest = diff_id if packing == "none" else self._digest(name)
        self._layers[digest] = name
        return Blob(digest, self._files.size(name), packing)

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._files.open(name) as stream:
            while part := stream.read(PART_BYTES):
                digest.update(part)
        return f"sha256:{digest.hexdigest()}"

    def _layout(self, architecture: str) -> Base:
        index = parsed(self._files.read("index.json"), "index", self._named)
        entries = index.get("manifests") or []
        names = {(one.get("annotations") or {}).get(_REF_NAME) for one in entries}
        if len(names) > 1 and len({one.get("digest") for one in entries}) > 1:
            why = f"it holds {', '.join(sorted(map(str, names)))}"
            raise ImageError(self._named, why, "keep one image in a layout")
        document, manifest = find(self._document, "", architecture, self._named)
        config = parsed(
            self._files.read(_blob_name(config_blob(manifest, self._named).digest)),
            "config",
            self._named,
        )
        base = base_of(document, manifest, config, architecture, self._named)
        for blob in base.layers:
            self._layers[blob.digest] = _blob_name(blob.digest)
            self._files.size(_blob_name(blob.digest))  # it is there
        return base

    def _document(self, version: str) -> Document:
        return Document(self._files.read(_blob_name(version) if version else "index.json"))

    @contextmanager
    def _telling_damage(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, ValueError, IndexError, TypeError) as exc:
            raise ImageError(self._named, f"it is damaged: {exc!r}", _HINT) from exc


class _Files(Protocol):
    """The files of an archive, by name. A name that is not there is a KeyError."""

    def has(self, name: str) -> bool: ...

    def size(self, name: str) -> int: ...

    def head(self, name: str) -> bytes: ...

    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> BinaryIO: ...


@dataclass(frozen=True)
class _Member:
    offset: int
    size: int
    head: bytes
    content: bytes | None
    """Of small members, so that a compressed archive is read once."""
    link: str = ""


class _Tar:
    """The members of a tar. Nothing is extracted: names are keys, never paths."""

    def __init__(self, path: Path, work: Path) -> None:
        self._path, self._work = path, work
        self._members: dict[str, _Member] = {}
        self._unpacking = threading.Lock()
        try:
            with path.open("rb") as file:
                self._packing: Packing = packing_of(file.read(MAGIC_BYTES))
                file.seek(0)
                self._read_all(unpacked(file, self._packing))
        except damaged() as exc:
            raise ImageError(str(path), f"cannot be read as a tar: {exc}", _HINT) from exc

    def has(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        return self._member(name).size

    def head(self, name: str) -> bytes:
        return self._member(name).head

    def read(self, name: str) -> bytes:
        content = self._member(name).content
        if content is None:
            raise ValueError(f"{name} is too large")
        return content

    def open(self, name: str) -> BinaryIO:
        member = self._member(name)
        return cast(BinaryIO, _Section(self._plain(), member.offset, member.size))

    def _read_all(self, stream: BinaryIO) -> None:
        # A plain tar is sought through; a compressed one passes by once.
        mode: Any = "r:" if self._packing == "none" else "r|"
        with tarfile.open(fileobj=stream, mode=mode, bufsize=PART_BYTES) as tar:
            for member in tar:
                name = _normal(member.name)
                forget(tar)
                if member.issym() or member.islnk():
                    target = member.linkname
                    if member.issym():
                        target = f"{name.rpartition('/')[0]}/{target}"
                    self._members[name] = _Member(0, 0, b"", None, _normal(target))
                elif member.isfile() and not member.issparse():
                    content = tar.extractfile(member)
                    assert content is not None, "it is a file"
                    is_small = member.size <= DOCUMENT_LIMIT_BYTES
                    read = content.read(member.size if is_small else MAGIC_BYTES)
                    self._members[name] = _Member(
                        member.offset_data, member.size, read[:MAGIC_BYTES],
                        read if is_small and read[:1] in b"{[" else None,
                    )  # fmt: skip

    def _member(self, name: str) -> _Member:
        """`docker save` links layers that images share."""
        for _ in range(_LINKS_LIMIT):
            member = self._members[_normal(name)]
            if not member.link:
                return member
            name = member.link
        raise ValueError(f"{name} is a link that leads nowhere")

    def _plain(self) -> Path:
        """The tar itself, decompressed when that is first needed."""
        if self._packing == "none":
            return self._path
        plain = self._work / "plain.tar"
        with self._unpacking:
            if not plain.exists():
                part = plain.with_suffix(".part")
                try:
                    with self._path.open("rb") as file, part.open("wb") as to:
                        shutil.copyfileobj(unpacked(file, self._packing), to, PART_BYTES)
                except damaged() as exc:
                    part.unlink(missing_ok=True)
                    full = isinstance(exc, OSError) and exc.errno == errno.ENOSPC
                    hint = "set TMPDIR to a folder with room" if full else _HINT
                    raise ImageError(str(self._path), f"cannot unpack it: {exc}", hint) from exc
                part.rename(plain)
        return plain


class _Folder:
    """The files of an OCI layout; their names are made of digests that were checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not (path / "index.json").is_file():
            hint = "a folder must be an OCI layout, as `skopeo copy … oci:FOLDER` makes it"
            raise ImageError(str(path), "it holds no image", hint)

    def has(self, name: str) -> bool:
        return (self._path / name).is_file()

    def size(self, name: str) -> int:
        return self._found(name).stat().st_size

    def head(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read(MAGIC_BYTES)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            content = file.read(DOCUMENT_LIMIT_BYTES + 1)
        if len(content) > DOCUMENT_LIMIT_BYTES:
            raise ValueError(f"{name} is too large")
        return content

    def open(self, name: str) -> BinaryIO:
        return self._found(name).open("rb")

    def _found(self, name: str) -> Path:
        if not self.has(name):
            raise KeyError(name)
        return self._path / name


class _Section(Reading):
    """A part of a file, read on its own so that threads may."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file, self._left = path.open("rb"), size
        self._file.seek(offset)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _normal(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
