"""A directory tree that is deeper than a path can say or a function can call itself."""

from __future__ import annotations

import os
from pathlib import Path


def make_deep_tree(directory: Path, levels: int = 1500) -> None:
    """Nest directories with long names in an existing one; a file and a link on each level."""
    here = os.open(directory, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 50, dir_fd=here)
        os.symlink("/", "link", dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.chmod(here, 0)
    os.close(here)
