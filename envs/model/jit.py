"""How the model is compiled: plain scalar functions over record arrays, numba on top.

``NUMBA_DISABLE_JIT=1`` runs the same source uncompiled, for a debugger and for the test that both
agree.  The enforcer's functions are registered here, so that features, shield and knobs are
computed by one source on a host and in the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.extending import register_jitable

from memcg_gym.enforcer.adapter import ADAPTER_FUNCTIONS
from memcg_gym.enforcer.features import FEATURE_FUNCTIONS
from memcg_gym.enforcer.shield import SHIELD_FUNCTIONS

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile to machine code on first call; cached on disk; releases the GIL.

    No fast-math and no contraction: the same seed must give the same bits on every path.
    """
    return numba.njit(function, cache=True, nogil=True, error_model="numpy")


for _function in (*FEATURE_FUNCTIONS, *SHIELD_FUNCTIONS, *ADAPTER_FUNCTIONS):
    register_jitable(_function)
