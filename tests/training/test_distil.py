from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from memcg_gym.agents.policy import Speech, View
from memcg_gym.agents.registry import make_policy
from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.enforcer.table import Table, encode, table_from_tree
from memcg_gym.envs.contract.errors import ConfigError, MemcgGymError
from memcg_gym.envs.contract.features import N_FEATURES, SHIFT, F
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS, Head
from memcg_gym.envs.contract.shield_rules import LEASE_TICKS
from memcg_gym.training import distil as distil_module
from memcg_gym.training.distil import (
    HIGH,
    LOW,
    Array,
    DistilConfig,
    Rows,
    World,
    agreement,
    choice_gaps,
    decide,
    distil,
    fit,
    joint_classes,
    nearest_class,
    relying_rules,
)
from memcg_gym.training.polish import PolishConfig, polish, with_levels

WORLD = World(scenario=load_scenario("burst"), objective=load_objective())
TINY = DistilConfig(
    leaves=8, rounds=2, hosts=2, settle_ticks=10, ticks=15, validate_hosts=2, validate_ticks=10
)


class OneQuestion:
    """Reclaims at level 2 where usage stands above half of the limit, else not."""

    name = "one-question"
    speaks: Speech = "levels"
    shielded = True
    threshold = 1 << (SHIFT - 1)

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        self.shape = batch_shape

    def act(self, view: View) -> Array:
        levels = np.zeros((*self.shape, N_HEADS), dtype=np.int64)
        levels[..., Head.RECLAIM] = 2 * (view.features[..., F.USAGE_RATIO] > self.threshold)
        levels[..., Head.DEMOTE] = 1  # which this scenario does not support
        return levels


class Sure(OneQuestion):
    """The same with logits."""

    def logits(self, features: Array) -> Array:
        logits = np.full((len(features), N_HEADS, 5), -1e9, dtype=np.float32)
        logits[..., 0] = 0.0
        logits[:, Head.RECLAIM, 1] = features[:, F.USAGE_RATIO] / (1 << SHIFT)
        return logits


def random_rows(n: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    features = rng.integers(LOW, HIGH + 1, size=(n, N_FEATURES)).astype(np.int32)
    levels = rng.integers(0, LEVEL_COUNTS, size=(n, N_HEADS)).astype(np.int64)
    return Rows(features, levels, np.ones(n))


def test_a_table_finds_the_teacher_s_one_question() -> None:
    found = distil(OneQuestion(), WORLD, TINY, policy_id=b"p" * 16, version=3)
    table = found.table
    assert [ref.id for ref in table.features] == [F.USAGE_RATIO]
    assert table.n_rules == 2
    assert table.levels[:, Head.RECLAIM].tolist() == [0, 2, 0]
    assert not table.levels[:, Head.DEMOTE].any()  # unsupported: no label asks for it
    assert [r.agreement for r in found.rounds] == [1.0, 1.0]
    assert (table.policy_id, table.version) == (b"p" * 16, 3)
    assert (table.leaves["lease_ticks"][:-1] == LEASE_TICKS).all()
    assert sum(table.support) == found.rounds[found.best].rows


def test_distilling_counts_its_steps() -> None:
    found = distil(OneQuestion(), WORLD, TINY)
    scoring, collecting = 2 * (10 + 10) * 4, 2 * (10 + 15) * 4
    assert found.cgroup_steps == scoring + 2 * (scoring + collecting)


def test_distilling_twice_gives_the_same_bytes() -> None:
    tables = [distil(make_policy("host-aware"), WORLD, TINY).table for _ in range(2)]
    assert encode(tables[0]) == encode(tables[1])


def test_the_best_round_is_kept() -> None:
    found = distil(make_policy("host-aware"), WORLD, TINY)
    assert found.rounds[found.best].score == max(r.score for r in found.rounds)
    assert found.table is found.rounds[found.best].table


def test_a_table_decides_as_its_tree_on_any_rows() -> None:
    data = random_rows(3000)
    config = dataclasses.replace(TINY, leaves=200, classes=300, min_support=1)
    table = fit(data, WORLD, config, 0, bytes(16), 1)  # raises where one row differs
    assert table.n_rules > 100
    encode(table)


def test_a_table_unlike_its_tree_is_not_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_row_off(table: Table, features: Array) -> Array:
        levels = decide(table, features)
        levels[17, Head.KILL] ^= 1
        return levels

    monkeypatch.setattr(distil_module, "decide", one_row_off)
    with pytest.raises(MemcgGymError, match="on 1 of 3000 rows"):
        fit(random_rows(3000), WORLD, TINY, 0, bytes(16), 1)


def test_agreement_is_the_share_of_equal_joint_actions() -> None:
    table = table_from_tree([-1], [-1], [0], [0], [[0, 1, 0, 0, 0, 0, 0]])
    data = random_rows(4)
    data.levels[:] = [[0, 1, 0, 0, 0, 0, 0]] * 3 + [[0, 1, 0, 0, 0, 0, 1]]
    assert agreement(table, data) == 0.75


def test_a_teacher_that_sets_knobs_is_refused() -> None:
    with pytest.raises(ConfigError, match="sets knobs"):
        distil(make_policy("tmo"), WORLD, TINY)


def test_frequent_actions_are_classes_and_rare_ones_their_neighbours() -> None:
    frequent, other, rare = np.zeros(N_HEADS), np.zeros(N_HEADS), np.zeros(N_HEADS)
    other[Head.RECLAIM] = 4
    rare[Head.RECLAIM] = 3
    levels = np.array([frequent] * 5 + [rare] + [other] * 3, dtype=np.int64)
    classes = joint_classes(Rows(np.zeros((9, 1)), levels, np.ones(9)), 2)
    assert classes.tolist() == [frequent.tolist(), other.tolist()]
    assert nearest_class(levels, classes).tolist() == [0] * 5 + [1] + [1] * 3


def test_weights_decide_which_actions_are_frequent() -> None:
    levels = np.array([[0] * 7, [0] * 7, [0, 1, 0, 0, 0, 0, 0]], dtype=np.int64)
    rows = Rows(np.zeros((3, 1)), levels, np.array([1.0, 1.0, 9.0]))
    assert joint_classes(rows, 1).tolist() == [[0, 1, 0, 0, 0, 0, 0]]


def test_a_row_counts_by_the_gap_of_the_choice() -> None:
    features = np.zeros((2, N_FEATURES), dtype=np.int32)
    features[:, F.USAGE_RATIO] = [1 << SHIFT, 1 << (SHIFT - 2)]
    assert choice_gaps(Sure(), features) == pytest.approx([1.001, 0.251], rel=1e-5)


def test_weights_need_a_teacher_with_logits() -> None:
    config = dataclasses.replace(TINY, weighting="gap")
    with pytest.raises(ConfigError, match="has no logits"):
        distil(OneQuestion(), WORLD, config)
    assert distil(Sure(), WORLD, config).table.n_rules == 2


@pytest.mark.parametrize("change", [{"leaves": 1}, {"rounds": 0}, {"hosts": 0}])
def test_numbers_that_cannot_work_are_refused(change: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match="at least"):
        dataclasses.replace(TINY, **change)


def test_rules_that_lean_on_the_shield_are_counted() -> None:
    throttle = [3, 0, 0, 0, 0, 0, 0]
    one = table_from_tree([-1], [-1], [0], [0], [throttle])
    assert relying_rules(one) == 1
    # kernel lock held? user lock held? critical threads? - only then no throttle
    left, right = [1, 2, 3, -1, -1, -1, -1], [4, 5, 6, -1, -1, -1, -1]
    feature = [F.LOCK_KERNEL_SHARE, F.LOCK_USER_SHARE, F.CRITICAL_SHARE, 0, 0, 0, 0]
    levels = np.zeros((7, N_HEADS))
    levels[3] = throttle
    assert relying_rules(table_from_tree(left, right, feature, [0] * 7, levels)) == 0
    levels[6] = throttle
    assert relying_rules(table_from_tree(left, right, feature, [0] * 7, levels)) == 1


def test_other_answers_keep_the_questions() -> None:
    data = random_rows(500, seed=4)
    config = dataclasses.replace(TINY, leaves=20, min_support=1)
    table = fit(data, WORLD, config, 0, b"i" * 16, 2)
    same = with_levels(table, table.levels[:-1])
    assert encode(same) == encode(table) and same.support == table.support
    changed = table.levels[:-1].copy()
    changed[:, Head.KILL] ^= 1
    other = with_levels(table, changed)
    difference = decide(other, data.features) - decide(table, data.features)
    assert (np.abs(difference[:, Head.KILL]) == 1).all()
    assert not difference[:, : Head.KILL].any()


def test_siblings_that_answer_alike_become_one_rule() -> None:
    data = random_rows(500, seed=5)
    table = fit(data, WORLD, dataclasses.replace(TINY, leaves=20), 0, bytes(16), 1)
    one = with_levels(table, np.zeros((table.n_rules, N_HEADS)))
    assert one.n_rules == 1 and sum(one.support) == len(data.levels)


def test_polishing_undoes_a_harmful_answer() -> None:
    """A table that reclaims a tenth a second: less is better, and one change at a time finds it."""
    table = table_from_tree([-1], [-1], [0], [0], [[0, 4, 0, 0, 0, 0, 0]], support=[7])
    config = PolishConfig(hosts=3, settle_ticks=5, ticks=20, together=4, passes=2)
    found = polish(table, WORLD, config)
    assert found.changes >= 1
    assert found.table.levels[0, Head.RECLAIM] < 4
    assert not found.table.levels[0, [Head.DEMOTE, Head.SHED, Head.FLUSH, Head.KILL]].any()
    assert found.trials > 0 and found.table.support == (7,)


def test_polishing_stays_within_its_budget() -> None:
    table = table_from_tree([-1], [-1], [0], [0], [[0, 4, 0, 0, 0, 0, 0]])
    config = PolishConfig(hosts=2, settle_ticks=5, ticks=10, together=2, passes=3, budget=10)
    found = polish(table, WORLD, config)
    assert (found.changes, found.trials, found.cgroup_steps) == (0, 0, 0)
    assert encode(found.table) == encode(table)
