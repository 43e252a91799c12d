"""What a row should be paid for: its own terms and a price on harm, or the whole host's return.

``python benchmarks/reward_ablation.py --out docs/reward_ablation.md [--rows N] [--seeds 0:3]``

*own*: a row earns its own terms and pays for the harm it does to others; its critic sees the row.
*team*: every row of a host earns the mean score of the host, and the critic sees the row and the
mean over the host's rows.  Both train PPO with the same preset, rows and seeds on host-mix, once as
it ships (8 cgroups) and once eight times as large (64 cgroups on a host of eight times the size).
The policy with the best argmax score on validation hosts is kept, and scored on held-out ranges.
Measured on the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from memcg_gym.agents.registry import make_policy
from memcg_gym.agents.rollout import rollout
from memcg_gym.configs.loader import load_objective, load_scenario, load_training
from memcg_gym.configs.schema import Frozen, ScenarioConfig, Spread, TrainingConfig
from memcg_gym.configs.widen import widened
from memcg_gym.envs.contract.features import N_FEATURES
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.reward import SCORE_TERMS
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv, Step
from memcg_gym.training.checkpoint import to_learned
from memcg_gym.training.evaluate import seeds as seeds_of
from memcg_gym.training.policies import LevelsPolicy, make_mlp
from memcg_gym.training.ppo import CgroupPPO, make_ppo
from memcg_gym.training.stats import bootstrap, mean, paired_difference
from memcg_gym.training.validation import Validation

Array = np.ndarray[Any, np.dtype[Any]]
LARGER = 8
WAYS = ("own", "team")
ROWS_AT_ONCE = 256  # in the batch of both sizes


class TeamVecEnv(CgroupVecEnv):
    """Rows that all earn their host's mean score, and see the mean of its rows beside their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        low, high = self.observation_space.low, self.observation_space.high  # type: ignore[attr-defined]
        self.observation_space = spaces.Box(np.tile(low, 2), np.tile(high, 2), dtype=np.float32)

    def reset(self) -> Array:
        """Rows with their pool."""
        return self.pooled(super().reset())

    def step_wait(self) -> Step:
        """One tick; the team's reward."""
        before = self.pool_of(self._observation, self.present_rows)
        observation, _, dones, infos = super().step_wait()
        pool = self.pool_of(observation, self.present_rows)
        for row in np.flatnonzero(dones):
            # A host's last tick and a tenant's: the pool is that of the tick before, which differs
            # by one second and serves the critic alone.
            last = infos[row]["terminal_observation"]
            infos[row]["terminal_observation"] = np.concatenate([last, before[row]])
        return np.concatenate([observation, pool], axis=1), self.team_rewards(), dones, infos

    def team_rewards(self) -> Array:
        """The mean score of the host, for each of its active rows."""
        terms = self._gather("terms")[..., SCORE_TERMS].sum(axis=2)
        active = self.active_rows.reshape(terms.shape)
        means = (terms * active).sum(axis=1) / np.maximum(active.sum(axis=1), 1)
        rewards: Array = (active * means[:, None]).reshape(-1).astype(np.float32)
        return rewards

    def pooled(self, observation: Array) -> Array:
        """Rows with their pool beside them."""
        return np.concatenate([observation, self.pool_of(observation, self.present_rows)], axis=1)

    def pool_of(self, observation: Array, present: Array) -> Array:
        """The mean over the present rows of the host, for each row."""
        rows = observation.reshape(self.n_hosts, self.n_cgroups, -1)
        weight = present.reshape(self.n_hosts, self.n_cgroups, 1).astype(np.float32)
        means = (rows * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1.0)
        pool: Array = np.repeat(means, self.n_cgroups, axis=0).astype(np.float32)
        return pool


class TeamPolicy(LevelsPolicy):
    """The actor sees its row alone, as every host will; the critic also sees the pool."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.critic = make_mlp(self.critic_hidden, 1, self.activation, 1.0, 2 * N_FEATURES)
        self.optimizer = th.optim.Adam(self.parameters(), lr=lr_schedule(1))

    def scale(self, obs: th.Tensor) -> th.Tensor:
        """Both halves as the features they are."""
        parts = obs.split(N_FEATURES, dim=1)
        return th.cat([super(TeamPolicy, self).scale(part) for part in parts], dim=1)

    def logits(self, inputs: th.Tensor) -> th.Tensor:
        """Of the row alone."""
        return super().logits(inputs[:, :N_FEATURES])


class Keeper(BaseCallback):
    """Keeps the policy with the best argmax score on validation hosts."""

    def __init__(self, validation: Validation, every_rows: int) -> None:
        super().__init__()
        self.validation, self.every_rows, self.due = validation, every_rows, 0
        self.best: Any = None
        self.score = -np.inf

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.due:
            self.due += self.every_rows
            self.look()

    def look(self) -> None:
        """Score the policy as it is."""
        model = self.model
        if not isinstance(model, CgroupPPO):
            raise TypeError(f"Keeper keeps policies of a CgroupPPO, got {type(model).__name__}")
        policy = to_learned(model.policy)
        score = float(self.validation.scores(policy).mean())
        if score > self.score:
            self.best, self.score = policy, score


def larger(value: Any, times: int) -> Any:
    """A spread, or a number, so many times as large."""
    if isinstance(value, Spread):
        ranges = {k: tuple(times * v for v in value.span(k)) for k in ("train", "test")}
        return Spread.model_validate(ranges)
    return times * value


def larger_host(scenario: ScenarioConfig, times: int) -> ScenarioConfig:
    """The scenario with so many times the cgroups on a host so many times as large."""
    host, disk = scenario.host, scenario.host.disk
    changes: dict[str, Any] = {
        name: larger(getattr(host, name), times)
        for name in ("cpus", "dram_gib", "slow_gib", "swap_gib", "slow_bandwidth_gb_s")
    }
    changes["disk"] = disk.model_copy(update={"iops": larger(disk.iops, times)})
    cgroups = tuple(c.model_copy(update={"copies": times * c.copies}) for c in scenario.cgroups)
    made: Frozen = scenario.model_copy(
        update={"host": host.model_copy(update=changes), "cgroups": cgroups}
    )
    return ScenarioConfig.model_validate(made.model_dump())


def trained(way: str, scenario: ScenarioConfig, preset: TrainingConfig, seed: int) -> Any:
    """The best policy of one training run."""
    hosts = max(1, ROWS_AT_ONCE // scenario.n_cgroups)
    ppo = preset.ppo.model_copy(update={"hosts": hosts})
    kind = CgroupVecEnv if way == "own" else TeamVecEnv
    objective = load_objective(preset.objective)
    env = kind(
        scenario,
        objective,
        hosts=hosts,
        seed=seed,
        episode_ticks=preset.train_episode_ticks,
        settle_ticks=preset.settle_ticks,
    )
    model = make_ppo(env, ppo, seed, LevelsPolicy if way == "own" else TeamPolicy)
    model.set_logger(Logger(None, []))
    validation = Validation(
        scenario,
        objective,
        host_kind="stock",
        hosts=max(2, preset.validate_hosts * 8 // scenario.n_cgroups),
        settle_ticks=preset.settle_ticks,
        ticks=preset.validate_ticks,
    )
    keeper = Keeper(validation, preset.validate_every_rows)
    model.learn(preset.total_rows, callback=keeper)
    keeper.look()
    env.close()
    return keeper.best


def held_out(policy: Any, scenario: ScenarioConfig, hosts: int, settle: int, ticks: int) -> Array:
    """Score of each held-out host, settled under the policy's own control."""
    batch = HostBatch(scenario, load_objective(), n_hosts=hosts, shield=policy.shielded)
    batch.reset(0, "test")
    settled = rollout(batch, policy, settle)
    return rollout(batch, policy, ticks, reset=False, first_tick=settled.next_tick).score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0:3"), metavar="A:B")
    parser.add_argument("--hosts", type=int, default=20, help="held-out hosts of 8 cgroups")
    parser.add_argument("--settle", type=int, default=1800)
    parser.add_argument("--ticks", type=int, default=600)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    th.set_num_threads(1)
    preset = load_training(
        "demo", ["grow_cgroup_steps=0", f"total_rows={args.rows}", "validate_every_rows=500000"]
    )
    lines = [
        "# Own reward with a price on harm, or the team's return",
        "",
        f"Made by `python benchmarks/reward_ablation.py --rows {args.rows} --seeds "
        f"{args.seeds[0]}:{args.seeds[-1] + 1}`; **measured on the model**. Raw score on held-out",
        f"hosts of host-mix, {args.settle} ticks settled, {args.ticks} scored; brackets: 95 %",
        "bootstrap over hosts, after averaging training seeds host by host; behind it each seed's.",
        "",
        "| cgroups a host | way | score | training seeds |",
        "|---|---|---|---|",
    ]
    differences = []
    for times in (1, LARGER):
        plain = larger_host(load_scenario(preset.scenario), times)
        hosts = max(4, args.hosts // times)
        found: dict[str, list[Array]] = {way: [] for way in WAYS}
        for seed in args.seeds:
            for way in WAYS:
                policy = trained(way, widened(plain, preset.widen_ratio), preset, seed)
                found[way].append(held_out(policy, plain, hosts, args.settle, args.ticks))
                print(plain.n_cgroups, way, seed, found[way][-1].mean(), file=sys.stderr)
        owner = held_out(make_policy("kernel-default"), plain, hosts, args.settle, args.ticks)
        lines.append(row(plain.n_cgroups, "kernel-default", [owner]))
        lines += [row(plain.n_cgroups, way, found[way]) for way in WAYS]
        d = paired_difference([np.mean(found["own"], axis=0)], [np.mean(found["team"], axis=0)])
        differences.append(
            f"{plain.n_cgroups} cgroups, {hosts} hosts: own minus team {d.estimate:+.4f} "
            f"[{d.low:+.4f}, {d.high:+.4f}]."
        )
    args.out.write_text("\n".join([*lines, "", *differences, ""]))


def row(cgroups: int, way: str, scores: list[Array]) -> str:
    """A line of the table."""
    middle = bootstrap([np.mean(scores, axis=0)], mean)
    each = ", ".join(f"{s.mean():.4f}" for s in scores) if len(scores) > 1 else ""
    interval = f"{middle.estimate:.4f} [{middle.low:.4f}, {middle.high:.4f}]"
    return f"| {cgroups} | {way} | {interval} | {each} |"


if __name__ == "__main__":
    main()
