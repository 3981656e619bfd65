"""`scar local prune`: images that nothing uses go, with what was made of them to run them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

from scar_local.engines import EngineError
from scar_local.engines.auto import Pruned
from scar_local.image_store import StoredImage

NEW_S = 60.0
"""Images pushed so recently stay: a deployment may be about to use them."""


class Images(Protocol):
    """The registry."""

    def resolve(self, image_uri: str) -> StoredImage:
        """The image of a URI. Raises EngineError."""

    def prune(self, keep: Collection[StoredImage], before: float) -> int:
        """Remove all images but those to keep and those pushed after `before`; how many."""

    def disk_bytes(self) -> int:
        """The size of all images."""


class Containers(Protocol):
    """The engine."""

    def prune(self, keep: Collection[StoredImage]) -> Pruned:
        """Remove what was unpacked or pulled for other images and runs nowhere."""


class Pruning:
    """Each of `users` gives the image URIs that are in use: functions', job definitions', jobs'."""

    def __init__(
        self,
        images: Images,
        containers: Containers,
        users: Sequence[Callable[[], Iterable[str]]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._images, self._containers, self._users = images, containers, users
        self._clock = clock
        self._one_at_a_time = threading.Lock()

    def prune(self) -> dict[str, Any]:
        """Remove what is not in use; what went, and how many bytes."""
        with self._one_at_a_time:
            keep = list(self._used())
            before = self._images.disk_bytes()
            images = self._images.prune(keep, self._clock() - NEW_S)
            image_bytes = before - self._images.disk_bytes()
            pruned = self._containers.prune(keep)
        return {
            "freed_bytes": image_bytes + pruned.root_bytes + pruned.docker_bytes,
            "images": {"removed": images, "bytes": image_bytes},
            "root_file_systems": {"removed": pruned.root_file_systems, "bytes": pruned.root_bytes},
            "docker_images": {"removed": pruned.docker_images, "bytes": pruned.docker_bytes},
        }

    def _used(self) -> Iterator[StoredImage]:
        for name in {name for images in self._users for name in images()}:
            try:
                yield self._images.resolve(name)
            except EngineError:
                continue  # it is not in the registry: nothing to keep
