"""Promotion by NUMA hint faults, background demotion, and what a slow tier costs.

kernel/sched/fair.c should_numa_migrate_memory: a slow page is hot when the hint fault comes soon
after the scan; it is promoted freely while the fast node has room, else under a rate limit.

Units: pages, nanoseconds, microseconds.
"""

from __future__ import annotations

import math

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.lruvec import on_node
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import (
    FAST,
    FILE,
    GEN_MASK,
    N_BINS,
    N_GENS,
    SLOW,
    SUBSTEP_S,
    Pattern,
)
from memcg_gym.envs.model.vmscan import PROACTIVE, shrink_lruvec

MAX_LOADED_LATENCY = 4.0  # a saturated tier answers this many times slower (assumption)


@compiled
def price_slow_tier(params: Rec, host: Rec) -> None:
    """Extra time of one touch on the slow tier at its present load [us]."""
    if host.n_nodes == 1:
        return
    load = min(host.slow_touches / (host.slow_touches_per_s * SUBSTEP_S), 0.98)
    loaded = min(1.0 / (1.0 - load), MAX_LOADED_LATENCY)
    extra_ns = host.slow_ns * loaded - host.dram_ns
    host.slow_extra_us = max(0.0, extra_ns) * params.loads_per_touch * 1e-3
    host.slow_touches = 0.0


@compiled
def promote(params: Rec, host: Rec, memcgs: Rec, regions: Rec) -> None:
    """One tick of hint-fault promotion for all cgroups of a host."""
    if host.n_nodes == 1 or not host.numa_balancing:
        return
    host.promote_budget = params.promote_pages_per_s
    room = host.node_free[FAST] - host.wmark_high[FAST]
    for i in range(host.n_memcgs):
        memcg = memcgs[i]
        if not memcg.used or memcg.node[SLOW] < 1.0:
            continue
        share = min(1.0, params.hint_scan_pages_per_s / memcg.node[SLOW])
        if memcg.promote_preferred:
            share = min(1.0, 4.0 * share)
        for r in range(regions.shape[1]):
            region = regions[i, r]
            if region.used and region.resident_pages > 0.0:
                room -= promote_region(params, host, memcg, region, share, room)


@compiled
def promote_region(
    params: Rec, host: Rec, memcg: Rec, region: Rec, share: float, room: float
) -> float:
    """Promote the scanned pages whose hint fault comes within the threshold."""
    work = region.touches_per_s * memcg.work + region.background_per_s
    moved = 0.0
    for b in range(N_BINS):
        on_slow = on_node(region, b, SLOW)
        if on_slow <= 0.0:
            continue
        per_s = work * region.rate[b]
        if region.pattern == Pattern.SWEEP:
            per_s = work / max(region.pages, 1.0)
        hot = 1.0 - math.exp(-per_s * params.promote_threshold_s)
        clean = 1.0
        if region.type == FILE and region.dirty > 0.0:
            clean = max(0.0, 1.0 - region.dirty / region.resident_pages)
        pages = on_slow * share * hot * clean
        # A full fast node wakes kswapd, which demotes; then promotion waits for its room.
        allowed = max(0.0, room - moved)
        if not memcg.promote_preferred:
            allowed = min(allowed, host.promote_budget)
        pages = min(pages, allowed)
        if pages <= 0.0:
            continue
        move_up(host, memcg, region, b, pages, on_slow)
        host.promote_budget -= pages
        host.kernel_cpu_us += pages * params.migrate_us
        memcg.fault_us += pages * params.migrate_us
        moved += pages
    if moved <= 0.0 and room <= 0.0:
        host.kswapd_on[FAST] = 1
    return moved


@compiled
def move_up(host: Rec, memcg: Rec, region: Rec, b: int, pages: float, on_slow: float) -> None:
    """Migrate a share of a bin's slow pages into the fast node's youngest generation."""
    share = pages / on_slow
    young = memcg.max_seq[FAST] & GEN_MASK if host.lru == 0 else 1
    for slot in range(N_GENS):
        part = region.resident[b, SLOW, slot] * share
        region.resident[b, SLOW, slot] -= part
        region.fresh[b, SLOW, slot] *= 1.0 - share
        memcg.gen[SLOW, region.type, slot] -= part
    region.resident[b, FAST, young] += pages
    memcg.gen[FAST, region.type, young] += pages
    memcg.node[SLOW] -= pages
    memcg.node[FAST] += pages
    host.node_free[SLOW] += pages
    host.node_free[FAST] -= pages
    memcg.pgpromote += pages


@compiled
def background_demote(params: Rec, host: Rec, memcg: Rec, regions: Rec) -> None:
    """DAMOS migrate_cold for one sub-step: the cgroup's coldest fast pages go to the slow tier."""
    want = memcg.demote_left * SUBSTEP_S
    if want < 0.5 or host.n_nodes == 1 or not host.demotion:
        return
    if host.node_free[SLOW] <= host.wmark_low[SLOW] + want:
        return
    shrink_lruvec(params, host, memcg, regions, FAST, want, PROACTIVE)
