"""Storing a derived image: what is there stays, the rest is mounted, streamed or repacked."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import BinaryIO, cast

from scar.images.connect import PARALLEL_BLOBS
from scar.images.derive import Blob, Derived, Layer
from scar.images.manifests import Source
from scar.images.registry import Repository
from scar.images.streams import Checked
from scar.images.turns import Turns

OnProgress = Callable[[str, int, int], None]
"""Told of a tag how many bytes are there, and of how many. For any thread."""


def push(
    derived: Derived, source: Source | None, to: Repository, tag: str,
    turns: Turns | None = None, on_progress: OnProgress = lambda tag, done, total: None,
) -> None:  # fmt: skip
    """Store `derived` under `tag`: blobs that are there stay, others are mounted or streamed.

    `source` holds the blobs of its base; None for a base without layers. Pushes that share `turns`
    send what they have in common once. A push that fails leaves no tag; what was sent stays, and
    the next one goes on from there.
    """
    shared = turns or Turns()
    blobs = {blob.digest: blob for blob in derived.base_blobs}
    ours = [derived.config_blob, *(one.blob for one in derived.layers)]
    progress = _Progress(tag, [*ours, *blobs.values()], on_progress)

    def put(blob: Blob, opened: Callable[[], BinaryIO], mount: str = "") -> None:
        with shared.of((to.mounts, blob.digest)):
            to.put(blob, opened, mount, partial(progress.reached, blob.digest))

    put(derived.config_blob, lambda: io.BytesIO(derived.config))  # alone: it logs in
    with ThreadPoolExecutor(PARALLEL_BLOBS) as pool:
        waiting = [pool.submit(put, one.blob, partial(_opened, one)) for one in derived.layers]
        if source is not None:
            mount = _mountable_from(source, to)
            for blob in blobs.values():
                waiting.append(pool.submit(put, blob, partial(source.open, blob), mount))
        try:
            for one in waiting:
                one.result()
        except BaseException:
            for one in waiting:
                one.cancel()
            raise
    to.put_manifest(tag, derived.manifest, derived.media_type)


class _Progress:
    """Adds up the blobs of one image."""

    def __init__(self, tag: str, blobs: Sequence[Blob], told: OnProgress) -> None:
        self._tag, self._told, self._lock = tag, told, threading.Lock()
        self._total = sum(blob.size_bytes for blob in blobs)
        self._done: dict[str, int] = {}

    def reached(self, digest: str, count: int) -> None:
        with self._lock:
            self._done[digest] = count
            self._told(self._tag, sum(self._done.values()), self._total)


def _opened(layer: Layer) -> BinaryIO:
    file = layer.path.open("rb")
    return cast(BinaryIO, Checked(file, layer.blob.digest, layer.blob.size_bytes, str(layer.path)))


def _mountable_from(source: Source, to: Repository) -> str:
    """The repository of `source`, where it is another one of the same registry."""
    here, there = source.mounts, to.mounts
    return here[1] if here and there and here[0] == there[0] and here != there else ""
