"""Swap, zswap and the device behind them.

Anonymous pages go to zswap while its pool has room (compressed, charged to the cgroup), else to
the swap device.  The device is a queue with a latency at rest and a number of IO slots a second.

Units: pages, microseconds, IO slots.
"""

from __future__ import annotations

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import FAST, SUBSTEP_S

ZSWAP_ACCEPT_RATIO = 0.9  # mm/zswap.c accept_threshold_percent
MAX_BACKLOG_S = 1.0  # writers are throttled before a queue grows beyond this (assumption)


@compiled
def swap_room(host: Rec, memcg: Rec) -> float:
    """Pages this cgroup may still swap out: the device's slots and memory.swap.max."""
    return max(0.0, min(host.swap_pages - host.swap_used, memcg.swap_max - memcg.swap))


@compiled
def swap_out(params: Rec, host: Rec, memcg: Rec, pages: float) -> tuple[float, float]:
    """Move anonymous pages to zswap or the device.

    Returns:
        CPU time [us], and the time until the device has taken the pages [us]: memory under
        writeback is not free yet, so who reclaims directly waits for it.
    """
    room = max(0.0, host.zswap_max_pages - host.zswap_pages) * host.zswap_compression
    stored = min(pages, room)
    written = pages - stored
    compressed = stored / host.zswap_compression
    host.zswap_pages += compressed
    memcg.zswap += compressed
    memcg.usage += compressed  # obj_cgroup_charge_zswap: forced onto the memcg
    host.node_free[FAST] -= compressed  # the pool is DRAM
    memcg.zswapped_pages += stored
    memcg.disked_pages += written
    memcg.swap += pages
    host.swap_used += pages
    memcg.swapout += written
    host.swapout_pages += written
    host.swap_write_pages += written
    memcg.swap_write_tick += written
    host.io_backlog += written * host.disk_write_cost
    written_us = written * host.disk_write_cost / host.disk_iops * 1e6
    return stored * params.zswap_store_us, written_us


@compiled
def swap_in(params: Rec, host: Rec, memcg: Rec, pages: float) -> tuple[float, float]:
    """Bring anonymous pages back; returns how many come from the device, and the CPU time [us]."""
    total = memcg.zswapped_pages + memcg.disked_pages
    if total <= 0.0:
        return 0.0, 0.0
    loaded = min(pages * memcg.zswapped_pages / total, memcg.zswapped_pages)
    read = min(pages - loaded, memcg.disked_pages)
    forget_swapped(host, memcg, loaded, read)
    return read, loaded * params.zswap_load_us


@compiled
def forget_swapped(host: Rec, memcg: Rec, loaded: float, read: float) -> None:
    """Give back the slots and the zswap memory of pages that are gone from swap."""
    compressed = 0.0
    if memcg.zswapped_pages > 0.0:
        compressed = memcg.zswap * (loaded / memcg.zswapped_pages)
    memcg.zswapped_pages -= loaded
    memcg.disked_pages -= read
    memcg.zswap -= compressed
    memcg.usage -= compressed
    host.zswap_pages -= compressed
    host.node_free[FAST] += compressed
    memcg.swap -= loaded + read
    host.swap_used -= loaded + read


@compiled
def zswap_writeback(host: Rec, memcgs: Rec) -> None:
    """The pool's shrinker, once a tick: above its limit the oldest go to the device.

    mm/zswap.c shrink_worker runs down to the accept threshold; here every cgroup's share shrinks
    alike.
    """
    if host.zswap_pages <= host.zswap_max_pages * 0.99:
        return
    share = 1.0 - ZSWAP_ACCEPT_RATIO * host.zswap_max_pages / host.zswap_pages
    for i in range(host.n_memcgs):
        memcg = memcgs[i]
        moved = memcg.zswapped_pages * share
        compressed = memcg.zswap * share
        memcg.zswapped_pages -= moved
        memcg.disked_pages += moved
        memcg.zswap -= compressed
        memcg.usage -= compressed
        host.zswap_pages -= compressed
        host.node_free[FAST] += compressed
        host.swap_write_pages += moved
        memcg.swap_write_tick += moved
        memcg.swapout += moved
        host.swapout_pages += moved
        host.io_backlog += moved * host.disk_write_cost


@compiled
def io_substep(host: Rec) -> None:
    """Serve the device's queue for one sub-step and price the next request.

    The latency is the one at rest, inflated as utilisation nears one (M/M/1), plus the time to
    drain what queues.
    """
    capacity = host.disk_iops * SUBSTEP_S
    demand = host.io_backlog + host.io_slots
    host.io_load += 0.5 * (min(demand / capacity, 1.0) - host.io_load)
    host.io_backlog = min(max(0.0, demand - capacity), host.disk_iops * MAX_BACKLOG_S)
    busy = min(host.io_load, 0.95)
    drain_us = host.io_backlog / host.disk_iops * 1e6
    # Reads go ahead of queued writes in the block layer's schedulers: they wait for a tenth
    # of the queue (assumption, until the lab fits it).
    host.io_latency_us = host.disk_latency_us / (1.0 - busy) + 0.1 * drain_us
    host.io_slots = 0.0
