"""A rule table as a policy: the walk of ``enforcer/evaluator.py`` over every row of a batch.

::

    every second, for each cgroup: leaf = walk(table, features); answer the leaf's levels

The reader refuses a table made under another contract.

Units: the contract's fixed point.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from memcg_gym.agents.policy import Array, Speech, View
from memcg_gym.enforcer.evaluator import evaluate_batch
from memcg_gym.enforcer.table import read_table
from memcg_gym.enforcer.table_layout import Table
from memcg_gym.envs.contract.heads import N_HEADS


class TablePolicy:
    """A table's levels; the lease needs no counting, as every tick renews it."""

    speaks: Speech = "levels"
    shielded = True

    def __init__(self, table: Table, name: str = "table") -> None:
        self.name = name
        self.table = table

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> TablePolicy:
        """Read a table.

        Raises:
            TableError: The file is no usable table of this contract.
        """
        return cls(read_table(path), Path(path).name)

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Take note of the heads that there are."""
        self.supported = (np.asarray(supported) > 0).astype(np.int64)
        self.levels = self.table.levels.astype(np.int64) * self.supported

    def act(self, view: View) -> Array:
        """The levels of the leaf that decides, ``[H, N, N_HEADS]``."""
        shape = view.features.shape
        leaf = evaluate_batch(self.table, view.features.reshape(-1, shape[-1]))
        levels: Array = self.levels[leaf].reshape(*shape[:-1], N_HEADS)
        levels[~view.active] = 0
        return levels
