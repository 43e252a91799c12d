"""How the model is compiled: plain scalar functions over record arrays, numba on top.

``NUMBA_DISABLE_JIT=1`` runs the same source uncompiled, for a debugger and for the test that both
agree.  The enforcer's functions are registered here, so that features, shield and knobs are
computed by one source on a host and in the model.

Compiled code is kept in a folder named after a hash of all sources: numba by itself notices a
change only in the file of the function it is asked for, not in what that function calls.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config as _config
from numba.extending import register_jitable

from memcg_gym.enforcer.adapter import ADAPTER_FUNCTIONS
from memcg_gym.enforcer.features import FEATURE_FUNCTIONS
from memcg_gym.enforcer.shield import SHIELD_FUNCTIONS

config: Any = _config  # its settings are attributes that no stub knows

Function = TypeVar("Function", bound=Callable[..., Any])


COMPILED_SOURCES = (
    "envs/model/*.py",
    "envs/contract/*.py",
    "envs/core.py",
    "envs/reward.py",
    "enforcer/adapter.py",
    "enforcer/features.py",
    "enforcer/shield.py",
)
"""What is compiled, or read as a constant while compiling."""

KEPT_VERSIONS = 4
"""How many versions' compiled code stays on disk, the one in use included."""


def cache_folder() -> str:
    """Where this version's compiled code goes; empty for numba's own choice (no right to write)."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for pattern in COMPILED_SOURCES:
        for source in sorted(package.glob(pattern)):
            digest.update(source.read_bytes())
    base = Path(config.CACHE_DIR or Path(__file__).parent / "__pycache__")
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""
    if not os.access(base, os.W_OK):
        return ""
    own = base / f"version-{digest.hexdigest()[:16]}"
    others = (path for path in base.glob("version-*") if path != own)
    newest_first = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    for old in newest_first[KEPT_VERSIONS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return str(own)


_CACHE_FOLDER = cache_folder()


def compiled(function: Function) -> Function:
    """Compile to machine code on first call; cached on disk; releases the GIL.

    No fast-math and no contraction: the same seed must give the same bits on every path.
    """
    before = config.CACHE_DIR
    config.CACHE_DIR = _CACHE_FOLDER or before
    try:
        made: Function = numba.njit(function, cache=True, nogil=True, error_model="numpy")
        return made
    finally:
        config.CACHE_DIR = before


for _function in (*FEATURE_FUNCTIONS, *SHIELD_FUNCTIONS, *ADAPTER_FUNCTIONS):
    register_jitable(_function)
