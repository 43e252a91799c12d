"""Dirty file pages and the flusher: mm/page-writeback.c in its main lines.

Writers run freely below the midpoint of the background and the dirty threshold, and are paced
above it; the flusher needs CPU and device time, and a cgroup's flush weight shares them out.

Units: pages, microseconds.
"""

from __future__ import annotations

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import FILE, SUBSTEP_S, SUBSTEP_US

BACKGROUND_RATIO = 0.10  # vm.dirty_background_ratio
DIRTY_RATIO = 0.20  # vm.dirty_ratio
EXPIRE_S = 30.0  # vm.dirty_expire_centisecs
FLUSH_US = 3.0  # flusher CPU per page (assumption)
WRITE_CLUSTER_PAGES = 16.0  # contiguous pages one device write carries (assumption)


@compiled
def flush(host: Rec, memcgs: Rec, regions: Rec) -> None:
    """One sub-step of writeback for all cgroups; returns nothing, moves dirty to clean."""
    weight = 0.0
    dirty = 0.0
    for i in range(host.n_memcgs):
        dirty += memcgs[i].dirty
        weight += memcgs[i].dirty * memcgs[i].flush_weight
    host.dirty_pages = dirty
    if dirty < 1.0:
        return
    background = BACKGROUND_RATIO * host.total_pages
    want = dirty * SUBSTEP_S / EXPIRE_S + max(0.0, dirty - background)
    # The flusher is a kernel thread that competes for CPU, and leaves reads half of the device.
    cpu_pages = SUBSTEP_US / FLUSH_US / max(host.cpu_slowdown, 1.0)
    io_pages = 0.5 * host.disk_iops * SUBSTEP_S * WRITE_CLUSTER_PAGES
    for i in range(host.n_memcgs):
        memcg = memcgs[i]
        if memcg.dirty < 1.0:
            continue
        share = memcg.dirty * memcg.flush_weight / weight
        boost = min(memcg.flush_weight, 10.0)
        pages = min(memcg.dirty, max(want * boost, 0.0) * share)
        pages = min(pages, min(cpu_pages * boost, io_pages) * share)
        write_back(host, memcg, regions[i], pages)


@compiled
def write_back(host: Rec, memcg: Rec, regions: Rec, pages: float) -> None:
    """Clean a cgroup's dirty pages, region by region in proportion."""
    share = pages / memcg.dirty
    for r in range(regions.shape[0]):
        if regions[r].used and regions[r].type == FILE:
            regions[r].dirty *= 1.0 - share
    memcg.dirty *= 1.0 - share
    memcg.writeback = pages
    host.io_backlog += pages / WRITE_CLUSTER_PAGES * host.disk_write_cost
    host.kernel_cpu_us += pages * FLUSH_US


@compiled
def dirty_pause_us(host: Rec, memcg: Rec) -> float:
    """balance_dirty_pages: pause of this cgroup's writers over one sub-step [us].

    cgroup v2 writeback has a domain of its own: its threshold is a share of the cgroup's file
    memory and headroom.
    """
    headroom = max(
        0.0, min(min(memcg.limit_max, memcg.limit_high) - memcg.usage, host.node_free.sum())
    )
    available = memcg.file + min(headroom, host.total_pages)
    limit = DIRTY_RATIO * available
    free_run = 0.5 * (DIRTY_RATIO + BACKGROUND_RATIO) * available
    if memcg.dirty <= free_run or limit <= free_run:
        return 0.0
    return SUBSTEP_US * min(1.0, (memcg.dirty - free_run) / (limit - free_run))
