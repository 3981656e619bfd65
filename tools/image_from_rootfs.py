"""Wrap the tar of a root file system as an image archive, in the form of `docker save`.

python tools/image_from_rootfs.py ROOTFS.tar IMAGE.tar --tag NAME:TAG [--entrypoint WORD ...]
"""

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path


def main() -> None:
    """Read the arguments and write the archive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rootfs", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--tag", required=True)
    parser.add_argument("--entrypoint", nargs="+", default=[])
    arguments = parser.parse_args()
    wrap(arguments.rootfs, arguments.image, arguments.tag, arguments.entrypoint)


def wrap(rootfs: Path, image: Path, tag: str, entrypoint: list[str]) -> None:
    """Write `image` with the one layer `rootfs`; the same input gives the same bytes."""
    with rootfs.open("rb") as file:
        diff_id = hashlib.file_digest(file, "sha256").hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": entrypoint,
                "Cmd": ["/bin/sh"],
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
            "history": [{"created_by": "tools/image_from_rootfs.py"}],
        },
        sort_keys=True,
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": [f"{diff_id}/layer.tar"]}]
    with tarfile.open(image, "w") as archive:
        _add(archive, config_name, config)
        _add(archive, "manifest.json", json.dumps(manifest).encode())
        layer = tarfile.TarInfo(f"{diff_id}/layer.tar")
        layer.size = rootfs.stat().st_size
        with rootfs.open("rb") as file:
            archive.addfile(layer, file)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    main()
