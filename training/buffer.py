"""A rollout of rows of which some are empty: SB3's buffer with a mask.

A transition counts when the same tenant was there before and after it (``active``).  The others
enter neither losses nor advantages, and what follows them does not flow back over them: a
tenant's last transition bootstraps from the value of its own last observation.

Observations are stored as network inputs, scaled once and not once an epoch.

Units: rewards as the trainer scales them.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

Array = np.ndarray[Any, np.dtype[Any]]


class Batch(NamedTuple):
    """A minibatch of active transitions; the names are those of SB3's ``RolloutBufferSamples``."""

    observations: th.Tensor
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor


class MaskedRolloutBuffer(RolloutBuffer):
    """``buffer_size`` steps of ``n_envs`` rows, with a mask of the transitions that count."""

    active: Array
    actions: Array
    rng: np.random.Generator

    def reset(self) -> None:
        """Start a new rollout; arrays are reused."""
        if not hasattr(self, "active"):
            super().reset()
            self.active = np.zeros((self.buffer_size, self.n_envs), dtype=np.float32)
            self.actions = np.zeros(
                (self.buffer_size, self.n_envs, self.action_dim), dtype=np.int64
            )
            self.rng = np.random.default_rng(0)
        self.pos, self.full, self.generator_ready = 0, False, False

    def add(
        self,
        obs: Array,
        action: Array,
        reward: Array,
        episode_start: Array,
        value: th.Tensor,
        log_prob: th.Tensor,
        active: Array | None = None,
    ) -> None:
        """Store one step of all rows; ``active`` None = all of them count."""
        at = self.pos
        self.observations[at] = obs
        self.actions[at] = action
        self.rewards[at] = reward
        self.episode_starts[at] = episode_start
        self.values[at] = value.numpy()
        self.log_probs[at] = log_prob.numpy()
        self.active[at] = 1.0 if active is None else active
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Array) -> None:
        """GAE over active transitions, cut where an episode or a tenant ends.

        Args:
            last_values: Values after the last step, ``(n_envs,)``.
            dones: True where the last step ended an episode.

        ``rewards`` of a step that truncated must already hold the discounted value of its
        terminal observation, as in SB3.
        """
        after = last_values.numpy().reshape(-1)
        goes_on = 1.0 - dones.astype(np.float32)
        carried = np.zeros(self.n_envs, dtype=np.float32)
        for step in reversed(range(self.buffer_size)):
            delta = self.rewards[step] + self.gamma * after * goes_on - self.values[step]
            carried = delta + self.gamma * self.gae_lambda * goes_on * carried
            carried *= self.active[step]
            self.advantages[step] = carried
            after = self.values[step]
            goes_on = 1.0 - self.episode_starts[step]
        np.add(self.advantages, self.values, out=self.returns)

    def normalize_advantages(self) -> None:
        """Mean 0 and standard deviation 1 over the rollout's active transitions."""
        chosen = self.active > 0.0
        advantages = self.advantages[chosen]
        if advantages.size > 1:
            self.advantages[chosen] = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    def get(self, batch_size: int | None = None) -> Generator[Batch, None, None]:  # type: ignore[override]
        """The active transitions once, shuffled, in batches of about ``batch_size``.

        Batches differ in size by at most one, so no small remainder gives a noisy last step.
        """
        order = self.rng.permutation(np.flatnonzero(self.active.reshape(-1)))
        if order.size == 0:
            return
        parts = max(1, round(order.size / batch_size)) if batch_size else 1
        columns = [
            th.from_numpy(array.reshape(-1, *array.shape[2:]))
            for array in (
                self.observations,
                self.actions,
                self.values,
                self.log_probs,
                self.advantages,
                self.returns,
            )
        ]
        for part in th.tensor_split(th.from_numpy(order), parts):
            yield Batch(*(column.index_select(0, part) for column in columns))
