"""Cgroup-steps per second of the full-state model on one core, by scenario and batch size.

``python benchmarks/model_speed.py [--seconds 2] [--rounds 5]``

A cgroup-step is one cgroup for one second: shield, knobs, ten sub-steps of the model, signals,
features, reward.  Cases run in turn, so that a drifting machine slows all of them alike; the
reference line (a fixed arithmetic loop) shows how fast the core itself was.  Medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from memcg_gym.configs.loader import load_objective, load_scenario, names
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.model.jit import compiled


@compiled
def reference(n: int) -> float:
    """A dependent chain no compiler can shorten (the logistic map): the yardstick of the core."""
    x = 0.3
    for _ in range(n):
        x = 3.9 * x * (1.0 - x)
    return x


def batch_of(scenario: str, n_hosts: int) -> HostBatch:
    batch = HostBatch(load_scenario(scenario), load_objective(), n_hosts=n_hosts)
    batch.reset(1)
    batch.settle(200)
    return batch


def steps_per_s(batch: HostBatch, seconds: float, rng: np.random.Generator) -> float:
    """Steps per own CPU-second under the owner's configuration and a calm random policy."""
    shape = batch.levels.shape
    levels = np.where(rng.random(shape) < 0.05, 1, 0) * batch.supported
    ticks = 0
    start = time.process_time()
    while time.process_time() - start < seconds:
        batch.step_levels(levels)
        ticks += 1
    return ticks * batch.n_hosts * batch.n_cgroups / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    cases = {(name, 32): batch_of(name, 32) for name in names("scenarios")}
    cases |= {("host-mix", n): batch_of("host-mix", n) for n in (1, 8, 128)}
    reference(10)
    found: dict[tuple[str, int], list[float]] = {key: [] for key in cases}
    yardstick = []
    for _ in range(args.rounds):
        start = time.process_time()
        reference(100_000_000)
        yardstick.append(time.process_time() - start)
        for key, batch in cases.items():
            found[key].append(steps_per_s(batch, args.seconds, rng))
    core_s = statistics.median(yardstick)
    print(f"reference loop, 1e8 steps of the logistic map: {core_s:.3f} CPU-s (median)")
    print("| scenario | hosts | cgroup-steps/CPU-s min | median | max | us a step |")
    print("|---|---|---|---|---|---|")
    for (name, n), rates in sorted(found.items()):
        middle = statistics.median(rates)
        print(
            f"| {name} | {n} | {min(rates):,.0f} | {middle:,.0f} | {max(rates):,.0f} "
            f"| {1e6 / middle:.2f} |"
        )


if __name__ == "__main__":
    main()
