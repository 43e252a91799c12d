"""No page is lost or made, whatever is done to a host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcg_gym.configs.loader import load_objective, load_scenario, names
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, Head
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import Sig
from memcg_gym.envs.core import HostBatch
from tests.envs.model.conservation import problems
from tests.envs.model.worlds import batch_of, cgroup, run, world

SCENARIOS = names("scenarios")
TICKS = 200


def made(name: str, lru: str, kind: Any, seed: int, n_hosts: int = 2) -> HostBatch:
    scenario = load_scenario(name, [f'host.lru="{lru}"'])
    batch = HostBatch(scenario, load_objective(), n_hosts=n_hosts, host_kind=kind, shield=False)
    batch.reset(seed)
    return batch


def random_levels(batch: HostBatch, rng: np.random.Generator) -> Any:
    shape = (batch.n_hosts, batch.n_cgroups, len(LEVEL_COUNTS))
    levels = rng.integers(0, LEVEL_COUNTS, size=shape)
    levels[..., Head.KILL] = rng.random(shape[:2]) < 0.005
    return levels


def random_knobs(batch: HostBatch, rng: np.random.Generator) -> Any:
    """Limits around and far below usage, much reclaim and demotion, now and then a kill."""
    knobs = batch.owner_knobs()
    usage = batch.signals[..., Sig.USAGE_BYTES]
    size, *chance = rng.random((7, *usage.shape))
    for knob, share in ((Knob.HIGH_BYTES, 0.5), (Knob.MAX_BYTES, 0.2), (Knob.LOW_BYTES, 0.3)):
        written = chance[int(knob) - 1] < share
        knobs[..., knob] = np.where(written, usage * 1.5 * size, knobs[..., knob])
    knobs[..., Knob.RECLAIM_BYTES] = np.where(chance[3] < 0.3, usage * size, 0.0)
    knobs[..., Knob.DEMOTE_BYTES] = np.where(chance[4] < 0.3, usage * size, 0.0)
    knobs[..., Knob.SWAP_MAX_BYTES] = np.where(chance[5] < 0.3, usage * size, np.inf)
    knobs[..., Knob.KILL] = chance[5] > 0.99
    return knobs


@pytest.mark.parametrize("lru", ["mglru", "classic"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_random_levels_lose_no_page(name: str, lru: str) -> None:
    batch, rng = made(name, lru, "bpf", seed=3), np.random.default_rng(1)
    for _ in range(TICKS):
        batch.step_levels(random_levels(batch, rng))
        assert problems(batch) == []


@pytest.mark.parametrize("lru", ["mglru", "classic"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_random_limits_lose_no_page(name: str, lru: str) -> None:
    batch, rng = made(name, lru, "stock", seed=4), np.random.default_rng(2)
    for _ in range(TICKS):
        batch.step_knobs(random_knobs(batch, rng))
        assert problems(batch) == []
    assert batch.memcgs["pgsteal"].sum() > 0.0


@settings(deadline=None, max_examples=15)
@given(
    name=st.sampled_from(SCENARIOS),
    lru=st.sampled_from(["mglru", "classic"]),
    kind=st.sampled_from(["stock", "bpf"]),
    seed=st.integers(0, 2**31),
    knobs=st.booleans(),
)
def test_any_seed_and_any_actions_lose_no_page(
    name: str, lru: str, kind: str, seed: int, knobs: bool
) -> None:
    batch, rng = made(name, lru, kind, seed, n_hosts=1), np.random.default_rng(seed)
    for tick in range(60):
        if knobs:
            batch.step_knobs(random_knobs(batch, rng))
        else:
            batch.step_levels(random_levels(batch, rng))
        if tick % 10 == 9:
            assert problems(batch) == []


def test_counters_only_rise() -> None:
    batch, rng = made("host-mix", "mglru", "stock", seed=5), np.random.default_rng(3)
    counters = ("pgfault", "pgmajfault", "activate", "pgdemote", "pgpromote", "psi_mem_some_us")
    for _ in range(50):
        before = {name: batch.memcgs[name].copy() for name in counters}
        batch.step_levels(random_levels(batch, rng))
        for name in counters:
            assert (batch.memcgs[name] >= before[name]).all()


def test_the_laws_notice_a_lost_page() -> None:
    batch = batch_of(world(cgroup("one")))
    run(batch, 3)
    assert problems(batch) == []
    batch.regions[0, 0, 0]["resident"][0, 0, 1] -= 1.0
    told = problems(batch)
    assert any("resident, evicted and untouched" in line for line in told)
    assert any("anon generations" in line for line in told)
