"""Senpai as oomd runs it with immediate backoff: the law behind Transparent Memory Offloading.

::

    every interval:
        pressure = max(some avg10, some avg60) of memory, and of io
        if both pressures are below their thresholds:
            memory.reclaim = max_probe * (memory.current - floor)
        floor = max(limit_min + unreclaimable, memory.min)

Source: facebookincubator/oomd ``Senpai.cpp`` (``immediate_backoff``); an oomd tick is a second
here.  Its swap regulation is off by default and left out, as memory.reclaim has no swappiness
among our knobs.

Units: bytes, percent of time, seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, KnobPolicy, View
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import Sig

MIB = float(1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class TmoConfig:
    """Published defaults."""

    interval_s: int = 6
    mem_pressure_percent: float = 0.1
    io_pressure_percent: float = 0.1
    max_probe: float = 0.01
    limit_min_mib: float = 100.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.interval_s < 1:
            raise ConfigError(f"tmo: interval_s must be at least 1, got {self.interval_s!r}")
        if not 0.0 <= self.max_probe <= 1.0:
            raise ConfigError(f"tmo: max_probe must be in [0, 1], got {self.max_probe!r}")


class Tmo(KnobPolicy):
    """A share of every calm cgroup to memory.reclaim."""

    owns = (Knob.RECLAIM_BYTES,)

    def __init__(self, config: TmoConfig = TmoConfig()) -> None:
        self.name = "tmo"
        self.config = config

    def start(self, shape: tuple[int, int]) -> None:
        """A full interval before the first probe."""
        self.wait_ticks = np.full(shape, self.config.interval_s, dtype=np.int64)

    def forget(self, rows: Array, view: View) -> None:
        """A new cgroup is left alone for one interval."""
        self.wait_ticks[rows] = self.config.interval_s

    def write(self, view: View, knobs: Array) -> None:
        """Reclaim from those whose interval is over and who are calm."""
        self.wait_ticks -= 1
        due = self.wait_ticks <= 0
        self.wait_ticks[due] = self.config.interval_s
        probe_bytes = np.where(due & self.calm(view), self.probe_bytes(view), 0.0)
        knobs[..., Knob.RECLAIM_BYTES] = probe_bytes

    def calm(self, view: View) -> Array:
        """True where neither memory nor io pressure reaches its threshold."""
        c = self.config
        memory = np.maximum(view.now(Sig.PSI_MEM_SOME_AVG10), view.now(Sig.PSI_MEM_SOME_AVG60))
        io = np.maximum(view.now(Sig.PSI_IO_SOME_AVG10), view.now(Sig.PSI_IO_SOME_AVG60))
        below: Array = (memory < c.mem_pressure_percent) & (io < c.io_pressure_percent)
        return below

    def probe_bytes(self, view: View) -> Array:
        """What a calm cgroup gives up [bytes]."""
        unreclaimable = np.nan_to_num(view.now(Sig.UNRECLAIMABLE_BYTES))
        floor = np.maximum(
            self.config.limit_min_mib * MIB + unreclaimable, view.now(Sig.OWNER_MIN_BYTES)
        )
        room: Array = np.maximum(view.now(Sig.USAGE_BYTES) - floor, 0.0)
        return self.config.max_probe * room
