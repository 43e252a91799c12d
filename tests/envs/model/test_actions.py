"""What actions do to a host, and when: knobs, heads, tenants, locks, tiers and shared memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.envs.contract.heads import N_HEADS, Head
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import PAGE_BYTES, HostSig, Sig
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.model.state import FAST, SLOW
from memcg_gym.envs.reward import Metric, Term
from tests.envs.model.worlds import CACHE, HEAP, PAGES_PER_MIB, batch_of, cgroup, pages, run, world

MIB = 1 << 20
IDLE: dict[str, Any] = {**HEAP, "pattern": "idle", "touches_per_request": 0.0}
LIBRARY: dict[str, Any] = {**CACHE, "name": "library", "kind": "shared", "shared_as": "library"}


def in_force_bytes(batch: HostBatch, field: str) -> float:
    return float(batch.memcgs[0, 0][field]) * PAGE_BYTES


def test_what_userspace_writes_takes_effect_one_tick_later() -> None:
    batch = batch_of(world(cgroup("one")), "stock")
    run(batch, 1, high_bytes=300 * MIB)
    assert in_force_bytes(batch, "limit_high") > 1e15
    run(batch, 1, high_bytes=200 * MIB)
    assert in_force_bytes(batch, "limit_high") == 300 * MIB
    run(batch, 1)
    assert in_force_bytes(batch, "limit_high") == 200 * MIB


def test_what_a_bpf_hook_decides_takes_effect_at_once() -> None:
    batch = batch_of(world(cgroup("one")), "bpf")
    run(batch, 1, high_bytes=300 * MIB)
    assert in_force_bytes(batch, "limit_high") == 300 * MIB


@pytest.mark.parametrize(("kind", "ticks"), [("stock", 2), ("bpf", 1)])
def test_a_reclaim_level_acts_after_the_delay_of_its_host_kind(kind: Any, ticks: int) -> None:
    batch = batch_of(world(cgroup("one", IDLE)), kind)
    levels = np.zeros((1, 1, N_HEADS), dtype=np.int64)
    levels[..., Head.RECLAIM] = 3
    for tick in range(1, ticks + 1):
        before = pages(batch, "pgsteal").sum()
        batch.step_levels(levels)
        assert (pages(batch, "pgsteal").sum() > before) == (tick == ticks)


def test_a_combined_ceiling_moves_swap_max_with_usage() -> None:
    batch = batch_of(world(cgroup("one", memsw_mib=500)))
    for reclaimed_mib in (0, 0, 100, 0, 0):
        usage = batch.signals[0, 0, Sig.USAGE_BYTES]
        run(batch, 1, reclaim_bytes=reclaimed_mib * MIB)
        expected = max(0.0, 500 * MIB - usage)
        assert batch.pending_knobs[0, 0, 4] == pytest.approx(expected)
    assert 0.0 < pages(batch, "swap") + pages(batch, "usage") <= 500 * PAGES_PER_MIB * 1.01
    assert pages(batch, "swap_max") < 500 * PAGES_PER_MIB


def test_reclaim_spreads_over_the_tick_and_takes_what_was_asked() -> None:
    batch = batch_of(world(cgroup("one", IDLE)), "bpf")
    run(batch, 1, reclaim_bytes=100 * MIB)
    assert pages(batch, "usage") == pytest.approx(300 * PAGES_PER_MIB, rel=0.01)
    assert pages(batch, "pgsteal")[2] == pytest.approx(100 * PAGES_PER_MIB, rel=0.01)


def test_shared_pages_are_charged_to_their_first_toucher() -> None:
    early = cgroup("early", LIBRARY)
    late = cgroup("late", {**LIBRARY, "touches_per_request": 0.001})
    batch = batch_of(world(early, late))
    run(batch, 20)
    size = 400 * PAGES_PER_MIB
    assert pages(batch, "file", 0) > 0.95 * size
    assert pages(batch, "file", 1) < 0.05 * size


def test_ownership_of_shared_pages_moves_to_who_refaults_them() -> None:
    batch = batch_of(world(cgroup("early", LIBRARY), cgroup("late", LIBRARY)), "bpf")
    run(batch, 20)
    before = pages(batch, "file", 1)
    assert pages(batch, "refault", 1).sum() == 0.0
    for _ in range(20):
        run(batch, 1, reclaim_bytes=[[40 * MIB, 0.0]])
    assert pages(batch, "file", 1) > before + 20 * PAGES_PER_MIB
    assert pages(batch, "pgmajfault", 1) > 0.0
    # a refault counts only in the lruvec that evicted the page
    assert pages(batch, "refault", 1).sum() == 0.0
    total = pages(batch, "file", 0) + pages(batch, "file", 1)
    assert total <= 400 * PAGES_PER_MIB + 1e-3


TIERED = {"dram_gib": 2, "slow_gib": 4, "numa_balancing": False}


def test_demotion_counts_as_reclaim_and_leaves_usage_unchanged() -> None:
    batch = batch_of(world(cgroup("one", IDLE, no_swap=True), **TIERED), "bpf")
    usage, fast = pages(batch, "usage"), pages(batch, "node")[FAST]
    run(batch, 1, reclaim_bytes=100 * MIB)
    demoted = pages(batch, "pgdemote")
    assert demoted > 80 * PAGES_PER_MIB
    assert pages(batch, "pgsteal")[2] == pytest.approx(demoted)
    assert pages(batch, "node")[FAST] == pytest.approx(fast - demoted)
    assert pages(batch, "usage") == usage
    assert pages(batch, "swap") == 0.0


def test_without_demotion_reclaim_on_a_tiered_host_swaps() -> None:
    batch = batch_of(world(cgroup("one", IDLE), **TIERED, demotion=False), "bpf")
    run(batch, 1, reclaim_bytes=100 * MIB)
    assert pages(batch, "pgdemote") == 0.0
    assert pages(batch, "swap") == pytest.approx(100 * PAGES_PER_MIB, rel=0.01)


@pytest.mark.parametrize("balancing", [False, True], ids=["high", "promo"])
def test_kswapd_stops_at_the_high_or_the_promotion_watermark(balancing: bool) -> None:
    tiers = {"dram_gib": 1, "slow_gib": 4, "numa_balancing": balancing}
    batch = batch_of(world(cgroup("one", {**IDLE, "size_mib": 300}), **tiers))
    host = batch.hosts[0]
    mark = float(host["wmark_promo" if balancing else "wmark_high"][FAST])
    shift = float(host["node_free"][FAST] - host["wmark_low"][FAST]) + 10.0
    for name in ("wmark_min", "wmark_low", "wmark_high", "wmark_promo"):
        host[name][FAST] += shift
    run(batch, 3)
    free = float(batch.hosts[0]["node_free"][FAST])
    assert free == pytest.approx(mark + shift, abs=2.0)
    assert pages(batch, "node")[SLOW] > 0.0
    assert batch.hosts[0]["kswapd_on"][FAST] == 0


def hot_and_slow() -> HostBatch:
    """A hot heap of which three quarters have to start on the slow node."""
    heap = {**HEAP, "popularity": "zipf:1.1", "pattern": "heat", "size_mib": 1500}
    tiers = {"dram_gib": 1, "slow_gib": 4, "numa_balancing": True}
    return batch_of(world(cgroup("one", {**heap, "touches_per_request": 500}), **tiers))


def test_hint_faults_promote_hot_pages_while_there_is_room() -> None:
    batch = hot_and_slow()
    assert pages(batch, "node")[SLOW] > 0.0
    run(batch, 30)
    assert pages(batch, "pgpromote") > 0.0


HOLDER = {"name": "index", "role": "holder", "section_us": 300, "sections_per_s": 150}
WAITER = {"name": "index", "role": "waiter", "sections_per_s": 200}


def inversion_s(*, knobs: dict[str, Any], no_swap: bool = False, ticks: int = 20) -> float:
    """Seconds a critical waiter spent behind a holder that memory enforcement stalls."""
    growing = {**HEAP, "name": "growing", "burst": True, "size_mib": 1000}
    burst = {"every_s": 1, "hold_s": 1000, "rate_mib_per_s": 40}
    holder = cgroup("holder", IDLE, growing, lock=HOLDER, burst=burst, no_swap=no_swap)
    waiter = cgroup("waiter", threads_critical=4, threads_tolerant=0, lock=WAITER)
    batch = batch_of(world(holder, waiter))
    total = 0.0
    for _ in range(ticks):
        run(batch, 1, **knobs)
        total += float(batch.memcgs[0, 1]["inversion_s"])
    assert pages(batch, "charge_pages", 0) > 0.0
    return total


def test_throttling_a_lock_holder_stalls_its_waiters_and_background_reclaim_does_not() -> None:
    limits = {"high_bytes": [[380 * MIB, 1e18]]}
    throttled = inversion_s(knobs=limits, no_swap=True)
    left_alone = inversion_s(knobs={}, no_swap=True)
    in_background = inversion_s(knobs={"reclaim_bytes": [[60 * MIB, 0.0]]})
    assert throttled > 1.0
    assert left_alone == 0.0
    assert in_background == 0.0


def test_shedding_lowers_the_load_with_delay_and_only_as_far_as_it_is_honoured() -> None:
    elastic = cgroup("one", elasticity={"compliance": 0.5, "delay_s": 4.0})
    batch = batch_of(world(elastic), "bpf")
    run(batch, 5)
    loads = [float(batch.signals[0, 0, Sig.LOAD_RATIO])]
    for _ in range(30):
        run(batch, 1, shed_ratio=0.35)
        loads.append(float(batch.signals[0, 0, Sig.LOAD_RATIO]))
    assert loads[0] == pytest.approx(1.0)
    assert loads[1] == pytest.approx(1.0 - 0.5 * 0.35 / 4.0)
    assert all(later < earlier for earlier, later in pairwise(loads[:11]))
    assert loads[-1] == pytest.approx(1.0 - 0.5 * 0.35, abs=0.001)
    assert batch.signals[0, 0, Sig.SHED_HONOURED_RATIO] == pytest.approx(0.5, abs=0.01)


def test_a_workload_that_does_not_comply_keeps_its_load() -> None:
    batch = batch_of(world(cgroup("one", elasticity={"compliance": 0.0, "delay_s": 1.0})), "bpf")
    run(batch, 10, shed_ratio=0.35)
    assert batch.signals[0, 0, Sig.LOAD_RATIO] == pytest.approx(1.0)


def test_a_tenant_leaves_with_its_memory_and_another_one_is_born() -> None:
    batch = batch_of(world(cgroup("slot", tenancy={"stays_s": 20, "vacant_s": 5})))
    seen: list[tuple[bool, bool, float]] = []
    for _ in range(100):
        run(batch, 1)
        seen.append(
            (bool(batch.active[0, 0]), bool(batch.born[0, 0]), float(pages(batch, "usage")))
        )
    active = [state[0] for state in seen]
    births = [at for at, state in enumerate(seen) if state[1]]
    assert 2 <= len(births) <= 6
    assert all(active[at] and not active[at - 1] for at in births)
    assert all(usage < 1.0 for here, _, usage in seen if not here)
    assert max(usage for here, _, usage in seen if here) > 300 * PAGES_PER_MIB


def test_the_kill_knob_empties_the_cgroup_and_it_restarts_after_its_time() -> None:
    batch = batch_of(world(cgroup("one", HEAP, CACHE, restart_s=5)), "bpf")
    run(batch, 10)
    cache = pages(batch, "file")
    run(batch, 1, kill=1.0)
    assert pages(batch, "anon") == pytest.approx(0.0, abs=1e-6)
    assert pages(batch, "file") == pytest.approx(cache)
    run(batch, 3)
    assert not batch.memcgs[0, 0]["alive"]
    assert pages(batch, "failed") > 0.0
    run(batch, 10)
    assert batch.memcgs[0, 0]["alive"]
    assert pages(batch, "anon") > 0.0


def test_a_host_that_runs_out_of_memory_and_swap_kills_the_largest() -> None:
    small = cgroup("small", {**HEAP, "size_mib": 300})
    large = cgroup("large", {**HEAP, "size_mib": 1200, "touches_per_request": 400})
    batch = batch_of(world(small, large, dram_gib=1, swap_gib=0))
    run(batch, 60)
    assert batch.host_signals[0, HostSig.SWAP_TOTAL_BYTES] == 0.0
    assert pages(batch, "oom_kill", 1) >= 1.0
    assert pages(batch, "oom_kill", 0) == 0.0


def test_a_kill_a_policy_asks_for_is_counted_and_paid_in_the_tick_it_happens() -> None:
    batch = HostBatch(load_scenario("host-mix"), load_objective())
    batch.reset(1)
    batch.settle(5)
    knobs = batch.owner_knobs()
    knobs[0, 2, Knob.KILL] = 1.0

    batch.step_knobs(knobs)
    assert batch.metrics[0, 2, Metric.KILLS] == 0  # a stock host: one tick later
    batch.step_knobs(batch.owner_knobs())

    assert batch.metrics[0, 2, Metric.KILLS] == 1
    assert batch.terms[0, 2, Term.KILL] < 0
    batch.step_knobs(batch.owner_knobs())
    assert batch.metrics[0, 2, Metric.KILLS] == 0
