"""Counter-based random numbers: the same host, tick and stream give the same number, always.

Nothing is carried from call to call, so a host's trajectory does not depend on how many others
run beside it or on which thread.  The mixing function is splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memcg_gym.envs.model.jit import compiled

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
U30, U27, U31, U11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
STREAM = np.uint64(0xD1342543DE82EF95)
UNIT = 1.0 / 9007199254740992.0  # 2**-53


@compiled
def mix(x: Any) -> Any:
    """splitmix64's finaliser."""
    x = (x ^ (x >> U30)) * MIX_1
    x = (x ^ (x >> U27)) * MIX_2
    return x ^ (x >> U31)


@compiled
def uniform(seed: int, counter: int, stream: int) -> float:
    """A number in [0, 1) for a seed, a counter (tick) and a stream (who asks, for what)."""
    x = np.uint64(seed) + np.uint64(counter) * GOLDEN
    x = mix(x + np.uint64(stream) * STREAM)
    return np.float64(mix(x + GOLDEN) >> U11) * UNIT
