"""The images functions run in: where their bases are, what goes on top, how they are pushed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scar import __version__, config
from scar.aws.account import Account
from scar.aws.repositories import Push, ecr_login, ecr_region, remote
from scar.bundle import function_layer, payload_sha256, runtime_layer
from scar.errors import ImageError, UserError
from scar.fdl.schema import AwsFunction, Container, StorageProviders
from scar.images import reference
from scar.images.archive import Archive
from scar.images.cache import LayerCache
from scar.images.connect import RegistryError
from scar.images.contents import Contents
from scar.images.daemon import Daemon, daemon_address
from scar.images.derive import (
    OCI_ARCHITECTURES,
    Base,
    Layer,
    content_tag,
    defaults,
    derive,
    host_base,
    is_derived,
    is_host,
)
from scar.images.login import Login, docker_login
from scar.images.manifests import Source, find
from scar.images.push import OnProgress, push
from scar.images.registry import Repository as RemoteRepository
from scar.images.streams import damaged, unpacked
from scar.images.turns import Turns
from scar.plan.desired import ImageFacts, function_config
from scar.plan.resources import REPOSITORY
from scar_supervisor.contract import SCAR_DIR

CACHE_FOLDER = "cache"
"""In the folder of scar.cfg: layers that were packed anew."""

READ_LIMIT_BYTES = 32 << 20
"""Compressed layers of a registry's image that are read to see whether it has a program."""


@dataclass(frozen=True)
class Built:
    """One function's image: where it will be, and how to push it if it is ours."""

    facts: ImageFacts
    tag: str = ""
    push: Push | None = None
    check: Callable[[], None] = lambda: None
    """Raises ImageError where the script could not be run in the image."""


class Builder:
    """Builds layers and decides tags; nothing is pushed. Threads may share it.

    `work` is a folder for what is needed until the images are pushed.
    """

    def __init__(
        self, account: Account, base_folder: Path, work: Path, tell: Callable[[str], None],
        on_progress: OnProgress,
    ) -> None:  # fmt: skip
        self._account, self._facts, self._tell = account, account.facts(), tell
        self._base_folder, self._work, self._on_progress = base_folder, work, on_progress
        self._bases: dict[tuple[str, str], tuple[Source, Base]] = {}
        self._cache = LayerCache(config.folder() / CACHE_FOLDER)
        self._reading, self._sending = Turns(), Turns()

    def build(self, function: AwsFunction, storages: StorageProviders) -> Built:
        """The image of `function`. Raises Missing, UserError, ImageError or CloudError."""
        its = function.lambda_
        architecture = its.architectures[0]
        if not its.container.create_image:
            self._check_prepared(its.container.image or "", OCI_ARCHITECTURES[architecture])
            prepared = its.container.image or ""
            return Built(ImageFacts(prepared, architecture, is_ours=False, supervisor=""))
        source, base = self._base(function, OCI_ARCHITECTURES[architecture])
        named = its.container.image_file or its.container.image or ""
        if is_derived(base):
            hint = "name the image it was made of, or set `create_image: false`"
            raise ImageError(named, "SCAR made it: it has a supervisor already", hint)
        folder = self._work / its.name
        folder.mkdir(exist_ok=True)
        script = self._path(its.init_script)
        extra = self._path(its.extra_payload)
        made = replace(
            function_config(function, self._facts, defaults(base), storages),
            image_digest=base.digest,
            script_sha256=payload_sha256(script) if script else "",
            payload_sha256=payload_sha256(extra) if extra else "",
        )
        ours = folder / "function.tar.gz"
        layers = [function_layer(made, script, extra, ours)]
        if not is_host(base):
            layers.insert(0, runtime_layer(architecture))
        tag = content_tag(its.name, base, layers)
        uri = f"{self._facts.registry_host}/{REPOSITORY}:{tag}"
        facts = ImageFacts(
            uri, architecture, is_ours=True, supervisor=__version__, version=made.version
        )
        if source is None:
            return Built(facts, tag, self._pusher(None, base, layers, named))
        program = interpreter(script) if script else ""
        return Built(
            facts, tag, self._pusher(source, base, layers, named),
            lambda: check_program(source, base, program, named),
        )  # fmt: skip

    def _pusher(self, source: Source | None, base: Base, layers: list[Layer], named: str) -> Push:
        def store(to: RemoteRepository, tag: str) -> None:
            its, packed = source, base
            if source is not None:
                its, packed = self._cache.gzipped(source, base, named)
            derived = derive(packed, layers, __version__)
            push(derived, its, to, tag, self._sending, self._on_progress)

        return store

    def _base(self, function: AwsFunction, architecture: str) -> tuple[Source | None, Base]:
        """The base of a function's image; functions that share one read it once."""
        container = function.lambda_.container
        if container.image == "host":
            return None, host_base(function.lambda_.architectures[0])
        key = container.image_file or container.image or "", architecture
        with self._reading.of(key):
            if key not in self._bases:
                self._tell(f"reading image {key[0]}")
                self._bases[key] = self._read(container, architecture)
            return self._bases[key]

    def _read(self, container: Container, architecture: str) -> tuple[Source, Base]:
        if container.image_file is not None:
            archive = Archive(self._base_folder / container.image_file, self._folder())
            return archive, archive.base("", architecture)
        image = container.image or ""
        ref = reference.parse(image)
        repository = self._repository(ref, image)
        try:
            return repository, repository.base(ref.version, architecture)
        except RegistryError as exc:
            if not exc.is_absence or not (address := daemon_address()):
                raise
            daemon = Daemon(image, self._folder(), address)
            if not daemon.has_it():
                hint = "the local Docker daemon does not have it either"
                exc.hint = f"{exc.hint}; {hint}" if exc.hint else hint
                raise
            self._tell(f"{exc}; taking it from the local Docker daemon")
        return daemon, daemon.base("", architecture)

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=".base-", dir=self._work))

    def _repository(self, ref: reference.Reference, image: str) -> RemoteRepository:
        if ref.host == self._facts.registry_host:
            return remote(self._account, ref.repository, image)

        def login() -> Login | None:
            found = docker_login(ref.host)
            region = ecr_region(ref.host)
            if found is None and region and not self._account.is_local:
                return ecr_login(self._account.in_region(region))
            return found

        return RemoteRepository(ref.host, ref.repository, image, login)

    def _check_prepared(self, image: str, architecture: str) -> None:
        """An image in our own registry is there, for Lambda's processor, and one Lambda takes."""
        ref = reference.parse(image)
        if ref.host != self._facts.registry_host:
            return
        repository = self._repository(ref, image)
        document, _ = find(repository.manifest, ref.version, architecture, image)
        base = repository.base(document.digest, architecture)
        odd = [blob for blob in base.layers if blob.packing != "gzip"]
        if repository.manifest(ref.version).digest != document.digest or odd:
            raise ImageError(
                image, "Lambda takes one image with gzip layers, not an index or others",
                "push it with `docker build --provenance=false`, or remove `create_image: false`",
            )  # fmt: skip

    def _path(self, relative: str | None) -> Path | None:
        return None if relative is None else self._base_folder / relative


def interpreter(script: Path) -> str:
    """The program that runs a script, as the supervisor decides; empty where it runs by itself."""
    try:
        with script.open("rb") as file:
            head = file.read(4096)
    except OSError as exc:
        raise UserError(f"script `{script}` cannot be read: {exc.strerror}") from exc
    if head.startswith(b"\x7fELF"):
        return ""
    words = head[2:].split(b"\n", 1)[0].split() if head.startswith(b"#!") else []
    return words[0].decode(errors="surrogateescape") if words else "/bin/sh"


def check_program(source: Source, base: Base, program: str, named: str) -> None:
    """Raises ImageError where the image lacks `program`, if that can be seen at little cost.

    Files of this machine are read; layers of a registry only where they are small: an image
    without a shell is small. What is in the extra payload is not looked for.
    """
    packed = sum(blob.size_bytes for blob in base.layers)
    is_elsewhere = not program.startswith("/") or program.startswith(f"{SCAR_DIR}/")
    if is_elsewhere or (source.mounts is not None and packed > READ_LIMIT_BYTES):
        return
    contents = Contents()
    for blob in base.layers:
        try:
            with source.open(blob) as stream:
                contents.add(unpacked(stream, blob.packing))
        except ImageError:
            raise
        except damaged() as exc:
            raise ImageError(named, f"layer {blob.digest} is damaged: {exc}") from exc
    if not contents.has(program):
        hint = "name one in its #! line that the image has, or take an image with a shell"
        raise ImageError(named, f"it has no `{program}` to run `init_script` with", hint)
