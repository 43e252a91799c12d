from __future__ import annotations

import math
import multiprocessing
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.features import FEATURES, N_FEATURES
from memcg_gym.envs.contract.heads import HEADS, N_HEADS
from memcg_gym.envs.host_env import HostEnv
from memcg_gym.envs.registration import HOST_ID, register_environments
from memcg_gym.envs.render import WINDOW_TICKS, frame_shape
from memcg_gym.envs.reward import TERM_NAMES
from tests.envs.small import small_scenario

ROOT = Path(__file__).parents[2]


def host(**kwargs: object) -> HostEnv:
    return HostEnv(small_scenario(), **kwargs)  # type: ignore[arg-type]


def actions(env: HostEnv, ticks: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(env.action_space.nvec) for _ in range(ticks)]  # type: ignore[attr-defined]


def play(env: HostEnv, ticks: int) -> list[bytes]:
    return [env.step(action)[0].tobytes() for action in actions(env, ticks)]


@pytest.mark.parametrize("kind", ["stock", "bpf"])
def test_passes_gymnasium_s_checker(kind: str) -> None:
    register_environments()
    env = gym.make(HOST_ID, scenario=small_scenario(), host_kind=kind, render_mode="rgb_array")
    check_env(env.unwrapped)


def test_passes_sb3_s_checker() -> None:
    sb3_check_env(host())


def test_registers_once_and_is_made_by_id() -> None:
    register_environments()
    register_environments()
    env = gym.make(HOST_ID, scenario=small_scenario(), episode_ticks=3)
    env.reset(seed=0)
    assert isinstance(env.unwrapped, HostEnv)
    truncated = [env.step(env.action_space.sample())[3] for _ in range(3)]
    assert truncated == [False, False, True]


def test_registering_imports_no_environment() -> None:
    script = (
        "import sys\nfrom memcg_gym.envs.registration import register_environments\n"
        "register_environments()\n"
        "heavy = [m for m in ('numba', 'torch', 'stable_baselines3', 'pydantic') "
        "if m in sys.modules]\nsys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "src", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_flat_observation_is_rows_and_a_mask() -> None:
    env = host()
    observation, _ = env.reset(seed=3)
    table = observation.reshape(env.batch.n_cgroups, N_FEATURES + 1)
    assert np.array_equal(table[:, :N_FEATURES], env.rows)
    assert np.array_equal(table[:, N_FEATURES], env.active)


def test_the_mask_says_when_a_tenant_has_left() -> None:
    env = host()
    env.reset(seed=3)
    masks = [
        env.step(np.zeros(3 * N_HEADS, dtype=int))[0].reshape(3, -1)[:, N_FEATURES]
        for _ in range(20)
    ]
    seen = np.array(masks)
    assert (seen[:, :2] == 1.0).all()
    assert set(seen[:, 2]) == {0.0, 1.0}


def test_the_reward_is_the_sum_of_its_terms_in_any_order() -> None:
    env = host()
    env.reset(seed=5)
    for action in actions(env, 20):
        _, reward, _, _, info = env.step(action)
        terms = list(info["reward_terms"].values())
        assert tuple(info["reward_terms"]) == TERM_NAMES
        assert reward == sum(terms) == sum(reversed(terms)) == math.fsum(terms)


def test_the_reward_is_the_mean_over_the_cgroups_there_are() -> None:
    env = host()
    env.reset(seed=5)
    for action in actions(env, 12):
        _, reward, *_ = env.step(action)
        there = env.batch.active[0]
        assert reward == pytest.approx(env.batch.reward[0][there].mean(), abs=1e-9)


def test_the_same_seed_gives_the_same_trajectory() -> None:
    one, two = host(), host()
    first, info = one.reset(seed=11)
    again, info_again = two.reset(seed=11)
    assert info == info_again
    assert np.array_equal(first, again)
    assert play(one, 20) == play(two, 20)


def test_another_seed_gives_another_host() -> None:
    env = host()
    assert not np.array_equal(env.reset(seed=1)[0], env.reset(seed=2)[0])


def test_a_host_can_be_asked_for_by_its_seed() -> None:
    env = host()
    first, info = env.reset(seed=1)
    env.reset(seed=2)
    again, info_again = env.reset(options={"host_seed": info["host_seed"]})
    assert info_again == info
    assert np.array_equal(first, again)


@pytest.mark.parametrize("wanted", [-1, 2**63, 1.5, "7"])
def test_a_host_seed_that_is_none_is_refused(wanted: object) -> None:
    with pytest.raises(ConfigError, match="host_seed"):
        host().reset(options={"host_seed": wanted})


def test_train_and_test_hosts_differ() -> None:
    train, test = host(), host(split="test")
    assert not np.array_equal(train.reset(seed=1)[0], test.reset(seed=1)[0])


def test_settling_moves_the_start() -> None:
    short, longer = host(settle_ticks=0), host(settle_ticks=30)
    assert not np.array_equal(short.reset(seed=1)[0], longer.reset(seed=1)[0])


def test_a_pickled_env_goes_on_where_it_was() -> None:
    env = host(render_mode="rgb_array")
    env.reset(seed=2)
    play(env, 5)
    twin = pickle.loads(pickle.dumps(env))
    assert play(env, 5) == play(twin, 5)
    assert np.array_equal(env.render(), twin.render())


def play_in_child(pickled: bytes) -> list[bytes]:
    return play(pickle.loads(pickled), 5)


def test_a_spawned_process_plays_the_same_trajectory() -> None:
    env = host()
    env.reset(seed=2)
    pickled = pickle.dumps(env)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(play_in_child, (pickled,)) == play(env, 5)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"host_kind": "ebpf"}, "host_kind"),
        ({"render_mode": "human"}, "render_mode"),
        ({"episode_ticks": 0}, "episode_ticks"),
        ({"settle_ticks": -1}, "settle_ticks"),
    ],
)
def test_arguments_that_will_not_do_are_refused(kwargs: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        host(**kwargs)


def test_a_frame_shows_what_happened() -> None:
    env = host(render_mode="rgb_array")
    env.reset(seed=2)
    empty = env.render()
    assert empty.shape == frame_shape(3) and empty.dtype == np.uint8
    assert all(side % 2 == 0 for side in empty.shape[:2])
    for action in actions(env, 3):
        env.step(action)
    drawn = env.render()
    assert (drawn != empty).any()
    env.reset(seed=2)
    assert np.array_equal(env.render(), empty)


def test_the_picture_forgets_what_is_older_than_its_window() -> None:
    env = host(render_mode="rgb_array", episode_ticks=WINDOW_TICKS + 10)
    env.reset(seed=2)
    for _ in range(WINDOW_TICKS + 5):
        env.step(np.zeros(3 * N_HEADS, dtype=int))
    assert env.render().shape == frame_shape(3)


def test_ansi_names_every_cgroup() -> None:
    env = host(render_mode="ansi")
    env.reset(seed=2)
    text = env.render()
    assert isinstance(text, str)
    assert all(name in text for name in env.batch.layout.names)


def test_an_episode_can_be_filmed(tmp_path: Path) -> None:
    env = host(render_mode="rgb_array", episode_ticks=4)
    with warnings.catch_warnings():
        # Gymnasium warns when a folder is there, and moviepy of its own dependencies.
        warnings.simplefilter("ignore")
        film = gym.wrappers.RecordVideo(env, str(tmp_path), disable_logger=True)
        film.reset(seed=1)
        for action in actions(env, 4):
            film.step(action)
        film.close()
    assert [p.suffix for p in tmp_path.glob("*.mp4")] == [".mp4"]


def test_the_class_documentation_is_a_reference() -> None:
    page = HostEnv.__doc__ or ""
    for name in (*(f.name for f in FEATURES), *(h.name for h in HEADS), *TERM_NAMES):
        assert name in page
