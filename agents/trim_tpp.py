"""Background trim beside TPP: what a fleet with a slow tier runs without learning anything.

::

    every interval, for each cgroup:
        memory.reclaim = share * memory.current * max(0, 1 - some avg60 / threshold)
    every second: TPP

Source: the trim is the PSI law of Katalyst's memory offloading (``memory_offloading.go``); TPP as
in ``agents/tpp.py``.  On a tiered host memory.reclaim demotes, and then usage does not fall.

Units: bytes, percent of time, seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, KnobPolicy, View
from memcg_gym.agents.tpp import Tpp, TppConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import Sig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimTppConfig:
    """Katalyst's trim and TPP's watermark."""

    interval_s: int = 30
    share_ratio: float = 0.01
    pressure_percent: float = 0.1
    demote_scale_ratio: float = 0.02
    max_demote_ratio: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.interval_s < 1:
            raise ConfigError(f"trim-tpp: interval_s must be at least 1, got {self.interval_s!r}")
        if not 0.0 <= self.share_ratio <= 1.0:
            raise ConfigError(f"trim-tpp: share_ratio must be in [0, 1], got {self.share_ratio!r}")
        if self.pressure_percent <= 0.0:
            raise ConfigError(
                f"trim-tpp: pressure_percent must be above 0, got {self.pressure_percent!r}"
            )


class TrimTpp(KnobPolicy):
    """A trim in proportion to calm, and TPP."""

    owns = (Knob.RECLAIM_BYTES, *Tpp.owns)

    def __init__(self, config: TrimTppConfig = TrimTppConfig()) -> None:
        self.name = "trim-tpp"
        self.config = config
        self.tpp = Tpp(
            TppConfig(
                demote_scale_ratio=config.demote_scale_ratio,
                max_demote_ratio=config.max_demote_ratio,
            )
        )

    def start(self, shape: tuple[int, int]) -> None:
        """A full interval before the first trim."""
        self.wait_ticks = np.full(shape, self.config.interval_s, dtype=np.int64)

    def forget(self, rows: Array, view: View) -> None:
        """A new cgroup is left alone for one interval."""
        self.wait_ticks[rows] = self.config.interval_s

    def write(self, view: View, knobs: Array) -> None:
        """Trim those whose interval is over; then TPP."""
        self.wait_ticks -= 1
        due = self.wait_ticks <= 0
        self.wait_ticks[due] = self.config.interval_s
        calm = 1.0 - view.now(Sig.PSI_MEM_SOME_AVG60) / self.config.pressure_percent
        trim_bytes = self.config.share_ratio * view.now(Sig.USAGE_BYTES) * np.maximum(calm, 0.0)
        knobs[..., Knob.RECLAIM_BYTES] = np.where(due, trim_bytes, 0.0)
        self.tpp.write(view, knobs)
