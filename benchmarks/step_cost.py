"""What a step of the model costs, counted: calls per cgroup and tick, uncompiled.

``python benchmarks/step_cost.py [--scenario host-mix]``

Settles hosts compiled, then runs a few ticks of the same state without compilation under a
profiler that counts every call.  Counts do not depend on the machine.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.envs.core import STATE_ARRAYS, HostBatch

HOSTS, TICKS = 4, 3
SHOWN = (
    "fault_bin missing on_node accessed_share evict_region walk_bin add_latency scannable put "
    "<built-in method math.exp> <built-in method math.log2> <built-in method math.floor>"
)


def batch_of(scenario: str) -> HostBatch:
    return HostBatch(load_scenario(scenario), load_objective(), n_hosts=HOSTS)


def settle(scenario: str, path: Path) -> None:
    batch = batch_of(scenario)
    batch.reset(1)
    batch.settle(300)
    np.savez(path, **{name: getattr(batch, name) for name in STATE_ARRAYS})


def count(scenario: str, path: Path) -> None:
    batch = batch_of(scenario)
    with np.load(path) as state:
        for name in STATE_ARRAYS:
            getattr(batch, name)[...] = state[name]
    profile = cProfile.Profile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy scalars overflow where machine words wrap
        profile.runcall(batch.settle, TICKS)
    steps = TICKS * HOSTS * batch.n_cgroups
    calls = {key[2]: row[0] for key, row in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    print(f"calls per cgroup and tick, {scenario}, owner's configuration")
    for name, n in sorted(calls.items(), key=lambda item: -item[1]):
        if name in SHOWN:
            print(f"{n / steps:8.1f}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="host-mix")
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.state:
        count(args.scenario, args.state)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.npz"
        settle(args.scenario, path)
        subprocess.run(
            [sys.executable, __file__, "--scenario", args.scenario, "--state", str(path)],
            check=True,
            env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        )


if __name__ == "__main__":
    main()
