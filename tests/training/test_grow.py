from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from memcg_gym.agents.rollout import rollout
from memcg_gym.agents.rules import Change, Rules, RulesPolicy
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.features import SHIFT, F
from memcg_gym.envs.contract.heads import Head
from memcg_gym.training.distil import Purpose, World
from memcg_gym.training.grow import GrowConfig, Stage, _Bench, clear_gain, grow, planned
from tests.envs.small import objective, small_scenario

WORLD = World(scenario=small_scenario(), objective=objective())
SMALL = GrowConfig(
    budget=60_000,
    stages=(Stage(12, 2, 10), Stage(4, 3, 15), Stage(2, 4, 15)),
    settle_ticks=10,
    stride_ticks=5,
    validate_every=2,
    validate_hosts=3,
    validate_settle_ticks=10,
    validate_ticks=20,
    most_rules=6,
)
RECLAIM = Change(0, F.PRIORITY, 1 << SHIFT, True, ((Head.RECLAIM, 4), (Head.PROTECT, 1)))


def score(rules: Rules) -> float:
    batch, policy = WORLD.hosts(3, Purpose.VALIDATE), RulesPolicy(rules)
    settled = rollout(batch, policy, 10)
    return float(rollout(batch, policy, 20, reset=False, first_tick=settled.next_tick).score.mean())


def test_grown_rules_score_what_is_said_and_never_below_the_owner() -> None:
    grown = grow(WORLD, SMALL)
    assert grown.score >= grown.owner_score == pytest.approx(score(Rules()))
    assert grown.score == pytest.approx(score(grown.rules))
    assert grown.tried > 50 and grown.cgroup_steps <= SMALL.budget
    assert len(grown.rules.levels) <= SMALL.most_rules


def test_the_same_seed_grows_the_same_rules_and_another_one_others() -> None:
    first, again = grow(WORLD, SMALL), grow(WORLD, SMALL)
    assert first.to_json() == again.to_json()
    other = _Bench(dataclasses.replace(WORLD, seed=1), SMALL).draw(Rules(), 8)
    assert other != _Bench(WORLD, SMALL).draw(Rules(), 8)


def test_a_trial_gains_what_its_change_gains_in_a_run_of_its_own() -> None:
    bench = _Bench(WORLD, SMALL)
    bench.go_on(Rules(), 10)
    gains = bench.gains(Rules(), [RECLAIM, Change(0, -1, 0, False, ())], np.array([4, 1]), 15)
    assert (gains[1] == 0.0).all() and (gains[0] != 0.0).any()
    scores = []
    for rules in (Rules(), Rules().changed(RECLAIM)):
        twin = bench.now.clone()
        scores.append(rollout(twin, RulesPolicy(rules), 15).score[[4, 1]])
    assert gains[0] == pytest.approx(scores[1] - scores[0])


def test_blocks_differ_from_the_rules_where_their_change_says() -> None:
    bench = _Bench(WORLD, SMALL)
    features = np.concatenate([bench.now.features[:2]] * 3)
    levels = planned(Rules(), [RECLAIM, Change(0, -1, 0, False, ((Head.KILL, 1),))], features, 2)
    important = features[:2, :, F.PRIORITY] > 1 << SHIFT
    assert important.any() and not important.all()
    assert not levels[:2].any()
    assert np.array_equal(levels[2:4, :, Head.RECLAIM], np.where(important, 4, 0))
    assert (levels[4:, :, Head.KILL] == 1).all()


def test_changes_are_about_heads_there_are_and_never_kill() -> None:
    bench = _Bench(WORLD, SMALL)
    for change in bench.draw(Rules(), 200):
        assert change.heads
        for head, level in change.heads:
            assert head in (Head.THROTTLE, Head.RECLAIM, Head.PROTECT) and level != 0


def test_a_gain_must_stand_out_from_its_error() -> None:
    assert clear_gain(np.array([1.0, 1.1, 0.9])) > 0.0
    assert clear_gain(np.array([3.0, -1.0, 1.0])) < 0.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": 0}, "budget"),
        ({"validate_hosts": 0}, "validate_hosts"),
        ({"stages": (Stage(1, 1, 1),) * 3}, "two hosts"),
    ],
)
def test_what_cannot_work_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(SMALL, **change)
