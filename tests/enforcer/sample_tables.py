"""Tables and vectors that several tests of the enforcer use."""

from __future__ import annotations

import hashlib
import struct
import zlib

import numpy as np

from memcg_gym.enforcer.table import Table, table_from_tree
from memcg_gym.envs.contract.features import FEATURES, MISSING_FIXED, N_FEATURES, F
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS

LOW = np.array([f.low_fixed for f in FEATURES], dtype=np.int64)
HIGH = np.array([f.high_fixed for f in FEATURES], dtype=np.int64)


def small_table() -> Table:
    """Five nodes over four features, six rules."""
    left = [1, 3, 5, -1, 9, -1, 7, -1, -1, -1, -1]
    right = [2, 4, 6, -1, 10, -1, 8, -1, -1, -1, -1]
    feature = [F.PSI_MEM_SOME, F.HOST_UTIL, F.USAGE_RATIO, 0, F.GROWTH, 0, F.PSI_MEM_SOME]
    feature += [0] * 4
    threshold = [6881, 60000, 60948, 0, -3277, 0, 30000, 0, 0, 0, 0]
    levels = np.zeros((11, N_HEADS), dtype=int)
    levels[9] = [0, 2, 1, 0, 0, 0, 0]
    levels[10] = [1, 0, 4, 1, 0, 1, 0]
    levels[5] = [2, 2, 0, 0, 0, 0, 0]
    levels[7] = [3, 0, 0, 2, 2, 0, 0]
    levels[8] = [0, 0, 0, 0, 3, 2, 1]
    return table_from_tree(
        left, right, feature, threshold, levels, support=list(range(100, 111)), version=7
    )


def random_table(rng: np.random.Generator, n_splits: int) -> Table:
    """A random tree: leaves are split one by one at a random feature and value of their region."""
    left, right, feature, threshold = [-1], [-1], [0], [0]
    boxes = {0: (LOW.copy(), HIGH.copy())}
    depth = {0: 0}
    columns = rng.permutation(N_FEATURES)[: rng.integers(1, N_FEATURES + 1)]
    while len(left) < 2 * n_splits + 1:
        leaf = int(rng.choice([i for i in boxes if depth[i] < 24]))
        low, high = boxes.pop(leaf)
        column = int(rng.choice(columns))
        if low[column] == high[column]:
            boxes[leaf] = (low, high)
            continue
        value = int(rng.integers(low[column], high[column]))
        feature[leaf], threshold[leaf] = column, value
        left[leaf], right[leaf] = len(left), len(left) + 1
        for child, bound, end in ((left[leaf], high, value), (right[leaf], low, value + 1)):
            box = (low.copy(), high.copy())
            box[0 if bound is low else 1][column] = end
            boxes[child], depth[child] = box, depth[leaf] + 1
            left.append(-1)
            right.append(-1)
            feature.append(0)
            threshold.append(0)
    levels = rng.integers(0, LEVEL_COUNTS, size=(len(left), N_HEADS))
    return table_from_tree(left, right, feature, threshold, levels)


def reseal(data: bytes | bytearray) -> bytes:
    """The same contents with the checksum and the hash that belong to them."""
    covered = bytearray(data[:-96])
    struct.pack_into("<I", covered, 124, zlib.crc32(covered[128:], zlib.crc32(covered[:124])))
    return bytes(covered) + hashlib.sha256(covered).digest() + bytes(data[-64:])


def usual_vectors(rng: np.random.Generator, n: int) -> np.ndarray:
    """Vectors within the contract's ranges, shape ``(n, N_FEATURES)``, int32."""
    return rng.integers(LOW, HIGH + 1, size=(n, N_FEATURES)).astype(np.int32)


def hostile_vectors(rng: np.random.Generator, n: int) -> np.ndarray:
    """Usual vectors with ends of ranges, values past them, missing ones, and any int32."""
    vectors = usual_vectors(rng, n)
    odd = np.stack(
        [
            np.broadcast_to(LOW, vectors.shape),
            np.broadcast_to(HIGH, vectors.shape),
            np.broadcast_to(LOW - 1, vectors.shape),
            np.broadcast_to(HIGH + 1, vectors.shape),
            np.full(vectors.shape, MISSING_FIXED),
            rng.integers(-(2**31), 2**31, size=vectors.shape),
        ]
    )
    kind = rng.integers(0, len(odd), size=vectors.shape)
    replaced = rng.random(vectors.shape) < rng.choice([0.0, 0.01, 0.3, 1.0], size=(n, 1))
    rows, columns = np.indices(vectors.shape)
    return np.where(replaced, odd[kind, rows, columns], vectors).astype(np.int32)


def boundary_vectors(table: Table, rng: np.random.Generator, n: int) -> np.ndarray:
    """Vectors whose features sit on thresholds of the table, or one step past them."""
    vectors = usual_vectors(rng, n)
    for i, ref in enumerate(table.features):
        own = table.nodes["threshold"][table.nodes["feature"] == i]
        if own.size:
            near = rng.choice(own, size=n) + rng.integers(-1, 3, size=n)
            vectors[:, ref.column] = np.clip(near, ref.low, ref.high)
    return vectors
