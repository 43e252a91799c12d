from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcg_gym.enforcer.evaluator import (
    EVALUATOR_FUNCTIONS,
    evaluate,
    evaluate_batch,
    table_arrays,
)
from memcg_gym.enforcer.table import Table, table_from_tree
from memcg_gym.enforcer.table_layout import LEAF_BIT, leaf_boxes
from memcg_gym.envs.contract.features import MISSING_FIXED, N_FEATURES, F
from memcg_gym.envs.contract.heads import N_HEADS
from tests.enforcer.sample_tables import (
    boundary_vectors,
    hostile_vectors,
    random_table,
    small_table,
    usual_vectors,
)

SMALL = small_table()


def by_region(table: Table, vector: np.ndarray) -> int:
    """The leaf whose region holds the vector: no walk at all."""
    low, high = leaf_boxes(table)
    own = vector[[ref.column for ref in table.features]].astype(np.int64)
    inside = np.flatnonzero(((own >= low) & (own <= high)).all(axis=1))
    assert len(inside) <= 1
    return int(inside[0]) if len(inside) else table.default_leaf


def scalar(table: Table, vectors: np.ndarray) -> list[int]:
    arrays = table_arrays(table)[:4]
    return [evaluate(*arrays, vector) for vector in vectors]


def small_vector(psi: float, util: float, usage: float = 0.0, growth: float = 0.0) -> np.ndarray:
    vector = np.zeros(N_FEATURES, dtype=np.int32)
    vector[[F.PSI_MEM_SOME, F.HOST_UTIL, F.USAGE_RATIO, F.GROWTH]] = np.floor(
        np.array([psi, util, usage, growth]) * 65536
    )
    return vector


@pytest.mark.parametrize(
    ("vector", "levels"),
    [
        (small_vector(0.05, 0.5), [0, 0, 0, 0, 0, 0, 0]),
        (small_vector(0.05, 0.95, growth=-0.06), [0, 2, 1, 0, 0, 0, 0]),
        (small_vector(0.05, 0.95, growth=0.5), [1, 0, 4, 1, 0, 1, 0]),
        (small_vector(0.20, 0.5, usage=0.9), [2, 2, 0, 0, 0, 0, 0]),
        (small_vector(0.20, 0.5, usage=1.0), [3, 0, 0, 2, 2, 0, 0]),
        (small_vector(0.90, 0.5, usage=1.0), [0, 0, 0, 0, 3, 2, 1]),
    ],
)
def test_each_rule_decides_its_region(vector: np.ndarray, levels: list[int]) -> None:
    leaf = evaluate(*table_arrays(SMALL)[:4], vector)
    assert SMALL.levels[leaf].tolist() == levels
    assert leaf != SMALL.default_leaf


def test_the_threshold_itself_goes_left() -> None:
    below, above = small_vector(0.0, 0.5), small_vector(0.0, 0.5)
    below[F.PSI_MEM_SOME], above[F.PSI_MEM_SOME] = 6881, 6882
    assert SMALL.levels[scalar(SMALL, np.stack([below, above]))].tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [2, 2, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("value", [MISSING_FIXED, -1, 65537, 2**31 - 1])
def test_a_value_out_of_range_selects_the_default(value: int) -> None:
    vector = small_vector(0.05, 0.95)
    vector[F.PSI_MEM_SOME] = value
    assert scalar(SMALL, vector[None]) == [SMALL.default_leaf]
    assert evaluate_batch(SMALL, vector[None]).tolist() == [SMALL.default_leaf]


def test_a_feature_the_table_does_not_read_cannot_matter() -> None:
    vector = small_vector(0.05, 0.95)
    wild = vector.copy()
    listed = [ref.column for ref in SMALL.features]
    wild[[column for column in range(N_FEATURES) if column not in listed]] = MISSING_FIXED
    assert scalar(SMALL, vector[None]) == scalar(SMALL, wild[None])


@pytest.mark.parametrize("make", [usual_vectors, hostile_vectors, None])
@pytest.mark.parametrize("seed", range(6))
def test_scalar_batch_and_regions_agree(
    make: Callable[[np.random.Generator, int], np.ndarray] | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table = SMALL if seed == 0 else random_table(rng, int(rng.integers(1, 120)))
    vectors = make(rng, 150) if make else boundary_vectors(table, rng, 150)
    batch = evaluate_batch(table, vectors).tolist()
    assert scalar(table, vectors) == batch
    assert [by_region(table, vector) for vector in vectors] == batch


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_arrays_of_any_content_end_in_an_existing_leaf(seed: int) -> None:
    rng = np.random.default_rng(seed)
    small = rng.random() < 0.7
    reach = 70 if small else 2**31
    features = rng.integers(-reach, reach, size=(rng.integers(0, 5), 3))
    if small and len(features):
        features[:, 0] %= N_FEATURES
        features[:, 1:] = [-(2**31), 2**31]
    nodes = rng.integers(-reach, reach, size=(rng.integers(0, 9), 4))
    vector = rng.integers(-(2**31), 2**31, size=N_FEATURES).astype(np.int32)
    n_leaves = int(rng.integers(2, 9))
    leaf = evaluate(features, nodes, int(rng.integers(-3, 10)), n_leaves, vector)
    assert 0 <= leaf < n_leaves


def test_a_loop_ends_in_the_default() -> None:
    features = np.array([[0, -(2**31), 2**31]])
    nodes = np.array([[0, 0, 0, 0]])
    assert evaluate(features, nodes, 0, 5, np.zeros(N_FEATURES, dtype=np.int32)) == 4


@pytest.mark.parametrize(("n_nodes", "leaf"), [(24, 0), (25, 4)])
def test_a_walk_takes_at_most_24_steps(n_nodes: int, leaf: int) -> None:
    features = np.array([[0, -(2**31), 2**31]])
    nodes = np.array([[0, 0, i + 1, 0] for i in range(n_nodes)])
    nodes[-1, 2] = LEAF_BIT
    assert evaluate(features, nodes, 0, 5, np.zeros(N_FEATURES, dtype=np.int32)) == leaf


def test_a_constant_table_decides_without_nodes() -> None:
    table = table_from_tree([-1], [-1], [0], [0], [[0, 1, 0, 0, 0, 0, 0]])
    vectors = hostile_vectors(np.random.default_rng(1), 20)
    assert scalar(table, vectors) == [0] * 20 == evaluate_batch(table, vectors).tolist()


def test_the_arrays_carry_levels_leases_and_rule_ids() -> None:
    arrays = table_arrays(SMALL)
    assert arrays.levels.shape == (7, N_HEADS) and not arrays.levels[-1].any()
    assert arrays.lease_ticks.tolist() == [5] * 6 + [0]
    assert arrays.rule_id.tolist() == [1, 2, 3, 4, 5, 6, 0]


@pytest.mark.parametrize(
    "vectors",
    [np.zeros(N_FEATURES, dtype=np.int32), np.zeros((2, 63), dtype=np.int32),
     np.zeros((2, N_FEATURES))],
)  # fmt: skip
def test_vectors_of_another_shape_or_kind_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="vectors must"):
        evaluate_batch(SMALL, vectors)


def test_the_compiled_walk_is_the_same_walk() -> None:
    numba = pytest.importorskip("numba")
    compiled: Any = [numba.njit(function) for function in EVALUATOR_FUNCTIONS][-1]
    rng = np.random.default_rng(11)
    for table in (SMALL, random_table(rng, 60)):
        vectors = np.concatenate([hostile_vectors(rng, 200), boundary_vectors(table, rng, 200)])
        arrays = table_arrays(table)[:4]
        assert [compiled(*arrays, vector) for vector in vectors] == scalar(table, vectors)
