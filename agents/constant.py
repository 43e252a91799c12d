"""The same levels for every cgroup, always; and a random search for the best of them.

::

    every second: the levels given, for the heads the scenario supports

The best constant is the simplest contestant that was tuned: what a learned policy adds beyond it
is what looking at the host is worth.

Units: levels; budgets in cgroup-steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, Speech, View
from memcg_gym.agents.rollout import rollout
from memcg_gym.configs.schema import HostKindName, ObjectiveConfig, ScenarioConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.heads import HEADS, LEVEL_COUNTS, N_HEADS, Head
from memcg_gym.envs.core import HostBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantConfig:
    """A level for each head; 0 is the owner's value."""

    throttle: int = 0
    reclaim: int = 0
    demote: int = 0
    protect: int = 0
    shed: int = 0
    flush: int = 0
    kill: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for head in HEADS:
            level = getattr(self, head.name)
            if not 0 <= level < head.n_levels:
                raise ConfigError(
                    f"constant: {head.name} must be a level from 0 to {head.n_levels - 1}, "
                    f"got {level!r}"
                )

    @property
    def levels(self) -> Array:
        """As an array, int64 ``[N_HEADS]``."""
        return np.array([getattr(self, head.name) for head in HEADS], dtype=np.int64)


class Constant:
    """One action for all."""

    speaks: Speech = "levels"
    shielded = True

    def __init__(self, config: ConstantConfig = ConstantConfig()) -> None:
        self.name = "constant"
        self.config = config

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Lay the levels out over the batch."""
        levels = self.config.levels * (np.asarray(supported) > 0)
        self.levels = np.broadcast_to(levels, (*batch_shape, N_HEADS)).copy()

    def act(self, view: View) -> Array:
        """The levels given."""
        return self.levels.copy()


@dataclass(frozen=True, slots=True)
class ConstantSearch:
    """What a search over constants found.

    Attributes:
        config: The best constant.
        score: Its mean score over the search's hosts.
        tried: How many constants were tried.
        cgroup_steps: What the search cost.
    """

    config: ConstantConfig
    score: float
    tried: int
    cgroup_steps: int

    @property
    def spec(self) -> str:
        """What :func:`memcg_gym.agents.registry.make_policy` makes this policy of."""
        levels = {head.name: getattr(self.config, head.name) for head in HEADS}
        settings = ",".join(f"{name}={level}" for name, level in levels.items() if level)
        return f"constant:{settings}" if settings else "constant"


def search_best_constant(
    scenario: ScenarioConfig,
    objective: ObjectiveConfig,
    *,
    budget_cgroup_steps: int,
    host_kind: HostKindName = "stock",
    n_hosts: int = 8,
    settle_ticks: int = 120,
    ticks: int = 240,
    seed: int = 0,
) -> ConstantSearch:
    """Random search over constants on the train ranges; all are tried on the same hosts.

    The all-zero constant is the first trial, so that the result is never below doing nothing on
    the hosts searched.  ``kill`` is left out: a constant kill is nobody's policy.

    Raises:
        ConfigError: The budget does not pay for a single trial.
    """
    per_trial = n_hosts * scenario.n_cgroups * (settle_ticks + ticks)
    trials = budget_cgroup_steps // per_trial
    if trials < 1:
        raise ConfigError(
            f"search_best_constant: budget_cgroup_steps {budget_cgroup_steps} is below the "
            f"{per_trial} one trial takes; raise it or take fewer hosts or ticks"
        )
    supported = np.array([head.name in scenario.heads for head in HEADS])
    supported[Head.KILL] = False
    rng = np.random.default_rng(seed)
    batch = HostBatch(scenario, objective, n_hosts=n_hosts, host_kind=host_kind)
    known: set[tuple[int, ...]] = set()
    best: ConstantSearch | None = None
    candidate = np.zeros(N_HEADS, dtype=np.int64)
    distinct = int(np.prod(np.where(supported, LEVEL_COUNTS, 1)))
    for _ in range(min(trials, distinct)):
        known.add(tuple(candidate.tolist()))
        config = ConstantConfig(
            **{head.name: int(level) for head, level in zip(HEADS, candidate, strict=True)}
        )
        policy = Constant(config)
        batch.reset(seed, "train")
        settled = rollout(batch, policy, settle_ticks)
        scored = rollout(batch, policy, ticks, reset=False, first_tick=settled.next_tick)
        score = float(scored.score.mean())
        if best is None or score > best.score:
            best = ConstantSearch(config, score, 0, 0)
        while tuple(candidate.tolist()) in known and len(known) < distinct:
            candidate = rng.integers(0, np.where(supported, LEVEL_COUNTS, 1))
    if best is None:  # trials >= 1 and distinct >= 1
        raise ConfigError("search_best_constant: nothing was tried")
    return ConstantSearch(best.config, best.score, len(known), len(known) * per_trial)
