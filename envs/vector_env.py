"""Many hosts as a Gymnasium ``VectorEnv``: what ``gymnasium.make_vec`` gives for ``Host-v0``.

All hosts are stepped in one compiled call.  Sub-environment ``i`` of seed ``s`` is bit for bit the
scalar environment of seed ``s + i``, resets included.  Autoreset is same-step: the observation of a
step that truncates is the next episode's first, and ``infos["final_obs"]`` and
``infos["final_info"]`` hold what ended.

Units: as ``envs/host_env.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from memcg_gym.configs.schema import HostKindName, ObjectiveConfig, ScenarioConfig, Split
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.heads import N_HEADS
from memcg_gym.envs.host_env import (
    action_space,
    choose_host,
    host_space,
    make_batch,
    observe,
    outcome,
    ticks_of,
)
from memcg_gym.envs.settled import like, settle_host

Array = np.ndarray[Any, np.dtype[Any]]


class HostVectorEnv(VectorEnv[Array, Array, Array]):
    """``num_envs`` hosts of one scenario; arguments as for :class:`HostEnv`."""

    metadata = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | ScenarioConfig = "host-mix",
        objective: str | ObjectiveConfig = "default",
        *,
        host_kind: HostKindName = "stock",
        split: Split = "train",
        settle_ticks: int | None = None,
        episode_ticks: int | None = None,
        shield: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise ConfigError(
                f"render_mode: a batch of hosts has no picture, got {render_mode!r}; "
                "render a scalar memcg_gym/Host-v0"
            )
        self.num_envs, self.render_mode = num_envs, None
        self.batch = make_batch(scenario, objective, num_envs, host_kind, shield)
        self.split: Split = split
        self.settle_ticks, self.episode_ticks = ticks_of(
            self.batch.scenario, settle_ticks, episode_ticks
        )
        self.single_observation_space = host_space(self.batch.n_cgroups)
        self.single_action_space = action_space(self.batch.n_cgroups)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._scratch = like(self.batch, 1)
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._tick = np.zeros(num_envs, dtype=np.int64)

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Draw and settle hosts; ``options["reset_mask"]`` chooses which, all by default."""
        if isinstance(seed, list) and len(seed) != self.num_envs:
            raise ConfigError(f"seed: got {len(seed)} seeds for {self.num_envs} environments")
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_)))
        infos: dict[str, Any] = {}
        for at in np.flatnonzero(mask):
            one = seed[at] if isinstance(seed, list) else None if seed is None else seed + int(at)
            if one is not None or self._rngs[at] is None:
                self._rngs[at] = seeding.np_random(one)[0]
            infos = self._add_info(infos, self._begin(int(at), options), int(at))
        return self._observations(), infos

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One second of every host, under levels ``(num_envs, N * 7)``."""
        shape = (self.num_envs, self.batch.n_cgroups, N_HEADS)
        self.batch.step_levels(np.asarray(actions, dtype=np.int64).reshape(shape))
        self._tick += 1
        truncations = self._tick >= self.episode_ticks
        rewards = np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        for at in range(self.num_envs):
            rewards[at], info = outcome(self.batch, at)
            if truncations[at]:
                final = {"final_obs": observe(self.batch, at), "final_info": info}
                infos = self._add_info(infos, final, at)
                info = self._begin(at, None)
            infos = self._add_info(infos, info, at)
        return self._observations(), rewards, np.zeros_like(truncations), truncations, infos

    def _begin(self, at: int, options: dict[str, Any] | None) -> dict[str, Any]:
        rng = self._rngs[at]
        if rng is None:
            raise RuntimeError("HostVectorEnv: step() before reset()")
        host_seed = choose_host(rng, options)
        settle_host(self._scratch, host_seed, self.split, self.settle_ticks)
        self.batch.copy_host(self._scratch, 0, at)
        self._tick[at] = 0
        return {"host_seed": host_seed}

    def _observations(self) -> Array:
        return np.stack([observe(self.batch, at) for at in range(self.num_envs)])
