"""The training environment: an SB3 ``VecEnv`` with one row per cgroup slot.

All cgroups of all hosts share one policy, which is what makes a per-cgroup rule table possible.
Row ``h * N + i`` is slot ``i`` of host ``h``.

How rows begin and end:

* A host's episode ends by truncation after ``episode_ticks``; all its rows are ``done`` in the same
  step, and the observation returned is the first of the next episode (same-step reset).
* A tenant that leaves its slot truncates that row alone.  Its ``terminal_observation`` is the last
  vector while it was there; the tick it left in is not a transition (see ``active_rows``).
* A kill or an OOM ends nothing: the slot restarts, at its cost.

``infos[row]`` of a row that is done holds ``terminal_observation`` and
``TimeLimit.truncated = True``; every other info is empty.

Units: observations in the contract's units as float32; rewards per second; ticks of one second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from memcg_gym.configs.schema import HostKindName, ObjectiveConfig, ScenarioConfig, Split
from memcg_gym.envs.contract.features import FEATURES, N_FEATURES
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS
from memcg_gym.envs.contract.shield_rules import Shielded
from memcg_gym.envs.core import STATE_ARRAYS, HostBatch
from memcg_gym.envs.reward import METRIC_NAMES, TERM_NAMES
from memcg_gym.envs.settled import SettledPool

Array = np.ndarray[Any, np.dtype[Any]]
Step = tuple[Array, Array, Array, list[dict[str, Any]]]
SHIELD_BITS = np.array([int(flag) for flag in Shielded], dtype=np.int64)
SHIELD_NAMES: tuple[str, ...] = tuple(str(flag.name).lower() for flag in Shielded)


def row_space() -> spaces.Box:
    """Observation space of one row: the contract's ranges in units."""
    low = np.array([f.low for f in FEATURES], dtype=np.float32)
    high = np.array([f.high for f in FEATURES], dtype=np.float32)
    return spaces.Box(low, high, dtype=np.float32)


class CgroupVecEnv(VecEnv):
    """``hosts * N`` rows over the compiled model.

    Args:
        scenario, objective, host_kind, shield: As for :class:`HostBatch`.
        hosts: Hosts in the batch.
        seed: Decides everything: hosts, starts and their order.
        split: Ranges to draw hosts from.
        episode_ticks, settle_ticks: None = the scenario's.
        stagger: Start hosts at different points of their episode, so that they do not all end
            in one step.
        pool_size: Settled hosts to draw starts from; None = twice the number of hosts.
        threads: Threads that step the hosts; the result does not depend on it.

    Attributes:
        active_rows: True where the transition just made was one: the same tenant was there before
            and after, bool ``(rows,)``.  Losses and statistics take these rows only.
        present_rows: True where the row's slot holds a cgroup now, bool ``(rows,)``.
        host_seeds: Seed of the host each batch slot now runs, uint64 ``(hosts,)``.
        episode_tick: Ticks since each host's episode began, int64 ``(hosts,)``.

    Example:
        >>> from memcg_gym.configs.loader import load_objective, load_scenario
        >>> env = CgroupVecEnv(load_scenario("burst"), load_objective(), hosts=2, settle_ticks=1)
        >>> env.reset().shape
        (8, 64)
    """

    def __init__(
        self,
        scenario: ScenarioConfig,
        objective: ObjectiveConfig,
        *,
        hosts: int,
        host_kind: HostKindName = "stock",
        seed: int = 0,
        split: Split = "train",
        episode_ticks: int | None = None,
        settle_ticks: int | None = None,
        stagger: bool = True,
        pool_size: int | None = None,
        shield: bool = True,
        threads: int = 1,
    ) -> None:
        self.render_mode = None
        self.split: Split = split
        self.episode_ticks = scenario.episode_ticks if episode_ticks is None else episode_ticks
        self.settle_ticks = scenario.settle_ticks if settle_ticks is None else settle_ticks
        self.stagger, self.pool_size = stagger, pool_size or 2 * hosts
        self.n_hosts = hosts
        self.shards = [
            HostBatch(scenario, objective, n_hosts=len(part), host_kind=host_kind, shield=shield)
            for part in np.array_split(np.arange(hosts), min(threads, hosts))
        ]
        self.n_cgroups = self.shards[0].n_cgroups
        self.supported = self.shards[0].supported
        self._threads = ThreadPoolExecutor(len(self.shards)) if len(self.shards) > 1 else None
        self._seed = seed
        self._pool: SettledPool | None = None
        rows = hosts * self.n_cgroups
        self.active_rows = np.zeros(rows, dtype=np.bool_)
        self.present_rows = np.zeros(rows, dtype=np.bool_)
        self.host_seeds = np.zeros(hosts, dtype=np.uint64)
        self.episode_tick = np.zeros(hosts, dtype=np.int64)
        self._observation = np.zeros((rows, N_FEATURES), dtype=np.float32)
        self._levels = np.zeros((hosts, self.n_cgroups, N_HEADS), dtype=np.int64)
        self.statistics = Statistics()
        super().__init__(rows, row_space(), spaces.MultiDiscrete(np.array(LEVEL_COUNTS)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Choose what the next :meth:`reset` starts from."""
        if seed is not None and seed != self._seed:
            self._seed, self._pool = seed, None
        return [self._seed] * self.num_envs

    def reset(self) -> Array:
        """Settle a fresh pool and start every host; the same seed gives the same run."""
        self._pool = self._make_pool()
        self._pool.fill()
        for host in range(self.n_hosts):
            self._start(host)
        if self.stagger:
            self.episode_tick[:] = np.arange(self.n_hosts) * self.episode_ticks // self.n_hosts
        self.active_rows[:] = False
        self.present_rows = self._rows_of("active")
        self._observation = self._rows_of("observation")
        return self._observation.copy()

    def step_async(self, actions: Array) -> None:
        """Take the rows' levels, integers ``(rows, N_HEADS)``."""
        self._levels[...] = actions.reshape(self._levels.shape)

    def step(self, actions: Array) -> Step:
        """One tick: observations, rewards, dones and infos of all rows."""
        self.step_async(actions)
        return self.step_wait()

    def step_wait(self) -> Step:
        """Run one tick."""
        self._step_shards()
        before, was_present = self._observation, self.present_rows
        observation = self._rows_of("observation")
        present = self._rows_of("active")
        born = self._rows_of("born")
        left = was_present & (born | ~present)
        self.active_rows = was_present & ~left
        rewards = self._gather("reward").reshape(-1).astype(np.float32)
        rewards[~self.active_rows] = 0.0
        self._count()
        ends = self._end_episodes()
        dones = left | np.repeat(ends, self.n_cgroups)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(dones):
            last = before[row] if left[row] else observation[row]
            infos[row] = {"terminal_observation": last.copy(), "TimeLimit.truncated": True}
        if ends.any():
            observation = self._rows_of("observation")
            present = self._rows_of("active")
        self.present_rows = present
        self._observation = observation
        return observation.copy(), rewards, dones, infos

    def state(self) -> dict[str, Array]:
        """Everything that decides the future, as arrays; see :meth:`restore`."""
        if self._pool is None:
            self.reset()
        arrays = {f"batch.{name}": self._gather(name) for name in STATE_ARRAYS}
        arrays |= {f"pool.{name}": a for name, a in self._the_pool.state().items()}
        arrays |= {
            "host_seeds": self.host_seeds,
            "episode_tick": self.episode_tick,
            "seed": np.array(self._seed, dtype=np.int64),
            "observation": self._observation,
            "present_rows": self.present_rows,
        }
        return arrays

    def restore(self, arrays: dict[str, Array]) -> Array:
        """Continue where :meth:`state` was taken; returns the observation of that moment."""
        self._seed = int(arrays["seed"])
        self._pool = self._make_pool()
        self._pool.restore(
            {k.removeprefix("pool."): a for k, a in arrays.items() if k.startswith("pool.")}
        )
        for name in STATE_ARRAYS:
            at = 0
            for shard in self.shards:
                getattr(shard, name)[...] = arrays[f"batch.{name}"][at : at + shard.n_hosts]
                at += shard.n_hosts
        self.host_seeds[...] = arrays["host_seeds"]
        self.episode_tick[...] = arrays["episode_tick"]
        self.present_rows = arrays["present_rows"].copy()
        self._observation = arrays["observation"].copy()
        return self._observation.copy()

    def close(self) -> None:
        """End the stepping threads."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The batch's attribute, once per row asked for."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Rows are one batch: an attribute is set for all of them."""
        setattr(self, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Rows are one batch: the method is called once, its result given for each row."""
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """No row is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[Array | None]:
        """Rows have no picture of their own; render a ``memcg_gym/Host-v0`` instead."""
        return [None] * self.num_envs

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices

    @property
    def _the_pool(self) -> SettledPool:
        if self._pool is None:
            raise RuntimeError("CgroupVecEnv: step() before reset()")
        return self._pool

    def _make_pool(self) -> SettledPool:
        return SettledPool(
            self.shards[0],
            seed=self._seed,
            split=self.split,
            settle_ticks=self.settle_ticks,
            size=self.pool_size,
        )

    def _start(self, host: int) -> None:
        shard, at = self._locate(host)
        self.host_seeds[host] = self._the_pool.start(shard, at)
        self.episode_tick[host] = 0

    def _locate(self, host: int) -> tuple[HostBatch, int]:
        for shard in self.shards:
            if host < shard.n_hosts:
                return shard, host
            host -= shard.n_hosts
        raise IndexError(host)

    def _step_shards(self) -> None:
        at = 0
        waiting = []
        for shard in self.shards:
            levels = self._levels[at : at + shard.n_hosts]
            at += shard.n_hosts
            if self._threads is None:
                shard.step_levels(levels)
            else:
                waiting.append(self._threads.submit(shard.step_levels, levels))
        for future in waiting:
            future.result()

    def _end_episodes(self) -> Array:
        self.episode_tick += 1
        ends = self.episode_tick >= self.episode_ticks
        for host in np.flatnonzero(ends):
            self._start(int(host))
        return ends

    def _count(self) -> None:
        active = self.active_rows
        self.statistics.add(
            self._gather("terms").reshape(self.num_envs, -1)[active],
            self._gather("metrics").reshape(self.num_envs, -1)[active],
            self._gather("interventions").reshape(-1)[active],
        )

    def _gather(self, name: str) -> Array:
        parts = [getattr(shard, name) for shard in self.shards]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows_of(self, name: str) -> Array:
        """An array of the batch row by row, as a copy: the batch overwrites its own each tick."""
        gathered = self._gather(name)
        return gathered.reshape(self.num_envs, *gathered.shape[2:]).copy()


class Statistics:
    """Sums over active rows since they were last taken."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start over."""
        self.rows = 0
        self.terms = np.zeros(len(TERM_NAMES))
        self.metrics = np.zeros(len(METRIC_NAMES))
        self.interventions = np.zeros(len(SHIELD_NAMES))

    def add(self, terms: Array, metrics: Array, interventions: Array) -> None:
        """Add one tick's active rows."""
        self.rows += len(terms)
        self.terms += terms.sum(axis=0)
        self.metrics += metrics.sum(axis=0)
        self.interventions += ((interventions[:, None] & SHIELD_BITS) != 0).sum(axis=0)

    def take(self) -> dict[str, float]:
        """Means per row, by name, and a fresh start."""
        rows = max(self.rows, 1)
        named = (
            ("reward", TERM_NAMES, self.terms),
            ("metrics", METRIC_NAMES, self.metrics),
            ("shield", SHIELD_NAMES, self.interventions),
        )
        means = {
            f"{group}/{name}": float(total) / rows
            for group, names, totals in named
            for name, total in zip(names, totals, strict=True)
        }
        means["reward/total"] = float(self.terms.sum()) / rows
        self.clear()
        return means
