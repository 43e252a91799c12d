"""One control tick: ten sub-steps of a host, in the order things happen in a kernel.

Units: pages, microseconds; a tick is one second.
"""

from __future__ import annotations

from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import PAGE_BYTES
from memcg_gym.envs.model.accounting import (
    WALK_TICKS,
    average_pressure,
    book_cpu,
    book_pressure,
    estimate_working_set,
    export_host,
    export_memcg,
    host_pressure,
)
from memcg_gym.envs.model.faults import place_new_pages, touch_region, touch_shared
from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.locks import hold, wait
from memcg_gym.envs.model.memcontrol import charge_limits
from memcg_gym.envs.model.oom import kill, out_of_memory, restart
from memcg_gym.envs.model.records import Array, Rec
from memcg_gym.envs.model.state import (
    FAST,
    SLOW,
    SUBSTEP_S,
    SUBSTEPS,
    UNLIMITED_PAGES,
)
from memcg_gym.envs.model.swap import io_substep, zswap_writeback
from memcg_gym.envs.model.tiering import background_demote, price_slow_tier, promote
from memcg_gym.envs.model.vmscan import (
    PROACTIVE,
    balance_pgdat,
    direct_reclaim,
    try_to_free_mem_cgroup_pages,
)
from memcg_gym.envs.model.workload import (
    allocate_burst,
    begin_substep,
    begin_tick,
    end_substep,
    latency_quantile_us,
)
from memcg_gym.envs.model.writeback import dirty_pause_us, flush


@compiled
def tick_host(
    params: Rec,
    host: Rec,
    memcgs: Rec,
    regions: Rec,
    traces: Array,
    knobs: Array,
    memcg_signals: Array,
    host_signals: Array,
) -> None:
    """Run one host for one second.

    Args:
        params: Cost parameters, one record.
        host: One record of the hosts array.
        memcgs, regions: Its cgroups, shape ``(N,)``, and their regions, shape ``(N, R)``.
        traces: Load and memory series, shape ``(n_traces, length)``.
        knobs: What is written at the start of the tick, shape ``(N, N_KNOBS)``.
        memcg_signals, host_signals: Filled at its end.
    """
    host.tick += 1
    host.swap_write_pages = 0.0
    host.global_direct_us = 0.0
    for i in range(host.n_memcgs):
        if memcgs[i].used:
            memcgs[i].killed = 0
            write_knobs(host, memcgs[i], regions[i], knobs[i])
            restart(memcgs[i])
            begin_tick(host, memcgs[i], regions[i], traces, i)
    promote(params, host, memcgs, regions)
    for turn in range(SUBSTEPS):
        host.substep = turn
        substep(params, host, memcgs, regions)
    zswap_writeback(host, memcgs)
    host_pressure(host, memcgs)
    average_pressure(host, memcgs)
    for i in range(host.n_memcgs):
        memcg = memcgs[i]
        if not memcg.used:
            continue
        memcg.p99_us = latency_quantile_us(memcg, 0.99)
        if (host.tick + i) % WALK_TICKS == 0:
            estimate_working_set(host, memcg, regions[i], host.tick)
        export_memcg(host, memcg, memcg_signals[i])
    export_host(host, memcgs, host_signals)


@compiled
def write_knobs(host: Rec, memcg: Rec, regions: Rec, knobs: Array) -> None:
    """What a write to the cgroup's files changes."""
    memcg.limit_min = pages_of(knobs[Knob.MIN_BYTES])
    memcg.limit_low = pages_of(knobs[Knob.LOW_BYTES])
    memcg.limit_high = pages_of(knobs[Knob.HIGH_BYTES])
    memcg.limit_max = pages_of(knobs[Knob.MAX_BYTES])
    memcg.swap_max = pages_of(knobs[Knob.SWAP_MAX_BYTES])
    memcg.reclaim_left = knobs[Knob.RECLAIM_BYTES] / PAGE_BYTES
    memcg.demote_left = knobs[Knob.DEMOTE_BYTES] / PAGE_BYTES
    memcg.promote_preferred = int(knobs[Knob.PROMOTE_PREFERRED])
    memcg.shed_asked = knobs[Knob.SHED_RATIO]
    memcg.flush_weight = knobs[Knob.FLUSH_WEIGHT]
    memcg.stall_ceiling_us = knobs[Knob.STALL_CEILING_US]
    memcg.tagged = int(knobs[Knob.TAGGED])
    if knobs[Knob.KILL] > 0.0 and memcg.alive:
        kill(host, memcg, regions)


@compiled
def pages_of(limit_bytes: float) -> float:
    """Bytes to pages, with what stands for ``max`` kept."""
    pages = limit_bytes / PAGE_BYTES
    if pages >= UNLIMITED_PAGES:
        return UNLIMITED_PAGES
    return pages


@compiled
def substep(params: Rec, host: Rec, memcgs: Rec, regions: Rec) -> None:
    """A tenth of a second: every cgroup works and is charged, then the host's threads run."""
    for i in range(host.n_memcgs):
        if memcgs[i].used:
            run_memcg(params, host, memcgs, regions, i)
    for i in range(host.n_memcgs):
        if memcgs[i].used:
            work_in_background(params, host, memcgs[i], regions[i])
    for node in range(host.n_nodes):
        balance_pgdat(params, host, memcgs, regions, node)
    flush(host, memcgs, regions)
    io_substep(host)
    price_slow_tier(params, host)
    book_cpu(host)


@compiled
def run_memcg(params: Rec, host: Rec, memcgs: Rec, regions: Rec, i: int) -> None:
    """One cgroup's sub-step: serve requests, touch memory, pass the charge path, book the cost."""
    memcg = memcgs[i]
    place_new_pages(host, memcg)
    begin_substep(params, host, memcg)
    allocate_burst(params, host, memcg, regions[i])
    if memcg.alive:
        for r in range(regions.shape[1]):
            region = regions[i, r]
            if region.used:
                touch_region(params, host, memcg, region, memcg.work)
                touch_sharers(params, host, memcg, regions, i, r)
    charge_limits(params, host, memcg, regions[i])
    if below_min(host):
        allocation_stalls(params, host, memcgs, regions, i)
    memcg.dirty_pause_us = 0.0
    if memcg.dirty > 0.0:
        memcg.dirty_pause_us = dirty_pause_us(host, memcg)
    batches = memcg.charged / params.charge_batch_pages
    sleep_us = 0.0 if memcg.tagged else memcg.sleep_us
    hold(memcg, batches, memcg.reclaim_us, sleep_us, memcg.sleep_event_us)
    memcg.lock_wait_p, memcg.lock_wait_event_us = wait(memcgs, host.n_memcgs, i)
    end_substep(params, host, memcg)
    book_pressure(host, memcg)


@compiled
def touch_sharers(params: Rec, host: Rec, memcg: Rec, regions: Rec, i: int, r: int) -> None:
    """Go round the ring of a shared object's records."""
    region = regions[i, r]
    at_memcg, at_region = region.ring_memcg, region.ring_region
    while at_memcg != i or at_region != r:
        source = regions[at_memcg, at_region]
        touch_shared(params, host, memcg, region, source, memcg.work)
        at_memcg, at_region = source.ring_memcg, source.ring_region


@compiled
def below_min(host: Rec) -> bool:
    """Every node is under its min watermark: the allocator must reclaim itself."""
    if host.node_free[FAST] >= host.wmark_min[FAST]:
        return False
    return host.n_nodes == 1 or host.node_free[SLOW] < host.wmark_min[SLOW]


@compiled
def allocation_stalls(params: Rec, host: Rec, memcgs: Rec, regions: Rec, i: int) -> None:
    """__alloc_pages_slowpath: direct reclaim, and the OOM killer when nothing is left."""
    if memcgs[i].charged <= 0.0:
        return
    gone = direct_reclaim(params, host, memcgs, regions, i)
    free = host.node_free[FAST] + (host.node_free[SLOW] if host.n_nodes > 1 else 0.0)
    if gone < 32.0 and free < 0.25 * host.wmark_min[FAST]:
        out_of_memory(host, memcgs, regions)


@compiled
def work_in_background(params: Rec, host: Rec, memcg: Rec, regions: Rec) -> None:
    """memory.reclaim writers and DAMOS quotas, spread over the tick."""
    want = memcg.reclaim_left * SUBSTEP_S
    if want >= 0.5:
        try_to_free_mem_cgroup_pages(params, host, memcg, regions, want, PROACTIVE)
    background_demote(params, host, memcg, regions)
