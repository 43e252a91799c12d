"""The same seed gives the same host: alone, in a batch, copied, compiled or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, Head
from memcg_gym.envs.core import STATE_ARRAYS, HostBatch, host_seed
from tests.envs.model.worlds import CACHE, HEAP, batch_of, cgroup, run, world

N_HOSTS = 1000
TICKS = 12


def made(name: str, n_hosts: int = 1) -> HostBatch:
    return HostBatch(load_scenario(name), load_objective(), n_hosts=n_hosts)


def levels_of(n_cgroups: int, ticks: int) -> Any:
    levels = np.random.default_rng(5).integers(0, LEVEL_COUNTS, size=(ticks, n_cgroups, 7))
    levels[..., Head.KILL] = 0
    return levels


def assert_same_host(left: HostBatch, at_left: int, right: HostBatch, at_right: int) -> None:
    for name in STATE_ARRAYS:
        mine, theirs = getattr(left, name)[at_left], getattr(right, name)[at_right]
        assert mine.tobytes() == theirs.tobytes(), name
    for name in ("reward", "terms", "metrics", "interventions"):
        mine, theirs = getattr(left, name)[at_left], getattr(right, name)[at_right]
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


def test_a_host_of_a_thousand_is_to_the_bit_the_host_alone() -> None:
    many = made("lock-inversion", N_HOSTS)
    many.reset(11)
    levels = levels_of(many.n_cgroups, TICKS)
    for tick in range(TICKS):
        many.step_levels(np.broadcast_to(levels[tick], many.levels.shape))
    for at in (0, 1, 499, 999):
        alone = made("lock-inversion")
        alone.reset_host(0, host_seed(11, at))
        for tick in range(TICKS):
            alone.step_levels(levels[tick][None])
        assert_same_host(many, at, alone, 0)


@pytest.mark.parametrize("name", ["host-mix", "tier-stream"])
def test_a_clone_continues_to_the_same_future(name: str) -> None:
    batch = made(name, 2)
    batch.reset(3)
    levels = levels_of(batch.n_cgroups, 60)
    for tick in range(30):
        batch.step_levels(np.broadcast_to(levels[tick], batch.levels.shape))
    twin = batch.clone()
    for tick in range(30, 60):
        for one in (batch, twin):
            one.step_levels(np.broadcast_to(levels[tick], one.levels.shape))
    for at in range(2):
        assert_same_host(batch, at, twin, at)


def test_a_clone_is_independent_of_its_source() -> None:
    batch = made("burst")
    batch.reset(3)
    twin = batch.clone()
    before = twin.signals.copy()
    batch.settle(5)
    np.testing.assert_array_equal(twin.signals, before)
    assert (batch.signals != before).any()


def test_another_seed_is_another_host() -> None:
    batch = made("burst", 2)
    batch.reset(3)
    batch.settle(5)
    assert (batch.signals[0] != batch.signals[1]).any()


SMALL_HEAP = {**HEAP, "pattern": "heat", "popularity": "zipf:1.1", "size_mib": 300}
SMALL_TICKS = 100


def small_run() -> dict[str, list[float]]:
    """A tiered host of two small cgroups under limits and reclaim: its signals at the end."""
    limited = cgroup("limited", SMALL_HEAP, {**CACHE, "write_share": 0.1}, high_mib=350)
    plain = cgroup("plain", {**SMALL_HEAP, "name": "other"}, requests_per_s=300)
    batch = batch_of(world(limited, plain, dram_gib=1, slow_gib=1, zswap_max_ratio=0.02), "bpf")
    run(batch, SMALL_TICKS, reclaim_bytes=[[0.0, 4e6]])
    return {
        "signals": batch.signals.ravel().tolist(),
        "host": batch.host_signals.ravel().tolist(),
        "reward": batch.reward.ravel().tolist(),
        "resident": batch.regions["resident"].ravel().tolist(),
    }


def test_the_uncompiled_model_agrees_with_the_compiled_one() -> None:
    code = (
        "import json; from tests.envs.model.test_determinism import small_run;"
        "print(json.dumps(small_run()))"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    plain = json.loads(found.stdout.splitlines()[-1])
    compiled = small_run()
    for name, values in compiled.items():
        np.testing.assert_allclose(plain[name], values, rtol=1e-9, atol=1e-6, err_msg=name)
