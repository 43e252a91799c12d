"""What the lab's own tests use: an echoing guest, an empty cache, programs that pretend."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.kernel_image import KernelFiles
from memcg_gym.envs.lab.qemu import QEMU
from tests.conftest import build_or_skip

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def echo_image(kernel: KernelFiles) -> GuestImage:
    """A guest that only says what it was told, and fails when told to."""
    return build_or_skip(kernel, HERE / "echo")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "memcg-gym" / "lab"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put programs in front of the machine's: ``programs(name, script)``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return add


@pytest.fixture
def fake_qemu(programs: Callable[[str, str], Path]) -> Path:
    """A QEMU that boots nothing and speaks its monitor's language."""
    return programs(QEMU, f"#!{sys.executable}\n{(HERE / 'fake_qemu.py').read_text()}")
