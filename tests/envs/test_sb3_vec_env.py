from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from memcg_gym.envs.checker import VecEnvError, check_vec_env, decisions
from memcg_gym.envs.contract.heads import N_HEADS, Head
from memcg_gym.envs.reward import DEAD_SLOWDOWN, TERM_NAMES, Metric
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv, Step
from tests.envs.small import objective, small_env, small_scenario

TENANT = 2


class Broken(CgroupVecEnv):
    """Breaks one promise after the batch has kept them all."""

    def __init__(self, spoil: Callable[[CgroupVecEnv, Step], None]) -> None:
        super().__init__(small_scenario(), objective(), hosts=2, seed=1)
        self.spoil = spoil

    def step_wait(self) -> Step:
        made = super().step_wait()
        self.spoil(self, made)
        return made


def nudge_observation(env: CgroupVecEnv, made: Step) -> None:
    made[0][4, 57] = np.nextafter(made[0][4, 57], np.float32(0.0))


def pay_the_absent(env: CgroupVecEnv, made: Step) -> None:
    made[1][~env.active_rows] = -1.0


def end_nothing(env: CgroupVecEnv, made: Step) -> None:
    made[2][:] = False
    for info in made[3]:
        info.clear()


def forget_truncation(env: CgroupVecEnv, made: Step) -> None:
    for info in made[3]:
        info.pop("TimeLimit.truncated", None)


def give_the_next_observation(env: CgroupVecEnv, made: Step) -> None:
    for row in np.flatnonzero(made[2]):
        made[3][row]["terminal_observation"] = made[0][row]


def count_everybody(env: CgroupVecEnv, made: Step) -> None:
    env.active_rows = np.ones_like(env.active_rows)


def share_an_info(env: CgroupVecEnv, made: Step) -> None:
    made[3][:] = [{}] * len(made[3])


def step(env: CgroupVecEnv, levels: np.ndarray | None = None) -> Step:
    return env.step(np.zeros((env.num_envs, N_HEADS), dtype=int) if levels is None else levels)


@pytest.mark.parametrize("threads", [1, 2])
def test_keeps_every_promise(threads: int) -> None:
    check_vec_env(lambda: small_env(threads=threads), ticks=45)


@pytest.mark.parametrize(
    ("spoil", "promise"),
    [
        (nudge_observation, "row equals scalar"),
        (pay_the_absent, "reward"),
        (end_nothing, "done"),
        (forget_truncation, "TimeLimit.truncated"),
        (give_the_next_observation, "terminal_observation"),
        (count_everybody, "active rows"),
        (share_an_info, "types"),
    ],
)
def test_the_checker_names_a_broken_promise(
    spoil: Callable[[CgroupVecEnv, Step], None], promise: str
) -> None:
    with pytest.raises(VecEnvError) as caught:
        check_vec_env(lambda: Broken(spoil), ticks=25)
    assert caught.value.promise == promise


def test_the_checker_sees_hidden_randomness() -> None:
    rng = np.random.default_rng(0)

    def jitter(env: CgroupVecEnv, made: Step) -> None:
        if env.episode_tick.max() < 10:  # let the comparison with the scalar env pass
            return
        made[1][:] += rng.random()

    with pytest.raises(VecEnvError):
        check_vec_env(lambda: Broken(jitter), ticks=25)


def test_threads_change_nothing() -> None:
    one, two = small_env(hosts=5), small_env(hosts=5, threads=2)
    assert np.array_equal(one.reset(), two.reset())
    rng = np.random.default_rng(0)
    for _ in range(30):
        levels = decisions(one, rng)
        for a, b in zip(one.step(levels)[:3], two.step(levels)[:3], strict=True):
            assert np.array_equal(a, b)
    two.close()


def test_hosts_end_their_episodes_at_different_times() -> None:
    env = small_env(hosts=4)
    env.reset()
    ends = []
    for tick in range(20):
        dones = step(env)[2].reshape(4, -1)
        ends += [(tick, host) for host in np.flatnonzero(dones[:, 0])]
    assert sorted(host for _, host in ends) == [0, 1, 2, 3]
    assert len({tick for tick, _ in ends}) == 4


def test_a_tenant_that_leaves_ends_its_row_alone_with_its_last_vector() -> None:
    env = small_env(hosts=1)
    before = env.reset()
    for _ in range(15):
        observation, rewards, dones, infos = step(env)
        if dones.any():
            break
        before = observation
    assert dones.tolist() == [False, False, True]
    assert np.array_equal(infos[TENANT]["terminal_observation"], before[TENANT])
    assert not env.active_rows[TENANT] and not env.present_rows[TENANT]
    assert rewards[TENANT] == 0.0


def test_an_empty_slot_is_no_transition_until_the_tick_after_a_tenant_moved_in() -> None:
    env = small_env(hosts=1)
    env.reset()
    seen = []
    for _ in range(18):
        step(env)
        seen.append((bool(env.present_rows[TENANT]), bool(env.active_rows[TENANT])))
    moved_in = seen.index((True, False), seen.index((False, False)))
    assert seen[moved_in + 1] == (True, True)
    assert (False, True) not in seen


def test_a_kill_ends_no_row() -> None:
    env = small_env(hosts=1, shield=False)
    env.reset()
    levels = np.zeros((3, N_HEADS), dtype=int)
    levels[0, Head.KILL] = 1
    slowdowns = []
    for _ in range(4):
        dones = step(env, levels)[2]
        slowdowns.append(env.shards[0].metrics[0, 0, Metric.SLOWDOWN])
        assert not dones[0]
        assert env.active_rows[0]
    assert max(slowdowns) == DEAD_SLOWDOWN


def test_statistics_are_means_over_active_rows() -> None:
    env = small_env(hosts=2)
    env.reset()
    terms = []
    for _ in range(12):
        step(env)
        terms.append(env.shards[0].terms.reshape(env.num_envs, -1)[env.active_rows])
    every = np.concatenate(terms)
    means = env.statistics.take()
    assert means["reward/memory"] == pytest.approx(every[:, TERM_NAMES.index("memory")].mean())
    assert means["reward/total"] == pytest.approx(every.sum(axis=1).mean())
    assert env.statistics.rows == 0


@pytest.mark.parametrize("call", ["get_attr", "env_method", "env_is_wrapped", "set_attr"])
def test_sb3_s_calls_on_rows(call: str) -> None:
    env = small_env(hosts=1)
    answers: dict[str, Any] = {
        "get_attr": lambda: env.get_attr("n_cgroups", [0, 2]),
        "env_method": lambda: env.env_method("seed", 4, indices=1),
        "env_is_wrapped": lambda: env.env_is_wrapped(object),  # type: ignore[arg-type]
        "set_attr": lambda: env.set_attr("settle_ticks", 7),
    }
    answer = answers[call]()
    expected = {
        "get_attr": [3, 3],
        "env_method": [[4, 4, 4]],
        "env_is_wrapped": [False] * 3,
        "set_attr": None,
    }
    assert answer == expected[call]
    if call == "set_attr":
        assert env.settle_ticks == 7
