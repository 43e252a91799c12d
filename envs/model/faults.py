"""Touching memory: hits, first touches, refaults, and where the faulted pages go.

Units: pages, microseconds.
"""

from __future__ import annotations

import math

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.lruvec import missing, on_node
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import (
    ACTIVE,
    ANON,
    FAST,
    GEN_MASK,
    INACTIVE,
    N_BINS,
    N_GENS,
    REFERENCED,
    SLOW,
    SUBSTEP_S,
    Kind,
    Lru,
    Pattern,
)
from memcg_gym.envs.model.swap import forget_swapped, swap_in
from memcg_gym.envs.model.vmscan import SURE_TOUCHES, clear_bits
from memcg_gym.envs.model.workingset import refault_oldest, workingset_refault

NEGLIGIBLE_PAGES = 1e-4  # expected faults of a sub-step not worth moving: 8 pages a day
FEW_PAGES = 8.0
FEW_STRIDE = 5
"""A bin that expects fewer faults than this in a sub-step takes five sub-steps' touches at once,
the bins in turn: two thirds of the model's time went into moving a few pages at a time."""


@compiled
def place_new_pages(host: Rec, memcg: Rec) -> None:
    """Which node new pages go to this sub-step: the fast one above its low watermark.

    mm/page_alloc.c get_page_from_freelist walks the zonelist with the low watermark first; only
    when all nodes are below does it go on to min (and wake kswapd).  The sub-step's share follows
    the room there is for what one sub-step last charged.
    """
    memcg.node_share[FAST] = 1.0
    memcg.node_share[SLOW] = 0.0
    if host.n_nodes == 1:
        return
    wanted = max(memcg.charged, 1.0)
    room = max(0.0, host.node_free[FAST] - host.wmark_low[FAST]) / host.n_memcgs
    fast = min(room / wanted, 1.0)
    if host.node_free[SLOW] <= host.wmark_low[SLOW]:
        fast = 1.0
    memcg.node_share[FAST] = fast
    memcg.node_share[SLOW] = 1.0 - fast


@compiled
def touch_region(params: Rec, host: Rec, memcg: Rec, region: Rec, work: float) -> None:
    """One sub-step of one cgroup's touches in its own part of a region.

    Args:
        params, host, memcg: Costs, machine, and the cgroup that touches and is charged.
        region: The cgroup's region.
        work: Work done over nominal this sub-step.
    """
    touches = region_touches(region, work)
    if touches <= 0.0:
        return
    if region.pattern == Pattern.SWEEP:
        touch_sweep(params, host, memcg, region, touches)
    else:
        for b in range(N_BINS):
            region.touched[b] += touches * region.rate[b]
        if region.gone_pages > 0.5:
            fault_bins(params, host, memcg, region, region, touches)
    dirty_pages(memcg, region, touches)
    if host.n_nodes > 1 and region.resident_pages > 0.0:
        slow_share = 0.0
        for b in range(N_BINS):
            slow_share += on_node(region, b, SLOW) * region.rate[b]
        slow = touches * min(slow_share, 1.0)
        memcg.slow_touches += slow
        host.slow_touches += slow


@compiled
def touch_shared(params: Rec, host: Rec, memcg: Rec, region: Rec, source: Rec, work: float) -> None:
    """Fault in what another cgroup evicted of a shared object: ownership moves to who faults.

    Args:
        source: The other cgroup's record of the same object, which holds the shadows.
    """
    touches = region_touches(region, work)
    if touches > 0.0 and source.gone_pages > 0.5:
        fault_bins(params, host, memcg, region, source, touches)


@compiled
def fault_bins(
    params: Rec, host: Rec, memcg: Rec, region: Rec, source: Rec, touches: float
) -> None:
    """The share of each bin's missing pages that random touches hit at least once."""
    for b in range(N_BINS):
        few = source.few[b] != 0
        if few and (host.substep + b) % FEW_STRIDE:
            continue
        per_page = touches * region.rate[b]
        expected = missing(source, b) * per_page
        source.few[b] = expected < FEW_PAGES
        if expected < NEGLIGIBLE_PAGES:
            continue
        if few:
            per_page *= FEW_STRIDE
        share = 1.0 if per_page > SURE_TOUCHES else 1.0 - math.exp(-per_page)
        fault_bin(params, host, memcg, region, source, b, share, 1.0)


@compiled
def region_touches(region: Rec, work: float) -> float:
    """Touches of this sub-step: what requests make, and what goes on without them."""
    if region.pattern == Pattern.IDLE:
        return 0.0
    return (region.touches_per_s * work + region.background_per_s) * SUBSTEP_S


@compiled
def touch_sweep(params: Rec, host: Rec, memcg: Rec, region: Rec, touches: float) -> None:
    """A loop or stream: sectors are passed in order, every page of the passed part once."""
    left = touches
    for _ in range(2 * N_BINS):
        b = int(region.position * N_BINS) % N_BINS
        sector = region.bin_pages[b]
        if sector <= 0.0:
            return
        ahead = (math.floor(region.position * N_BINS) + 1.0) / N_BINS - region.position
        step = min(left, ahead * N_BINS * sector)
        share = step / sector
        region.touched[b] += share
        if region.gone_pages > 0.5:
            # The part not yet passed in this round is what was passed longest ago, and so what
            # reclaim took first: misses are dense ahead of the position.
            before = max(ahead * N_BINS * sector, 1e-9)
            absent = min(missing(region, b), before) * step / before
            fault_ahead(params, host, memcg, region, b, absent)
        region.position += step / (sector * N_BINS) + 1e-12
        if region.position >= 1.0:
            region.position -= 1.0
        left -= step
        if left <= 1e-9:
            return


@compiled
def fault_bin(
    params: Rec,
    host: Rec,
    memcg: Rec,
    region: Rec,
    source: Rec,
    b: int,
    share: float,
    cluster: float,
) -> None:
    """Bring a share of a bin's missing pages in, and account it.

    Args:
        region: Where the pages are charged.
        source: Where their shadows are: ``region`` itself, or a sharer's record.
        b: Bin.
        share: Share of the missing pages that is touched.
        cluster: Pages one device request brings (readahead).
    """
    # a burst allocates by itself (grow_burst); what is touched besides is what it has
    new = 0.0 if source.burst else source.absent[b] * share
    source.absent[b] -= new
    source.gone_pages -= new
    back, active, flagged = workingset_refault(host.lru, memcg, region, source, b, share)
    bring_in(params, host, memcg, region, b, new, back, active, flagged, cluster)


@compiled
def fault_ahead(params: Rec, host: Rec, memcg: Rec, region: Rec, b: int, pages: float) -> None:
    """Bring in what a loop or stream meets next: what was never touched, then the oldest shadows.

    Args:
        params, host, memcg, region: As in :func:`fault_bin`.
        b: Sector.
        pages: Missing pages that are passed.
    """
    new = min(region.absent[b], pages)
    region.absent[b] -= new
    region.gone_pages -= new
    back, active, flagged = refault_oldest(host.lru, memcg, region, b, pages - new)
    bring_in(params, host, memcg, region, b, new, back, active, flagged, params.readahead_pages)


@compiled
def bring_in(
    params: Rec,
    host: Rec,
    memcg: Rec,
    region: Rec,
    b: int,
    new: float,
    back: float,
    active: float,
    flagged: float,
    cluster: float,
) -> None:
    """Charge faulted pages, put them on their lists and account the wait.

    Args:
        params, host, memcg, region: Costs, machine, who is charged, and for what.
        b: Bin.
        new, back: Pages never touched before, and pages that come back.
        active, flagged: Of those that come back: to the youngest generation or the active list,
            and with the workingset flag.
        cluster: Pages one device request brings (readahead).
    """
    pages = new + back
    if pages <= 0.0:
        return
    if region.type == ANON:
        read, cpu_us = swap_in(params, host, memcg, back)
        memcg.anon += pages
    else:
        read, cpu_us = pages, 0.0
        memcg.file += pages
    if region.kind != Kind.FILE_READ:
        memcg.pgfault += pages
        if region.type == ANON:
            memcg.pgmajfault += back
        elif cluster <= 1.0:
            memcg.pgmajfault += pages
    memcg.fault_us += cpu_us + pages * params.minor_fault_us
    requests = read / cluster
    host.io_slots += requests
    memcg.disk_faults += requests
    waited_us = requests * host.io_latency_us
    memcg.iowait_us += waited_us
    # psi_memstall on a swap-in or page-lock wait only if the folio carries the workingset flag
    if back > 0.0:
        memcg.memstall_us += waited_us * min(flagged / pages, 1.0)
    memcg.charged += pages
    memcg.critical_charged += pages * region.critical_share
    memcg.usage += pages
    region.resident_pages += pages
    region.workingset[b] += flagged
    if host.lru == Lru.MGLRU and region.kind != Kind.FILE_READ:
        region.referenced[b] += pages - flagged  # folio_mark_accessed in folio_add_lru
    add_to_lru(host, memcg, region, b, pages, active)


@compiled
def add_to_lru(host: Rec, memcg: Rec, region: Rec, b: int, pages: float, active: float) -> None:
    """lru_gen_folio_seq: where a page enters.

    A faulted anonymous page enters the second youngest generation, a faulted file page the second
    oldest, either with a restored workingset flag the youngest; a page read through a file
    descriptor enters an old one.  Classic lists: inactive, or active when the refault is recent.
    """
    for node in range(host.n_nodes):
        part = memcg.node_share[node]
        if part <= 0.0:
            continue
        if host.lru == Lru.CLASSIC:
            young, plain = ACTIVE, INACTIVE
            if region.kind == Kind.FILE_READ:  # the read itself marks the page referenced
                young, plain = ACTIVE + REFERENCED, INACTIVE + REFERENCED
        else:
            young, plain = entry_slots(memcg, region, node)
        above = active * part
        rest = (pages - active) * part
        region.resident[b, node, young] += above
        region.resident[b, node, plain] += rest
        memcg.gen[node, region.type, young] += above
        memcg.gen[node, region.type, plain] += rest
        memcg.node[node] += above + rest
        host.node_free[node] -= above + rest
        if region.kind == Kind.FILE_READ:
            join_read(host, region, b, node, plain, rest)
        else:
            region.fresh[b, node, plain] += rest
            if host.lru == Lru.MGLRU:  # the classic active list is never asked for accessed bits
                region.fresh[b, node, young] += above


@compiled
def join_read(host: Rec, region: Rec, b: int, node: int, slot: int, pages: float) -> None:
    """Pages brought in by read(): their count of references starts here."""
    if host.lru == Lru.CLASSIC:
        clear_bits(region, b, node, pages)
        return
    region.fresh[b, node, slot] += pages
    part = min(pages / on_node(region, b, node), 1.0) if pages > 0.0 else 0.0
    region.mark[b, node] += (region.touched[b] - region.mark[b, node]) * part


@compiled
def entry_slots(memcg: Rec, region: Rec, node: int) -> tuple[int, int]:
    """Generation slots for pages with and without a restored workingset flag."""
    newest = memcg.max_seq[node]
    oldest = memcg.min_seq[node, region.type]
    if region.kind == Kind.FILE_READ:
        return max(newest - 2, oldest) & GEN_MASK, max(newest - 3, oldest) & GEN_MASK
    if region.type == ANON:
        return newest & GEN_MASK, max(newest - 1, oldest) & GEN_MASK
    return newest & GEN_MASK, max(newest - 2, oldest) & GEN_MASK


@compiled
def dirty_pages(memcg: Rec, region: Rec, touches: float) -> None:
    """Writes to file pages make them dirty, up to all of them."""
    if region.write_share <= 0.0 or region.type == ANON:
        return
    clean = max(0.0, region.resident_pages - region.dirty)
    if clean <= 0.0:
        return
    made = min(clean, touches * region.write_share * clean / max(region.resident_pages, 1.0))
    region.dirty += made
    memcg.dirty += made


@compiled
def grow_burst(params: Rec, host: Rec, memcg: Rec, region: Rec, pages: float) -> float:
    """Allocate fresh pages of a burst region: first touches, all through the charge path."""
    left = region.absent.sum()
    if pages <= 0.0 or left <= 0.0:
        return 0.0
    share = min(1.0, pages / left)
    for b in range(N_BINS):
        if region.absent[b] > 0.0:
            per_page = share
            region.touched[b] += per_page
            fault_share(params, host, memcg, region, b, share)
    return left * share


@compiled
def fault_share(params: Rec, host: Rec, memcg: Rec, region: Rec, b: int, share: float) -> None:
    """First touch of a share of a bin's absent pages."""
    new = region.absent[b] * share
    region.absent[b] -= new
    region.gone_pages -= new
    memcg.anon += new
    memcg.usage += new
    memcg.pgfault += new
    memcg.charged += new
    memcg.critical_charged += new * region.critical_share
    memcg.fault_us += new * params.minor_fault_us
    region.resident_pages += new
    if host.lru == Lru.MGLRU:
        region.referenced[b] += new
    add_to_lru(host, memcg, region, b, new, 0.0)


@compiled
def free_region(host: Rec, memcg: Rec, region: Rec, share: float) -> None:
    """Give a share of a private anonymous region back: munmap, exit, or a kill."""
    for b in range(N_BINS):
        for node in range(host.n_nodes):
            for slot in range(N_GENS):
                pages = region.resident[b, node, slot] * share
                if pages <= 0.0:
                    continue
                region.resident[b, node, slot] -= pages
                region.fresh[b, node, slot] *= 1.0 - share
                memcg.gen[node, region.type, slot] -= pages
                memcg.node[node] -= pages
                host.node_free[node] += pages
                memcg.usage -= pages
                region.resident_pages -= pages
                uncharge_type(memcg, region, pages)
                region.absent[b] += pages
                region.gone_pages += pages
        region.referenced[b] *= 1.0 - share
        region.workingset[b] *= 1.0 - share
        forget_shadows(host, memcg, region, b, share)


@compiled
def uncharge_type(memcg: Rec, region: Rec, pages: float) -> None:
    """Take pages off the per-type counters of memory.stat."""
    if region.type == ANON:
        memcg.anon -= pages
    else:
        memcg.file -= pages
        clean_share = pages / max(region.resident_pages + pages, 1.0)
        gone = region.dirty * clean_share
        region.dirty -= gone
        memcg.dirty -= gone


@compiled
def forget_shadows(host: Rec, memcg: Rec, region: Rec, b: int, share: float) -> None:
    """Swapped-out or shadowed pages of a freed region become untouched memory again."""
    swapped = 0.0
    for slot in range(N_GENS):
        pages = region.evicted[b, slot] * share
        region.evicted[b, slot] -= pages
        swapped += pages
    pages = region.evicted_old[b] * share
    region.evicted_old[b] -= pages
    swapped += pages
    region.evicted_workingset[b] *= 1.0 - share
    region.absent[b] += swapped
    if region.type != ANON or swapped <= 0.0:
        return
    total = memcg.zswapped_pages + memcg.disked_pages
    if total > 0.0:
        loaded = min(swapped * memcg.zswapped_pages / total, memcg.zswapped_pages)
        read = min(swapped - loaded, memcg.disked_pages)
        forget_swapped(host, memcg, loaded, read)
