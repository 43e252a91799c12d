from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcg_gym.agents.constant import Constant, ConstantConfig, search_best_constant
from memcg_gym.agents.host_aware import HostAware
from memcg_gym.agents.random_policy import RandomConfig, RandomPolicy
from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.features import F
from memcg_gym.envs.contract.heads import HEADS, LEVEL_COUNTS, LIFT_LEVEL, PROMOTE_LEVEL, Head
from tests.agents.views import ALL_HEADS, view

CALM: dict[F, Any] = {
    F.PRIORITY: 1,
    F.LOAD: 1.0,
    F.WSS_RATIO: 0.5,
    F.SLACK_VALID: 1,
    F.SLACK: 0.9,
    F.HOST_UTIL: 0.8,
    F.HOST_FAST_FREE: 0.5,
    F.KILL_RANK: 3,
}


def rule(**features: float) -> dict[str, int]:
    """What the host-aware rule says about a calm cgroup with these features instead."""
    policy = HostAware()
    policy.reset((1, 1), ALL_HEADS, 0)
    changed = {F[name.upper()]: value for name, value in features.items()}
    levels = policy.act(view(1, features=CALM | changed))[0, 0]
    return {head.name: int(n) for head, n in zip(HEADS, levels, strict=True) if n}


@pytest.mark.parametrize(
    ("features", "levels"),
    [
        ({}, {"reclaim": 1}),
        ({"slack": 0.1}, {}),
        ({"refault_slow": 0.1}, {}),
        ({"wss_ratio": 1.0}, {}),
        ({"load": 0.0}, {}),
        ({"host_util": 0.93}, {"reclaim": 2}),
        ({"host_util": 0.93, "load": 0.0}, {"protect": 1}),
        ({"host_util": 0.98, "priority": 0}, {"reclaim": 3}),
        ({"host_util": 0.98, "priority": 0, "growth": 0.1}, {"reclaim": 3, "throttle": 3}),
        (
            {"host_util": 0.98, "priority": 0, "growth": 0.1, "lock_user_share": 0.01},
            {"reclaim": 3},
        ),
        ({"lock_user_share": 0.01, "events_high": 2}, {"reclaim": 1, "throttle": LIFT_LEVEL}),
        ({"priority": 3}, {"reclaim": 1, "protect": 4}),
        ({"priority": 3, "protection": 0.9}, {"reclaim": 1}),
        ({"priority": 3, "protection": 0.9, "level_protect": 4}, {"reclaim": 1, "protect": 4}),
        ({"host_fast_free": 0.01, "cold_fast_share": 0.5}, {"reclaim": 1, "demote": 2}),
        (
            {"priority": 3, "protection": 1, "slow_share": 0.5, "hot_slow_share": 0.5},
            {"reclaim": 1, "demote": PROMOTE_LEVEL},
        ),
        ({"flusher_backlog": 0.1, "dirty_share": 0.3}, {"reclaim": 1, "flush": 1}),
        ({"host_psi_mem_full": 0.5, "host_util": 0.98}, {"reclaim": 2, "shed": 2}),
        (
            {"host_psi_mem_full": 0.5, "host_util": 0.98, "kill_rank": 0},
            {"reclaim": 2, "shed": 2, "kill": 1},
        ),
    ],
)
def test_the_host_aware_rule(features: dict[str, float], levels: dict[str, int]) -> None:
    assert rule(**features) == levels


def test_random_levels_exist_are_all_drawn_and_are_held() -> None:
    policy = RandomPolicy(RandomConfig(hold_s=2))
    supported = ALL_HEADS.copy()
    supported[Head.KILL] = 0
    policy.reset((1, 40), supported, seed=4)
    drawn = [policy.act(view(40)) for _ in range(40)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])
    for head, count in enumerate(LEVEL_COUNTS):
        seen = set(np.stack(drawn)[..., head].ravel().tolist())
        assert seen == ({0} if head == Head.KILL else set(range(count)))


def test_a_constant_leaves_unsupported_heads_alone() -> None:
    policy = Constant(ConstantConfig(reclaim=2, shed=1))
    supported = ALL_HEADS.copy()
    supported[Head.SHED] = 0
    policy.reset((2, 3), supported, 0)
    assert (policy.act(view(3)) == [0, 2, 0, 0, 0, 0, 0]).all()


def test_the_search_finds_a_constant_no_worse_than_doing_nothing() -> None:
    scenario, objective = load_scenario("tier-stream"), load_objective()
    per_trial = 1 * scenario.n_cgroups * (5 + 10)

    def search(trials: int) -> Any:
        return search_best_constant(
            scenario,
            objective,
            budget_cgroup_steps=trials * per_trial + 1,
            n_hosts=1,
            settle_ticks=5,
            ticks=10,
            seed=3,
        )

    nothing, found = search(1), search(8)
    assert (nothing.tried, nothing.spec) == (1, "constant")
    assert found.tried == 8
    assert found.cgroup_steps == 8 * per_trial
    assert found.score >= nothing.score
    again = search(8)
    assert (again.config, again.score) == (found.config, found.score)
    assert found.config.shed == found.config.flush == found.config.kill == 0


def test_a_search_without_the_budget_for_one_trial_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget_cgroup_steps 10 "):
        search_best_constant(
            load_scenario("burst"), load_objective(), budget_cgroup_steps=10, n_hosts=1
        )
