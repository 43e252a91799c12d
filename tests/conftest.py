"""What tests anywhere use: guests that are made once a session and kept in the user's cache.

Where QEMU or the kernel cannot be had, tests that boot are skipped and say why;
``MEMCG_GYM_REQUIRE_LAB=1`` makes them fail instead.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from memcg_gym.envs.lab.guest_image import GuestImage, build
from memcg_gym.envs.lab.kernel_image import KernelFiles, fetch
from memcg_gym.envs.lab.protocol import LabError
from memcg_gym.envs.lab.qemu import Hardware, check_host

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


def build_or_skip(kernel: KernelFiles, sources: Path | None = None) -> GuestImage:
    """Without a compiler there is no guest; with one, its sources must compile."""
    if not REQUIRED and shutil.which("gcc") is None:
        pytest.skip("no kernel lab: gcc: not found")
    return build(kernel, sources)
