"""The charge path of one cgroup: memory.high, memory.max, swap, kills and refaults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcg_gym.envs.model.faults import fault_bin
from memcg_gym.envs.model.memcontrol import charge_limits
from memcg_gym.envs.model.oom import kill, out_of_memory
from memcg_gym.envs.model.state import ACTIVE, ANON, FILE, INACTIVE, N_BINS, UNLIMITED_PAGES
from memcg_gym.envs.model.swap import swap_in, swap_out
from memcg_gym.envs.model.vmscan import DIRECT, shrink_node, try_to_free_mem_cgroup_pages
from tests.envs.model.single import prefault, records
from tests.twins import TwinRegion

SIZE = 20_000
AWAY = 4000.0
LRUS = pytest.mark.parametrize("lru", ["mglru", "classic"])
HEAP = TwinRegion(kind="anon", pattern="uniform", n_pages=SIZE, rate_per_s=0.0)
CACHE = TwinRegion(kind="mapped", pattern="uniform", n_pages=SIZE, rate_per_s=0.0)


def filled(*regions: TwinRegion, lru: str = "mglru", swappiness: int = 60) -> Any:
    """Parameters, host, memcg and regions with every page touched once, without a limit."""
    params, host, memcg, rows = records(regions, lru, swappiness)
    prefault(params, host, memcg, rows, np.ones(len(regions), dtype=np.bool_), UNLIMITED_PAGES)
    return params, host, memcg, rows


@LRUS
def test_memory_high_with_reclaimable_cache_does_not_sleep(lru: str) -> None:
    params, host, memcg, rows = filled(CACHE, lru=lru)
    memcg.limit_high, memcg.charged = 0.8 * SIZE, 4000.0
    charge_limits(params, host, memcg, rows)
    assert memcg.usage < 0.82 * SIZE
    assert memcg.sleep_us == 0.0
    assert memcg.reclaim_us > 0.0
    assert memcg.events_high >= 1.0


@LRUS
def test_memory_high_without_progress_sleeps_by_the_penalty(lru: str) -> None:
    params, host, memcg, rows = filled(HEAP, lru=lru, swappiness=0)
    memcg.limit_high, memcg.charged = SIZE / 1.1, 64.0
    charge_limits(params, host, memcg, rows)
    assert memcg.usage == SIZE
    # one batch at an overage of a tenth: 64 * 0.1**2 s
    assert memcg.sleep_event_us == pytest.approx(640_000.0, rel=0.01)
    assert memcg.sleep_us == pytest.approx(memcg.sleep_event_us)


def test_a_tagged_holder_is_spared_by_the_share_of_its_critical_charges() -> None:
    params, host, memcg, rows = filled(HEAP, swappiness=0)
    memcg.limit_high, memcg.charged, memcg.critical_charged = SIZE / 1.1, 64.0, 64.0
    memcg.tagged = 1
    charge_limits(params, host, memcg, rows)
    assert memcg.sleep_us == 0.0


@LRUS
def test_memory_max_is_reclaimed_by_the_allocating_task(lru: str) -> None:
    params, host, memcg, rows = filled(HEAP, lru=lru)
    memcg.limit_max, memcg.charged = 0.5 * SIZE, 64.0
    charge_limits(params, host, memcg, rows)
    assert memcg.usage <= 0.5 * SIZE + 1.0
    assert memcg.events_max >= 1.0
    assert memcg.reclaim_us > 0.0
    assert memcg.pgsteal[DIRECT] == pytest.approx(0.5 * SIZE, abs=1.0)
    assert memcg.oom_kill == 0.0


def test_memory_max_without_anything_to_reclaim_kills() -> None:
    params, host, memcg, rows = filled(HEAP, swappiness=0)
    memcg.limit_max, memcg.charged = 0.5 * SIZE, 64.0
    charge_limits(params, host, memcg, rows)
    assert memcg.oom_kill == 1.0
    assert not memcg.alive
    assert memcg.anon == pytest.approx(0.0, abs=1e-6)


def test_a_kill_frees_heap_and_swap_and_keeps_the_page_cache() -> None:
    params, host, memcg, rows = filled(HEAP, CACHE, swappiness=200)
    try_to_free_mem_cgroup_pages(params, host, memcg, rows, 0.5 * SIZE, DIRECT)
    cache, free = float(memcg.file), float(host.node_free[0])
    heap, swap = float(memcg.anon), float(memcg.swap)
    assert min(heap, swap, cache) > 0.0
    kill(host, memcg, rows)
    assert memcg.anon == pytest.approx(0.0, abs=1e-6)
    assert memcg.swap == pytest.approx(0.0, abs=1e-6)
    assert host.swap_used == pytest.approx(0.0, abs=1e-6)
    assert memcg.file == cache
    assert host.node_free[0] == pytest.approx(free + heap)
    assert rows[0].absent.sum() == pytest.approx(SIZE)


def test_the_oom_killer_takes_the_largest_heap_and_swap_whatever_its_value() -> None:
    many = np.concatenate([filled(HEAP)[2].reshape(1) for _ in range(3)])
    regions = np.stack([filled(HEAP)[3] for _ in range(3)])
    host = filled(HEAP)[1]
    host.n_memcgs = 3
    for at, (anon, swap, value) in enumerate([(100.0, 50.0, 1.0), (90.0, 80.0, 9.0), (1, 1, 1)]):
        many[at].anon, many[at].swap, many[at].value = anon, swap, value
    out_of_memory(host, many, regions)
    assert many["alive"].tolist() == [1, 0, 1]
    assert many["oom_kill"].tolist() == [0.0, 1.0, 0.0]
    assert host.oom_kills == 1.0


def test_zswap_charges_the_compressed_pages_and_takes_them_from_dram() -> None:
    params, host, memcg, _ = filled(HEAP)
    host.zswap_max_pages, host.zswap_compression = 100.0, 2.8
    usage, free = float(memcg.usage), float(host.node_free[0])
    cpu_us, written_us = swap_out(params, host, memcg, 280.0)
    assert memcg.zswap == pytest.approx(100.0)
    assert memcg.usage == pytest.approx(usage + 100.0)
    assert host.node_free[0] == pytest.approx(free - 100.0)
    assert cpu_us == pytest.approx(280.0 * params.zswap_store_us)
    assert written_us == 0.0
    swap_out(params, host, memcg, 50.0)  # the pool is full: to the device
    assert memcg.zswapped_pages == pytest.approx(280.0)
    assert memcg.disked_pages == pytest.approx(50.0)
    assert memcg.swap == host.swap_used == pytest.approx(330.0)
    read, _ = swap_in(params, host, memcg, 330.0)
    assert read == pytest.approx(50.0)
    assert memcg.swap == pytest.approx(0.0, abs=1e-9)
    assert memcg.usage == pytest.approx(usage)
    assert host.node_free[0] == pytest.approx(free)
    assert host.zswap_pages == pytest.approx(0.0, abs=1e-9)


def test_memory_swap_max_bounds_what_is_swapped_out() -> None:
    params, host, memcg, rows = filled(HEAP)
    memcg.swap_max = 1000.0
    gone = try_to_free_mem_cgroup_pages(params, host, memcg, rows, 5000.0, DIRECT)
    assert gone == pytest.approx(1000.0, abs=1.0)
    assert memcg.swap <= 1000.0 + 1e-6


def refault_all(lru: str, used_before: bool) -> Any:
    """Swap a fifth of a heap out and touch it again; optionally it was seen in use twice before."""
    params, host, memcg, rows = filled(HEAP, lru=lru)
    host.io_latency_us = 100.0
    region = rows[0]
    if used_before:
        region.workingset[:] = region.resident.sum(axis=(1, 2))
        if lru == "classic":  # a refault is recent within the size of the active list
            region.resident[:, 0, ACTIVE] = 0.5 * region.resident[:, 0, INACTIVE]
            region.resident[:, 0, INACTIVE] *= 0.5
            memcg.gen[0, ANON] = region.resident[:, 0].sum(axis=0)
    memcg.memstall_us = memcg.iowait_us = 0.0
    try_to_free_mem_cgroup_pages(params, host, memcg, rows, AWAY, DIRECT)
    assert region.gone_pages > 0.9 * AWAY
    for b in range(N_BINS):
        fault_bin(params, host, memcg, region, region, b, 1.0, 1.0)
    return memcg


@LRUS
def test_a_refault_of_a_never_active_page_adds_no_memory_pressure(lru: str) -> None:
    memcg = refault_all(lru, used_before=False)
    assert memcg.iowait_us > 0.0
    assert memcg.memstall_us == 0.0
    assert memcg.restore == 0.0


@LRUS
def test_a_refault_of_a_workingset_page_is_memory_pressure(lru: str) -> None:
    memcg = refault_all(lru, used_before=True)
    assert memcg.memstall_us > 0.5 * memcg.iowait_us
    assert memcg.restore == pytest.approx(memcg.activate)


@LRUS
def test_a_refault_is_counted_once_in_the_counters_of_its_type(lru: str) -> None:
    memcg = refault_all(lru, used_before=False)
    assert memcg.refault[ANON] == pytest.approx(AWAY, rel=0.01)
    assert memcg.refault[FILE] == 0.0
    assert memcg.activate <= memcg.refault[ANON]
    assert memcg.swap == pytest.approx(0.0, abs=1e-6)


@LRUS
def test_dirty_pages_are_not_reclaimed_until_they_are_flushed(lru: str) -> None:
    params, host, memcg, rows = filled(CACHE, lru=lru)
    rows[0].dirty = memcg.dirty = float(rows[0].resident_pages)
    assert try_to_free_mem_cgroup_pages(params, host, memcg, rows, 4000.0, DIRECT) == 0.0
    assert memcg.usage == SIZE
    rows[0].dirty = memcg.dirty = 0.0
    gone = try_to_free_mem_cgroup_pages(params, host, memcg, rows, 4000.0, DIRECT)
    assert gone == pytest.approx(4000.0, abs=1.0)


@LRUS
def test_reclaim_of_everybody_spares_the_protected_until_there_is_nothing_else(lru: str) -> None:
    made = [filled(CACHE, lru=lru) for _ in range(2)]
    params, host = made[0][:2]
    memcgs = np.concatenate([m[2].reshape(1) for m in made])
    regions = np.stack([m[3] for m in made])
    host.n_memcgs = 2
    memcgs[0].limit_low = SIZE
    shrink_node(params, host, memcgs, regions, 0, 4000.0, DIRECT)
    assert memcgs[0].usage == SIZE
    assert memcgs[1].usage < SIZE
    for _ in range(20):
        shrink_node(params, host, memcgs, regions, 0, 4000.0, DIRECT)
    assert memcgs[1].usage < 100.0
    assert memcgs[0].usage < SIZE  # memory.low is overridden, and says so
    assert memcgs[0].events_low > 0.0
    memcgs[0].limit_min = memcgs[0].usage
    kept = float(memcgs[0].usage)
    shrink_node(params, host, memcgs, regions, 0, 4000.0, DIRECT)
    assert memcgs[0].usage == kept
