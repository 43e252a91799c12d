"""PPO over rows: SB3's, with empty rows masked out and the time it takes accounted for.

Differences from SB3's PPO, each through its extension points: the buffer's mask; advantages
normalised over the rollout's active rows; timesteps count active rows; terminal observations of a
step are valued in one batch; gradients of actor and critic, which share nothing, are clipped each
by itself; minibatches of even size; one random generator of its own for actions.

Units: rewards per second times ``REWARD_SCALE``; times in seconds.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from memcg_gym.configs.schema import PpoConfig
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv
from memcg_gym.training.buffer import Batch, MaskedRolloutBuffer
from memcg_gym.training.policies import LevelsPolicy

Array = np.ndarray[Any, np.dtype[Any]]

REWARD_SCALE = 0.1
"""Constant factor on rewards in training: keeps returns, at most about 50 rewards deep, near 1."""


class End(NamedTuple):
    """Where a row was cut: its last observation, and the discount of what would have followed."""

    row: int
    observation: Array
    discount: float


class Held(NamedTuple):
    """What came of holding levels for some ticks.

    Attributes:
        observation: After the last tick.
        rewards: Discounted sums, scaled.
        dones: True where the episode or the tenant ended on the way.
        active: True where this is a transition.
        ends: Rows to bootstrap from their own last observation.
        ticks: Active cgroup-ticks.
    """

    observation: Array
    rewards: Array
    dones: Array
    active: Array
    ends: list[End]
    ticks: int


class CgroupPPO(PPO):
    """PPO for a :class:`CgroupVecEnv`; make one with :func:`make_ppo`.

    Attributes:
        keep_going: Set to False to end ``learn`` before its next rollout.
        seconds: Time spent since last taken, by what for: env, rollout, update.
    """

    policy: LevelsPolicy
    rollout_buffer: MaskedRolloutBuffer

    def _setup_model(self) -> None:
        super()._setup_model()
        self.keep_going = True
        self.seconds: dict[str, float] = defaultdict(float)
        self.rows_counted = 0
        self.hold_ticks, self.tick_gamma = 1, self.gamma
        self.generator = th.Generator().manual_seed(self.seed or 0)
        self.rollout_buffer.rng = np.random.default_rng(self.seed)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fill the buffer; False when told to stop."""
        callback.on_rollout_start()
        if not self.keep_going:
            return False
        began = time.perf_counter()
        in_env = 0.0
        self.policy.set_training_mode(False)
        buffer = self.rollout_buffer
        buffer.reset()
        last_obs: Any = self._last_obs
        starts: Any = self._last_episode_starts
        dones = np.zeros(env.num_envs, dtype=np.bool_)
        for _ in range(n_rollout_steps):
            with th.no_grad():
                inputs = self.policy.scale(th.from_numpy(last_obs))
                actions, values, log_probs = self.policy.act(inputs, self.generator)
            stepped = time.perf_counter()
            held = self._hold(env, actions.numpy())
            in_env += time.perf_counter() - stepped
            self.num_timesteps += held.ticks
            self.rows_counted += held.ticks
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            dones = held.dones
            rewards = self._bootstrap(held)
            buffer.add(
                inputs.numpy(), actions.numpy(), rewards, starts, values, log_probs, held.active
            )
            last_obs, starts = held.observation, dones
        self._last_obs, self._last_episode_starts = last_obs, starts
        with th.no_grad():
            last_values = self.policy.predict_values(th.from_numpy(last_obs)).squeeze(-1)
        buffer.compute_returns_and_advantage(last_values, dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        self.seconds["env"] += in_env
        self.seconds["rollout"] += time.perf_counter() - began - in_env
        return True

    def _hold(self, env: VecEnv, actions: Array) -> Held:
        """Step ``hold_ticks`` times with the same levels; a row's transition ends with its episode.

        What a row earns after its end in the same stretch belongs to nobody: the levels were
        chosen for another episode, or for an empty slot.
        """
        goes_on: Array = np.ones(env.num_envs, dtype=np.bool_)
        active = np.zeros(env.num_envs, dtype=np.bool_)
        rewards = np.zeros(env.num_envs, dtype=np.float32)
        ends: list[End] = []
        ticks, discount = 0, 1.0
        observation: Any = None
        for tick in range(self.hold_ticks):
            observation, reward, dones, infos = env.step(actions)
            counted: Array = env.unwrapped.active_rows & goes_on  # type: ignore[attr-defined]
            if tick == 0:
                # A tenant that left in the very first tick has made no transition.
                active = counted.copy()
            ticks += int(counted.sum())
            rewards[counted] += discount * reward[counted]
            for row in np.flatnonzero(dones & goes_on):
                if infos[row].get("TimeLimit.truncated", False):
                    # The tick a tenant left in is no transition: its last vector is older by one.
                    lasted = discount * (self.tick_gamma if counted[row] else 1.0)
                    ends.append(End(int(row), infos[row]["terminal_observation"], lasted))
            goes_on &= counted & ~dones
            discount *= self.tick_gamma
        return Held(observation, rewards * REWARD_SCALE, ~goes_on, active, ends, ticks)

    def _bootstrap(self, held: Held) -> Array:
        """Rewards with the discounted value of the terminal observation where a row was cut."""
        rewards: Array = held.rewards
        if held.ends:
            last = np.stack([end.observation for end in held.ends])
            with th.no_grad():
                values = self.policy.predict_values(th.from_numpy(last)).squeeze(-1).numpy()
            rows = [end.row for end in held.ends]
            rewards[rows] += np.array([end.discount for end in held.ends], np.float32) * values
        return rewards

    def train(self) -> None:
        """Several epochs over the rollout's active rows."""
        began = time.perf_counter()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        buffer = self.rollout_buffer
        buffer.normalize_advantages()
        seen: list[th.Tensor] = []
        for _ in range(self.n_epochs):
            for batch in buffer.get(self.batch_size):
                seen.append(self._update(batch, clip_range))
            self._n_updates += 1
        if seen:
            self._record_update(th.stack(seen).mean(dim=0).tolist(), clip_range)
        self.seconds["update"] += time.perf_counter() - began

    def _update(self, batch: Batch, clip_range: float) -> th.Tensor:
        """One gradient step; returns what is logged, in the order of ``LOGGED``."""
        values, log_prob, entropy = self.policy.evaluate_inputs(batch.observations, batch.actions)
        log_ratio = log_prob - batch.old_log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
        policy_loss = -th.min(batch.advantages * ratio, batch.advantages * clipped).mean()
        value_loss = th.nn.functional.mse_loss(values, batch.returns)
        mean_entropy = entropy.mean()
        loss = policy_loss - self.ent_coef * mean_entropy + self.vf_coef * value_loss
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for network in (self.policy.actor, self.policy.critic):
            th.nn.utils.clip_grad_norm_(network.parameters(), self.max_grad_norm)
        optimizer.step()
        with th.no_grad():
            kl = (ratio - 1.0 - log_ratio).mean()
            share = ((ratio - 1.0).abs() > clip_range).float().mean()
            return th.stack([policy_loss, value_loss, mean_entropy, kl, share]).detach()

    def _record_update(self, means: list[float], clip_range: float) -> None:
        for name, value in zip(LOGGED, means, strict=True):
            self.logger.record(f"train/{name}", value)
        buffer = self.rollout_buffer
        chosen = buffer.active > 0.0
        self.logger.record(
            "train/explained_variance",
            explained_variance(buffer.values[chosen], buffer.returns[chosen]),
        )
        self.logger.record("train/clip_range", clip_range)
        self.logger.record("train/n_updates", self._n_updates)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write what was recorded since the last time, with rows per second and time shares."""
        rates = self.take_rates()
        for name, value in rates.items():
            self.logger.record(f"time/{name}", value)
        self.logger.dump(step=self.num_timesteps)

    def take_rates(self) -> dict[str, float]:
        """Active rows per second and shares of the time, since last taken."""
        total = sum(self.seconds.values())
        if total <= 0.0 or self.rows_counted == 0:
            return {}
        rates = {f"{name}_share": spent / total for name, spent in self.seconds.items()}
        rates["rows_per_s"] = self.rows_counted / total
        self.seconds.clear()
        self.rows_counted = 0
        return rates


LOGGED = ("policy_gradient_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


def make_ppo(
    env: CgroupVecEnv,
    config: PpoConfig,
    seed: int,
    policy: type[LevelsPolicy] = LevelsPolicy,
) -> CgroupPPO:
    """PPO with a preset's numbers, on the CPU."""
    start, ratio = config.learning_rate, config.final_learning_rate_ratio
    with warnings.catch_warnings():
        # SB3 warns of a truncated last minibatch; our buffer cuts even ones.
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        model = CgroupPPO(
            policy,
            env,
            learning_rate=lambda left: start * (ratio + (1.0 - ratio) * left),
            n_steps=config.n_steps,
            batch_size=config.batch_size,
            n_epochs=config.n_epochs,
            gamma=config.gamma**config.hold_ticks,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_range,
            ent_coef=config.ent_coef,
            vf_coef=config.vf_coef,
            max_grad_norm=config.max_grad_norm,
            rollout_buffer_class=MaskedRolloutBuffer,
            policy_kwargs={
                "supported": tuple(int(s) for s in env.supported),
                "hidden": config.hidden,
                "critic_hidden": config.critic_hidden,
                "activation": config.activation,
                "preference": config.start_preference,
            },
            seed=seed,
            device="cpu",
        )
    model.hold_ticks, model.tick_gamma = config.hold_ticks, config.gamma
    return model
