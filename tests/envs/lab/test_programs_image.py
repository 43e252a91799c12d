from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.programs_image import ALIGN_BYTES, with_programs

pytestmark = pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")


@pytest.fixture
def base(tmp_path: Path) -> GuestImage:
    (tmp_path / "initrd").write_bytes(b"the lab's own archive")
    return GuestImage(tmp_path / "vmlinuz", tmp_path / "initrd", "7.0", "d1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/tool").write_bytes(b"x" * 1000)
    return tmp_path / "root"


def test_programs_follow_the_labs_own_archive(home: Path, base: GuestImage, root: Path) -> None:
    made = with_programs(base, root, {"/lab/tool.conf": "port 0\n"})

    content = made.image.initrd.read_bytes()
    assert content.startswith(b"the lab's own archive\0")
    assert content[ALIGN_BYTES:].startswith(b"070701")  # a cpio header in the newc format
    assert b"usr/bin/tool" in content and b"port 0\n" in content
    assert made.added_bytes == 1007
    assert made.image.kernel == base.kernel


def test_an_image_is_kept_by_its_content(home: Path, base: GuestImage, root: Path) -> None:
    first = with_programs(base, root, {"/lab/a": "1"})
    again = with_programs(base, root, {"/lab/a": "1"})
    other = with_programs(base, root, {"/lab/a": "2"})

    assert first == again
    assert first.image.digest != other.image.digest
    assert first.image.initrd != other.image.initrd
    assert first.image.digest != base.digest
