"""Whether a program is in an image: the names in its layers, links followed."""

from __future__ import annotations

import tarfile
from typing import BinaryIO

from scar.images.streams import forget

_LINKS_LIMIT = 40
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


class Contents:
    """The names of an image's files, built up layer by layer; base first."""

    def __init__(self) -> None:
        self._links: dict[str, str] = {}
        """What symbolic links lead to; everything else leads to ""."""

    def add(self, layer: BinaryIO) -> None:
        """What a plain layer adds and removes. Raises tarfile.TarError where it is no tar."""
        added: dict[str, str] = {}
        gone: list[str] = []
        with tarfile.open(fileobj=layer, mode="r|", bufsize=1 << 18) as tar:
            for member in tar:
                forget(tar)
                name = member.name.removeprefix("./").strip("/")
                folder, _, last = name.rpartition("/")
                if last == _OPAQUE:
                    gone.append(f"{folder}/")
                elif last.startswith(_WHITEOUT):
                    hidden = f"{folder}/{last.removeprefix(_WHITEOUT)}".lstrip("/")
                    gone += [f"{hidden}/", hidden]
                else:
                    added[name] = member.linkname if member.issym() else ""
        for name in gone:
            self._remove(name)
        self._links |= added

    def has(self, path: str) -> bool:
        """Whether a file is at the absolute `path`, with all links followed inside the image."""
        left, at = [part for part in path.split("/") if part], ""
        for _ in range(_LINKS_LIMIT * 10):
            if not left:
                return True
            part = left.pop(0)
            if part in ("..", "."):
                at = at.rpartition("/")[0] if part == ".." else at
                continue
            name = f"{at}/{part}".lstrip("/")
            target = self._links.get(name)
            if target is None and not self._is_folder(name):
                return False
            if target:
                at = "" if target.startswith("/") else at
                left = [*(one for one in target.split("/") if one), *left]
            else:
                at = name
        return False

    def _is_folder(self, name: str) -> bool:
        return any(one.startswith(f"{name}/") for one in self._links)

    def _remove(self, name: str) -> None:
        if name.endswith("/"):
            for one in [one for one in self._links if one.startswith(name)]:
                del self._links[one]
        else:
            self._links.pop(name, None)
