"""A guest with programs of the distribution in it: the lab's image and a second archive behind it.

The kernel unpacks both into its root, which is memory: it costs a guest as much as the files are
large, and :class:`ProgramImage` says how much.  That memory is the root's and of no cgroup.

Units: bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from memcg_gym.envs.lab.guest_image import GuestImage, pack
from memcg_gym.envs.lab.kernel_image import cache_dir, make_folder, need_programs, publish

ALIGN_BYTES = 512
"""An archive begins at a multiple of four bytes; cpio itself pads to this."""

NEED_MIB = 200
FOLDERS = ("data", "lab", "tmp")


@dataclass(frozen=True, slots=True)
class ProgramImage:
    """A guest that has programs.

    Attributes:
        image: To boot.
        added_bytes: Guest memory that the programs' files take.
    """

    image: GuestImage
    added_bytes: int


def with_programs(base: GuestImage, root: Path, texts: Mapping[str, str]) -> ProgramImage:
    """The guest with more files; kept in the cache by what it is made of.

    Args:
        base: The lab's guest.
        root: A folder laid over its root.
        texts: Content by path of further files.

    Raises:
        LabError: No cpio, or no room on the disk.
    """
    need_programs("cpio")
    images = cache_dir() / "images"
    make_folder(images, NEED_MIB)
    with tempfile.TemporaryDirectory(prefix=".programs-", dir=images) as name:
        tree, archive = Path(name) / "root", Path(name) / "archive"
        shutil.copytree(root, tree)
        for folder in FOLDERS:
            (tree / folder).mkdir(exist_ok=True)
        for path, text in texts.items():
            (tree / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (tree / path.lstrip("/")).write_text(text)
        added = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        pack(tree, archive)
        more = archive.read_bytes()
        digest = hashlib.sha256(base.digest.encode() + more).hexdigest()
        home = images / digest[:32]
        if not (home / "initrd").is_file():
            out = Path(name) / "image"
            out.mkdir()
            first = base.initrd.read_bytes()
            (out / "initrd").write_bytes(first + bytes(-len(first) % ALIGN_BYTES) + more)
            publish(out, home)
    return ProgramImage(replace(base, initrd=home / "initrd", digest=digest), added)
