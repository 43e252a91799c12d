"""The upper line: receding-horizon search on a copy of the host, with its true future.

::

    every `decide_every_s` seconds, from the plan in force (a row of levels for each cgroup):
        try the same change on every cgroup at once, and the owner's values for all
        then for each cgroup, in drawn order: try rows that differ from its own in one head
        score a plan by stepping a copy of the host to the horizon under it
        keep the best
    hold the plan until the next decision

A plan is held to the horizon, which is far longer than the time to the next decision: trimming
pays at once and costs later, so a search that expects to stop soon trims itself into thrashing.

It looks at the model itself, so at demand that has not happened: no policy on a host can do that.
Heads, delay, dwell times and shield are everybody's.  It is a search, not a proof: where a
contestant beats it, the upper line is the contestant.

Units: seconds (= ticks), levels, cgroup-steps of search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, Speech, View
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS, Head
from memcg_gym.envs.core import STATE_ARRAYS, HostBatch
from memcg_gym.envs.reward import SCORE_TERMS


@dataclass(frozen=True, slots=True, kw_only=True)
class ClairvoyantConfig:
    """How far and how widely to look."""

    horizon_s: int = 240
    decide_every_s: int = 60
    breadth: int = 10  # changes tried per cgroup and decision, drawn anew; 0 = all there are
    sweeps: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("horizon_s", "decide_every_s", "sweeps"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"clairvoyant: {name} must be at least 1, got {getattr(self, name)!r}"
                )
        if self.breadth < 0:
            raise ConfigError(f"clairvoyant: breadth must not be negative, got {self.breadth!r}")


class Clairvoyant:
    """Searches every few seconds; needs the batch itself (:meth:`attach`).

    Attributes:
        searched_cgroup_steps: What the search has cost since the last reset.
    """

    speaks: Speech = "levels"
    shielded = True

    def __init__(self, config: ClairvoyantConfig = ClairvoyantConfig()) -> None:
        self.name = "clairvoyant"
        self.config = config
        self.batch: HostBatch | None = None
        self.wide: HostBatch | None = None

    def attach(self, batch: HostBatch) -> None:
        """Take the batch whose future is to be known."""
        if self.batch is not batch:
            self.batch, self.wide = batch, None

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Plan nothing."""
        self.rng = np.random.default_rng(seed)
        self.plan = np.zeros((*batch_shape, N_HEADS), dtype=np.int64)
        self.moves = neighbours(np.asarray(supported))
        self.age_ticks = 0
        self.searched_cgroup_steps = 0

    def act(self, view: View) -> Array:
        """The plan; searched anew when it is due."""
        if self.age_ticks % self.config.decide_every_s == 0:
            self.search()
        levels = self.plan.copy()
        self.plan[..., Head.KILL] = 0  # once is enough
        self.age_ticks += 1
        return levels

    def search(self) -> None:
        """Improve the plan on all hosts at once: for everybody, then cgroup by cgroup."""
        batch = self._attached()
        everybody = np.arange(batch.n_cgroups)
        self.improve(everybody)
        for _ in range(self.config.sweeps):
            for cgroup in self.rng.permutation(batch.n_cgroups):
                self.improve(everybody[cgroup : cgroup + 1])

    def improve(self, cgroups: Array) -> None:
        """Keep the best of the plan in force and its changes at some cgroups."""
        plans = self.plans_to_try(cgroups)
        best = self.score(plans).argmax(axis=1)  # the first of equals: the plan in force
        self.plan = plans[np.arange(len(plans)), best]

    def plans_to_try(self, cgroups: Array) -> Array:
        """Plans for every host, int64 ``[H, C, N, N_HEADS]``; the first is in force."""
        moves = self.moves
        if 0 < self.config.breadth < len(moves):
            moves = self.rng.permutation(moves)[: self.config.breadth]
        plans = np.repeat(self.plan[:, None], len(moves) + 2, axis=1)
        for k, (head, level) in enumerate(moves):
            plans[:, k + 1, cgroups, head] = level
        plans[:, -1, cgroups] = 0
        return plans

    def score(self, plans: Array) -> Array:
        """What each plan leads to: the sum of the score terms to the horizon, ``[H, C]``."""
        batch = self._attached()
        n_hosts, width = plans.shape[:2]
        wide = self._widened(n_hosts * width)
        for name in STATE_ARRAYS:
            getattr(wide, name)[...] = np.repeat(getattr(batch, name), width, axis=0)
        levels = plans.reshape(n_hosts * width, batch.n_cgroups, N_HEADS).copy()
        total = np.zeros(n_hosts * width)
        for _ in range(self.config.horizon_s):
            wide.step_levels(levels)
            total += wide.terms[..., SCORE_TERMS].sum(axis=(1, 2))
            levels[..., Head.KILL] = 0
        self.searched_cgroup_steps += total.size * batch.n_cgroups * self.config.horizon_s
        return total.reshape(n_hosts, width)

    def _attached(self) -> HostBatch:
        if self.batch is None:
            raise ConfigError(
                "clairvoyant: has no model to look into; call attach(batch), as rollout does"
            )
        return self.batch

    def _widened(self, n_hosts: int) -> HostBatch:
        batch = self._attached()
        if self.wide is None or self.wide.n_hosts != n_hosts:
            self.wide = HostBatch(
                batch.scenario,
                batch.objective,
                n_hosts=n_hosts,
                host_kind=batch.host_kind,
                shield=batch.shield,
            )
        return self.wide


def neighbours(supported: Array) -> Array:
    """Every (head, level) a row can be given, of the heads there are, int64 ``[n, 2]``."""
    return np.array(
        [
            (head, level)
            for head in range(N_HEADS)
            if supported[head]
            for level in range(LEVEL_COUNTS[head])
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
