"""From a scenario to record arrays: draw each host's numbers, lay out its regions.

Numbers come from the host's own seed, so host ``k`` of a batch is the same host alone.

Units: configuration in MiB and GiB, state in pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from memcg_gym.configs.arrivals import azure_arrivals
from memcg_gym.configs.heat import HeatBins, heat_from_popularity, uniform_heat, zipf_heat
from memcg_gym.configs.loader import load_params
from memcg_gym.configs.memory_series import list_runs, read_memory_series, series_to_demand
from memcg_gym.configs.schema import (
    MAX_REGIONS,
    CgroupConfig,
    HostKindName,
    RegionConfig,
    ScenarioConfig,
    Split,
    Spread,
)
from memcg_gym.envs.contract.errors import ConfigError, did_you_mean
from memcg_gym.envs.contract.heads import HostKind
from memcg_gym.envs.contract.signals import PAGE_BYTES
from memcg_gym.envs.model.records import Array, Rec
from memcg_gym.envs.model.state import (
    ANON,
    FAST,
    FILE,
    GEN_MASK,
    HOST_DTYPE,
    MEMCG_DTYPE,
    N_BINS,
    PARAMS_DTYPE,
    REGION_DTYPE,
    SLOW,
    UNLIMITED_PAGES,
    Kind,
    LockRole,
    Lru,
    Pattern,
)

PAGES_PER_MIB = (1 << 20) // PAGE_BYTES
PAGES_PER_GIB = (1 << 30) // PAGE_BYTES
TRACE_SECONDS = 3436  # length of the shipped arrival trace
KINDS = {
    "anon": Kind.ANON,
    "file": Kind.FILE,
    "file_read": Kind.FILE_READ,
    "shared": Kind.SHARED,
}
PATTERNS = {
    "heat": Pattern.HEAT,
    "uniform": Pattern.HEAT,
    "loop": Pattern.SWEEP,
    "stream": Pattern.SWEEP,
    "idle": Pattern.IDLE,
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What all hosts of a scenario share.

    Attributes:
        params: Cost parameters, record array of one.
        traces: Load and memory series, shape ``(n_traces, TRACE_SECONDS)``.
        names: Cgroup names in slot order.
        n_cgroups: Managed cgroups a host has.
        n_regions: Regions of the widest cgroup.
    """

    params: Array
    traces: Array
    trace_rows: dict[str, int]
    names: tuple[str, ...]
    n_cgroups: int
    n_regions: int


def layout_of(scenario: ScenarioConfig, params: Mapping[str, float] | None = None) -> Layout:
    """Read the scenario's traces and count its slots.

    Args:
        scenario: What to lay out.
        params: Cost parameters; None = the shipped ones.

    Raises:
        ConfigError: The parameters are not those of the model.
    """
    rows: dict[str, int] = {}
    traces: list[Array] = []
    for cgroup in scenario.cgroups:
        for key, series in _traces_of(cgroup):
            if key not in rows:
                rows[key] = len(traces)
                traces.append(series)
    names = tuple(
        c.name if c.copies == 1 else f"{c.name}-{k}"
        for c in scenario.cgroups
        for k in range(c.copies)
    )
    return Layout(
        params=params_record(load_params() if params is None else params),
        traces=np.ascontiguousarray(np.stack(traces)),
        trace_rows=rows,
        names=names,
        n_cgroups=scenario.n_cgroups,
        n_regions=max(len(c.workload.regions) for c in scenario.cgroups),
    )


def params_record(params: Mapping[str, float]) -> Array:
    """Cost parameters as the model reads them: a record array of one.

    Raises:
        ConfigError: A parameter is missing, or one is not the model's.
    """
    expected = PARAMS_DTYPE.names or ()
    for name in [*expected, *params]:
        if name not in params or name not in expected:
            what = "is missing" if name in expected else "is none of the model's"
            raise ConfigError(f"parameters: {name!r} {what}{did_you_mean(name, expected)}")
    record = np.zeros(1, dtype=PARAMS_DTYPE)
    for name, value in params.items():
        record[name] = value
    return record


def empty_arrays(layout: Layout, n_hosts: int) -> tuple[Array, Array, Array]:
    """Zeroed hosts, memcgs and regions."""
    n, r = layout.n_cgroups, min(layout.n_regions, MAX_REGIONS)
    return (
        np.zeros(n_hosts, dtype=HOST_DTYPE),
        np.zeros((n_hosts, n), dtype=MEMCG_DTYPE),
        np.zeros((n_hosts, n, r), dtype=REGION_DTYPE),
    )


def build_host(
    scenario: ScenarioConfig,
    layout: Layout,
    host_kind: HostKindName,
    split: Split,
    seed: int,
    arrays: tuple[Array, Array, Array],
    at: int,
) -> None:
    """Draw one host and write it into slot ``at`` of the arrays.

    Args:
        seed: Decides every drawn number and all later randomness of the host.
    """
    hosts, memcgs, regions = arrays
    hosts[at : at + 1] = np.zeros(1, dtype=HOST_DTYPE)
    memcgs[at] = np.zeros(memcgs.shape[1], dtype=MEMCG_DTYPE)
    regions[at] = np.zeros(regions.shape[1:], dtype=REGION_DTYPE)
    rng = np.random.Generator(np.random.Philox(seed))
    draw = _Draw(rng, split)
    host = hosts[at]
    _build_machine(scenario, layout.params[0], draw, host, host_kind, seed)
    host.n_memcgs = layout.n_cgroups
    slot = 0
    for cgroup in scenario.cgroups:
        for _ in range(cgroup.copies):
            _build_cgroup(cgroup, layout, draw, memcgs[at, slot], regions[at, slot], slot)
            slot += 1
    _rank_values(memcgs[at])
    _join_shared(scenario, memcgs[at], regions[at])
    prefill(host, memcgs[at], regions[at])


def prefill(host: Any, memcgs: Array, regions: Array) -> None:
    """Start with every private heap allocated, its bins alike: loaded in no order of heat.

    A service that has loaded its data, not an empty machine; what follows settles from there.
    What is over a limit has gone to swap.  Page cache, bursts and streams start empty.
    """
    for i in range(memcgs.shape[0]):
        memcg = memcgs[i]
        for region in regions[i]:
            if not (region.used and region.type == ANON and not region.burst):
                continue
            total = float(region.absent.sum())
            if total <= 0.0:
                continue
            for node in range(int(host.n_nodes)):
                left = float(region.absent.sum())
                room = float(host.node_free[node]) - 2.0 * float(host.wmark_high[node])
                under = min(float(memcg.limit_max), float(memcg.limit_high)) - float(memcg.usage)
                over = max(0.0, left - under)
                if host.zswap_max_pages > 0.0 and host.zswap_compression > 1.0:
                    over = over / (1.0 - 1.0 / float(host.zswap_compression))
                share = max(0.0, min(left, room, left - over)) / left if left > 0.0 else 0.0
                for b in range(N_BINS):
                    _place(host, memcg, region, b, node, float(region.absent[b]) * share)
            for b in range(N_BINS):
                left = float(region.absent[b])
                swapped = min(left, float(host.swap_pages - host.swap_used), float(memcg.swap_max))
                if swapped > 0:
                    region.absent[b] -= swapped
                    region.evicted[b, int(memcg.max_seq[FAST] - 1) & GEN_MASK] += swapped
                    memcg.swap += swapped
                    host.swap_used += swapped
                    pool = max(0.0, float(host.zswap_max_pages - host.zswap_pages))
                    stored = min(swapped, pool * float(host.zswap_compression))
                    compressed = stored / float(host.zswap_compression)
                    memcg.zswapped_pages += stored
                    memcg.disked_pages += swapped - stored
                    memcg.zswap += compressed
                    memcg.usage += compressed
                    host.zswap_pages += compressed
                    host.node_free[FAST] -= compressed


def _place(host: Any, memcg: Any, region: Any, b: int, node: int, pages: float) -> float:
    slot = int(memcg.max_seq[node]) - 1 if host.lru == Lru.MGLRU else 0
    region.absent[b] -= pages
    region.gone_pages -= pages
    region.resident[b, node, slot] += pages
    if host.lru == Lru.MGLRU:
        region.referenced[b] += pages
    region.resident_pages += pages
    memcg.gen[node, ANON, slot] += pages
    memcg.node[node] += pages
    memcg.anon += pages
    memcg.usage += pages
    host.node_free[node] -= pages
    return pages


class _Draw:
    """Draws spreads of one split from one generator."""

    def __init__(self, rng: np.random.Generator, split: Split) -> None:
        self.rng = rng
        self.split: Split = split

    def __call__(self, spread: Spread) -> float:
        low, high = spread.span(self.split)
        return float(low if low == high else self.rng.uniform(low, high))


def _build_machine(
    scenario: ScenarioConfig,
    params: Any,
    draw: _Draw,
    host: Any,
    host_kind: HostKindName,
    seed: int,
) -> None:
    machine = scenario.host
    host.kind = HostKind.STOCK if host_kind == "stock" else HostKind.BPF
    host.lru = Lru.MGLRU if machine.lru == "mglru" else Lru.CLASSIC
    host.cpus = machine.cpus
    host.seed = np.uint64(seed)
    host.demotion = machine.demotion
    host.numa_balancing = machine.numa_balancing
    host.swappiness = machine.swappiness
    dram = math.floor(draw(machine.dram_gib) * PAGES_PER_GIB)
    slow = math.floor(draw(machine.slow_gib) * PAGES_PER_GIB)
    host.n_nodes = 2 if slow > 0 else 1
    host.total_pages = dram + slow
    host.reserved_pages = machine.reserved_ratio * dram
    host.node_pages[FAST], host.node_pages[SLOW] = dram, slow
    host.node_free[FAST], host.node_free[SLOW] = dram - host.reserved_pages, slow
    set_watermarks(host)
    host.swap_pages = draw(machine.swap_gib) * PAGES_PER_GIB
    host.zswap_max_pages = machine.zswap_max_ratio * dram
    host.zswap_compression = machine.zswap_compression
    host.disk_iops = draw(machine.disk.iops)
    host.disk_latency_us = host.io_latency_us = machine.disk.latency_us
    host.disk_write_cost = machine.disk.write_cost
    host.dram_ns, host.slow_ns = machine.dram_latency_ns, machine.slow_latency_ns
    loads = float(params["loads_per_touch"])
    line_bytes = 64.0 * loads
    host.slow_touches_per_s = machine.slow_bandwidth_gb_s * 1e9 / line_bytes
    host.slow_extra_us = max(0.0, host.slow_ns - host.dram_ns) * loads * 1e-3
    host.cpu_slowdown = 1.0


def set_watermarks(host: Any) -> None:
    """mm/page_alloc.c __setup_per_zone_wmarks, split over nodes by size.

    min_free_kbytes = sqrt(16 * lowmem_kbytes) clamped to [128, 262144]; the gap between marks is
    max(min / 4, managed * watermark_scale_factor / 10000), with the default factor of 10.
    """
    total_kib = float(host.total_pages) * 4.0
    min_pages = min(max(math.isqrt(int(16.0 * total_kib)), 128), 262_144) / 4.0
    for node in range(2):
        managed = float(host.node_pages[node])
        if managed <= 0:
            continue
        node_min = min_pages * managed / float(host.total_pages)
        gap = max(node_min / 4.0, managed * 10.0 / 10_000.0)
        host.wmark_min[node] = node_min
        host.wmark_low[node] = node_min + gap
        host.wmark_high[node] = node_min + 2.0 * gap
        host.wmark_promo[node] = node_min + 3.0 * gap


def _build_cgroup(
    cgroup: CgroupConfig, layout: Layout, draw: _Draw, memcg: Any, regions: Array, slot: int
) -> None:
    memcg.used = memcg.present = memcg.alive = 1
    if cgroup.tenancy is not None:
        memcg.stays_s, memcg.vacant_s = draw(cgroup.tenancy.stays_s), draw(cgroup.tenancy.vacant_s)
        memcg.tenancy_left_s = memcg.stays_s * draw.rng.uniform(0.2, 1.0)
    memcg.priority, memcg.value = cgroup.priority, cgroup.value
    memcg.restart_s = cgroup.restart_s
    for name in ("min", "low"):
        pages = draw(getattr(cgroup, f"{name}_mib")) * PAGES_PER_MIB
        memcg[f"limit_{name}"] = memcg[f"owner_{name}"] = pages
    for name in ("high", "max", "swap_max"):
        pages = draw(getattr(cgroup, f"{name}_mib")) * PAGES_PER_MIB
        memcg[f"owner_{name}"] = pages if pages > 0 else UNLIMITED_PAGES
    memcg.limit_high, memcg.limit_max = memcg.owner_high, memcg.owner_max
    if cgroup.no_swap:
        memcg.owner_swap_max = 0.0
    memcg.swap_max = memcg.owner_swap_max
    memcg.memsw = draw(cgroup.memsw_mib) * PAGES_PER_MIB
    memcg.flush_weight = 1.0
    memcg.max_seq[:] = 3
    _build_workload(cgroup, layout, draw, memcg, slot)
    for config, region in zip(cgroup.workload.regions, regions, strict=False):
        _build_region(config, draw, memcg, region)
    for r in range(len(regions)):
        regions[r].ring_memcg, regions[r].ring_region = slot, r


def _build_workload(
    cgroup: CgroupConfig, layout: Layout, draw: _Draw, memcg: Any, slot: int
) -> None:
    work = cgroup.workload
    memcg.threads = work.threads_critical + work.threads_tolerant
    memcg.threads_critical = work.threads_critical
    memcg.requests_per_s = draw(work.requests_per_s)
    memcg.cpu_us = memcg.service_us = memcg.base_us = work.cpu_us_per_request
    memcg.slo_us = work.slo_p99_ms * 1e3
    arrival = _arrival_key(cgroup)
    memcg.trace_kind = layout.trace_rows[arrival]
    memcg.trace_swing = work.arrival.swing
    # Offsets of one host are spread, so that its cgroups do not peak together by construction.
    memcg.trace_offset = int(draw.rng.integers(TRACE_SECONDS))
    phase = work.phase
    memcg.phase_active_s, memcg.phase_idle_s = draw(phase.active_s), draw(phase.idle_s)
    memcg.phase_idle_load, memcg.phase_overlap = phase.idle_load, phase.overlap
    memcg.phase_left_s = memcg.phase_active_s * draw.rng.uniform(0.1, 1.0)
    memcg.series = -1
    if work.burst is not None:
        memcg.burst_every_s, memcg.burst_hold_s = draw(work.burst.every_s), draw(work.burst.hold_s)
        memcg.burst_pages_per_s = draw(work.burst.rate_mib_per_s) * PAGES_PER_MIB
        memcg.burst_left_s = memcg.burst_every_s * draw.rng.uniform(0.1, 1.0)
        memcg.burst_on_path = work.burst.on_path_ratio
        if work.burst.series:
            memcg.series = layout.trace_rows[work.burst.series]
    memcg.compliance, memcg.shed_delay_s = work.elasticity.compliance, work.elasticity.delay_s
    memcg.lock = -1
    if work.lock is not None:
        lock = work.lock
        memcg.lock = sum(ord(c) * (k + 1) for k, c in enumerate(lock.name))
        memcg.lock_role = LockRole.HOLDER if lock.role == "holder" else LockRole.WAITER
        memcg.lock_kernel = lock.kind == "kernel"
        memcg.lock_section_us, memcg.lock_per_s = lock.section_us, lock.sections_per_s
        memcg.lock_charge_share = lock.charge_share


def _build_region(config: RegionConfig, draw: _Draw, memcg: Any, region: Any) -> None:
    region.used = 1
    region.kind, region.pattern = KINDS[config.kind], PATTERNS[config.pattern]
    region.type = ANON if config.kind == "anon" else FILE
    region.burst = config.burst
    region.pages = math.floor(draw(config.size_mib) * PAGES_PER_MIB)
    region.touches_per_s = config.touches_per_request * memcg.requests_per_s
    region.background_per_s = config.touches_per_s
    region.write_share, region.critical_share = config.write_share, config.critical_share
    heat = heat_of(config)
    region.bin_pages[:] = heat.share_of_pages * region.pages
    region.bin_heat[:] = heat.share_of_touches
    region.rate[:] = heat.share_of_touches / np.maximum(region.bin_pages, 1e-9)
    region.absent[:] = region.bin_pages
    region.gone_pages = region.pages


def heat_of(config: RegionConfig) -> HeatBins:
    """Heat bins of a region: a CacheLib popularity, ``zipf:EXPONENT``, or uniform."""
    if config.pattern != "heat":
        return uniform_heat(N_BINS)
    name, _, exponent = config.popularity.partition(":")
    if name == "zipf":
        try:
            return zipf_heat(float(exponent or 1.0), 65_536, N_BINS)
        except ValueError:
            raise ConfigError(
                f"region {config.name!r}: popularity {config.popularity!r}: expected zipf:NUMBER"
            ) from None
    return heat_from_popularity(name, N_BINS)


def _traces_of(cgroup: CgroupConfig) -> list[tuple[str, Array]]:
    arrival = cgroup.workload.arrival
    if arrival.kind == "constant":
        load = np.ones(TRACE_SECONDS)
    else:
        load = smooth(azure_arrivals(0, TRACE_SECONDS), arrival.smooth_s)
    found = [(_arrival_key(cgroup), load)]
    burst = cgroup.workload.burst
    if burst is not None and burst.series:
        found.append((burst.series, _series_pages(burst.series)))
    return found


def _series_pages(source: str) -> Array:
    """A recorded series ``PATH`` or ``PATH:RUN`` as target pages of the burst region."""
    path, _, run = source.partition(":")
    run_id = run or list_runs(path)[0].run_id
    demand = series_to_demand(read_memory_series(path, run_id))
    target = np.asarray(demand.burst_bytes_per_s, dtype=np.float64) / PAGE_BYTES
    return np.resize(target, TRACE_SECONDS)


def _arrival_key(cgroup: CgroupConfig) -> str:
    arrival = cgroup.workload.arrival
    return "constant" if arrival.kind == "constant" else f"azure:{arrival.smooth_s}"


def smooth(load: Array, window_s: int) -> Array:
    """Trailing mean over a window, round the end of the trace."""
    kernel = np.ones(window_s) / window_s
    wrapped = np.concatenate([load[len(load) - window_s + 1 :], load]) if window_s > 1 else load
    return np.convolve(wrapped, kernel, mode="valid")


def _rank_values(memcgs: Rec) -> None:
    """kill_rank: 0 = lowest value on the host; equal values keep their order."""
    order = sorted(range(len(memcgs)), key=lambda i: (float(memcgs[i].value), i))
    for rank, i in enumerate(order):
        memcgs[i].kill_rank = rank


def _join_shared(scenario: ScenarioConfig, memcgs: Array, regions: Array) -> None:
    """Link the records of one shared object into a ring; only the first has untouched pages."""
    members: dict[str, list[tuple[int, int]]] = {}
    slot = 0
    for cgroup in scenario.cgroups:
        for _ in range(cgroup.copies):
            for r, config in enumerate(cgroup.workload.regions):
                if config.shared_as:
                    members.setdefault(config.shared_as, []).append((slot, r))
            slot += 1
    for ring in members.values():
        first = regions[ring[0]]
        for at, following in zip(ring, ring[1:] + ring[:1], strict=True):
            region = regions[at]
            region.ring_memcg, region.ring_region = following
            memcgs[at[0]].sharers = len(ring) - 1
            if at != ring[0]:
                region.pages = first.pages
                region.bin_pages[:] = first.bin_pages
                region.rate[:] = region.bin_heat / np.maximum(first.bin_pages, 1e-9)
                region.absent[:] = 0.0
                region.gone_pages = 0.0
