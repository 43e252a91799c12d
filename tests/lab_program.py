"""A small program of the distribution for tests that boot: fetched once, then in the cache."""

from __future__ import annotations

import os

import pytest

from memcg_gym.configs.lab_programs import ProgramConfig
from memcg_gym.configs.loader import validate
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.programs_image import ProgramImage, with_programs
from memcg_gym.envs.lab.programs_packages import fetch_programs
from memcg_gym.envs.lab.programs_session import MKFS, MKFS_PACKAGE
from memcg_gym.envs.lab.protocol import LabError

COPIES = 6
MB_OF_A_COPY = 3.55
TINY = {
    "name": "tiny",
    "summary": "A compressor over a file larger than its limit.",
    "packages": ["zstd", "coreutils", "wamerican-huge"],
    "files": ["/usr/bin/zstd", "/usr/bin/dd", "/usr/share/dict/american-english-huge"],
    "host": {"memory_mib": 96, "swap_mib": 16, "data_mib": 48},
    "load": [
        {
            "command": "/usr/bin/dd if=/usr/share/dict/american-english-huge of=/data/words bs=1M"
            " oflag=append conv=notrunc status=none",
            "rounds": COPIES,
        }
    ],
    "measure": {
        "command": "/usr/bin/zstd -q -f --fast=5 --single-thread /data/words -o /data/words.zst",
        "operations": COPIES * MB_OF_A_COPY,
        "unit": "MB",
    },
}


def tiny_program(**changes: object) -> ProgramConfig:
    """A compressor that makes a round in a second or two."""
    return validate(ProgramConfig, TINY | changes, "tiny")


def tiny_image(base: GuestImage) -> ProgramImage:
    """A guest that has it; skipped where packages cannot be had and the lab is not required."""
    program = tiny_program()
    try:
        found = fetch_programs((*program.packages, MKFS_PACKAGE), (*program.files, MKFS))
    except LabError as error:
        if os.environ.get("MEMCG_GYM_REQUIRE_LAB", "") not in ("", "0"):
            raise
        pytest.skip(f"no programs: {error}")
    return with_programs(base, found.root, {})
