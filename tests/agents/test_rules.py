from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcg_gym.agents.inputs import scale_inputs
from memcg_gym.agents.rules import Change, Rules, RulesPolicy
from memcg_gym.enforcer.evaluator import evaluate_batch
from memcg_gym.envs.contract.errors import CheckpointError
from memcg_gym.envs.contract.features import FEATURES, SHIFT, F
from memcg_gym.envs.contract.heads import Head
from tests.agents.views import view

LOW = np.array([f.low_fixed for f in FEATURES])
HIGH = np.array([f.high_fixed for f in FEATURES])
ONE = 1 << SHIFT


def rules() -> Rules:
    """Reclaim from the calm, more from the unimportant; never from who stalls."""
    made = Rules().changed(Change(0, -1, 0, False, ((Head.RECLAIM, 1),)))
    made = made.changed(Change(0, F.PSI_MEM_FAST, ONE // 10, True, ((Head.RECLAIM, 0),)))
    return made.changed(Change(0, F.PRIORITY, ONE, False, ((Head.RECLAIM, 3),)))


def vectors(rows: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(0)
    drawn = rng.integers(LOW, HIGH + 1, size=(rows, len(LOW)))
    drawn[:, F.PSI_MEM_FAST] = rng.integers(0, ONE // 5, rows)
    drawn[:, F.PRIORITY] = rng.integers(0, 4, rows) * ONE
    drawn[:100, F.PSI_MEM_FAST] = ONE // 10 + np.arange(100) % 2  # on the threshold and one above
    return drawn.astype(np.int32)


def test_rules_answer_as_they_read() -> None:
    x = vectors()
    reclaim = rules().levels[rules().rule_of(x), Head.RECLAIM]
    stalls, matters = x[:, F.PSI_MEM_FAST] > ONE // 10, x[:, F.PRIORITY] > ONE
    assert np.array_equal(reclaim, np.where(stalls, 0, np.where(matters, 1, 3)))


def test_a_table_of_rules_decides_alike() -> None:
    x, table = vectors(), rules().table()
    assert np.array_equal(
        table.levels[evaluate_batch(table, x)], rules().levels[rules().rule_of(x)]
    )


def test_scaled_thresholds_divide_rows_as_the_integers_do() -> None:
    x, made = vectors(), rules()
    inputs = scale_inputs(x.astype(np.float32) / np.float32(ONE))
    for split, threshold in zip(made.splits, made.scaled_thresholds(), strict=True):
        above = x[:, split.feature] > split.threshold
        assert above.any() and not above.all()
        assert np.array_equal(inputs[:, split.feature] > threshold, above)


def test_a_change_leaves_the_rules_it_started_from_alone() -> None:
    before = rules()
    kept = before.to_json()
    before.changed(Change(1, F.GROWTH, 5, True, ((Head.PROTECT, 2),)))
    before.changed(Change(1, -1, 0, False, ((Head.PROTECT, 2),)))
    assert before.to_json() == kept


def test_rules_survive_as_plain_data() -> None:
    again = Rules.from_json(rules().to_json(), "here")
    assert again.splits == rules().splits
    assert np.array_equal(again.levels, rules().levels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"splits": [[0, 1, 2]]}, "not rules"),
        ({"levels": [[0] * 6]}, "not rules"),
        ({"levels": [[0] * 7]}, "one row"),
        ({"levels": [[9] * 7] * 3}, "known levels"),
        ({"splits": [[0, 999, 0, 1], [0, 1, 0, 2]]}, "split 0"),
        ({"splits": [[0, 1, 0, 1], [2, 1, 0, 2]]}, "split 1"),
        ({"splits": [[0, 1, 0, 2], [0, 1, 0, 1]]}, "split 0"),
    ],
)
def test_malformed_rules_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=f"here.*{said}"):
        Rules.from_json({**rules().to_json(), **change}, "here")


def test_the_policy_leaves_empty_slots_and_missing_heads_alone() -> None:
    seen = view(3, active=[True, True, False])
    policy = RulesPolicy(Rules().changed(Change(0, -1, 0, False, ((Head.RECLAIM, 2),))))
    policy.reset((1, 3), np.ones(7), seed=0)
    assert policy.act(seen)[0, :, Head.RECLAIM].tolist() == [2, 2, 0]
    policy.reset((1, 3), np.zeros(7), seed=0)
    assert not policy.act(seen).any()
