"""What runs in a cgroup: arrivals, phases, bursts, shedding, and how long a request takes.

A request needs CPU, touches pages and sometimes waits; threads serve a queue.  Latency is kept as
a histogram over the tick, so that a rare long stall is a p99 and not a mean.

Units: seconds, microseconds, requests.
"""

from __future__ import annotations

import math

from memcg_gym.envs.model.faults import free_region, grow_burst
from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Array, Rec
from memcg_gym.envs.model.rng import uniform
from memcg_gym.envs.model.state import (
    N_BINS,
    N_GENS,
    N_LATENCY_BINS,
    SUBSTEP_S,
    SUBSTEP_US,
)

LATENCY_FLOOR_US = 16.0
BINS_PER_OCTAVE = 3.0  # 64 bins reach 40 s; one bin is 26 % wide, read off by interpolation
STREAM_BURST, STREAM_PHASE, STREAM_TENANCY = 1, 2, 3


@compiled
def begin_tick(host: Rec, memcg: Rec, regions: Rec, traces: Array, index: int) -> None:
    """Load, phase, burst timer and shedding of one cgroup for this tick."""
    memcg.requests = memcg.arrived = memcg.failed = 0.0
    memcg.inversion_s = memcg.critical_stall_s = memcg.swap_write_tick = 0.0
    memcg.harm_s = 0.0
    for k in range(N_LATENCY_BINS):
        memcg.latency[k] = 0.0
    step_tenancy(host, memcg, regions, index)
    step_phase(host, memcg, regions, index)
    trace = traces[memcg.trace_kind]
    at = (memcg.trace_offset + host.tick) % trace.shape[0]
    load = max(0.0, 1.0 + memcg.trace_swing * (trace[at] - 1.0))
    if memcg.phase_idle:
        load *= memcg.phase_idle_load
    memcg.load = load
    target = memcg.shed_asked * memcg.compliance
    memcg.shed += (target - memcg.shed) * min(1.0, 1.0 / memcg.shed_delay_s)
    memcg.honoured = memcg.shed / memcg.shed_asked if memcg.shed_asked > 0.0 else 0.0
    step_burst(host, memcg, regions, traces, index)


@compiled
def step_tenancy(host: Rec, memcg: Rec, regions: Rec, index: int) -> None:
    """A tenant leaves and takes its memory along; after a while another moves in."""
    memcg.born = 0
    if memcg.stays_s <= 0.0:
        return
    memcg.tenancy_left_s -= 1.0
    if memcg.tenancy_left_s > 0.0:
        return
    jitter = 0.75 + 0.5 * uniform(host.seed, host.tick, STREAM_TENANCY + 16 * index)
    if memcg.present:
        memcg.present = memcg.alive = 0
        memcg.tenancy_left_s = memcg.vacant_s * jitter
        memcg.queue = 0.0
        memcg.burst_on = 0
        for r in range(regions.shape[0]):
            if regions[r].used and regions[r].ring_memcg == index:
                free_region(host, memcg, regions[r], 1.0)
    else:
        memcg.present = memcg.alive = memcg.born = 1
        memcg.tenancy_left_s = memcg.stays_s * jitter
        memcg.service_us = memcg.base_us


@compiled
def step_phase(host: Rec, memcg: Rec, regions: Rec, index: int) -> None:
    """Count the phase down; waking up re-mixes heat by what does not overlap."""
    if memcg.phase_idle_s <= 0.0 and memcg.phase_overlap >= 1.0:
        return
    memcg.phase_left_s -= 1.0
    if memcg.phase_left_s > 0.0:
        return
    jitter = 0.75 + 0.5 * uniform(host.seed, host.tick, STREAM_PHASE + 16 * index)
    if memcg.phase_idle or memcg.phase_idle_s <= 0.0:
        memcg.phase_idle = 0
        memcg.phase_left_s = memcg.phase_active_s * jitter
        for r in range(regions.shape[0]):
            if regions[r].used and not regions[r].burst:
                remix(host, regions[r], memcg.phase_overlap)
    else:
        memcg.phase_idle = 1
        memcg.phase_left_s = memcg.phase_idle_s * jitter


@compiled
def remix(host: Rec, region: Rec, overlap: float) -> None:
    """Another working set: all but ``overlap`` of each bin's pages change places at random."""
    if overlap >= 1.0 or region.pages <= 0.0:
        return
    keep = overlap
    for node in range(host.n_nodes):
        for slot in range(N_GENS):
            pool = 0.0
            for b in range(N_BINS):
                pool += region.resident[b, node, slot]
            for b in range(N_BINS):
                even = pool * region.bin_pages[b] / region.pages
                region.resident[b, node, slot] = (
                    keep * region.resident[b, node, slot] + (1.0 - keep) * even
                )
    for slot in range(N_GENS):
        mix_column(region, region.evicted[:, slot], keep)
    mix_column(region, region.evicted_old, keep)
    mix_column(region, region.evicted_workingset, keep)
    mix_column(region, region.absent, keep)
    mix_column(region, region.referenced, keep)
    mix_column(region, region.workingset, keep)
    for node in range(host.n_nodes):
        for slot in range(N_GENS):
            mix_column(region, region.fresh[:, node, slot], keep)


@compiled
def mix_column(region: Rec, column: Array, keep: float) -> None:
    """Spread all but ``keep`` of a per-bin quantity evenly over the pages."""
    total = column.sum()
    for b in range(N_BINS):
        even = total * region.bin_pages[b] / region.pages
        column[b] = keep * column[b] + (1.0 - keep) * even


@compiled
def step_burst(host: Rec, memcg: Rec, regions: Rec, traces: Array, index: int) -> None:
    """The burst's timer: wait, grow, hold, free."""
    if memcg.burst_pages_per_s <= 0.0 or not memcg.alive:
        return
    if memcg.series >= 0:
        follow_series(host, memcg, regions, traces)
        return
    memcg.burst_left_s -= 1.0
    if memcg.burst_left_s > 0.0:
        return
    jitter = 0.6 + 0.8 * uniform(host.seed, host.tick, STREAM_BURST + 16 * index)
    if memcg.burst_on:
        memcg.burst_on = 0
        memcg.burst_left_s = memcg.burst_every_s * jitter
        for r in range(regions.shape[0]):
            if regions[r].used and regions[r].burst:
                free_region(host, memcg, regions[r], 1.0)
    else:
        memcg.burst_on = 1
        memcg.burst_left_s = memcg.burst_hold_s * jitter


@compiled
def follow_series(host: Rec, memcg: Rec, regions: Rec, traces: Array) -> None:
    """A recorded series drives the burst region: shrink at once, grow through the charge path."""
    trace = traces[memcg.series]
    target = trace[(memcg.trace_offset + host.tick) % trace.shape[0]]
    for r in range(regions.shape[0]):
        region = regions[r]
        if region.used and region.burst:
            held = region.pages - region.absent.sum()
            if held > target and held > 0.0:
                free_region(host, memcg, region, 1.0 - target / held)
            memcg.burst_on = 1 if held < target else 0
            memcg.burst_hold_s = max(0.0, target - held)


@compiled
def begin_substep(params: Rec, host: Rec, memcg: Rec) -> None:
    """Arrivals, and how much of the queue the threads can serve at the present service time."""
    memcg.charged = memcg.critical_charged = memcg.burst_charged = 0.0
    memcg.memstall_us = memcg.iowait_us = memcg.fault_us = 0.0
    memcg.sleep_us = memcg.sleep_event_us = memcg.reclaim_us = 0.0
    memcg.slow_touches = memcg.disk_faults = 0.0
    nominal = memcg.requests_per_s * SUBSTEP_S
    memcg.done = memcg.work = 0.0
    if not memcg.present:
        return
    wanted = nominal * memcg.load
    if not memcg.alive:
        memcg.failed += wanted
        memcg.arrived += wanted
        return
    arrived = wanted * (1.0 - memcg.shed)
    memcg.arrived += wanted
    memcg.queue += arrived
    capacity = memcg.threads * SUBSTEP_US / max(memcg.service_us, 1.0)
    memcg.done = min(memcg.queue, capacity)
    memcg.work = memcg.done / nominal
    memcg.queue -= memcg.done
    limit = memcg.requests_per_s * params.queue_s
    if memcg.queue > limit:
        memcg.failed += memcg.queue - limit
        memcg.queue = limit


@compiled
def allocate_burst(params: Rec, host: Rec, memcg: Rec, regions: Rec) -> None:
    """The burst thread allocates as fast as its rate and the charge path let it."""
    if not memcg.burst_on or memcg.burst_pages_per_s <= 0.0 or not memcg.alive:
        return
    pages = memcg.burst_pages_per_s * SUBSTEP_S
    if memcg.burst_page_us > 0.0:
        pages = min(pages, SUBSTEP_US / memcg.burst_page_us)
    if memcg.series >= 0:
        pages = min(pages, memcg.burst_hold_s)
    for r in range(regions.shape[0]):
        region = regions[r]
        if region.used and region.burst:
            taken = grow_burst(params, host, memcg, region, pages)
            memcg.burst_charged += taken
            pages -= taken


@compiled
def end_substep(params: Rec, host: Rec, memcg: Rec) -> None:
    """Book what requests went through: the next service time, and the latency histogram."""
    charged = max(memcg.charged, 1e-9)
    burst_share = memcg.burst_charged / charged * (1.0 - memcg.burst_on_path)
    if memcg.burst_charged > 0.0:
        cost = (memcg.reclaim_us + memcg.sleep_us) / charged + params.minor_fault_us
        memcg.burst_page_us += 0.5 * (cost - memcg.burst_page_us)
    else:
        memcg.burst_page_us *= 0.5
    own = 1.0 - burst_share
    done = max(memcg.done, 1e-6)
    memory_us = (
        memcg.slow_touches * host.slow_extra_us
        + (memcg.fault_us + memcg.reclaim_us) * own
        + memcg.iowait_us
    )
    stall_us = memcg.sleep_us * own + memcg.lock_waiting_us + memcg.dirty_pause_us
    base_us = memcg.cpu_us * host.cpu_slowdown
    if memcg.done > 1e-6:
        # one sub-step's stalls cannot exceed the threads' time; the rest was never started
        service = base_us + min(memory_us + stall_us, memcg.threads * SUBSTEP_US) / done
        memcg.service_us += 0.5 * (service - memcg.service_us)
        book_latency(host, memcg, base_us, own)
    else:
        memcg.service_us += 0.1 * (memcg.base_us - memcg.service_us)
    memcg.requests += memcg.done
    host.cpu_used_us += memcg.done * memcg.cpu_us + memcg.fault_us
    memcg.charge_pages += memcg.charged
    memcg.critical_charge_pages += memcg.critical_charged


@compiled
def book_latency(host: Rec, memcg: Rec, base_us: float, own: float) -> None:
    """Spread this sub-step's requests over the histogram: the many, and the unlucky few."""
    done = memcg.done
    waits = memcg.disk_faults / done
    queue_us = memcg.queue / max(done, 1e-9) * SUBSTEP_US
    always_us = (
        base_us
        + queue_us
        + memcg.slow_touches * host.slow_extra_us / done
        + memcg.fault_us * own / done
        + waits * host.io_latency_us * min(waits, 1.0)
        + memcg.dirty_pause_us / done
    )
    left = 1.0
    batches = memcg.charged * own / 64.0
    if memcg.lock_wait_p > 0.0:
        attempts = memcg.lock_per_s / max(memcg.requests_per_s, 1e-9)
        chance = min(left, memcg.lock_wait_p * min(attempts, 1.0))
        left -= chance
        add_latency(memcg, always_us + 0.5 * memcg.lock_wait_event_us, done * chance)
    if memcg.sleep_us > 0.0:
        chance = min(left, batches / done)
        left -= chance
        add_latency(memcg, always_us + memcg.sleep_event_us, done * chance)
    if memcg.reclaim_us > 0.0:
        chance = min(left, batches / done)
        left -= chance
        each = memcg.reclaim_us / max(memcg.charged / 64.0, 1.0)
        add_latency(memcg, always_us + each, done * chance)
    if waits > 0.0:
        chance = left * min(1.0 - math.exp(-waits), 1.0)
        unlucky = min(0.02, 0.5 * chance)
        left -= chance
        add_latency(memcg, always_us + host.io_latency_us, done * (chance - unlucky))
        spread = 1.0 + 2.3 * math.sqrt(max(waits, 1.0))
        add_latency(memcg, always_us + host.io_latency_us * spread, done * unlucky)
    add_latency(memcg, always_us, done * left)


@compiled
def add_latency(memcg: Rec, latency_us: float, weight: float) -> None:
    """Put ``weight`` requests of one latency into the histogram."""
    if weight <= 0.0:
        return
    at = BINS_PER_OCTAVE * math.log2(max(latency_us, LATENCY_FLOOR_US) / LATENCY_FLOOR_US)
    low = min(int(at), N_LATENCY_BINS - 2)
    upper = min(at - low, 1.0)
    memcg.latency[low] += weight * (1.0 - upper)
    memcg.latency[low + 1] += weight * upper


@compiled
def latency_quantile_us(memcg: Rec, quantile: float) -> float:
    """A quantile of the tick's request latency [us]; the service time where nothing was served."""
    total = memcg.latency.sum()
    if total <= 1e-9:
        return memcg.service_us
    above = total * (1.0 - quantile)
    seen = 0.0
    for k in range(N_LATENCY_BINS - 1, -1, -1):
        here = memcg.latency[k]
        if seen + here >= above and here > 0.0:
            inside = (seen + here - above) / here
            position = k - 0.5 + inside
            return LATENCY_FLOOR_US * 2.0 ** (max(position, 0.0) / BINS_PER_OCTAVE)
        seen += here
    return LATENCY_FLOOR_US
