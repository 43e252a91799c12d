"""The guests that tests boot, made once a session and kept in the user's cache.

Where QEMU or the kernel cannot be had, tests that boot are skipped and say why;
``MEMCG_GYM_REQUIRE_LAB=1`` makes them fail instead.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memcg_gym.envs.lab.guest_image import GuestImage, build
from memcg_gym.envs.lab.kernel_image import KernelFiles, fetch
from memcg_gym.envs.lab.protocol import LabError
from memcg_gym.envs.lab.qemu import QEMU, Hardware, check_host

HERE = Path(__file__).resolve().parent

REQUIRED = os.environ.get("MEMCG_GYM_REQUIRE_LAB", "") not in ("", "0")


@pytest.fixture(scope="session")
def kernel() -> KernelFiles:
    """The distribution's kernel."""
    try:
        check_host(Hardware(memory_mib=512))
        return fetch()
    except LabError as error:
        if REQUIRED:
            raise
        pytest.skip(f"no kernel lab: {error}")


@pytest.fixture(scope="session")
def guest_image(kernel: KernelFiles) -> GuestImage:
    """The guest that ships."""
    return build_or_skip(kernel)


@pytest.fixture(scope="session")
def echo_image(kernel: KernelFiles) -> GuestImage:
    """A guest that only says what it was told, and fails when told to."""
    return build_or_skip(kernel, HERE / "echo")


def build_or_skip(kernel: KernelFiles, sources: Path | None = None) -> GuestImage:
    """Without a compiler there is no guest; with one, its sources must compile."""
    if not REQUIRED and shutil.which("gcc") is None:
        pytest.skip("no kernel lab: gcc: not found")
    return build(kernel, sources)


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
