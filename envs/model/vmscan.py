"""Reclaim: mm/vmscan.c by shares of bins instead of lists of folios.

MGLRU first (aging walk, eviction from the oldest generation, choice of anon or file by refaults),
then the classic lists, then who calls them: limits, kswapd, memory.reclaim.  A demoted page counts
as reclaimed and stays charged, as in the kernel.

Units: pages, microseconds.
"""

from __future__ import annotations

import math

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.lruvec import of_type, on_node
from memcg_gym.envs.model.page_counter import scan_share
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import (
    ACTIVE,
    ANON,
    FAST,
    FILE,
    INACTIVE,
    N_BINS,
    N_GENS,
    N_TYPES,
    SLOW,
    SUBSTEP_S,
    Lru,
    Pattern,
)
from memcg_gym.envs.model.swap import swap_out, swap_room
from memcg_gym.envs.model.workingset import forget_generation, workingset_eviction

DIRECT, KSWAPD, PROACTIVE = 0, 1, 2
MIN_NR_GENS = 2
MIN_LRU_BATCH = 64.0
SMALL_LRUVEC_PAGES = 131_072.0  # 32 pages << DEF_PRIORITY: below this priority 12 scans too little
EMPTY_PAGES = 0.5
SURE_TOUCHES = 20.0  # 1 - exp(-20) is one to nine digits
GOLDEN_RATIO = 0.6180339887498949
KSWAPD_STOPS = 2
"""Cgroups kswapd visits in one sub-step.  It walks all of them; the model visits the same shares
in expectation by systematic sampling, which keeps the cost of a sub-step flat in their number."""


@compiled
def accessed_share(region: Rec, b: int, node: int) -> float:
    """Share of a bin's pages whose accessed bit is set: touched since the last walk."""
    touches = region.touched[b] - region.mark[b, node]
    if touches <= 0.0:
        return 0.0
    if region.pattern == Pattern.SWEEP:
        return min(touches, 1.0)
    if touches > SURE_TOUCHES:
        return 1.0
    return 1.0 - math.exp(-touches)


@compiled
def known_share(region: Rec, b: int) -> float:
    """Share of a bin's resident pages seen accessed before (PG_referenced or PG_workingset)."""
    resident = on_node(region, b, FAST) + on_node(region, b, SLOW)
    if resident <= 0.0:
        return 0.0
    return min((region.referenced[b] + region.workingset[b]) / resident, 1.0)


@compiled
def note_accessed(region: Rec, b: int, first: float, again: float) -> None:
    """lru_gen_set_refs: a first sighting sets PG_referenced, a second PG_workingset."""
    known = region.referenced[b] + region.workingset[b]
    moved = again * region.referenced[b] / known if known > 0.0 else 0.0
    region.referenced[b] += first - moved
    region.workingset[b] += moved


@compiled
def inc_min_seq(memcg: Rec, regions: Rec, node: int, kind_type: int) -> None:
    """Fold what is left of the oldest generation into the next and move on."""
    slot = memcg.min_seq[node, kind_type] % N_GENS
    after = (memcg.min_seq[node, kind_type] + 1) % N_GENS
    if memcg.gen[node, kind_type, slot] > 0.0:
        for r in range(regions.shape[0]):
            region = regions[r]
            if region.used and region.type == kind_type:
                for b in range(N_BINS):
                    region.resident[b, node, after] += region.resident[b, node, slot]
                    region.resident[b, node, slot] = 0.0
    memcg.gen[node, kind_type, after] += memcg.gen[node, kind_type, slot]
    memcg.gen[node, kind_type, slot] = 0.0
    memcg.min_seq[node, kind_type] += 1
    # reset_ctrl_pos: the controller's history halves with each generation
    memcg.refaulted[kind_type] *= 0.5
    memcg.evicted[kind_type] *= 0.5


@compiled
def inc_max_seq(params: Rec, host: Rec, memcg: Rec, regions: Rec, node: int) -> float:
    """The aging walk: accessed pages join a new youngest generation; returns its CPU time [us]."""
    for kind_type in range(N_TYPES):
        if memcg.max_seq[node] - memcg.min_seq[node, kind_type] + 1 >= N_GENS:
            inc_min_seq(memcg, regions, node, kind_type)
    old_max = memcg.max_seq[node]
    new_slot = (old_max + 1) % N_GENS
    walked = 0.0
    for r in range(regions.shape[0]):
        region = regions[r]
        if not region.used:
            continue
        if node == host.n_nodes - 1:
            forget_generation(region, old_max + 1)
        walked += region.resident_pages
        for b in range(N_BINS):
            walk_bin(memcg, region, b, node, new_slot)
    memcg.max_seq[node] = old_max + 1
    return walked * params.scan_us * 0.1  # page tables are read, not folios (assumption)


@compiled
def walk_bin(memcg: Rec, region: Rec, b: int, node: int, new_slot: int) -> None:
    """walk_pte_range over one bin: promote what was seen accessed twice, clear the bits."""
    share = accessed_share(region, b, node)
    old_max = memcg.max_seq[node]
    known = known_share(region, b)
    young = region.resident[b, node, old_max % N_GENS]
    if old_max > memcg.min_seq[node, region.type]:
        young += region.resident[b, node, (old_max - 1) % N_GENS]
    fresh = min(region.fresh[b, node] / young, 1.0) if young > 0.0 else 0.0
    first = 0.0
    again = 0.0
    for seq in range(memcg.min_seq[node, region.type], old_max + 1):
        slot = seq % N_GENS
        pages = region.resident[b, node, slot]
        if pages <= 0.0:
            continue
        accessed = share
        if seq >= old_max - 1:
            accessed = fresh + (1.0 - fresh) * share
        promoted = pages * accessed * known
        first += pages * accessed - promoted
        again += promoted
        region.resident[b, node, slot] = pages - promoted
        region.resident[b, node, new_slot] += promoted
        memcg.gen[node, region.type, slot] -= promoted
        memcg.gen[node, region.type, new_slot] += promoted
    note_accessed(region, b, first, again)
    region.mark[b, node] = region.touched[b]
    region.fresh[b, node] = 0.0


@compiled
def should_run_aging(memcg: Rec, node: int, anon_too: bool) -> bool:
    """Out of cold generations, or small enough that priority 12 finds nothing to scan."""
    oldest = memcg.min_seq[node, FILE]
    total = of_type(memcg, node, FILE)
    if anon_too:
        oldest = min(oldest, memcg.min_seq[node, ANON])
        total += of_type(memcg, node, ANON)
    if oldest + MIN_NR_GENS > memcg.max_seq[node]:
        return True
    return oldest + MIN_NR_GENS == memcg.max_seq[node] and total < SMALL_LRUVEC_PAGES


@compiled
def get_type_to_scan(host: Rec, memcg: Rec, node: int, may_anon: bool) -> int:
    """positive_ctrl_err: file unless its refault ratio, weighted by swappiness, is worse."""
    if not may_anon or host.swappiness <= 0.0:
        return FILE
    if of_type(memcg, node, FILE) < EMPTY_PAGES:
        return ANON
    anon_gain = host.swappiness
    file_gain = 200.0 - host.swappiness
    file_worse = memcg.refaulted[FILE] >= MIN_LRU_BATCH and (
        memcg.refaulted[FILE] * (memcg.evicted[ANON] + MIN_LRU_BATCH) * anon_gain
        > (memcg.refaulted[ANON] + 1.0) * memcg.evicted[FILE] * file_gain
    )
    return ANON if file_worse else FILE


@compiled
def count_cold(
    memcg: Rec, regions: Rec, node: int, kind_type: int, slot: int, lists_fresh: bool
) -> float:
    """First pass over a list: how much of it is neither accessed nor dirty; fills ``accessed``."""
    cold = 0.0
    for r in range(regions.shape[0]):
        region = regions[r]
        if not region.used or region.type != kind_type:
            continue
        clean = 1.0
        if region.dirty > 0.0 and region.resident_pages > 0.0:
            clean = max(0.0, 1.0 - region.dirty / region.resident_pages)
        for b in range(N_BINS):
            pages = region.resident[b, node, slot]
            if pages <= 0.0:
                continue
            share = accessed_share(region, b, node)
            if lists_fresh:
                fresh = min(region.fresh[b, node] / on_node(region, b, node), 1.0)
                share = fresh + (1.0 - fresh) * share
            region.accessed[b] = share
            cold += pages * (1.0 - share) * clean
    return cold


@compiled
def evict_folios(
    params: Rec,
    host: Rec,
    memcg: Rec,
    regions: Rec,
    node: int,
    kind_type: int,
    want: float,
    cause: int,
) -> tuple[float, float]:
    """Scan the oldest generation of one type until ``want`` cold pages are gone.

    Returns:
        Pages gone from the node (swapped, dropped or demoted), and pages scanned.
    """
    seq = memcg.min_seq[node, kind_type]
    slot = seq % N_GENS
    total = memcg.gen[node, kind_type, slot]
    if total < EMPTY_PAGES:
        return 0.0, 0.0
    newest = memcg.max_seq[node]
    cold = count_cold(memcg, regions, node, kind_type, slot, seq >= newest - 1)
    share = 1.0
    if cold > want:
        share = want / cold
    top = newest % N_GENS
    second = max(newest - 1, seq) % N_GENS
    gone = 0.0
    for r in range(regions.shape[0]):
        region = regions[r]
        if region.used and region.type == kind_type:
            gone += evict_region(
                params, host, memcg, region, node, slot, top, second, share, seq, cause
            )
    return gone, total * share


@compiled
def evict_region(
    params: Rec,
    host: Rec,
    memcg: Rec,
    region: Rec,
    node: int,
    slot: int,
    top: int,
    second: int,
    share: float,
    seq: int,
    cause: int,
) -> float:
    """shrink_folio_list over one region's part of a generation."""
    clean = 1.0
    if region.dirty > 0.0 and region.resident_pages > 0.0:
        clean = max(0.0, 1.0 - region.dirty / region.resident_pages)
    gone = 0.0
    for b in range(N_BINS):
        pages = region.resident[b, node, slot] * share
        if pages <= 0.0:
            continue
        hot = pages * region.accessed[b]
        known = known_share(region, b)
        cold = (pages - hot) * clean
        again = hot * known  # FOLIOREF_ACTIVATE: seen before, goes to the youngest
        kept = pages - again - cold  # FOLIOREF_KEEP and dirty: PG_active, second youngest
        # Scanning clears the accessed bits it finds; a bin has one mark per node, so it moves by
        # the scanned part of the bin.
        part = pages / on_node(region, b, node)
        region.mark[b, node] += (region.touched[b] - region.mark[b, node]) * part
        region.fresh[b, node] *= 1.0 - part
        region.resident[b, node, slot] -= pages
        region.resident[b, node, top] += again
        region.resident[b, node, second] += kept
        memcg.gen[node, region.type, slot] -= pages
        memcg.gen[node, region.type, top] += again
        memcg.gen[node, region.type, second] += kept
        # a rejected anon page keeps its first look, a file page loses it (shrink_folio_list)
        note_accessed(region, b, hot - again if region.type == ANON else 0.0, again)
        if cold > 0.0:
            leave_node(params, host, memcg, region, b, node, cold, seq, cause)
            gone += cold
    return gone


@compiled
def can_demote(host: Rec, node: int) -> bool:
    """mm/vmscan.c can_demote: there is a slower node, it is switched on, and it has room."""
    return (
        host.demotion
        and node == FAST
        and host.n_nodes > 1
        and host.node_free[SLOW] > host.wmark_low[SLOW]
    )


@compiled
def leave_node(
    params: Rec,
    host: Rec,
    memcg: Rec,
    region: Rec,
    b: int,
    node: int,
    pages: float,
    seq: int,
    cause: int,
) -> None:
    """Cold pages leave: demoted where that is possible, else swapped out or dropped.

    ``pages`` has already been taken from the bin's generations.
    """
    before = on_node(region, b, FAST) + on_node(region, b, SLOW) + pages
    referenced = region.referenced[b] * (pages / before)
    flagged = region.workingset[b] * (pages / before)
    stale = region.fresh[b, node] / before if before > 0.0 else 0.0
    region.fresh[b, node] = max(0.0, region.fresh[b, node] - stale * pages)
    host.node_free[node] += pages
    memcg.node[node] -= pages
    if can_demote(host, node):
        host.node_free[SLOW] -= pages
        memcg.node[SLOW] += pages
        low = memcg.min_seq[SLOW, region.type] % N_GENS
        region.resident[b, SLOW, low] += pages
        memcg.gen[SLOW, region.type, low] += pages
        memcg.pgdemote += pages
        charge_reclaim_cpu(host, memcg, pages * params.migrate_us, cause)
        return
    region.referenced[b] -= referenced
    region.workingset[b] -= flagged
    region.resident_pages -= pages
    workingset_eviction(region, b, seq, pages, flagged)
    memcg.evicted[region.type] += pages
    memcg.usage -= pages
    if region.type == FILE:
        memcg.file -= pages
        return
    memcg.anon -= pages
    charge_reclaim_cpu(host, memcg, swap_out(params, host, memcg, pages), cause)


@compiled
def charge_reclaim_cpu(host: Rec, memcg: Rec, cpu_us: float, cause: int) -> None:
    """CPU time of reclaim falls on the allocating task or on a kernel thread."""
    if cause == DIRECT:
        memcg.reclaim_us += cpu_us
    host.kernel_cpu_us += cpu_us


@compiled
def shrink_lruvec(
    params: Rec, host: Rec, memcg: Rec, regions: Rec, node: int, want: float, cause: int
) -> float:
    """Take up to ``want`` cold pages from one cgroup on one node; returns pages gone."""
    if want <= 0.0:
        return 0.0
    if host.lru == Lru.CLASSIC:
        return shrink_classic(params, host, memcg, regions, node, want, cause)
    gone = 0.0
    scanned = 0.0
    for _ in range(4 * N_GENS):
        left = want - gone
        if left < EMPTY_PAGES:
            break
        room = left if can_demote(host, node) else swap_room(host, memcg)
        may_anon = room > EMPTY_PAGES
        for kind_type in range(N_TYPES):
            try_to_inc_min_seq(memcg, regions, node, kind_type)
        if should_run_aging(memcg, node, may_anon):
            walk_us = inc_max_seq(params, host, memcg, regions, node)
            charge_reclaim_cpu(host, memcg, walk_us, cause)
        first = get_type_to_scan(host, memcg, node, may_anon)
        taken, seen = evict_one_type(params, host, memcg, regions, node, first, left, room, cause)
        if seen <= 0.0:
            other = FILE if first == ANON else ANON
            if other == FILE or may_anon:
                taken, seen = evict_one_type(
                    params, host, memcg, regions, node, other, left, room, cause
                )
        gone += taken
        scanned += seen
        if seen <= 0.0 and (of_type(memcg, node, ANON) + of_type(memcg, node, FILE)) < EMPTY_PAGES:
            break
    account_scan(params, host, memcg, scanned, gone, cause)
    return gone


@compiled
def try_to_inc_min_seq(memcg: Rec, regions: Rec, node: int, kind_type: int) -> None:
    """Skip empty generations of one type, down to the two that are never evicted from."""
    while (
        memcg.min_seq[node, kind_type] + MIN_NR_GENS <= memcg.max_seq[node]
        and memcg.gen[node, kind_type, memcg.min_seq[node, kind_type] % N_GENS] < EMPTY_PAGES
    ):
        inc_min_seq(memcg, regions, node, kind_type)


@compiled
def evict_one_type(
    params: Rec,
    host: Rec,
    memcg: Rec,
    regions: Rec,
    node: int,
    kind_type: int,
    want: float,
    room: float,
    cause: int,
) -> tuple[float, float]:
    """Scan the oldest generation of one type, unless only the two youngest are left."""
    try_to_inc_min_seq(memcg, regions, node, kind_type)
    if memcg.max_seq[node] - memcg.min_seq[node, kind_type] + 1 <= MIN_NR_GENS:
        return 0.0, 0.0
    limit = min(want, room) if kind_type == ANON else want
    return evict_folios(params, host, memcg, regions, node, kind_type, limit, cause)


@compiled
def account_scan(
    params: Rec, host: Rec, memcg: Rec, scanned: float, gone: float, cause: int
) -> None:
    """pgscan_*, pgsteal_* and the time they took."""
    memcg.pgscan[cause] += scanned
    memcg.pgsteal[cause] += gone
    cpu_us = scanned * params.scan_us + gone * params.steal_us
    charge_reclaim_cpu(host, memcg, cpu_us, cause)


# ---- classic active/inactive lists ----------------------------------------------------------


@compiled
def shrink_classic(
    params: Rec, host: Rec, memcg: Rec, regions: Rec, node: int, want: float, cause: int
) -> float:
    """get_scan_count and shrink_list: split by cost, deactivate when inactive is low."""
    room = want if can_demote(host, node) else swap_room(host, memcg)
    anon_share = classic_anon_share(host, memcg, node, room > EMPTY_PAGES)
    gone = 0.0
    scanned = 0.0
    for kind_type in range(N_TYPES):
        share = anon_share if kind_type == ANON else 1.0 - anon_share
        target = want * share
        if kind_type == ANON:
            target = min(target, room)
        for _ in range(6):
            if target < EMPTY_PAGES:
                break
            if inactive_is_low(memcg, node, kind_type):
                scanned += shrink_active_list(memcg, regions, node, kind_type, target)
            taken, seen = shrink_inactive_list(
                params, host, memcg, regions, node, kind_type, target, cause
            )
            gone += taken
            scanned += seen
            target -= taken
            if seen <= 0.0:
                break
    account_scan(params, host, memcg, scanned, gone, cause)
    return gone


@compiled
def classic_anon_share(host: Rec, memcg: Rec, node: int, may_anon: bool) -> float:
    """mm/vmscan.c get_scan_count, SCAN_FRACT: the share of scanning that goes to anon."""
    if not may_anon or host.swappiness <= 0.0:
        return 0.0
    inactive_file = memcg.gen[node, FILE, INACTIVE]
    if of_type(memcg, node, FILE) < EMPTY_PAGES:
        return 1.0
    if inactive_file > memcg.gen[node, FILE, ACTIVE] and memcg.cost[FILE] <= 0.0:
        return 0.0  # cache_trim_mode: plenty of inactive file and no refaults
    anon_cost = memcg.cost[ANON]
    file_cost = memcg.cost[FILE]
    total = anon_cost + file_cost
    anon_cost = total + anon_cost
    file_cost = total + file_cost
    total = anon_cost + file_cost
    anon = host.swappiness * (total + 1.0) / (anon_cost + 1.0)
    file = (200.0 - host.swappiness) * (total + 1.0) / (file_cost + 1.0)
    return anon / (anon + file)


@compiled
def inactive_is_low(memcg: Rec, node: int, kind_type: int) -> bool:
    """mm/vmscan.c inactive_is_low: the ratio is 1 below a GiB, else int_sqrt(10 * GiB)."""
    inactive = memcg.gen[node, kind_type, INACTIVE]
    active = memcg.gen[node, kind_type, ACTIVE]
    gib = math.floor((inactive + active) / 262_144.0)
    ratio = math.floor(math.sqrt(10.0 * gib)) if gib >= 1.0 else 1.0
    return inactive * ratio < active


@compiled
def shrink_active_list(memcg: Rec, regions: Rec, node: int, kind_type: int, want: float) -> float:
    """Move a batch from the active list's tail to inactive, accessed bits cleared."""
    active = memcg.gen[node, kind_type, ACTIVE]
    if active < EMPTY_PAGES:
        return 0.0
    share = min(1.0, max(want, 32.0) / active)
    for r in range(regions.shape[0]):
        region = regions[r]
        if not region.used or region.type != kind_type:
            continue
        for b in range(N_BINS):
            moved = region.resident[b, node, ACTIVE] * share
            region.resident[b, node, ACTIVE] -= moved
            region.resident[b, node, INACTIVE] += moved
            # shrink_active_list sets PG_workingset on what it deactivates
            resident = on_node(region, b, node)
            if resident > 0.0:
                room = max(0.0, resident - region.workingset[b])
                region.workingset[b] += moved * room / resident
    moved = active * share
    memcg.gen[node, kind_type, ACTIVE] -= moved
    memcg.gen[node, kind_type, INACTIVE] += moved
    return moved


@compiled
def shrink_inactive_list(
    params: Rec,
    host: Rec,
    memcg: Rec,
    regions: Rec,
    node: int,
    kind_type: int,
    want: float,
    cause: int,
) -> tuple[float, float]:
    """Scan the inactive tail: accessed pages are activated, the rest leaves."""
    inactive = memcg.gen[node, kind_type, INACTIVE]
    if inactive < EMPTY_PAGES:
        return 0.0, 0.0
    cold = count_cold(memcg, regions, node, kind_type, INACTIVE, True)
    share = 1.0
    if cold > want:
        share = want / cold
    gone = 0.0
    seq = memcg.max_seq[node]
    for r in range(regions.shape[0]):
        region = regions[r]
        if region.used and region.type == kind_type:
            gone += evict_region(
                params, host, memcg, region, node, INACTIVE, ACTIVE, ACTIVE, share, seq, cause
            )
    memcg.cost[kind_type] *= 1.0 - 0.5 * share
    memcg.scan_clock[node, kind_type] += share
    if memcg.scan_clock[node, kind_type] >= 1.0:
        memcg.scan_clock[node, kind_type] -= 1.0
        memcg.max_seq[node] += 1
        for r in range(regions.shape[0]):
            if regions[r].used:
                forget_generation(regions[r], memcg.max_seq[node])
    return gone, inactive * share


# ---- who calls reclaim ----------------------------------------------------------------------


@compiled
def try_to_free_mem_cgroup_pages(
    params: Rec, host: Rec, memcg: Rec, regions: Rec, want: float, cause: int
) -> float:
    """Reclaim from one cgroup on all its nodes; demoted pages count, as in the kernel.

    Its own protection does not apply: it is the target.
    """
    gone = 0.0
    on_nodes = memcg.node[FAST] + memcg.node[SLOW]
    if on_nodes < EMPTY_PAGES:
        return 0.0
    for node in range(host.n_nodes):
        part = want * memcg.node[node] / on_nodes
        gone += shrink_lruvec(params, host, memcg, regions, node, part, cause)
    return gone


@compiled
def shrink_node(
    params: Rec, host: Rec, memcgs: Rec, regions: Rec, node: int, want: float, cause: int
) -> float:
    """Reclaim from all cgroups of a node in proportion to what protection leaves to scan.

    First memory.low is respected; if that gives nothing, it is overridden (memory.events low) and
    only memory.min holds.
    """
    gone = 0.0
    for override_low in range(2):
        weight = 0.0
        for i in range(host.n_memcgs):
            weight += scannable(host, memcgs[i], node, override_low)
        if weight < EMPTY_PAGES:
            continue
        for _ in range(KSWAPD_STOPS):
            i = next_stop(host, memcgs, node, override_low, weight)
            memcg = memcgs[i]
            part = want / KSWAPD_STOPS
            taken = shrink_lruvec(params, host, memcg, regions[i], node, part, cause)
            gone += taken
            if override_low and memcg.limit_low > 0.0 and taken > 0.0:
                memcg.events_low += 1.0
        if gone >= 0.25 * want:
            break
    return gone


@compiled
def next_stop(host: Rec, memcgs: Rec, node: int, override_low: int, weight: float) -> int:
    """The cgroup at the next position of a low-discrepancy walk over the scannable pages."""
    host.scan_cursor = (host.scan_cursor + GOLDEN_RATIO) % 1.0
    position = host.scan_cursor * weight
    last = 0
    for i in range(host.n_memcgs):
        part = scannable(host, memcgs[i], node, override_low)
        if part <= 0.0:
            continue
        last = i
        position -= part
        if position <= 0.0:
            break
    return last


@compiled
def scannable(host: Rec, memcg: Rec, node: int, override_low: int) -> float:
    """Pages of a cgroup on a node that proportional protection leaves to scan."""
    if not memcg.used:
        return 0.0
    protection = memcg.limit_min if override_low else max(memcg.limit_min, memcg.limit_low)
    pages = memcg.node[node]
    if not can_demote(host, node) and swap_room(host, memcg) < EMPTY_PAGES:
        pages -= of_type(memcg, node, ANON)
    if pages < EMPTY_PAGES or memcg.usage <= protection:
        return 0.0
    return pages * scan_share(protection, memcg.usage)


@compiled
def balance_pgdat(params: Rec, host: Rec, memcgs: Rec, regions: Rec, node: int) -> None:
    """One sub-step of kswapd: woken below the low watermark, stops at high (or promo)."""
    if host.node_pages[node] <= 0.0:
        return
    if host.node_free[node] < host.wmark_low[node]:
        host.kswapd_on[node] = 1
    if not host.kswapd_on[node]:
        return
    target = host.wmark_high[node]
    if host.numa_balancing and node == FAST and host.n_nodes > 1:
        target = host.wmark_promo[node]
    need = target - host.node_free[node]
    if need <= 0.0:
        host.kswapd_on[node] = 0
        return
    # kswapd is one thread: on a busy machine it gets its share of a CPU only
    speed = params.kswapd_pages_per_s * SUBSTEP_S / max(host.cpu_slowdown, 1.0)
    gone = shrink_node(params, host, memcgs, regions, node, min(need, speed), KSWAPD)
    if gone < EMPTY_PAGES:
        host.kswapd_on[node] = 0


@compiled
def direct_reclaim(params: Rec, host: Rec, memcgs: Rec, regions: Rec, i: int) -> float:
    """An allocation found its node below min: the allocator reclaims from everybody.

    Returns pages gone; the time falls on cgroup ``i``.
    """
    memcg = memcgs[i]
    gone = 0.0
    for node in range(host.n_nodes):
        need = host.wmark_min[node] - host.node_free[node]
        if need > 0.0:
            kernel_before = host.kernel_cpu_us
            gone += shrink_node(params, host, memcgs, regions, node, need, KSWAPD)
            memcg.reclaim_us += host.kernel_cpu_us - kernel_before
            host.global_direct_us += host.kernel_cpu_us - kernel_before
    return gone
