"""SB3 PPO end to end on host-mix: a row per cgroup, next to SB3's usual way.

``python benchmarks/training_speed.py [--rounds 3] [--seconds 20]``

*demo*, *held*: this project's ``CgroupVecEnv`` and PPO with the demo preset; ``demo`` decides every
second, ``held`` holds a decision for five, which counts as five cgroup-steps and trains on one row.
*usual*: stock PPO with its defaults over ``DummyVecEnv`` of eight ``memcg_gym/Host-v0``.
All count active cgroup-steps, as a host step of Host-v0 moves eight cgroups.  Cases run in turn in
one process; each figure is given per wall second and per own CPU-second, because the machine may
be shared.  Medians over rounds, after half a minute of training.
What is not comparable: the usual way learns one action for the whole host, ours one per cgroup.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from memcg_gym.configs.loader import load_objective, load_scenario, load_training
from memcg_gym.envs.registration import register_environments
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv
from memcg_gym.training.ppo import make_ppo

OURS = {"demo": 1, "held": 5}  # name, ticks a decision is held
USUAL_HOSTS = 8
ROLLOUTS = 5  # in one call of learn, whose own start-up would count otherwise
WARM_UP_S = 30.0  # an untrained policy acts at random, thrashes the host and so costs most
Case = Callable[[float], tuple[float, float, float]]


def rows_case(hold_ticks: int) -> Case:
    config = load_training("demo", [f"ppo.hold_ticks={hold_ticks}"])
    env = CgroupVecEnv(
        load_scenario("host-mix"),
        load_objective(),
        hosts=config.ppo.hosts,
        episode_ticks=config.train_episode_ticks,
        settle_ticks=60,
        seed=0,
    )
    model = make_ppo(env, config.ppo, seed=0)
    per_round = ROLLOUTS * config.ppo.n_steps * config.ppo.hold_ticks * env.num_envs

    def run(seconds: float) -> tuple[float, float, float]:
        return timed(lambda: model.learn(per_round, reset_num_timesteps=False), per_round, seconds)

    run(WARM_UP_S)
    return run


def usual_case() -> Case:
    register_environments()
    env = DummyVecEnv(
        [
            lambda: gymnasium.make("memcg_gym/Host-v0", scenario="host-mix", settle_ticks=60)
            for _ in range(USUAL_HOSTS)
        ]
    )
    model = PPO("MlpPolicy", env, n_steps=256, seed=0, device="cpu")
    per_round = ROLLOUTS * 256 * USUAL_HOSTS
    cgroups = load_scenario("host-mix").n_cgroups

    def run(seconds: float) -> tuple[float, float, float]:
        return timed(
            lambda: model.learn(per_round, reset_num_timesteps=False),
            per_round * cgroups,
            seconds,
        )

    run(WARM_UP_S)
    return run


def timed(step: Callable[[], object], steps: int, seconds: float) -> tuple[float, float, float]:
    """Repeat for at least ``seconds``: cgroup-steps, wall seconds, own CPU-seconds."""
    wall, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        step()
        done += steps
    return done, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = {name: rows_case(ticks) for name, ticks in OURS.items()} | {"usual": usual_case()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, run in cases.items():
            steps, wall, cpu = run(args.seconds)
            found[name].append((steps / wall, steps / cpu))
    print("| way | cgroup-steps/s, wall: min | median | max | per own CPU-s: median |")
    print("|---|---|---|---|---|")
    for name, rates in found.items():
        walls, cpus = zip(*rates, strict=True)
        print(
            f"| {name} | {min(walls):,.0f} | {statistics.median(walls):,.0f} "
            f"| {max(walls):,.0f} | {statistics.median(cpus):,.0f} |"
        )
    for name in OURS:
        ratios = [a[0] / b[0] for a, b in zip(found[name], found["usual"], strict=True)]
        print(f"ratio {name}/usual, wall: median {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
