from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memcg_gym.agents.policy import View
from memcg_gym.agents.table import TablePolicy
from memcg_gym.enforcer.evaluator import evaluate, table_arrays
from memcg_gym.enforcer.table import encode, write_table
from memcg_gym.envs.contract.errors import TableError
from memcg_gym.envs.contract.heads import N_HEADS, Head
from tests.agents.views import ALL_HEADS, view
from tests.enforcer.sample_tables import random_table, reseal, usual_vectors

SCHEMA_HASH_AT = 24
"""Where the header holds the contract's hash (``docs/table.md``)."""


def looked_at(n: int, seed: int = 1) -> View:
    made = view(n)
    made.features[0] = usual_vectors(np.random.default_rng(seed), n)
    return made


def test_the_policy_answers_what_the_scalar_walk_answers() -> None:
    table = random_table(np.random.default_rng(5), 60)
    policy = TablePolicy(table)
    policy.reset((1, 200), ALL_HEADS, 0)
    shown = looked_at(200)
    levels = policy.act(shown)
    arrays = table_arrays(table)
    for vector, row in zip(shown.features[0], levels[0], strict=True):
        assert row.tolist() == arrays.levels[evaluate(*arrays[:4], vector)].tolist()
    assert levels.shape == (1, 200, N_HEADS)
    assert len(np.unique(levels[0], axis=0)) > 5


def test_unsupported_heads_and_empty_slots_stay_at_level_zero() -> None:
    supported = ALL_HEADS.copy()
    supported[Head.RECLAIM] = 0
    policy = TablePolicy(random_table(np.random.default_rng(5), 60))
    policy.reset((1, 50), supported, 0)
    shown = looked_at(50)
    shown.active[0, ::2] = False
    levels = policy.act(shown)
    assert not levels[..., Head.RECLAIM].any()
    assert not levels[0, ::2].any()
    assert levels[0, 1::2].any()


def test_a_table_of_another_contract_is_refused(tmp_path: Path) -> None:
    table = random_table(np.random.default_rng(5), 4)
    write_table(tmp_path / "good.mrt", table)
    assert TablePolicy.from_file(tmp_path / "good.mrt").name == "good.mrt"
    data = bytearray(encode(table))
    assert bytes(data[SCHEMA_HASH_AT : SCHEMA_HASH_AT + 16]) == table.schema_hash
    data[SCHEMA_HASH_AT] ^= 1
    (tmp_path / "other.mrt").write_bytes(reseal(data))
    with pytest.raises(TableError, match="E_SCHEMA"):
        TablePolicy.from_file(tmp_path / "other.mrt")
