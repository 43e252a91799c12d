"""TPP: keep room on the fast tier by demoting early, and promote what a hint fault finds hot.

::

    free = free bytes of the fast tier;  line = demote_scale_factor * its size
    if free < line:
        demote (line - free), each cgroup in proportion to its cold pages there
    always: promotion without a rate limit for cgroups with pages on the slow tier

Source: TPP (ASPLOS 2023): demotion decoupled from allocation by its own watermark, so that new
pages find room; ``demote_scale_factor`` 2 % of the node (from memory).  TPP leaves to the LRU
which pages go; the cold share is what a host can measure of that.

Units: bytes, ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, KnobPolicy, View
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import HostSig, Sig


@dataclass(frozen=True, slots=True, kw_only=True)
class TppConfig:
    """The raised watermark."""

    demote_scale_ratio: float = 0.02
    max_demote_ratio: float = 0.1  # of the fast tier in a second: bandwidth left to tenants

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("demote_scale_ratio", "max_demote_ratio"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"tpp: {name} must be in [0, 1], got {getattr(self, name)!r}")


class Tpp(KnobPolicy):
    """Early demotion and free promotion."""

    owns = (Knob.DEMOTE_BYTES, Knob.PROMOTE_PREFERRED)

    def __init__(self, config: TppConfig = TppConfig()) -> None:
        self.name = "tpp"
        self.config = config

    def write(self, view: View, knobs: Array) -> None:
        """Demote towards the line and let promotion run."""
        size = view.host_signals[:, HostSig.FAST_TOTAL_BYTES]
        tiered = view.host_signals[:, HostSig.SLOW_TOTAL_BYTES] > 0
        short = self.config.demote_scale_ratio * size
        short = short - view.host_signals[:, HostSig.FAST_FREE_BYTES]
        short = np.clip(short, 0.0, self.config.max_demote_ratio * size) * tiered
        cold = np.where(view.active, np.nan_to_num(view.now(Sig.COLD_FAST_BYTES)), 0.0)
        share = cold / np.maximum(cold.sum(axis=1, keepdims=True), 1.0)
        knobs[..., Knob.DEMOTE_BYTES] = np.minimum(short[:, None] * share, cold)
        on_slow = np.nan_to_num(view.now(Sig.SLOW_BYTES)) > 0
        knobs[..., Knob.PROMOTE_PREFERRED] = on_slow & tiered[:, None]
