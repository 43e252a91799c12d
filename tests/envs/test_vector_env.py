from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.heads import N_HEADS
from memcg_gym.envs.host_env import HostEnv
from memcg_gym.envs.registration import HOST_ID, register_environments
from memcg_gym.envs.vector_env import HostVectorEnv
from tests.envs.small import small_scenario

TICKS = 9


def vector(num_envs: int = 3) -> HostVectorEnv:
    return HostVectorEnv(num_envs, small_scenario(), episode_ticks=4)


def test_make_vec_gives_the_batched_env_with_same_step_autoreset() -> None:
    register_environments()
    env = gym.make_vec(HOST_ID, num_envs=2, scenario=small_scenario())
    assert isinstance(env.unwrapped, HostVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_every_host_equals_the_scalar_env_of_its_seed() -> None:
    env = vector()
    alone = [HostEnv(small_scenario(), episode_ticks=4) for _ in range(3)]
    observation, infos = env.reset(seed=20)
    for at, one in enumerate(alone):
        expected, info = one.reset(seed=20 + at)
        assert np.array_equal(observation[at], expected)
        assert infos["host_seed"][at] == info["host_seed"]
    rng = np.random.default_rng(1)
    for _ in range(TICKS):
        actions = rng.integers(env.single_action_space.nvec, size=(3, 3 * N_HEADS))  # type: ignore[attr-defined]
        observation, rewards, terminations, truncations, infos = env.step(actions)
        assert not terminations.any()
        for at, one in enumerate(alone):
            expected, reward, _, truncated, info = one.step(actions[at])
            assert rewards[at] == reward
            assert truncations[at] == truncated
            if truncated:
                assert infos["_final_obs"][at]
                assert np.array_equal(infos["final_obs"][at], expected)
                slo = infos["final_info"]["reward_terms"]["slo"][at]
                assert slo == info["reward_terms"]["slo"]
                expected, info = one.reset()
                assert infos["host_seed"][at] == info["host_seed"]
            assert np.array_equal(observation[at], expected)


def test_a_mask_resets_some_hosts_only() -> None:
    env = vector()
    first, _ = env.reset(seed=1)
    mask = np.array([True, False, False])
    again, infos = env.reset(options={"reset_mask": mask})
    assert not np.array_equal(first[0], again[0])
    assert np.array_equal(first[1:], again[1:])
    assert list(infos["_host_seed"]) == mask.tolist()


def test_seeds_must_be_one_a_host() -> None:
    with pytest.raises(ConfigError, match="got 2 seeds for 3"):
        vector().reset(seed=[1, 2])


def test_a_batch_has_no_picture() -> None:
    with pytest.raises(ConfigError, match="render_mode"):
        HostVectorEnv(2, small_scenario(), render_mode="rgb_array")
