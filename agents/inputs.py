"""How a network sees the contract's features: one fixed squashing, the same everywhere.

``y = sign(x) * log1p(gain * |x|) / log1p(gain * top)``.  Small shares and rates carry the news
(a PSI share of 0.5 % matters, one of 50 % differs little from one of 70 %), so they get a large
gain; plain ratios a small one, which leaves them nearly straight.  ``top`` is where ``y`` is 1.
The constants depend on the contract alone: there is nothing to fit, to save or to lose.

Units: features in their own; outputs are dimensionless, mostly within [-1, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memcg_gym.envs.contract.features import FEATURES, F, Feature

Array = np.ndarray[Any, np.dtype[Any]]

PLAIN = (0.5, 1.0)
RARE = (256.0, 1.0)
"""Knee at 0.4 % of the tick or of usage a second: where hand policies act (assumption)."""
SHORT = (16.0, 1.0)
"""Free memory and headroom: the last few percent matter most."""
SCALE_BY_UNIT = {
    "1/s": RARE,
    "count": (1.0, 8.0),
    "level": (0.5, 4.0),
    "ticks": (0.5, 8.0),
}
SCALE_BY_FEATURE = {
    F.HEADROOM_RATIO: SHORT,
    F.HOST_FAST_FREE: SHORT,
    F.FLUSHER_BACKLOG: SHORT,
    F.LOCK_KERNEL_SHARE: SHORT,
    F.LOCK_USER_SHARE: SHORT,
    F.LOCK_WAIT_SHARE: SHORT,
    F.SLACK: (1.0, 1.0),
}
"""Gain and top where the unit does not say it."""


def gain_and_top(feature: Feature) -> tuple[float, float]:
    """The two constants of one feature."""
    if F(feature.id) in SCALE_BY_FEATURE:
        return SCALE_BY_FEATURE[F(feature.id)]
    if any(signal.startswith("psi_") for signal in feature.signals):
        return RARE
    return SCALE_BY_UNIT.get(feature.unit, PLAIN)


def scale_constants() -> tuple[Array, Array]:
    """Gains and outer factors of all features, float32 ``(N_FEATURES,)`` each."""
    pairs = np.array([gain_and_top(f) for f in FEATURES])
    gain, top = pairs[:, 0], pairs[:, 1]
    return gain.astype(np.float32), (1.0 / np.log1p(gain * top)).astype(np.float32)


GAIN, FACTOR = scale_constants()


def scale_inputs(observation: Array) -> Array:
    """Network inputs of float32 observations in units, shape ``(..., N_FEATURES)``.

    Example:
        >>> float(scale_inputs(np.ones(64, np.float32))[F.PSI_MEM_SOME])
        1.0
    """
    inputs: Array = np.copysign(np.log1p(GAIN * np.abs(observation)) * FACTOR, observation)
    return inputs
