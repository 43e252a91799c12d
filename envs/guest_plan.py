"""From a drawn host of the model to the plan of a guest: the same numbers, another world.

Units: pages, bytes, microseconds, as named.
"""

from __future__ import annotations

from typing import Any

from memcg_gym.configs.schema import CgroupConfig, RegionConfig, ScenarioConfig
from memcg_gym.envs.contract.signals import PAGE_BYTES
from memcg_gym.envs.lab.plan import (
    CgroupPlan,
    DevicePlan,
    HostPlan,
    LockPlan,
    RegionPlan,
)
from memcg_gym.envs.model.build import PAGES_PER_MIB, Layout
from memcg_gym.envs.model.records import Array
from memcg_gym.envs.model.state import UNLIMITED_PAGES, Kind, Lru

GUEST_MIB = 102.0
GUEST_RATIO = 0.0175
"""What a guest's kernel and agent take, and the share that describes its pages (struct page is 64
bytes of 4096): measured at 7.3.4."""

READAHEAD_PAGES = 32
"""read_ahead_kb is 128: one operation on a file brings up to so many pages."""

KIND_NAMES = {"shared": "file"}
"""A shared object is page cache: pages of a file that several cgroups map.  The kernel charges them
to whoever brings them in, anew after each eviction; tmpfs pages would go back to the first owner
(do_swap_page charges the memcg that swapped them out)."""

PATTERN_NAMES = {"heat": "heat", "uniform": "heat", "loop": "sweep", "stream": "sweep"}
LIMIT_FILES = (
    ("memory.min", "owner_min"),
    ("memory.low", "owner_low"),
    ("memory.swap.max", "owner_swap_max"),
    ("memory.max", "owner_max"),
    ("memory.high", "owner_high"),
)


def plan_of(
    scenario: ScenarioConfig, host: Any, memcgs: Array, regions: Array, layout: Layout
) -> HostPlan:
    """The guest that a drawn host asks for.

    Args:
        scenario: The scenario it was drawn from.
        host, memcgs, regions: One host's records as :func:`build_host` wrote them.
        layout: Of the scenario.
    """
    configs = [c for c in scenario.cgroups for _ in range(c.copies)]
    file_pages = 0
    objects: dict[str, int] = {}
    cgroups = []
    for slot, config in enumerate(configs):
        plans = []
        for region, record in zip(config.workload.regions, regions[slot], strict=False):
            offset = objects.get(region.shared_as, file_pages)
            plans.append(_region(region, record, offset))
            if record.kind != Kind.ANON and offset == file_pages:
                file_pages += int(record.pages)
            if region.shared_as:
                objects[region.shared_as] = offset
        cgroups.append(_cgroup(layout.names[slot], config, memcgs[slot], tuple(plans), slot, host))
    swap_mib = round(float(host.swap_pages) / PAGES_PER_MIB)
    total_mib = guest_mib(float(host.node_pages.sum()) / PAGES_PER_MIB + swap_mib)
    swap_mib_per_s = max(1, round(float(host.disk_iops) * PAGE_BYTES / (1 << 20)))
    tiered = host.n_nodes > 1
    return HostPlan(
        devices=DevicePlan(
            swap_mib=swap_mib,
            file_mib=max(64, -(-file_pages // PAGES_PER_MIB)),
            latency_us=float(host.disk_latency_us),
            swap_mib_per_s=swap_mib_per_s,
            file_mib_per_s=swap_mib_per_s * READAHEAD_PAGES,
        ),
        cgroups=tuple(cgroups),
        mglru=bool(host.lru == Lru.MGLRU),
        swappiness=int(host.swappiness),
        zswap_percent=round(100.0 * float(host.zswap_max_pages) / PAGES_PER_MIB / total_mib),
        demotion=bool(tiered and host.demotion),
        numa_balancing=bool(tiered and host.numa_balancing),
    )


def guest_mib(wanted_mib: float) -> float:
    """Memory of a guest that leaves so much to its workloads and devices."""
    return (wanted_mib + GUEST_MIB) / (1.0 - GUEST_RATIO)


def _cgroup(
    name: str,
    config: CgroupConfig,
    memcg: Any,
    regions: tuple[RegionPlan, ...],
    slot: int,
    host: Any,
) -> CgroupPlan:
    lock = config.workload.lock
    return CgroupPlan(
        name=name,
        threads_critical=int(memcg.threads_critical),
        threads_tolerant=int(memcg.threads) - int(memcg.threads_critical),
        cpu_us=float(memcg.cpu_us),
        requests_per_s=float(memcg.requests_per_s),
        queue_s=0.5,
        burst_on_path=float(memcg.burst_on_path),
        compute="sleep",
        seed=(int(host.seed) + 0x9E3779B9 * (slot + 1)) & 0x7FFFFFFF,
        regions=regions,
        lock=None
        if lock is None
        else LockPlan(
            name=lock.name,
            role=lock.role,
            section_us=float(memcg.lock_section_us),
            per_s=float(memcg.lock_per_s),
            charge_share=float(memcg.lock_charge_share),
            kind=lock.kind,
        ),
        limits=_limits(memcg),
        present=bool(memcg.present),
    )


def _limits(memcg: Any) -> tuple[tuple[str, str], ...]:
    out = []
    for file, field in LIMIT_FILES:
        limit = float(memcg[field])
        if limit >= UNLIMITED_PAGES or (limit == 0.0 and file in ("memory.min", "memory.low")):
            continue
        out.append((file, str(int(limit) * PAGE_BYTES)))
    return tuple(out)


def _region(config: RegionConfig, record: Any, offset_pages: int) -> RegionPlan:
    return RegionPlan(
        kind=KIND_NAMES.get(config.kind, config.kind),
        pattern=PATTERN_NAMES.get(config.pattern, "idle"),
        pages=int(record.pages),
        touches_per_request=float(config.touches_per_request),
        touches_per_s=float(config.touches_per_s),
        write_share=float(config.write_share),
        critical_share=float(config.critical_share),
        burst=bool(config.burst),
        object=config.shared_as,
        offset_pages=0 if config.kind == "anon" else offset_pages,
        prefill=config.kind == "anon" and not config.burst,
        bin_pages=tuple(float(p) for p in record.bin_pages),
        bin_heat=tuple(float(h) for h in record.bin_heat),
    )
