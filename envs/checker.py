"""A checker for our SB3 ``VecEnv``, which neither SB3 nor Gymnasium has one for.

Runs the batch beside one scalar ``memcg_gym/Host-v0`` per host, on the same hosts and decisions,
and wants every row equal to the bit.  Checked: spaces and types; rows against the scalar
environment; which transitions count; when rows end, and what stands in their infos; same-step
resets; that a seed decides everything; that a saved state goes on to the same future.

Units: ticks of one second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from memcg_gym.envs.contract.features import N_FEATURES
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS
from memcg_gym.envs.host_env import HostEnv
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv, Step

Array = np.ndarray[Any, np.dtype[Any]]


class VecEnvError(AssertionError):
    """The environment breaks a promise.

    Attributes:
        promise: Which one, e.g. ``"row equals scalar"``.
    """

    def __init__(self, promise: str, message: str) -> None:
        super().__init__(f"{promise}: {message}")
        self.promise = promise


def check_vec_env(make: Callable[[], CgroupVecEnv], *, ticks: int = 60, seed: int = 0) -> None:
    """Check what a factory makes; returns when every promise held.

    Args:
        make: Makes an environment; called several times, always for the same one.
        ticks: How long to run; more than an episode, so that hosts restart.
        seed: Of the decisions.

    Raises:
        VecEnvError: The first broken promise.
    """
    env = make()
    check_types(env, seed)
    check_rows(make(), ticks, seed)
    check_determinism(make(), make(), ticks, seed)
    check_state(make(), make(), ticks, seed)


def check_types(env: CgroupVecEnv, seed: int = 0) -> None:
    """Spaces, shapes and types of one step."""
    rows = env.n_hosts * env.n_cgroups
    if env.num_envs != rows:
        _fail("types", f"num_envs is {env.num_envs}, {rows} slots there are")
    if env.observation_space.shape != (N_FEATURES,):
        _fail("types", f"a row's observation has shape {env.observation_space.shape}")
    observation = env.reset()
    _check_observation(env, observation)
    observation, rewards, dones, infos = env.step(decisions(env, np.random.default_rng(seed)))
    _check_observation(env, observation)
    for name, array, dtype in (("rewards", rewards, np.float32), ("dones", dones, np.bool_)):
        if array.dtype != dtype or array.shape != (rows,):
            _fail(
                "types", f"{name} are {array.dtype} {array.shape}, not {dtype.__name__} ({rows},)"
            )
    if len(infos) != rows or not all(isinstance(info, dict) for info in infos):
        _fail("types", "infos are not one dictionary a row")
    if len({id(info) for info in infos}) != rows:
        _fail("types", "rows share an info dictionary; a wrapper that writes to one changes others")


def check_rows(env: CgroupVecEnv, ticks: int, seed: int = 0) -> None:
    """Every row against the scalar environment of its host, bit for bit."""
    rng = np.random.default_rng(seed)
    observation = env.reset()
    twins = [_twin(env, host) for host in range(env.n_hosts)]
    _check_hosts(env, twins, observation, "first observation")
    for tick in range(ticks):
        before = np.stack([twin.rows for twin in twins])
        was_active = np.stack([twin.active for twin in twins])
        actions = decisions(env, rng)
        observation, rewards, dones, infos = env.step(actions)
        ended = _step_twins(env, twins, actions)
        _check_transition(env, twins, was_active, rewards, tick)
        after = np.stack([twin.rows for twin in twins])
        left = was_active & (
            np.stack([twin.batch.born[0] for twin in twins])
            | ~np.stack([twin.active for twin in twins])
        )
        last = np.where(left[..., None], before, after)
        _check_ends(env, (left | ended[:, None]).reshape(-1), dones, infos, last, tick)
        for host in np.flatnonzero(ended):
            twins[host] = _twin(env, int(host))
        _check_hosts(env, twins, observation, f"tick {tick}")


def check_determinism(one: CgroupVecEnv, two: CgroupVecEnv, ticks: int, seed: int = 0) -> None:
    """The same seed and decisions give the same run."""
    _same("determinism", "first observation", one.reset(), two.reset())
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
    for tick in range(ticks):
        _same_step(
            "determinism",
            tick,
            one.step(decisions(one, rng)),
            two.step(decisions(two, other)),
        )
        _same("determinism", f"tick {tick}: active rows", one.active_rows, two.active_rows)


def check_state(one: CgroupVecEnv, two: CgroupVecEnv, ticks: int, seed: int = 0) -> None:
    """What is restored goes on as what was saved would have."""
    rng = np.random.default_rng(seed)
    observation = one.reset()
    for _ in range(ticks // 2):
        observation = one.step(decisions(one, rng))[0]
    saved = {name: array.copy() for name, array in one.state().items()}
    _same("state", "observation", observation, two.restore(saved))
    for tick in range(ticks - ticks // 2):
        actions = decisions(one, rng)
        _same_step("state", tick, one.step(actions), two.step(actions))


def decisions(env: CgroupVecEnv, rng: np.random.Generator) -> Array:
    """Levels at random for every row, half of them level 0."""
    levels = rng.integers(np.array(LEVEL_COUNTS), size=(env.num_envs, N_HEADS))
    return levels * rng.integers(2, size=levels.shape)


def _twin(env: CgroupVecEnv, host: int) -> HostEnv:
    """The scalar environment on the host that the batch runs in one place."""
    core = env.shards[0]
    twin = HostEnv(
        core.scenario,
        core.objective,
        host_kind=core.host_kind,
        split=env.split,
        settle_ticks=env.settle_ticks,
        episode_ticks=env.episode_ticks,
        shield=core.shield,
    )
    twin.reset(options={"host_seed": int(env.host_seeds[host])})
    twin.tick = int(env.episode_tick[host])
    return twin


def _step_twins(env: CgroupVecEnv, twins: list[HostEnv], actions: Array) -> Array:
    by_host = actions.reshape(env.n_hosts, -1)
    return np.array([twin.step(a)[3] for twin, a in zip(twins, by_host, strict=True)])


def _check_observation(env: CgroupVecEnv, observation: Array) -> None:
    if observation.shape != (env.num_envs, N_FEATURES) or observation.dtype != np.float32:
        _fail("types", f"the observation is {observation.dtype} {observation.shape}")
    for row, vector in enumerate(observation):
        if not env.observation_space.contains(vector):
            _fail("types", f"the observation of row {row} is outside of its space")


def _check_hosts(env: CgroupVecEnv, twins: list[HostEnv], observation: Array, when: str) -> None:
    by_host = observation.reshape(env.n_hosts, env.n_cgroups, N_FEATURES)
    for host, twin in enumerate(twins):
        for slot in range(env.n_cgroups):
            differs = np.flatnonzero(by_host[host, slot] != twin.rows[slot])
            if differs.size:
                k = int(differs[0])
                _fail(
                    "row equals scalar",
                    f"{when}, host {host}, slot {slot}, feature {k}: got "
                    f"{by_host[host, slot, k]!r}, the scalar environment has "
                    f"{twin.rows[slot, k]!r}",
                )


def _check_transition(
    env: CgroupVecEnv, twins: list[HostEnv], was_active: Array, rewards: Array, tick: int
) -> None:
    stayed = np.stack([twin.active & ~twin.batch.born[0] for twin in twins]) & was_active
    wrong = np.flatnonzero(env.active_rows != stayed.reshape(-1))
    if wrong.size:
        _fail("active rows", f"tick {tick}, row {wrong[0]}: got {env.active_rows[wrong[0]]}")
    expected = np.stack([twin.batch.reward[0] for twin in twins]).reshape(-1).astype(np.float32)
    expected[~stayed.reshape(-1)] = 0.0
    wrong = np.flatnonzero(rewards != expected)
    if wrong.size:
        row = int(wrong[0])
        _fail("reward", f"tick {tick}, row {row}: got {rewards[row]}, expected {expected[row]}")


def _check_ends(
    env: CgroupVecEnv,
    expected: Array,
    dones: Array,
    infos: list[dict[str, Any]],
    last: Array,
    tick: int,
) -> None:
    last = last.reshape(env.num_envs, N_FEATURES)
    for row in range(env.num_envs):
        where = f"tick {tick}, row {row}"
        if dones[row] != expected[row]:
            _fail("done", f"{where}: got {bool(dones[row])}, expected {bool(expected[row])}")
        if not dones[row]:
            if infos[row]:
                _fail("infos", f"{where}: not done, but the info holds {sorted(infos[row])}")
            continue
        if infos[row].get("TimeLimit.truncated") is not True:
            _fail("TimeLimit.truncated", f"{where}: done without it; nothing here terminates")
        terminal = infos[row].get("terminal_observation")
        if terminal is None or not np.array_equal(terminal, last[row]):
            _fail("terminal_observation", f"{where}: not the last vector before the row ended")


def _same_step(promise: str, tick: int, one: Step, two: Step) -> None:
    for name, a, b in zip(("observation", "rewards", "dones"), one, two, strict=False):
        _same(promise, f"tick {tick}: {name}", np.asarray(a), np.asarray(b))
    for row, (a_info, b_info) in enumerate(zip(one[3], two[3], strict=True)):
        if a_info.keys() != b_info.keys() or not all(
            np.array_equal(a_info[key], b_info[key]) for key in a_info
        ):
            _fail(promise, f"tick {tick}: info of row {row}")


def _same(promise: str, what: str, one: Array, two: Array) -> None:
    if not np.array_equal(one, two):
        at = np.argwhere(one != two)[0].tolist() if one.shape == two.shape else "shapes"
        _fail(promise, f"{what} differs at {at}")


def _fail(promise: str, message: str) -> NoReturn:
    raise VecEnvError(promise, message)
