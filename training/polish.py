"""Leaf polish: what a table's rules ask for, improved one level at a time in the simulator.

::

    settle hosts under the table once; every trial starts from there, with the same randomness
    for each rule, most used first, for each head: try the neighbouring levels and the owner's
    keep a change whose paired gain over the hosts is twice its standard error

The tree's questions stay as they are.  Like any training it fits the simulator; the caller
confirms the result on other hosts.

Units: ticks of one second; scores per cgroup and second; budget in cgroup-ticks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from memcg_gym.agents.rollout import rollout
from memcg_gym.agents.table import TablePolicy
from memcg_gym.enforcer.evaluator import evaluate_batch
from memcg_gym.enforcer.table import Table, table_from_tree
from memcg_gym.enforcer.table_layout import INDEX_MASK, LEAF_BIT
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.reward import SCORE_TERMS
from memcg_gym.training.distil import Purpose, World

Array = np.ndarray[Any, np.dtype[Any]]
Report = Callable[[str], None]

GAIN_OVER_ERROR = 2.0
"""A change must gain this many standard errors: hundreds are tried, and at 1 luck alone would pass
one in six."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishConfig:
    """How much to try.

    Attributes:
        hosts: Every trial runs on all of them.
        settle_ticks: Under the table, once a pass.
        ticks: A trial's length.
        together: Trials that run in one batch.
        passes: Over all rules.
        budget: Most cgroup-ticks.
    """

    hosts: int = 12
    settle_ticks: int = 1800
    ticks: int = 150
    together: int = 12
    passes: int = 2
    budget: int = 20_000_000

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.hosts < 2:
            raise ConfigError(f"polish: hosts must be at least 2, got {self.hosts}")
        for name in ("ticks", "together", "passes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"polish: {name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Polished:
    """What polishing did.

    Attributes:
        table: With the changed levels; equal siblings are one rule.
        changes: Levels changed.
        trials: Changes tried.
        cgroup_steps: Simulated cgroup-ticks it cost.
    """

    table: Table
    changes: int
    trials: int
    cgroup_steps: int


def polish(
    table: Table, world: World, config: PolishConfig, report: Report = lambda text: None
) -> Polished:
    """Improve the levels of a table's rules by trial in the simulator."""
    bench = _Bench(table, world, config)
    changes = 0
    for number in range(config.passes):
        if not bench.can_afford(config.settle_ticks * config.hosts):
            break
        bench.settle()
        changed = 0
        for done, rule in enumerate(bench.most_used_first()):
            report(f"polishing, pass {number + 1}: rule {done + 1} of {table.n_rules}")
            changed += bench.improve(rule)
        changes += changed
        if not changed:
            break
    levels = bench.levels[:-1]
    return Polished(with_levels(table, levels), changes, bench.trials, bench.cgroup_steps)


def with_levels(table: Table, levels: Array) -> Table:
    """The same questions with other answers; siblings that answer alike become one rule.

    Args:
        table: Usable.
        levels: One row a rule, ``[n_rules, N_HEADS]``.
    """
    n_nodes, n_rules = len(table.nodes), table.n_rules
    total = n_nodes + n_rules
    left, right = np.full(total, -1), np.full(total, -1)
    feature, threshold = np.zeros(total, dtype=int), np.zeros(total, dtype=int)
    for at in range(n_nodes):
        left[at] = _position(int(table.nodes["left"][at]), n_nodes)
        right[at] = _position(int(table.nodes["right"][at]), n_nodes)
    feature[:n_nodes] = table.nodes["feature"]
    threshold[:n_nodes] = table.nodes["threshold"]
    all_levels = np.zeros((total, N_HEADS), dtype=int)
    all_levels[n_nodes:] = levels
    support = None
    if table.support:
        support = np.concatenate([np.zeros(n_nodes, dtype=int), table.support])
    return table_from_tree(
        left,
        right,
        feature,
        threshold,
        all_levels,
        support=support,
        columns=[ref.column for ref in table.features] or None,
        version=table.version,
        policy_id=table.policy_id,
        not_before_s=table.not_before_s,
        not_after_s=table.not_after_s,
    )


class _Bench:
    """Settled hosts, and a wide batch in which several trials run side by side."""

    def __init__(self, table: Table, world: World, config: PolishConfig) -> None:
        self.table, self.world, self.config = table, world, config
        self.levels = table.levels.astype(np.int64)
        self.start = world.hosts(config.hosts, Purpose.POLISH)
        self.wide = HostBatch(
            world.scenario,
            world.objective,
            n_hosts=config.hosts * config.together,
            host_kind=world.host_kind,
            shield=True,
        )
        self.trials = 0
        self.cgroup_steps = 0
        self.base = np.zeros(config.hosts)
        self.used = np.zeros(len(self.levels), dtype=np.int64)

    def can_afford(self, host_ticks: int) -> bool:
        """Whether the budget covers so many more host-ticks."""
        more = host_ticks * self.world.scenario.n_cgroups
        return self.cgroup_steps + more <= self.config.budget

    def settle(self) -> None:
        """Bring fresh hosts to where the table, as it is now, leads them."""
        config = self.config
        self.start = self.world.hosts(config.hosts, Purpose.POLISH)
        leaves = self.table.leaves.copy()
        leaves["levels"] = self.levels
        now = dataclasses.replace(self.table, leaves=leaves)
        rollout(self.start, TablePolicy(now), config.settle_ticks)
        self._book(config.settle_ticks, config.hosts)
        self.used[:] = 0
        self.base = self.run([self.levels])[0]

    def most_used_first(self) -> list[int]:
        """Rules in the order in which they decided most."""
        rules = self.used[:-1]
        return [int(rule) for rule in np.argsort(-rules, kind="stable") if rules[rule] > 0]

    def improve(self, rule: int) -> int:
        """Try every neighbouring answer of one rule; number of levels changed."""
        changed = 0
        trials = list(self._trials(rule))
        for at in range(0, len(trials), self.config.together):
            group = trials[at : at + self.config.together]
            if not self.can_afford(self.config.ticks * len(self.wide.hosts)):
                break
            scores = self.run(group)
            self.trials += len(group)
            gains = scores - self.base
            error = gains.std(axis=1, ddof=1) / np.sqrt(self.config.hosts)
            clear = gains.mean(axis=1) - GAIN_OVER_ERROR * error
            best = int(np.argmax(clear))
            if clear[best] > 0.0:
                # The other trials differ from the old answer; what they change beside the best
                # one is tried again in the next pass.
                self.levels = group[best]
                self.base = scores[best]
                changed += 1
                break
        return changed

    def run(self, answers: list[Array]) -> Array:
        """Scores of each set of answers on every host, ``[len(answers), hosts]``."""
        config, wide = self.config, self.wide
        filled = [answers[min(k, len(answers) - 1)] for k in range(config.together)]
        for at in range(wide.n_hosts):
            wide.copy_host(self.start, at % config.hosts, at)
        choices = np.repeat(np.stack(filled), config.hosts, axis=0) * wide.supported
        host = np.arange(wide.n_hosts)[:, None]
        total = np.zeros(wide.n_hosts)
        rows = np.zeros(wide.n_hosts)
        for _ in range(config.ticks):
            shape = wide.features.shape
            leaf = evaluate_batch(self.table, wide.features.reshape(-1, shape[-1]))
            leaf = leaf.reshape(shape[:2])
            levels = choices[host, leaf]
            levels[~wide.active] = 0
            base = slice(0, config.hosts)
            self.used += np.bincount(leaf[base][wide.active[base]], minlength=len(self.used))
            wide.step_levels(levels)
            total += wide.terms[..., SCORE_TERMS].sum(axis=(1, 2))
            rows += wide.active.sum(axis=1)
        self._book(config.ticks, wide.n_hosts)
        scores: Array = (total / np.maximum(rows, 1)).reshape(config.together, config.hosts)
        return scores[: len(answers)]

    def _trials(self, rule: int) -> Iterator[Array]:
        for head in np.flatnonzero(self.start.supported):
            now = int(self.levels[rule, head])
            for level in sorted({0, now - 1, now + 1} - {now}):
                if 0 <= level < LEVEL_COUNTS[head]:
                    trial = self.levels.copy()
                    trial[rule, head] = level
                    yield trial

    def _book(self, ticks: int, hosts: int) -> None:
        self.cgroup_steps += ticks * hosts * self.world.scenario.n_cgroups


def _position(reference: int, n_nodes: int) -> int:
    """Where a child stands in arrays that hold the nodes first and the leaves after them."""
    return n_nodes + (reference & INDEX_MASK) if reference & LEAF_BIT else reference
