"""The walk through a rule table: a fixed-point vector in, a leaf out, integers only.

Written twice, for one vector and for a batch, and tested against itself; the scalar one is a
plain function over arrays, because the model compiles it.  Any doubt (a missing or out-of-range
feature, a reference that leads nowhere, too many steps) ends in the default leaf.  Whether the
readings are fresh is for the caller, who knows their age.

Units: the contract's fixed point.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from memcg_gym.enforcer.table_layout import INDEX_MASK, LEAF_BIT, MAX_DEPTH, Table
from memcg_gym.envs.contract.features import N_FEATURES


class Slot(IntEnum):
    """Column of :attr:`TableArrays.features`."""

    COLUMN = 0
    LOW = 1
    HIGH = 2


class Node(IntEnum):
    """Column of :attr:`TableArrays.nodes`."""

    THRESHOLD = 0
    FEATURE = 1
    LEFT = 2
    RIGHT = 3


class TableArrays(NamedTuple):
    """A table as plain int64 arrays, for evaluators and compilers.

    Attributes:
        features: Column in the contract's vector, lowest, highest value; shape ``(n, 3)``.
        nodes: Threshold, row of ``features``, left, right reference; shape ``(n, 4)``.
        root: Reference to start from.
        n_leaves: With the default, which is the last.
        levels: Levels by leaf, shape ``(n_leaves, N_HEADS)``.
        lease_ticks: By leaf, shape ``(n_leaves,)``; 0 for the default.
        rule_id: By leaf, shape ``(n_leaves,)``; 0 for the default.
    """

    features: np.ndarray
    nodes: np.ndarray
    root: int
    n_leaves: int
    levels: np.ndarray
    lease_ticks: np.ndarray
    rule_id: np.ndarray


def table_arrays(table: Table) -> TableArrays:
    """Unpack a table once, before many decisions."""
    features = np.array([(f.column, f.low, f.high) for f in table.features], dtype=np.int64)
    nodes = [table.nodes[name] for name in ("threshold", "feature", "left", "right")]
    return TableArrays(
        features.reshape(-1, len(Slot)),
        np.stack(nodes, axis=1).astype(np.int64),
        table.root,
        len(table.leaves),
        table.levels.astype(np.int64),
        table.leaves["lease_ticks"].astype(np.int64),
        table.leaves["rule_id"].astype(np.int64),
    )


def evaluate(
    features: np.ndarray, nodes: np.ndarray, root: int, n_leaves: int, vector: np.ndarray
) -> int:
    """The leaf that decides about one vector.

    Args:
        features: As in :class:`TableArrays`, like the next three; their content is not trusted.
        nodes: Likewise.
        root: Likewise.
        n_leaves: Likewise.
        vector: Fixed point, shape ``(N_FEATURES,)``.

    Returns:
        Index of the leaf; ``n_leaves - 1``, the default, in any doubt.

    Example:
        >>> from memcg_gym.enforcer.table import table_from_tree
        >>> constant = table_from_tree([-1], [-1], [0], [0], [[0, 1, 0, 0, 0, 0, 0]])
        >>> evaluate(*table_arrays(constant)[:4], np.zeros(N_FEATURES, dtype=np.int32))
        0
    """
    default = n_leaves - 1
    for i in range(features.shape[0]):
        column = features[i, Slot.COLUMN]
        if column < 0 or column >= vector.shape[0]:
            return default
        if vector[column] < features[i, Slot.LOW] or vector[column] > features[i, Slot.HIGH]:
            return default
    reference = root
    for _ in range(MAX_DEPTH):
        if reference < 0 or reference >= nodes.shape[0]:
            break
        feature = nodes[reference, Node.FEATURE]
        if feature < 0 or feature >= features.shape[0]:
            return default
        if vector[features[feature, Slot.COLUMN]] <= nodes[reference, Node.THRESHOLD]:
            reference = nodes[reference, Node.LEFT]
        else:
            reference = nodes[reference, Node.RIGHT]
    leaf = reference - LEAF_BIT
    if leaf < 0 or leaf >= n_leaves:
        return default
    return int(leaf)


def evaluate_batch(table: Table, vectors: np.ndarray) -> np.ndarray:
    """The leaf that decides about each vector.

    Args:
        table: A usable table.
        vectors: Integers in fixed point, shape ``(n, N_FEATURES)``.

    Returns:
        Leaf indices, shape ``(n,)``, int64.

    Raises:
        ValueError: The vectors have another shape, or are not integers.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.shape[1] != N_FEATURES:
        raise ValueError(f"vectors must have shape (n, {N_FEATURES}), got {vectors.shape}")
    if not np.issubdtype(vectors.dtype, np.integer):
        raise ValueError(f"vectors must be fixed-point integers, got {vectors.dtype}")
    arrays = table_arrays(table)
    used = vectors[:, arrays.features[:, Slot.COLUMN]]
    inside = (used >= arrays.features[:, Slot.LOW]) & (used <= arrays.features[:, Slot.HIGH])
    reference = np.full(len(vectors), arrays.root, dtype=np.int64)
    for _ in range(MAX_DEPTH):
        rows = np.flatnonzero((reference & LEAF_BIT) == 0)
        if not rows.size:
            break
        node = arrays.nodes[reference[rows]]
        goes_left = used[rows, node[:, Node.FEATURE]] <= node[:, Node.THRESHOLD]
        reference[rows] = np.where(goes_left, node[:, Node.LEFT], node[:, Node.RIGHT])
    leaf = reference & INDEX_MASK
    leaf[((reference & LEAF_BIT) == 0) | ~inside.all(axis=1)] = table.default_leaf
    return leaf


EVALUATOR_FUNCTIONS = (evaluate,)
"""What a compiler needs, in order."""
