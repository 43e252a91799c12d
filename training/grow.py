"""Rules by trial, without a network: a small rule table grown in the simulator from nothing.

::

    one rule: the owner's configuration; then, until the budget is spent
        draw changes: other levels for one rule, for all its rows or those on one side of a feature
        run them side by side from the same settled hosts, with the same randomness: many on a few
        hosts for a short while, the better ones on more hosts for longer, the best on yet others
        keep the one whose gain stands out from its error, on hosts it was not picked on too
        go on with the hosts where the rules lead them
    the table that scores best on validation hosts, the owner's configuration among them

It is a baseline (what does a network add?), and where single steps away from the owner's
configuration all hurt, a place to start training from.  It sees a few simulated minutes ahead and
knows nothing of what a change costs later.

Units: ticks of one second; scores per cgroup and second; budget in cgroup-ticks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from memcg_gym.agents.rollout import rollout, step
from memcg_gym.agents.rules import Change, Rules, RulesPolicy
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.features import N_FEATURES, F
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, Head
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.reward import SCORE_TERMS
from memcg_gym.training.distil import Purpose, World

Array = np.ndarray[Any, np.dtype[Any]]
Report = Callable[[str], None]

GAIN_OVER_ERROR = 1.5
"""Standard errors a change must gain by over all hosts of the last two stages."""
CONFIRM_OVER_ERROR = 0.5
"""The same on the hosts of the last stage alone, where luck has no hand in the choice."""
WHOLE_RULE_SHARE = 0.25
"""Share of changes that are tried on all rows of a rule (assumption)."""
CLASS_SHARE = 0.25
"""Share of changes tried on a priority class: owners say who matters there (assumption)."""
MORE_HEADS_SHARE = 0.3
"""Chance of one more head in a change, and of yet one more (assumption): some levels pay only
together, as lifting memory.high and reclaiming in the background do."""


class Stage(NamedTuple):
    """So many changes, each on so many hosts of its own, for so many ticks."""

    changes: int
    hosts: int
    ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowConfig:
    """How much to try.

    Attributes:
        budget: Most cgroup-ticks, validation included.
        stages: From many changes tried briefly to a few tried well; each on other hosts.
        settle_ticks: Before the first change.
        stride_ticks: How far the hosts go on between two rounds of trials.
        validate_every: Changes kept between two validations.
        validate_hosts, validate_settle_ticks, validate_ticks: What the rules are chosen by.
        most_rules: Where it stops splitting.
    """

    budget: int = 4_000_000
    stages: tuple[Stage, Stage, Stage] = (Stage(64, 3, 120), Stage(8, 8, 240), Stage(3, 16, 240))
    settle_ticks: int = 300
    stride_ticks: int = 60
    validate_every: int = 4
    validate_hosts: int = 16
    validate_settle_ticks: int = 300
    validate_ticks: int = 300
    most_rules: int = 48

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("budget", "validate_every", "validate_hosts", "validate_ticks", "most_rules"):
            if getattr(self, name) < 1:
                raise ConfigError(f"grow: {name} must be at least 1, got {getattr(self, name)}")
        for stage in self.stages:
            if stage.changes < 1 or stage.hosts < 2 or stage.ticks < 1:
                raise ConfigError(
                    f"grow: a stage needs a change, two hosts and a tick, got {tuple(stage)}"
                )

    @property
    def hosts(self) -> int:
        """Hosts of all stages."""
        return sum(stage.hosts for stage in self.stages)

    @property
    def round_ticks(self) -> int:
        """Host-ticks of a round of trials, with the way to the next and a validation."""
        trials = sum((s.changes + 1) * s.hosts * s.ticks for s in self.stages)
        check = self.validate_hosts * (self.validate_settle_ticks + self.validate_ticks)
        return trials + self.stride_ticks * self.hosts + check


@dataclass(frozen=True, slots=True)
class Grown:
    """What growing found.

    Attributes:
        rules: The best on the validation hosts.
        score, owner_score: Theirs and the owner's there.
        kept, tried: Changes.
        cgroup_steps: Simulated cgroup-ticks it cost.
    """

    rules: Rules
    score: float
    owner_score: float
    kept: int
    tried: int
    cgroup_steps: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        numbers = {name: getattr(self, name) for name in self.__slots__ if name != "rules"}
        return {**numbers, **self.rules.to_json()}


def grow(world: World, config: GrowConfig, report: Report = lambda text: None) -> Grown:
    """Grow rules from the owner's configuration."""
    bench = _Bench(world, config)
    rules = Rules()
    owner_score = best_score = bench.validate(rules)
    best, kept, unvalidated = rules, 0, 0
    bench.go_on(rules, config.settle_ticks)
    while bench.can_afford_round():
        change = bench.best_change(rules)
        report(f"{bench.tried} changes tried, {kept} kept")
        if change is not None:
            rules = rules.changed(change)
            kept, unvalidated = kept + 1, unvalidated + 1
        bench.go_on(rules, config.stride_ticks)
        if unvalidated >= config.validate_every:
            score, unvalidated = bench.validate(rules), 0
            if score > best_score:
                best, best_score = rules, score
    if unvalidated:
        score = bench.validate(rules)
        if score > best_score:
            best, best_score = rules, score
    return Grown(best, best_score, owner_score, kept, bench.tried, bench.cgroup_steps)


class _Bench:
    """Hosts where the rules have led them, and wide batches to try changes in."""

    def __init__(self, world: World, config: GrowConfig) -> None:
        self.world, self.config = world, config
        self.rng = np.random.default_rng([world.seed, 0x6F0])
        self.now = world.hosts(config.hosts, Purpose.GROW)
        self.heads = [int(h) for h in np.flatnonzero(self.now.supported) if h != Head.KILL]
        if not self.heads:
            raise ConfigError(f"grow: {world.scenario.name} supports no head but kill")
        self.promising: list[Change] = []
        self.tried = 0
        self.cgroup_steps = 0

    def can_afford_round(self) -> bool:
        """Whether a round of trials and a validation fit the budget."""
        more = self.config.round_ticks * self.now.n_cgroups
        return self.cgroup_steps + more <= self.config.budget

    def go_on(self, rules: Rules, ticks: int) -> None:
        """Let the rules run the hosts."""
        policy = RulesPolicy(rules)
        policy.reset((self.now.n_hosts, self.now.n_cgroups), self.now.supported, 0)
        for tick in range(ticks):
            step(self.now, policy, tick)
        self._book(ticks, self.now.n_hosts)

    def validate(self, rules: Rules) -> float:
        """Score on the validation hosts, settled under the rules."""
        c = self.config
        batch, policy = self.world.hosts(c.validate_hosts, Purpose.VALIDATE), RulesPolicy(rules)
        settled = rollout(batch, policy, c.validate_settle_ticks)
        scored = rollout(batch, policy, c.validate_ticks, reset=False, first_tick=settled.next_tick)
        self._book(c.validate_settle_ticks + c.validate_ticks, c.validate_hosts)
        return float(scored.score.mean())

    def best_change(self, rules: Rules) -> Change | None:
        """The change with the clearest gain of those drawn, if other hosts confirm it."""
        hosts = np.split(
            self.rng.permutation(self.now.n_hosts),
            np.cumsum([stage.hosts for stage in self.config.stages])[:-1],
        )
        many, some, few = self.config.stages
        changes = self.draw(rules, many.changes)
        self.tried += len(changes)
        first = self.gains(rules, changes, hosts[0], many.ticks).mean(axis=1)
        picked = [k for k in np.argsort(-first, kind="stable")[: some.changes] if first[k] > 0.0]
        if not picked:
            return None
        changes = [changes[k] for k in picked]
        second = self.gains(rules, changes, hosts[1], some.ticks)
        order = np.argsort([-clear_gain(g) for g in second], kind="stable")[: few.changes]
        order = order[second[order].mean(axis=1) > 0.0]
        if not order.size:
            return None
        changes, second = [changes[k] for k in order], second[order]
        third = self.gains(rules, changes, hosts[2], few.ticks)
        return self._pick(changes, second, third)

    def _pick(self, changes: list[Change], second: Array, third: Array) -> Change | None:
        """The clearest over both stages; the others that gained are tried again."""
        both = [clear_gain(g) for g in np.hstack([second, third])]
        passed = [clear_gain(g, CONFIRM_OVER_ERROR) > 0.0 for g in third]
        best = max(range(len(changes)), key=lambda k: both[k] if passed[k] else -np.inf)
        found = changes[best] if passed[best] and both[best] > 0.0 else None
        self.promising = [
            change
            for k, change in enumerate(changes)
            if change is not found and np.hstack([second[k], third[k]]).mean() > 0.0
        ]
        return found

    def gains(self, rules: Rules, changes: list[Change], hosts: Array, ticks: int) -> Array:
        """Gain of each change on each host, ``[changes, hosts]``."""
        width = len(changes) + 1
        wide = HostBatch(
            self.world.scenario,
            self.world.objective,
            n_hosts=width * len(hosts),
            host_kind=self.world.host_kind,
        )
        for at in range(wide.n_hosts):
            wide.copy_host(self.now, int(hosts[at % len(hosts)]), at)
        total, rows = np.zeros(wide.n_hosts), np.zeros(wide.n_hosts)
        for _ in range(ticks):
            levels = planned(rules, changes, wide.features, len(hosts)) * wide.supported
            levels[~wide.active] = 0
            wide.step_levels(levels)
            total += wide.terms[..., SCORE_TERMS].sum(axis=(1, 2))
            rows += wide.active.sum(axis=1)
        self._book(ticks, wide.n_hosts)
        scores = (total / np.maximum(rows, 1)).reshape(width, len(hosts))
        gained: Array = scores[1:] - scores[0]
        return gained

    def draw(self, rules: Rules, number: int) -> list[Change]:
        """Changes to try; rules and thresholds as often as rows meet them."""
        rows = self.now.features[self.now.active]
        rule_of = rules.rule_of(rows)
        drawn = [self._draw(rules, rows, rule_of) for _ in range(number - len(self.promising))]
        return [*self.promising, *drawn]

    def _draw(self, rules: Rules, rows: Array, rule_of: Array) -> Change:
        rng = self.rng
        rule = int(rule_of[rng.integers(len(rows))])
        heads = self._heads(rules.levels[rule])
        kind = rng.random()
        if kind < WHOLE_RULE_SHARE or len(rules.levels) >= self.config.most_rules:
            return Change(rule, -1, 0, False, heads)
        mine = rows[rule_of == rule]
        feature = int(F.PRIORITY) if kind < WHOLE_RULE_SHARE + CLASS_SHARE else self._feature(mine)
        threshold = int(mine[rng.integers(len(mine)), feature])
        if rng.random() < 0.5:
            threshold -= 1  # the row's own value lies above
        return Change(rule, feature, threshold, bool(rng.random() < 0.5), heads)

    def _heads(self, levels: Array) -> tuple[tuple[int, int], ...]:
        """A head or a few, each with another level than it has."""
        rng = self.rng
        number = 1 + int(rng.random() < MORE_HEADS_SHARE) + int(rng.random() < MORE_HEADS_SHARE)
        chosen = rng.choice(self.heads, min(number, len(self.heads)), replace=False)
        return tuple(
            (int(h), int(rng.choice([n for n in range(LEVEL_COUNTS[h]) if n != levels[h]])))
            for h in chosen
        )

    def _feature(self, rows: Array) -> int:
        """A feature in which the rows differ."""
        differ = np.flatnonzero(rows.min(axis=0) < rows.max(axis=0))
        return int(self.rng.choice(differ)) if differ.size else int(self.rng.integers(N_FEATURES))

    def _book(self, ticks: int, hosts: int) -> None:
        self.cgroup_steps += ticks * hosts * self.now.n_cgroups


def planned(rules: Rules, changes: list[Change], features: Array, hosts: int) -> Array:
    """Levels of a wide batch: a block of hosts under the rules, then one for each change.

    Args:
        rules: What all changes change.
        changes: One a block.
        features: Of all blocks, ``[(len(changes) + 1) * hosts, N, F]``.
        hosts: In a block.

    Returns:
        Levels, int64 ``[(len(changes) + 1) * hosts, N, N_HEADS]``.
    """
    rule = rules.rule_of(features)
    levels: Array = rules.levels[rule]
    for number, change in enumerate(changes, start=1):
        block = slice(number * hosts, (number + 1) * hosts)
        there = rule[block] == change.rule
        if change.feature >= 0:
            above = features[block][..., change.feature] > change.threshold
            there &= above == change.above
        for head, level in change.heads:
            levels[block][there, head] = level
    return levels


def clear_gain(gains: Array, over_error: float = GAIN_OVER_ERROR) -> float:
    """Mean gain less some standard errors."""
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return float(gains.mean() - over_error * error)
