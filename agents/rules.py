"""A few IF-THEN rules as a policy: what growing makes, and what a network may start from.

::

    every second, for each cgroup: find the rule its features lead to; answer the rule's levels

A rule is split in two by one feature at a time, so the rules are a tree, and a rule table can hold
them.  It knows nothing of where rules come from.

Units: features in the contract's fixed point; levels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from memcg_gym.agents.inputs import scale_inputs
from memcg_gym.agents.policy import Array, Speech, View
from memcg_gym.enforcer.table import Table, table_from_tree
from memcg_gym.envs.contract.errors import CheckpointError
from memcg_gym.envs.contract.features import N_FEATURES, SHIFT
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS


class Change(NamedTuple):
    """Other levels for one rule's rows on one side of a threshold; ``feature`` -1 = for all.

    ``heads`` names each head that changes and its new level.
    """

    rule: int
    feature: int
    threshold: int
    above: bool
    heads: tuple[tuple[int, int], ...]


class Split(NamedTuple):
    """Rows of ``rule`` whose feature is above the threshold belong to rule ``above`` instead."""

    rule: int
    feature: int
    threshold: int
    above: int


@dataclass(slots=True)
class Rules:
    """Rules over the whole vector; one rule with level 0 everywhere is the owner's configuration.

    Attributes:
        splits: In the order they were made.
        levels: One row a rule, int64 ``[n, N_HEADS]``.
    """

    splits: list[Split] = field(default_factory=list)
    levels: Array = field(default_factory=lambda: np.zeros((1, N_HEADS), dtype=np.int64))

    def rule_of(self, features: Array) -> Array:
        """The rule that decides, int64 ``[...]``, for fixed-point features ``[..., F]``."""
        rule: Array = np.zeros(features.shape[:-1], dtype=np.int64)
        for split in self.splits:
            moved = (rule == split.rule) & (features[..., split.feature] > split.threshold)
            rule[moved] = split.above
        return rule

    def changed(self, change: Change) -> Rules:
        """These rules with one change."""
        levels, splits, rule = self.levels.copy(), list(self.splits), change.rule
        if change.feature >= 0:
            new = len(levels)
            levels = np.vstack([levels, levels[rule]])
            splits.append(Split(rule, change.feature, change.threshold, new))
            rule = new if change.above else rule
        for head, level in change.heads:
            levels[rule, head] = level
        return Rules(splits, levels)

    def to_json(self) -> dict[str, Any]:
        """Plain data, see :meth:`from_json`."""
        return {"splits": [list(split) for split in self.splits], "levels": self.levels.tolist()}

    @classmethod
    def from_json(cls, data: Any, origin: str) -> Rules:
        """Rules of plain data that is not trusted.

        Raises:
            CheckpointError: It is something else, or names a feature, rule or level there is not.
        """
        try:
            splits = [Split(*(int(n) for n in split)) for split in data["splits"]]
            levels = np.array(data["levels"], dtype=np.int64).reshape(-1, N_HEADS)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{origin}: not rules: {error}") from error
        if len(levels) != len(splits) + 1 or (levels < 0).any() or (levels >= LEVEL_COUNTS).any():
            raise CheckpointError(f"{origin}: needs one row of known levels a rule")
        for number, split in enumerate(splits):
            known = 0 <= split.rule <= number and split.above == number + 1
            if not known or not 0 <= split.feature < N_FEATURES:
                raise CheckpointError(f"{origin}: split {number} of the rules is malformed")
        return cls(splits, levels)

    def scaled_thresholds(self) -> Array:
        """Thresholds as a network's inputs see them, float32 ``[n_splits]``.

        Half a step above the integer, so that rounding in the scaling cannot move a row across.
        """
        found = np.zeros(len(self.splits), dtype=np.float32)
        for k, split in enumerate(self.splits):
            observation = np.zeros(N_FEATURES, dtype=np.float32)
            observation[split.feature] = (split.threshold + 0.5) / (1 << SHIFT)
            found[k] = scale_inputs(observation)[split.feature]
        return found

    def table(self) -> Table:
        """As a rule table."""
        total = 2 * len(self.splits) + 1
        left, right = np.full(total, -1), np.full(total, -1)
        feature, threshold = np.zeros(total, dtype=int), np.zeros(total, dtype=int)
        levels = np.zeros((total, N_HEADS), dtype=int)
        at = {0: 0}  # rule -> position in the tree
        for number, split in enumerate(self.splits):
            here, low, high = at[split.rule], 2 * number + 1, 2 * number + 2
            left[here], right[here] = low, high
            feature[here], threshold[here] = split.feature, split.threshold
            at[split.rule], at[split.above] = low, high
        for rule, position in at.items():
            levels[position] = self.levels[rule]
        return table_from_tree(left, right, feature, threshold, levels)


class RulesPolicy:
    """Rules behind the interface every policy has."""

    speaks: Speech = "levels"
    shielded = True

    def __init__(self, rules: Rules, name: str = "grown") -> None:
        self.rules, self.name = rules, name

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Take note of the heads that there are."""
        self.supported = (np.asarray(supported) > 0).astype(np.int64)

    def act(self, view: View) -> Array:
        """The levels of the rule that decides, ``[H, N, N_HEADS]``."""
        levels: Array = self.rules.levels[self.rules.rule_of(view.features)] * self.supported
        levels[~view.active] = 0
        return levels
