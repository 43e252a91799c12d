"""Senpai as first published: probe memory.high down until memory pressure answers.

::

    limit = memory.current at the start;  every second:  I += growth of memory.pressure some total
    if I > pressure:   limit *= 1 + min(max_backoff, max_backoff * (I/pressure/coeff_backoff)^2)
    elif grace left:   wait
    else:              limit *= 1 - min(max_probe, max_probe * (pressure/max(I,1)/coeff_probe)^2)
    after a change:    clamp to [min, max], write memory.high, I = 0, grace = interval - 1

Source: facebookincubator/senpai ``senpai.py`` and its defaults.  One addition: a memory.high the
owner set is not exceeded.  It does not know host memory, priorities, swap speed or locks.

Units: bytes, microseconds, seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, KnobPolicy, View
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import Sig

MIB = float(1 << 20)
GIB = float(1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class SenpaiConfig:
    """Published defaults."""

    pressure_us: float = 10_000.0  # target stall in one interval
    interval_s: int = 6
    max_probe: float = 0.01
    max_backoff: float = 1.0
    coeff_probe: float = 10.0
    coeff_backoff: float = 20.0
    min_mib: float = 100.0
    max_gib: float = 100.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("pressure_us", "interval_s", "coeff_probe", "coeff_backoff", "max_gib"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"senpai: {name} must be above 0, got {getattr(self, name)!r}")
        if not 0.0 <= self.max_probe < 1.0:
            raise ConfigError(f"senpai: max_probe must be in [0, 1), got {self.max_probe!r}")
        if self.max_backoff < 0.0 or self.min_mib < 0.0:
            raise ConfigError("senpai: max_backoff and min_mib must not be negative")


class Senpai(KnobPolicy):
    """One control loop a cgroup, on memory.high."""

    owns = (Knob.HIGH_BYTES,)

    def __init__(self, config: SenpaiConfig = SenpaiConfig()) -> None:
        self.name = "senpai"
        self.config = config

    def start(self, shape: tuple[int, int]) -> None:
        """No limit, no pressure seen."""
        self.limit_bytes = np.zeros(shape)
        self.integral_us = np.zeros(shape)
        self.grace_ticks = np.zeros(shape, dtype=np.int64)

    def forget(self, rows: Array, view: View) -> None:
        """A cgroup's limit starts at what it uses."""
        self.limit_bytes[rows] = view.now(Sig.USAGE_BYTES)[rows]
        self.integral_us[rows] = 0.0
        self.grace_ticks[rows] = self.config.interval_s - 1

    def write(self, view: View, knobs: Array) -> None:
        """One second of every cgroup's loop."""
        c = self.config
        self.integral_us += np.maximum(view.delta(Sig.PSI_MEM_SOME_US), 0.0)
        over = self.integral_us > c.pressure_us
        waiting = ~over & (self.grace_ticks > 0)
        self.grace_ticks[waiting] -= 1
        change = np.where(over, backoff(self.integral_us, c), -probe(self.integral_us, c))
        adjusted = ~waiting
        self.limit_bytes[adjusted] *= 1.0 + change[adjusted]
        np.clip(self.limit_bytes, c.min_mib * MIB, c.max_gib * GIB, out=self.limit_bytes)
        self.integral_us[adjusted] = 0.0
        self.grace_ticks[adjusted] = c.interval_s - 1
        knobs[..., Knob.HIGH_BYTES] = np.minimum(self.limit_bytes, knobs[..., Knob.HIGH_BYTES])


def backoff(integral_us: Array, config: SenpaiConfig) -> Array:
    """Relative raise of the limit: squared in how far the pressure is from its target."""
    excess = integral_us / config.pressure_us / config.coeff_backoff
    return np.minimum(config.max_backoff, config.max_backoff * excess**2)


def probe(integral_us: Array, config: SenpaiConfig) -> Array:
    """Relative cut of the limit: smaller as the pressure comes near its target."""
    room = config.pressure_us / np.maximum(integral_us, 1.0) / config.coeff_probe
    return np.minimum(config.max_probe, config.max_probe * room**2)
