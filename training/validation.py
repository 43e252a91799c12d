"""Scoring a policy while it trains: the same settled hosts every time, by argmax.

The hosts come from the scenario's train ranges, with seeds no training host has; the held-out
test ranges stay untouched until ``evaluate``.  The score of a host is the mean over its cgroups
and ticks of the reward terms without the ``harm`` price; higher is better, 0 is the best possible.

Units: weighted reward terms per cgroup and second; ticks of one second.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memcg_gym.agents.policy import Policy, Speech
from memcg_gym.agents.rollout import rollout
from memcg_gym.configs.schema import HostKindName, ObjectiveConfig, ScenarioConfig
from memcg_gym.envs.contract.heads import N_HEADS
from memcg_gym.envs.core import STATE_ARRAYS, HostBatch

Array = np.ndarray[Any, np.dtype[Any]]

VALIDATION_SEED = 0x7A11DA7E
"""The same validation hosts for every training seed, so that their scores can be compared."""


class Validation:
    """A fixed batch of settled hosts to score policies on.

    Args:
        scenario, objective, host_kind: As for training.
        hosts: How many.
        settle_ticks: Under the owner's configuration, once.
        ticks: Scored ticks; half as many before them, unscored, let the policy settle the hosts
            its own way.
    """

    def __init__(
        self,
        scenario: ScenarioConfig,
        objective: ObjectiveConfig,
        *,
        host_kind: HostKindName,
        hosts: int,
        settle_ticks: int,
        ticks: int,
    ) -> None:
        self.ticks = ticks
        self.batch = HostBatch(scenario, objective, n_hosts=hosts, host_kind=host_kind)
        self.batch.reset(VALIDATION_SEED, "train")
        self.batch.settle(settle_ticks)
        self._start = {name: getattr(self.batch, name).copy() for name in STATE_ARRAYS}

    def scores(self, policy: Policy) -> Array:
        """Score of each host, ``(hosts,)``."""
        for name, array in self._start.items():
            getattr(self.batch, name)[...] = array
        warm = rollout(self.batch, policy, self.ticks // 2)
        scored = rollout(self.batch, policy, self.ticks, reset=False, first_tick=warm.next_tick)
        return scored.score

    def owner_scores(self) -> Array:
        """Score of each host left as its owner configured it."""
        return self.scores(_Owner())


class _Owner:
    """Level 0 everywhere."""

    name = "owner"
    speaks: Speech = "levels"
    shielded = True

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        self._levels = np.zeros((*batch_shape, N_HEADS), dtype=np.int64)

    def act(self, view: object) -> Array:
        return self._levels
