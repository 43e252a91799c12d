"""From a fitted decision tree to a rule table.

Takes the parallel arrays in which scikit-learn and others keep a tree.  Branches no vector can
take are left out, sibling leaves that decide alike become one, and the all-zero default leaf is
appended.  It knows nothing of how the tree was fitted.

Units: thresholds in the contract's fixed point; leases in ticks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from memcg_gym.enforcer.table_layout import (
    LEAF_BIT,
    LEAF_DTYPE,
    MAX_AGE_MS,
    MAX_RULES,
    NODE_DTYPE,
    FeatureRef,
    Table,
    check_body,
    refuse,
)
from memcg_gym.envs.contract.features import FEATURES, N_FEATURES
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS
from memcg_gym.envs.contract.shield_rules import LEASE_TICKS

Box = dict[int, tuple[int, int]]
"""Lowest and highest value still possible, by column; a column not named has its whole range."""


@dataclass(slots=True)
class _Leaf:
    levels: tuple[int, ...]
    support: int


@dataclass(slots=True)
class _Split:
    column: int
    threshold: int
    left: _Split | _Leaf
    right: _Split | _Leaf


def table_from_tree(
    children_left: ArrayLike,
    children_right: ArrayLike,
    feature: ArrayLike,
    threshold_fixed: ArrayLike,
    leaf_levels: ArrayLike,
    *,
    support: ArrayLike | None = None,
    columns: Sequence[int] | None = None,
    lease_ticks: int = LEASE_TICKS,
    version: int = 1,
    policy_id: bytes = bytes(16),
    not_before_s: int = 0,
    not_after_s: int = 0,
    max_age_ms: int = MAX_AGE_MS,
) -> Table:
    """Make a table of a binary tree with ``x[feature] <= threshold`` to the left.

    Args:
        children_left: Index of each node's left child, shape ``(n,)``; negative at leaves.  Node 0
            is the root.
        children_right: Index of its right child, shape ``(n,)``.
        feature: Column each node tests, shape ``(n,)``; ignored at leaves.
        threshold_fixed: In the contract's fixed point, shape ``(n,)``; a fraction is rounded
            down, which changes nothing for integer features.
        leaf_levels: Levels at each leaf, shape ``(n, N_HEADS)``; ignored at inner nodes.
        support: Training rows that end in each leaf, shape ``(n,)``.
        columns: Column of the contract's vector for each column the tree was fitted on; None =
            the tree was fitted on the whole vector.
        lease_ticks: Lease of every rule [ticks].
        version: Only grows for one policy.
        policy_id: 16 bytes that name the policy.
        not_before_s: First moment it may be used [s since 1970].
        not_after_s: Last moment it may be used [s since 1970]; 0 = no end.
        max_age_ms: Oldest reading of every feature [ms].

    Returns:
        A table that :func:`~memcg_gym.enforcer.table.encode` accepts.  Rules are numbered from 1,
        left to right.

    Raises:
        TableError: The tree is malformed, too deep, too large, or names a level nobody defined.

    Example:
        >>> table = table_from_tree(
        ...     [1, -1, -1], [2, -1, -1], [57, 0, 0], [62259, 0, 0],
        ...     [[0] * 7, [0] * 7, [0, 2, 0, 0, 0, 0, 0]],
        ... )
        >>> table.n_rules, table.features[0].id, table.leaves["rule_id"].tolist()
        (2, 57, [1, 2, 0])
    """
    tree = _Tree(
        np.asarray(children_left, dtype=np.int64),
        np.asarray(children_right, dtype=np.int64),
        np.asarray(feature, dtype=np.int64),
        np.asarray(threshold_fixed, dtype=np.float64),
        np.asarray(leaf_levels, dtype=np.int64),
        None if support is None else np.asarray(support, dtype=np.int64),
        tuple(range(N_FEATURES)) if columns is None else tuple(columns),
    )
    tree.check()
    splits, leaves, rows = _flatten(tree.simplified())
    if len(leaves) > MAX_RULES:
        refuse("E_LIMITS", f"the tree has {len(leaves)} rules, at most {MAX_RULES}")
    used = sorted({split.column for split in splits})
    nodes = np.zeros(len(splits), dtype=NODE_DTYPE)
    for i, split in enumerate(splits):
        nodes[i] = (split.threshold, used.index(split.column), *rows[i], 0)
    packed = np.zeros(len(leaves) + 1, dtype=LEAF_DTYPE)
    for i, leaf in enumerate(leaves):
        packed[i] = (leaf.levels, 0, i + 1, lease_ticks)
    nodes.setflags(write=False)
    packed.setflags(write=False)
    table = Table(
        tuple(FeatureRef.of(column, max_age_ms) for column in used),
        nodes,
        packed,
        version,
        policy_id,
        not_before_s,
        not_after_s,
        support=() if support is None else tuple(leaf.support for leaf in leaves),
    )
    check_body(table)
    return table


@dataclass(frozen=True, slots=True)
class _Tree:
    """The arrays of a fitted tree, as given."""

    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    levels: np.ndarray
    support: np.ndarray | None
    columns: tuple[int, ...]

    def check(self) -> None:
        """Refuse shapes, levels, columns and thresholds that mean nothing."""
        n = len(self.left)
        wanted = (n,)
        shapes = [self.right.shape, self.feature.shape, self.threshold.shape]
        shapes += [] if self.support is None else [self.support.shape]
        if n == 0 or any(s != wanted for s in shapes) or self.levels.shape != (n, N_HEADS):
            refuse("E_COUNT", f"the tree's arrays disagree: {n} nodes, {shapes}, levels "
                   f"{self.levels.shape}, wanted {wanted} and {(n, N_HEADS)}")  # fmt: skip
        ends = self.left < 0
        wrong = self.levels[ends] >= np.array(LEVEL_COUNTS)
        if wrong.any() or (self.levels[ends] < 0).any():
            refuse("E_LEVEL", "a leaf of the tree has a level nobody defined")
        inner = ~ends
        if (self.feature[inner] < 0).any() or (self.feature[inner] >= len(self.columns)).any():
            refuse(
                "E_FEATIDX", f"the tree tests a column that is not in 0..{len(self.columns) - 1}"
            )
        if any(not 0 <= column < N_FEATURES for column in self.columns):
            refuse("E_FEATURE", f"columns must be in 0..{N_FEATURES - 1}, got {self.columns}")
        if not np.isfinite(self.threshold[inner]).all():
            refuse("E_THRESHOLD", "a threshold of the tree is not a finite number")

    def simplified(self) -> _Split | _Leaf:
        """The tree without impossible branches and without splits that decide nothing."""
        order = self._live_nodes()
        done: dict[int, _Split | _Leaf] = {}
        for node, only_child in reversed(order):
            if only_child >= 0:
                done[node] = done[only_child]
            elif self.left[node] < 0:
                count = 0 if self.support is None else int(self.support[node])
                done[node] = _Leaf(tuple(self.levels[node].tolist()), count)
            else:
                done[node] = self._joined(
                    node, done[int(self.left[node])], done[int(self.right[node])]
                )
        return done[0]

    def _joined(self, node: int, left: _Split | _Leaf, right: _Split | _Leaf) -> _Split | _Leaf:
        if isinstance(left, _Leaf) and isinstance(right, _Leaf) and left.levels == right.levels:
            return _Leaf(left.levels, left.support + right.support)
        return _Split(*self._split(node), left, right)

    def _live_nodes(self) -> list[tuple[int, int]]:
        """Nodes a vector can reach, parents first, with the only child a vector can go on to."""
        order: list[tuple[int, int]] = []
        seen: set[int] = set()
        stack: list[tuple[int, Box]] = [(0, {})]
        while stack:
            node, box = stack.pop()
            if node in seen or not 0 <= node < len(self.left):
                refuse("E_NODEREF", f"the tree leads to node {node} twice, or it does not exist")
            seen.add(node)
            if self.left[node] < 0:
                order.append((node, -1))
                continue
            column, threshold = self._split(node)
            low, high = box.get(column, (FEATURES[column].low_fixed, FEATURES[column].high_fixed))
            left, right = int(self.left[node]), int(self.right[node])
            if threshold < low:
                order.append((node, right))
                stack.append((right, box))
            elif threshold >= high:
                order.append((node, left))
                stack.append((left, box))
            else:
                order.append((node, -1))
                stack.append((left, {**box, column: (low, threshold)}))
                stack.append((right, {**box, column: (threshold + 1, high)}))
        return order

    def _split(self, node: int) -> tuple[int, int]:
        return self.columns[self.feature[node]], math.floor(self.threshold[node])


def _flatten(
    root: _Split | _Leaf,
) -> tuple[list[_Split], list[_Leaf], list[list[int]]]:
    """Splits and leaves in reading order, and the children of each split as references."""
    splits: list[_Split] = []
    leaves: list[_Leaf] = []
    children: list[list[int]] = []
    stack: list[tuple[_Split | _Leaf, int]] = [(root, -1)]
    while stack:
        item, parent = stack.pop()
        if isinstance(item, _Leaf):
            reference = LEAF_BIT | len(leaves)
            leaves.append(item)
        else:
            reference = len(splits)
            splits.append(item)
            children.append([])
            stack.append((item.right, reference))
            stack.append((item.left, reference))
        if parent >= 0:
            children[parent].append(reference)
    return splits, leaves, children
