"""A static memory.high, as node agents set it from a pod's request and limit.

::

    Kubernetes: high = floor((request + factor * (limit - request)) / page) * page
                limit = memory.max, or what the node can give where there is none
    Katalyst:   high = factor * memory.max, where there is one
    both:       never above a memory.high the owner set

Source: Kubernetes KEP-2570 (MemoryQoS; factor 0.9 since 1.27), Katalyst ``memory_guard.go``
(factor 0.95).  The request is what the owner protects, memory.min or else memory.low.

Units: bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, KnobPolicy, View
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import PAGE_BYTES, UNLIMITED_BYTES, HostSig, Sig

FACTORS = {"k8s": 0.9, "katalyst": 0.95}
"""Published throttling factor of each formula."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticHighConfig:
    """Which formula, and its factor; 0 takes the published one."""

    formula: str = "k8s"
    factor_ratio: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.formula not in FACTORS:
            raise ConfigError(
                f"static-high: formula must be one of {', '.join(FACTORS)}, got {self.formula!r}"
            )
        if not 0.0 <= self.factor_ratio <= 1.0:
            raise ConfigError(
                f"static-high: factor_ratio must be in [0, 1], got {self.factor_ratio!r}"
            )

    @property
    def factor(self) -> float:
        """The factor in force."""
        return self.factor_ratio or FACTORS[self.formula]


class StaticHigh(KnobPolicy):
    """memory.high from request and limit, once and for all."""

    owns = (Knob.HIGH_BYTES,)

    def __init__(self, config: StaticHighConfig = StaticHighConfig()) -> None:
        self.name = "static-high"
        self.config = config

    def write(self, view: View, knobs: Array) -> None:
        """Set memory.high where the formula gives one."""
        maximum = view.now(Sig.OWNER_MAX_BYTES)
        if self.config.formula == "katalyst":
            high = np.where(
                maximum < UNLIMITED_BYTES, self.config.factor * maximum, UNLIMITED_BYTES
            )
        else:
            node_bytes = view.host_signals[:, None, HostSig.TOTAL_BYTES]
            owner_min = view.now(Sig.OWNER_MIN_BYTES)
            request = np.where(owner_min > 0, owner_min, view.now(Sig.OWNER_LOW_BYTES))
            high = kubernetes_high_bytes(
                request, np.minimum(maximum, node_bytes), self.config.factor
            )
        knobs[..., Knob.HIGH_BYTES] = np.minimum(high, knobs[..., Knob.HIGH_BYTES])


def kubernetes_high_bytes(request_bytes: Array, limit_bytes: Array, factor: float) -> Array:
    """memory.high of Kubernetes' MemoryQoS, whole pages [bytes].

    Example:
        >>> float(kubernetes_high_bytes(np.array(4096.0 * 100), np.array(4096.0 * 201), 0.9))
        778240.0
    """
    high = request_bytes + factor * (limit_bytes - request_bytes)
    pages: Array = np.floor(high / PAGE_BYTES)
    return pages * PAGE_BYTES
