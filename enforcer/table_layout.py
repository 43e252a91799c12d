"""The rule table in memory: its arrays, its limits, and what every usable table obeys.

Models a decision tree over the contract's fixed-point features whose leaves carry one level per
action head.  It knows the structure only: whether the decisions are *good* is a question for the
checks of the exporter and for the shield.  The bytes are ``enforcer/table.py``.

Units: thresholds and ranges in the contract's fixed point; leases in ticks; ages in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from memcg_gym.envs.contract.errors import TableError
from memcg_gym.envs.contract.features import FEATURES, SHIFT
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS
from memcg_gym.envs.contract.schema import contract_hash

MAX_RULES = 256
"""Leaves a tree may have, the default leaf not counted."""
MAX_DEPTH = 24
MAX_FEATURES = 64
MAX_LEASE_TICKS = 64
"""As far as the feature ``lease_left`` counts."""
MAX_AGE_MS = 2000
"""Default for the oldest reading a rule may look at: two ticks (assumption)."""

LEAF_BIT = 0x8000
"""Set in a child reference that names a leaf; the other 15 bits are the index."""
INDEX_MASK = 0x7FFF

REQUIRED_FLAG = 1
"""Feature flag: the contract has no fallback for it."""
PER_HOST_FLAG = 2
"""Feature flag: alike for all cgroups of a host."""

FEATURE_DTYPE = np.dtype(
    [
        ("id", "<u4"),
        ("shift", "u1"),
        ("flags", "u1"),
        ("max_age_ms", "<u2"),
        ("low", "<i4"),
        ("high", "<i4"),
    ]
)
NODE_DTYPE = np.dtype(
    [("threshold", "<i4"), ("feature", "<u2"), ("left", "<u2"), ("right", "<u2"), ("zero", "<u2")]
)
LEAF_DTYPE = np.dtype(
    [("levels", "u1", (N_HEADS,)), ("pad", "u1"), ("rule_id", "<u2"), ("lease_ticks", "<u2")]
)

COLUMN_OF_ID = {f.id: column for column, f in enumerate(FEATURES)}
"""Where in the vector a feature's stable id lives."""


@dataclass(frozen=True, slots=True)
class FeatureRef:
    """A feature that a table reads, as the table describes it.

    Attributes:
        id: The contract's stable id.
        low, high: Range in which the table decides; outside it the default holds [fixed point].
        max_age_ms: Oldest reading the table may be asked about; the caller checks it.
        shift: Fixed-point shift.
        flags: ``REQUIRED_FLAG`` and ``PER_HOST_FLAG``.
    """

    id: int
    low: int
    high: int
    max_age_ms: int = MAX_AGE_MS
    shift: int = SHIFT
    flags: int = 0

    @classmethod
    def of(cls, column: int, max_age_ms: int = MAX_AGE_MS) -> FeatureRef:
        """The feature in a column of the contract's vector, over its whole range."""
        f = FEATURES[column]
        return cls(f.id, f.low_fixed, f.high_fixed, max_age_ms, SHIFT, contract_flags(column))

    @property
    def column(self) -> int:
        """Its column in the contract's vector."""
        return COLUMN_OF_ID[self.id]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A rule table.

    Attributes:
        features: What the nodes' ``feature`` counts in.
        nodes: ``NODE_DTYPE``; ``x[feature] <= threshold`` goes left.
        leaves: ``LEAF_DTYPE``; the last one is the default, all zero, and in no rule.
        version: Only grows for one policy; a host refuses to go back.
        policy_id: 16 bytes that name the policy it was made from.
        not_before_s, not_after_s: When it may be used [s since 1970]; 0 = no end.
        key_id: First 8 bytes of the SHA-256 of the public key; zero when unsigned.
        signature: Ed25519, 64 bytes; zero when unsigned.
        schema_hash: First 16 bytes of the contract's hash.
        verified: The signature was checked against a public key.
        support: Training rows per rule; empty = unknown.  Not in the file.
    """

    features: tuple[FeatureRef, ...]
    nodes: np.ndarray
    leaves: np.ndarray
    version: int = 1
    policy_id: bytes = bytes(16)
    not_before_s: int = 0
    not_after_s: int = 0
    key_id: bytes = bytes(8)
    signature: bytes = bytes(64)
    schema_hash: bytes = field(default_factory=lambda: our_schema_hash())
    verified: bool = False
    support: tuple[int, ...] = ()

    @property
    def n_rules(self) -> int:
        """Leaves that belong to a rule."""
        return len(self.leaves) - 1

    @property
    def default_leaf(self) -> int:
        """Index of the default leaf."""
        return len(self.leaves) - 1

    @property
    def root(self) -> int:
        """Reference to the first node, or to the only rule where there is no node."""
        return 0 if len(self.nodes) else LEAF_BIT

    @property
    def signed(self) -> bool:
        """It carries a signature (not necessarily a good one)."""
        return any(self.signature)

    @property
    def levels(self) -> np.ndarray:
        """Levels by leaf, shape ``(n_rules + 1, N_HEADS)``, uint8."""
        levels: np.ndarray = self.leaves["levels"]
        return levels


def our_schema_hash() -> bytes:
    """The 16 bytes of this code's contract that a table carries."""
    return bytes.fromhex(contract_hash())[:16]


def contract_flags(column: int) -> int:
    """The flags the contract gives a feature."""
    f = FEATURES[column]
    return (REQUIRED_FLAG if f.fallback is None else 0) | (PER_HOST_FLAG if f.per_host else 0)


def tree_depth(nodes: np.ndarray) -> int:
    """Nodes on the longest path, as far as children come after their parents."""
    depths = np.ones(len(nodes), dtype=np.int64)
    for parent, (left, right) in enumerate(zip(nodes["left"], nodes["right"], strict=True)):
        for child in (int(left), int(right)):
            if parent < child < len(nodes):
                depths[child] = depths[parent] + 1
    return int(depths.max(initial=0))


def leaf_boxes(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The region each rule decides: lowest and highest value of every feature.

    Args:
        table: Its references must be in order (children after parents, one parent each).

    Returns:
        ``(low, high)``, each of shape ``(n_rules, n_features)``, int64 fixed point, inclusive.
    """
    n_features = len(table.features)
    low = np.empty((table.n_rules, n_features), dtype=np.int64)
    high = np.empty_like(low)
    low[:] = [f.low for f in table.features]
    high[:] = [f.high for f in table.features]
    if not len(table.nodes):
        return low, high
    node_low = np.repeat(low[:1], len(table.nodes), axis=0)
    node_high = np.repeat(high[:1], len(table.nodes), axis=0)
    for i, (threshold, feature, left, right, _) in enumerate(table.nodes.tolist()):
        for child, goes_left in ((left, True), (right, False)):
            to_low, to_high = (low, high) if child & LEAF_BIT else (node_low, node_high)
            index = child & INDEX_MASK
            to_low[index], to_high[index] = node_low[i], node_high[i]
            if goes_left:
                to_high[index, feature] = min(to_high[index, feature], threshold)
            else:
                to_low[index, feature] = max(to_low[index, feature], threshold + 1)
    return low, high


def check_body(table: Table, stated_depth: int | None = None) -> None:
    """Everything a usable table obeys beyond its header, each rule over the whole table in turn.

    Args:
        table: Of any content.
        stated_depth: Depth that the header states, where there is one.

    Raises:
        TableError: With the code of the first rule that fails.
    """
    check_features(table.features)
    check_splits(table)
    check_references(table)
    check_regions(table, stated_depth)
    check_leaves(table.leaves)


def check_features(features: tuple[FeatureRef, ...]) -> None:
    """E_FEATURE, E_FEATDUP."""
    for i, ref in enumerate(features):
        problem = feature_problem(ref)
        if problem:
            refuse("E_FEATURE", f"features[{i}]: {problem}")
    ids = [ref.id for ref in features]
    for i, feature_id in enumerate(ids):
        if feature_id in ids[:i]:
            refuse("E_FEATDUP", f"features[{i}]: id {feature_id} is listed twice")


def feature_problem(ref: FeatureRef) -> str | None:
    """How a feature differs from the contract's, or None; a narrower range is allowed."""
    if ref.id not in COLUMN_OF_ID:
        return f"id {ref.id} is unknown here"
    f = FEATURES[ref.column]
    if ref.shift != SHIFT:
        return f"{f.name} has shift {ref.shift}, here {SHIFT}"
    if ref.flags != contract_flags(ref.column):
        return f"{f.name} has flags {ref.flags}, here {contract_flags(ref.column)}"
    if not f.low_fixed <= ref.low <= ref.high <= f.high_fixed:
        return f"{f.name} has range {ref.low}..{ref.high}, here {f.low_fixed}..{f.high_fixed}"
    if ref.max_age_ms == 0:
        return f"{f.name} has max_age_ms 0: no reading is that fresh"
    return None


def check_splits(table: Table) -> None:
    """E_RESERVED, E_FEATIDX, E_THRESHOLD."""
    nodes = table.nodes
    bad = np.flatnonzero(nodes["zero"] != 0)
    if bad.size:
        refuse("E_RESERVED", f"nodes[{bad[0]}]: reserved bytes are not zero")
    bad = np.flatnonzero(table.leaves["pad"] != 0)
    if bad.size:
        refuse("E_RESERVED", f"leaves[{bad[0]}]: the pad byte is not zero")
    bad = np.flatnonzero(nodes["feature"] >= len(table.features))
    if bad.size:
        feature = nodes["feature"][bad[0]]
        refuse("E_FEATIDX", f"nodes[{bad[0]}]: feature {feature} of {len(table.features)}")
    low = np.array([f.low for f in table.features], dtype=np.int64)[nodes["feature"]]
    high = np.array([f.high for f in table.features], dtype=np.int64)[nodes["feature"]]
    bad = np.flatnonzero((nodes["threshold"] < low) | (nodes["threshold"] > high))
    if bad.size:
        i = bad[0]
        threshold = nodes["threshold"][i]
        refuse("E_THRESHOLD", f"nodes[{i}]: {threshold} is outside {low[i]}..{high[i]}")


def check_references(table: Table) -> None:
    """E_NODEREF, E_NODESHARED, E_LEAFREF, E_LEAFSHARED, E_UNREACHABLE."""
    n_nodes, n_leaves = len(table.nodes), len(table.leaves)
    children = np.stack([table.nodes["left"], table.nodes["right"]], axis=1).astype(np.int64)
    refs = np.concatenate([[table.root], children.ravel()])
    parents = np.concatenate([[-1], np.repeat(np.arange(n_nodes), 2)])
    is_leaf = (refs & LEAF_BIT) != 0
    index = refs & INDEX_MASK
    bad = np.flatnonzero(~is_leaf & ((index >= n_nodes) | (index <= parents)))
    if bad.size:
        parent, child = parents[bad[0]], index[bad[0]]
        refuse("E_NODEREF", f"nodes[{parent}] leads to node {child}, of {n_nodes}; only forwards")
    node_uses = np.bincount(index[~is_leaf], minlength=n_nodes)
    bad = np.flatnonzero(node_uses > 1)
    if bad.size:
        refuse("E_NODESHARED", f"nodes[{bad[0]}] has {node_uses[bad[0]]} parents")
    bad = np.flatnonzero(is_leaf & (index >= n_leaves))
    if bad.size:
        parent, child = parents[bad[0]], index[bad[0]]
        refuse("E_LEAFREF", f"nodes[{parent}] leads to leaf {child}, of {n_leaves}")
    leaf_uses = np.bincount(index[is_leaf], minlength=n_leaves)
    bad = np.flatnonzero(leaf_uses > 1)
    if bad.size:
        refuse("E_LEAFSHARED", f"leaves[{bad[0]}] has {leaf_uses[bad[0]]} parents")
    for name, uses in (("nodes", node_uses), ("leaves", leaf_uses[:-1])):
        bad = np.flatnonzero(uses == 0)
        if bad.size:
            refuse("E_UNREACHABLE", f"{name}[{bad[0]}] has no parent")


def check_regions(table: Table, stated_depth: int | None) -> None:
    """E_EMPTYLEAF, E_DEPTH."""
    low, high = leaf_boxes(table)
    bad = np.flatnonzero((low > high).any(axis=1))
    if bad.size:
        feature = np.flatnonzero(low[bad[0]] > high[bad[0]])[0]
        name = FEATURES[table.features[feature].column].name
        refuse("E_EMPTYLEAF", f"leaves[{bad[0]}]: no value of {name} leads there")
    depth = tree_depth(table.nodes)
    if depth > MAX_DEPTH:
        refuse("E_DEPTH", f"the longest rule has {depth} conditions, at most {MAX_DEPTH}")
    if stated_depth is not None and depth != stated_depth:
        refuse(
            "E_DEPTH", f"the longest rule has {depth} conditions, the header says {stated_depth}"
        )


def check_leaves(leaves: np.ndarray) -> None:
    """E_LEVEL, E_RULEID, E_TTL, E_DEFAULT_UNSAFE."""
    rules = leaves[:-1]
    unknown = np.argwhere(leaves["levels"] >= np.array(LEVEL_COUNTS))
    if unknown.size:
        leaf, head = unknown[0]
        level = leaves["levels"][leaf, head]
        refuse("E_LEVEL", f"leaves[{leaf}]: head {head} has no level {level}")
    ids, counts = np.unique(rules["rule_id"], return_counts=True)
    if (ids == 0).any() or (counts > 1).any():
        wrong = 0 if ids[0] == 0 else ids[counts > 1][0]
        refuse("E_RULEID", f"rule id {wrong}; ids are above 0 and used once")
    lease = rules["lease_ticks"]
    bad = np.flatnonzero((lease < 1) | (lease > MAX_LEASE_TICKS))
    if bad.size:
        ticks = lease[bad[0]]
        refuse("E_TTL", f"leaves[{bad[0]}]: lease {ticks} ticks, must be 1..{MAX_LEASE_TICKS}")
    if any(leaves[-1:].tobytes()):
        refuse("E_DEFAULT_UNSAFE", "the default leaf is not all zero")


def refuse(code: str, message: str) -> NoReturn:
    """Raise the refusal."""
    raise TableError(code, message)
