"""Levels drawn uniformly: what knowing nothing scores, behind the shield.

::

    every `hold_s` seconds, for each cgroup and supported head: draw a level uniformly

Units: levels, seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, Speech, View
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomConfig:
    """How long a draw is held: the longest dwell time, so that the shield has little to say."""

    hold_s: int = 5

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.hold_s < 1:
            raise ConfigError(f"random: hold_s must be at least 1, got {self.hold_s!r}")


class RandomPolicy:
    """Uniform over the levels of every supported head."""

    speaks: Speech = "levels"
    shielded = True

    def __init__(self, config: RandomConfig = RandomConfig()) -> None:
        self.name = "random"
        self.config = config

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Start the stream anew."""
        self.rng = np.random.default_rng(seed)
        self.high = np.where(np.asarray(supported) > 0, LEVEL_COUNTS, 1)
        self.levels = np.zeros((*batch_shape, N_HEADS), dtype=np.int64)
        self.age_ticks = 0

    def act(self, view: View) -> Array:
        """The draw in force."""
        if self.age_ticks % self.config.hold_s == 0:
            self.levels = self.rng.integers(0, self.high, size=self.levels.shape)
        self.age_ticks += 1
        return self.levels.copy()
