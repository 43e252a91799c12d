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
    GEN_MASK,
    INACTIVE,
    N_BINS,
    N_GENS,
    N_TYPES,
    REFERENCED,
    SLOW,
    SUBSTEP_S,
    Kind,
    Lru,
    Pattern,
)
from memcg_gym.envs.model.swap import swap_out, swap_room
from memcg_gym.envs.model.workingset import forget_generation, workingset_eviction

DIRECT, KSWAPD, PROACTIVE = 0, 1, 2
MIN_NR_GENS = 2
MAX_SWAPPINESS = 200.0
MIN_LRU_BATCH = 64.0
SWAP_CLUSTER_MAX = 32.0
SMALL_LRUVEC_PAGES = 131_072.0  # 32 pages << DEF_PRIORITY: below this priority 12 scans too little
EMPTY_PAGES = 0.5
PTRS_PER_PTE = 512.0  # entries of a page table
YOUNG_PER_CACHELINE = 8.0  # suitable_to_scan: one entry of eight, 64 bytes of entries
LOOK_AROUND_PAGES = 64.0  # MIN_LRU_BATCH page table entries around the one that was accessed
WORTH_A_LOOK = 0.03  # share of a region looked at before its bins are gone through (assumption)
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
def with_fresh(region: Rec, b: int, node: int, slot: int, share: float) -> float:
    """Share of one generation's pages whose accessed bit is set; a fault leaves it set too."""
    pages = region.resident[b, node, slot]
    if pages <= 0.0:
        return share
    fresh = min(region.fresh[b, node, slot] / pages, 1.0)
    return fresh + (1.0 - fresh) * share


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
    slot = memcg.min_seq[node, kind_type] & GEN_MASK
    after = (memcg.min_seq[node, kind_type] + 1) & GEN_MASK
    if memcg.gen[node, kind_type, slot] > 0.0:
        for r in range(regions.shape[0]):
            region = regions[r]
            if region.used and region.type == kind_type:
                for b in range(N_BINS):
                    region.resident[b, node, after] += region.resident[b, node, slot]
                    region.resident[b, node, slot] = 0.0
                    region.fresh[b, node, after] += region.fresh[b, node, slot]
                    region.fresh[b, node, slot] = 0.0
    memcg.gen[node, kind_type, after] += memcg.gen[node, kind_type, slot]
    memcg.gen[node, kind_type, slot] = 0.0
    memcg.min_seq[node, kind_type] += 1
    # reset_ctrl_pos: the controller's history halves with each generation
    memcg.refaulted[kind_type] *= 0.5
    memcg.evicted[kind_type] *= 0.5


@compiled
def inc_max_seq(params: Rec, host: Rec, memcg: Rec, regions: Rec, node: int) -> float:
    """The aging walk, then a new youngest generation, empty at first; returns its CPU time [us]."""
    for kind_type in range(N_TYPES):
        if memcg.max_seq[node] - memcg.min_seq[node, kind_type] + 1 >= N_GENS:
            inc_min_seq(memcg, regions, node, kind_type)
    old_max = memcg.max_seq[node]
    walked = 0.0
    for r in range(regions.shape[0]):
        region = regions[r]
        if not region.used:
            continue
        if node == host.n_nodes - 1:
            forget_generation(region, old_max + 1)
        if region.kind == Kind.FILE_READ:
            continue  # no page table to walk
        walked += region.resident_pages * (1.0 - region.skipped[node])
        walk_region(memcg, region, node)
    memcg.max_seq[node] = old_max + 1
    return walked * params.scan_us * 0.1  # page tables are read, not folios (assumption)


@compiled
def walk_region(memcg: Rec, region: Rec, node: int) -> None:
    """walk_pmd_range: page tables that were sparse in accessed entries last time are skipped.

    A page table stays in the Bloom filter if one entry of eight was accessed (suitable_to_scan);
    the eviction's looks put others back in (``lru_gen_look_around``).
    """
    part = 1.0 - region.skipped[node]
    if part <= 0.0:
        return
    found = 0.0
    for b in range(N_BINS):
        found += walk_bin(memcg, region, b, node, part)
    entries = min(PTRS_PER_PTE, region.pages)
    young = entries * found / (part * region.pages)
    region.skipped[node] = 1.0 - part * at_least(entries / YOUNG_PER_CACHELINE, young)


@compiled
def at_least(count: float, mean: float) -> float:
    """Chance that a Poisson number reaches a count; the logistic stands for the normal law."""
    distance = 1.702 * (mean - count + 0.5) / math.sqrt(mean + 1e-9)
    if distance < -SURE_TOUCHES:
        return 0.0
    return 1.0 / (1.0 + math.exp(-distance))


@compiled
def walk_bin(memcg: Rec, region: Rec, b: int, node: int, part: float) -> float:
    """walk_pte_range over one bin: promote what was accessed and known before, clear the bits.

    Promoted pages join the generation that is the youngest until the walk is done.

    Args:
        memcg, region, b, node: Which bin, and its lruvec.
        part: Share of the bin's pages that is looked at.

    Returns:
        Pages found accessed.
    """
    share = accessed_share(region, b, node)
    old_max = memcg.max_seq[node]
    known = known_share(region, b)
    found = 0.0
    moved = 0.0
    for seq in range(memcg.min_seq[node, region.type], old_max + 1):
        slot = seq & GEN_MASK
        pages = region.resident[b, node, slot]
        if pages <= 0.0:
            continue
        accessed = pages * part * with_fresh(region, b, node, slot, share)
        found += accessed
        region.fresh[b, node, slot] *= 1.0 - part
        if seq < old_max:
            promoted = accessed * known
            region.resident[b, node, slot] = pages - promoted
            memcg.gen[node, region.type, slot] -= promoted
            moved += promoted
    region.resident[b, node, old_max & GEN_MASK] += moved
    memcg.gen[node, region.type, old_max & GEN_MASK] += moved
    note_accessed(region, b, found * (1.0 - known), found * known)
    region.mark[b, node] += (region.touched[b] - region.mark[b, node]) * part
    return found


@compiled
def lru_gen_look_around(memcg: Rec, region: Rec, node: int, looks: float) -> None:
    """The eviction's looks at accessed pages take in their neighbours: a walk of a part.

    Heat lies scattered over addresses, so the neighbours are any pages of the region.  What looks
    cover is gathered until it is worth a pass over the bins.
    """
    region.looks[node] += looks
    looks = region.looks[node]
    part = 1.0 - math.exp(-looks * LOOK_AROUND_PAGES / region.pages)
    if part < WORTH_A_LOOK:
        return
    region.looks[node] = 0.0
    found = 0.0
    for b in range(N_BINS):
        found += walk_bin(memcg, region, b, node, part)
    # a neighbourhood dense enough puts its page table into the next walk's filter
    near = LOOK_AROUND_PAGES * found / (part * region.pages)
    dense = looks * at_least(LOOK_AROUND_PAGES / YOUNG_PER_CACHELINE - 1.0, near)
    region.skipped[node] *= math.exp(-dense * PTRS_PER_PTE / region.pages)


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
    if host.swappiness >= MAX_SWAPPINESS or of_type(memcg, node, FILE) < EMPTY_PAGES:
        return ANON
    anon_gain = host.swappiness
    file_gain = MAX_SWAPPINESS - host.swappiness
    file_worse = memcg.refaulted[FILE] >= MIN_LRU_BATCH and (
        memcg.refaulted[FILE] * (memcg.evicted[ANON] + MIN_LRU_BATCH) * anon_gain
        > (memcg.refaulted[ANON] + 1.0) * memcg.evicted[FILE] * file_gain
    )
    return ANON if file_worse else FILE


@compiled
def workingset_share(region: Rec, b: int) -> float:
    """Share of a bin's resident pages with PG_workingset."""
    resident = on_node(region, b, FAST) + on_node(region, b, SLOW)
    return min(region.workingset[b] / resident, 1.0) if resident > 0.0 else 0.0


@compiled
def count_cold(memcg: Rec, regions: Rec, node: int, kind_type: int, slot: int) -> float:
    """First pass over a list: how much of it is neither accessed nor dirty; fills ``accessed``."""
    cold = 0.0
    for r in range(regions.shape[0]):
        region = regions[r]
        if not region.used or region.type != kind_type:
            continue
        clean = clean_share(region)
        for b in range(N_BINS):
            pages = region.resident[b, node, slot]
            if pages <= 0.0:
                continue
            share = accessed_share(region, b, node)
            if region.kind == Kind.FILE_READ:
                share = protected_share(region, b, node, slot, share)
            else:
                share = with_fresh(region, b, node, slot, share)
            region.accessed[b] = share
            cold += pages * (1.0 - share) * clean
    return cold


@compiled
def clean_share(region: Rec) -> float:
    """Share of a region's resident pages that need no writeback."""
    if region.dirty <= 0.0 or region.resident_pages <= 0.0:
        return 1.0
    return max(0.0, 1.0 - region.dirty / region.resident_pages)


@compiled
def protected_share(region: Rec, b: int, node: int, slot: int, accessed: float) -> float:
    """Share of the oldest generation's read-only-by-read() pages that their tier protects.

    No page table points at them: read() counts references.  Faulting counts one, the next puts
    the page in tier 1; a page moved on by ``sort_folio`` starts at zero again.  Tiers above 0
    refault more and so are protected (get_tier_idx); taken as always here.
    """
    touches = max(region.touched[b] - region.mark[b, node], 0.0)
    twice = accessed - touches * math.exp(-touches) if touches < SURE_TOUCHES else 1.0
    fresh = min(region.fresh[b, node, slot] / region.resident[b, node, slot], 1.0)
    return fresh * accessed + (1.0 - fresh) * max(twice, 0.0)


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
    slot = seq & GEN_MASK
    total = memcg.gen[node, kind_type, slot]
    if total < EMPTY_PAGES:
        return 0.0, 0.0
    newest = memcg.max_seq[node]
    cold = count_cold(memcg, regions, node, kind_type, slot)
    share = 1.0
    if cold > want:
        share = want / cold
    top = newest & GEN_MASK
    kept_slot = max(newest - 1, seq) & GEN_MASK
    if kind_type == FILE and newest - 2 > seq:
        kept_slot = (newest - 2) & GEN_MASK
    gone = 0.0
    for r in range(regions.shape[0]):
        region = regions[r]
        if not region.used or region.type != kind_type:
            continue
        gone += evict_region(
            params, host, memcg, region, node, slot, top, kept_slot, share, seq, cause
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
    kept_slot: int,
    share: float,
    seq: int,
    cause: int,
) -> float:
    """shrink_folio_list over one region's part of a generation.

    What is found accessed goes to the youngest generation if it is workingset, else to
    ``kept_slot``.  Returns pages gone.
    """
    clean = clean_share(region)
    gone = 0.0
    looks = 0.0
    for b in range(N_BINS):
        pages = region.resident[b, node, slot] * share
        if pages <= 0.0:
            continue
        flag = workingset_share(region, b)
        hot = pages * region.accessed[b]
        cold = (pages - hot) * clean
        # Scanning clears the accessed bits it finds; a bin has one mark per node, so it moves by
        # the share of the bin that stays with its bits cleared.
        part = hot / on_node(region, b, node)
        region.mark[b, node] += (region.touched[b] - region.mark[b, node]) * part
        if region.kind == Kind.FILE_READ:
            again, kept = 0.0, pages - cold
            target = (seq + 1) & GEN_MASK  # sort_folio: on to the next generation, no further
        else:
            again = hot * flag  # FOLIOREF_ACTIVATE
            kept = pages - again - cold  # FOLIOREF_KEEP, and dirty
            target = kept_slot
            looks += hot
            if region.type == ANON:
                note_accessed(region, b, hot * (1.0 - known_share(region, b)), 0.0)
        region.fresh[b, node, slot] *= 1.0 - share
        region.resident[b, node, slot] -= pages
        region.resident[b, node, top] += again
        region.resident[b, node, target] += kept
        memcg.gen[node, region.type, slot] -= pages
        memcg.gen[node, region.type, top] += again
        memcg.gen[node, region.type, target] += kept
        if cold > 0.0:
            leave_node(params, host, memcg, region, b, node, cold, cold * flag, seq, cause)
            gone += cold
    if looks > 0.0:
        lru_gen_look_around(memcg, region, node, looks)
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
    flagged: float,
    seq: int,
    cause: int,
) -> None:
    """Cold pages leave: demoted where that is possible, else swapped out or dropped.

    ``pages``, ``flagged`` of them workingset, are taken from the bin's generations already.
    """
    host.node_free[node] += pages
    memcg.node[node] -= pages
    if can_demote(host, node):
        host.node_free[SLOW] -= pages
        memcg.node[SLOW] += pages
        low = INACTIVE if host.lru == Lru.CLASSIC else memcg.min_seq[SLOW, region.type] & GEN_MASK
        region.resident[b, SLOW, low] += pages
        memcg.gen[SLOW, region.type, low] += pages
        memcg.pgdemote += pages
        charge_reclaim_cpu(host, memcg, pages * params.migrate_us, cause)
        return
    plain = on_node(region, b, FAST) + on_node(region, b, SLOW) + pages - region.workingset[b]
    if plain > 0.0:
        region.referenced[b] *= max(0.0, 1.0 - (pages - flagged) / plain)
    region.workingset[b] -= flagged
    region.resident_pages -= pages
    workingset_eviction(region, b, seq, pages, flagged)
    memcg.evicted[region.type] += pages
    memcg.usage -= pages
    if region.type == FILE:
        memcg.file -= pages
        return
    memcg.anon -= pages
    cpu_us, written_us = swap_out(params, host, memcg, pages)
    charge_reclaim_cpu(host, memcg, cpu_us, cause)
    if cause == DIRECT:
        memcg.reclaim_us += written_us


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
            memcg.young[node] = 1  # lru_gen_rotate_memcg, by whomever it was aged
            if cause == KSWAPD:
                break
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
        and memcg.gen[node, kind_type, memcg.min_seq[node, kind_type] & GEN_MASK] < EMPTY_PAGES
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
    """get_scan_count and shrink_list: share out by size and cost, scan both lists alike."""
    room = want if can_demote(host, node) else swap_room(host, memcg)
    calls = max(want / SWAP_CLUSTER_MAX, 1.0)
    anon_share = classic_anon_share(host, memcg, node, room > EMPTY_PAGES, calls)
    gone = 0.0
    scanned = 0.0
    for kind_type in range(N_TYPES):
        target = want * anon_share
        if kind_type == ANON:
            target = min(target, room)
        else:
            target = want - gone
        # prepare_scan_control: each call may deactivate if anything was activated since the last
        refaulting = 1.0 - math.exp(-memcg.activated[kind_type] / calls)
        memcg.activated[kind_type] = 0.0
        for _ in range(6):
            if target < EMPTY_PAGES:
                break
            before = list_pages(memcg, node, kind_type, INACTIVE)
            taken, seen = shrink_inactive_list(
                params, host, memcg, regions, node, kind_type, target, cause
            )
            moved = active_to_scan(memcg, node, kind_type, before, seen, refaulting, target)
            shrink_active_list(memcg, regions, node, kind_type, moved)
            gone += taken
            scanned += seen + moved
            target -= taken
            if seen + moved <= 0.0:
                break
    age_shadows(host, memcg, regions)
    account_scan(params, host, memcg, scanned, gone, cause)
    return gone


@compiled
def list_pages(memcg: Rec, node: int, kind_type: int, which: int) -> float:
    """Pages of the active or the inactive list, referenced or not."""
    return float(memcg.gen[node, kind_type, which] + memcg.gen[node, kind_type, which + REFERENCED])


@compiled
def classic_anon_share(host: Rec, memcg: Rec, node: int, may_anon: bool, calls: float) -> float:
    """mm/vmscan.c get_scan_count, SCAN_FRACT: the share of scanning that goes to anon.

    Args:
        host, memcg, node: Whose lists.
        may_anon: There is room in swap.
        calls: Calls of 32 pages this reclaim stands for.
    """
    if not may_anon or host.swappiness <= 0.0:
        return 0.0
    anon_pages = of_type(memcg, node, ANON)
    file_pages = of_type(memcg, node, FILE)
    if file_pages < EMPTY_PAGES:
        return 1.0
    anon_cost = memcg.cost[ANON]
    file_cost = memcg.cost[FILE]
    total = anon_cost + file_cost
    anon_cost = total + anon_cost
    file_cost = total + file_cost
    total = anon_cost + file_cost
    anon = anon_pages * host.swappiness * (total + 1.0) / (anon_cost + 1.0)
    file = file_pages * (MAX_SWAPPINESS - host.swappiness) * (total + 1.0) / (file_cost + 1.0)
    share = float(anon / (anon + file))
    plenty = list_pages(memcg, node, FILE, INACTIVE) >= SWAP_CLUSTER_MAX
    if plenty and not inactive_is_low(memcg, node, FILE):
        # cache_trim_mode: only file, in calls since whose last no file page was activated
        share *= 1.0 - math.exp(-memcg.activated[FILE] / calls)
    return share


@compiled
def inactive_ratio(memcg: Rec, node: int, kind_type: int) -> float:
    """mm/vmscan.c inactive_is_low: the ratio is 1 below a GiB, else int_sqrt(10 * GiB)."""
    gib = math.floor(of_type(memcg, node, kind_type) / 262_144.0)
    return math.floor(math.sqrt(10.0 * gib)) if gib >= 1.0 else 1.0


@compiled
def inactive_is_low(memcg: Rec, node: int, kind_type: int) -> bool:
    """The inactive list is short of its share."""
    inactive = list_pages(memcg, node, kind_type, INACTIVE)
    active = list_pages(memcg, node, kind_type, ACTIVE)
    return bool(inactive * inactive_ratio(memcg, node, kind_type) < active)


@compiled
def active_to_scan(
    memcg: Rec,
    node: int,
    kind_type: int,
    inactive_before: float,
    seen: float,
    refaulting: float,
    want: float,
) -> float:
    """Pages of the active list to deactivate while ``seen`` inactive ones were scanned.

    Both lists are scanned by the same share of their size, the active one only while pages are
    activated by refaults, or until the inactive list has its ratio; an anonymous list short of it
    gives 32 more with every call.
    """
    active = list_pages(memcg, node, kind_type, ACTIVE)
    inactive = list_pages(memcg, node, kind_type, INACTIVE)
    alike = active * min(seen / max(inactive_before, 1.0), 1.0)
    pages = refaulting * alike
    ratio = inactive_ratio(memcg, node, kind_type)
    short = (active - inactive * ratio) / (1.0 + ratio)
    if short > 0.0:
        extra = want if kind_type == ANON or seen <= 0.0 else 0.0
        pages = max(pages, min(short, alike + max(extra, SWAP_CLUSTER_MAX)))
    return float(min(pages, active))


@compiled
def shrink_active_list(memcg: Rec, regions: Rec, node: int, kind_type: int, pages: float) -> None:
    """Move pages from the active list's tail to inactive, accessed or not, the bits cleared."""
    active = list_pages(memcg, node, kind_type, ACTIVE)
    if active < EMPTY_PAGES or pages <= 0.0:
        return
    share = min(1.0, pages / active)
    for r in range(regions.shape[0]):
        region = regions[r]
        if not region.used or region.type != kind_type:
            continue
        for b in range(N_BINS):
            deactivate_bin(memcg, region, b, node, share)


@compiled
def deactivate_bin(memcg: Rec, region: Rec, b: int, node: int, share: float) -> None:
    """One bin's part of shrink_active_list; what is deactivated becomes workingset."""
    first = region.resident[b, node, ACTIVE] * share
    known = region.resident[b, node, ACTIVE + REFERENCED] * share
    moved = first + known
    if moved <= 0.0:
        return
    move_between(memcg, region, b, node, ACTIVE + REFERENCED, INACTIVE + REFERENCED, known)
    if region.kind == Kind.FILE_READ:
        # folio_mark_accessed sets the flag on an active page at once; the lists learn it here
        marked = first * accessed_share(region, b, node)
        move_between(memcg, region, b, node, ACTIVE, INACTIVE + REFERENCED, marked)
        first -= marked
    move_between(memcg, region, b, node, ACTIVE, INACTIVE, first)
    clear_bits(region, b, node, moved)
    resident = on_node(region, b, node)
    room = max(0.0, resident - region.workingset[b])
    region.workingset[b] += moved * room / resident


@compiled
def move_between(
    memcg: Rec, region: Rec, b: int, node: int, source: int, target: int, pages: float
) -> None:
    """Move pages of a bin from one list to another, and the lruvec's counts with them."""
    region.resident[b, node, source] -= pages
    region.resident[b, node, target] += pages
    memcg.gen[node, region.type, source] -= pages
    memcg.gen[node, region.type, target] += pages


@compiled
def clear_bits(region: Rec, b: int, node: int, pages: float) -> None:
    """Pages join the inactive list with their accessed bits clear: its mean mark moves on."""
    listed = (
        region.resident[b, node, INACTIVE]
        + region.resident[b, node, INACTIVE + REFERENCED]
        - region.fresh[b, node, INACTIVE]
    )
    part = min(pages / listed, 1.0) if listed > 0.0 else 1.0
    region.mark[b, node] += (region.touched[b] - region.mark[b, node]) * part


@compiled
def cold_shares(region: Rec, b: int, node: int) -> tuple[float, float]:
    """Share of a bin's inactive pages, unreferenced and referenced, that a scan finds to evict."""
    accessed = accessed_share(region, b, node)
    if region.kind == Kind.FILE_READ:
        # No page table points here: the second access activates, and reclaim sees the rest.
        touches = max(region.touched[b] - region.mark[b, node], 0.0)
        twice = 0.0 if accessed >= 1.0 else touches * math.exp(-touches)
        return 1.0 - accessed + twice, 1.0 - accessed
    plain = region.resident[b, node, INACTIVE]
    fresh = min(region.fresh[b, node, INACTIVE] / plain, 1.0) if plain > 0.0 else 0.0
    return (1.0 - fresh) * (1.0 - accessed), 1.0 - accessed


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
    """Scan the inactive tail until ``want`` pages are gone; returns pages gone and scanned."""
    inactive = list_pages(memcg, node, kind_type, INACTIVE)
    if inactive < EMPTY_PAGES:
        return 0.0, 0.0
    cold = 0.0
    for r in range(regions.shape[0]):
        region = regions[r]
        if not region.used or region.type != kind_type:
            continue
        clean = clean_share(region)
        for b in range(N_BINS):
            plain, known = cold_shares(region, b, node)
            cold += clean * plain * region.resident[b, node, INACTIVE]
            cold += clean * known * region.resident[b, node, INACTIVE + REFERENCED]
    share = want / cold if cold > want else 1.0
    gone = 0.0
    for r in range(regions.shape[0]):
        region = regions[r]
        if region.used and region.type == kind_type:
            clean = clean_share(region)
            for b in range(N_BINS):
                gone += scan_bin(params, host, memcg, region, b, node, share, clean, cause)
    seen = inactive * share
    lru_note_cost(memcg, kind_type, gone if kind_type == ANON else 0.0, max(seen - gone, 0.0))
    return gone, seen


@compiled
def scan_bin(
    params: Rec,
    host: Rec,
    memcg: Rec,
    region: Rec,
    b: int,
    node: int,
    share: float,
    clean: float,
    cause: int,
) -> float:
    """folio_check_references over one bin's part of the inactive list; returns pages gone.

    The first look that finds the accessed bit sets PG_referenced and rotates the page, the second
    activates it.  Dirty pages are activated until the flusher has been there.
    """
    plain = region.resident[b, node, INACTIVE] * share
    known = region.resident[b, node, INACTIVE + REFERENCED] * share
    if plain + known <= 0.0:
        return 0.0
    plain_cold, known_cold = cold_shares(region, b, node)
    unused = plain * plain_cold + known * known_cold
    dirty = unused * (1.0 - clean)
    used = known * (1.0 - known_cold)
    looked = plain * (1.0 - plain_cold)
    region.fresh[b, node, INACTIVE] *= 1.0 - share
    move_between(memcg, region, b, node, INACTIVE, ACTIVE, plain * plain_cold * (1.0 - clean))
    move_between(
        memcg, region, b, node, INACTIVE + REFERENCED, ACTIVE, known * known_cold * (1.0 - clean)
    )
    if region.kind == Kind.FILE_READ:  # activation clears PG_referenced (folio_mark_accessed)
        move_between(memcg, region, b, node, INACTIVE + REFERENCED, ACTIVE, used)
        move_between(memcg, region, b, node, INACTIVE, ACTIVE, looked)
        memcg.aged += looked
    else:
        above = ACTIVE + REFERENCED
        move_between(memcg, region, b, node, INACTIVE + REFERENCED, above, used)
        move_between(memcg, region, b, node, INACTIVE, INACTIVE + REFERENCED, looked)
        clear_bits(region, b, node, looked)
    memcg.aged += used + dirty
    gone = unused - dirty
    if gone <= 0.0:
        return 0.0
    for which in (INACTIVE, INACTIVE + REFERENCED):
        part = plain * plain_cold if which == INACTIVE else known * known_cold
        region.resident[b, node, which] -= part * clean
        memcg.gen[node, region.type, which] -= part * clean
    memcg.aged += gone
    seq = memcg.min_seq[FAST, region.type]
    flagged = gone * min(
        region.workingset[b] / (on_node(region, b, FAST) + on_node(region, b, SLOW) + gone), 1.0
    )
    leave_node(params, host, memcg, region, b, node, gone, flagged, seq, cause)
    return gone


@compiled
def lru_note_cost(memcg: Rec, kind_type: int, io_pages: float, rotated: float) -> None:
    """mm/swap.c lru_note_cost: what a type's reclaim costs, forgotten by halves."""
    memcg.cost[kind_type] += io_pages * SWAP_CLUSTER_MAX + rotated
    limit = 0.25 * (memcg.node[FAST] + memcg.node[SLOW])
    total = memcg.cost[ANON] + memcg.cost[FILE]
    if total > limit:
        memcg.cost[ANON] *= 0.5 * limit / total
        memcg.cost[FILE] *= 0.5 * limit / total


@compiled
def age_shadows(host: Rec, memcg: Rec, regions: Rec) -> None:
    """Move the shadows' clock on by what was evicted and activated (nonresident_age).

    A refault is recent within the size of the lists it could have competed with
    (workingset_test_recent); the shadows' slots are a third of that wide, see
    ``workingset_refault``.
    """
    aged = memcg.aged
    memcg.aged = 0.0
    if aged <= 0.0:
        return
    active_anon = active_file = anon_pages = file_pages = 0.0
    for node in range(host.n_nodes):
        active_anon += list_pages(memcg, node, ANON, ACTIVE)
        active_file += list_pages(memcg, node, FILE, ACTIVE)
        anon_pages += of_type(memcg, node, ANON)
        file_pages += of_type(memcg, node, FILE)
    swaps = host.swappiness > 0.0 and swap_room(host, memcg) > 0.0
    age_type(memcg, regions, ANON, aged, file_pages + active_anon)
    age_type(memcg, regions, FILE, aged, active_file + (anon_pages if swaps else 0.0))


@compiled
def age_type(memcg: Rec, regions: Rec, kind_type: int, aged: float, reach: float) -> None:
    """Advance one type's clock, in slots of a third of the distance that counts as recent."""
    memcg.scan_clock[FAST, kind_type] += min(aged / max(reach / 3.0, 1.0), 4.0)
    while memcg.scan_clock[FAST, kind_type] >= 1.0:
        memcg.scan_clock[FAST, kind_type] -= 1.0
        memcg.min_seq[FAST, kind_type] += 1
        for r in range(regions.shape[0]):
            if regions[r].used and regions[r].type == kind_type:
                forget_generation(regions[r], memcg.min_seq[FAST, kind_type])


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
        visits = KSWAPD_STOPS
        for _ in range(KSWAPD_STOPS + 2 * host.n_memcgs):
            if visits <= 0 or want - gone < EMPTY_PAGES:
                break
            weight = total_scannable(host, memcgs, node, override_low)
            if weight < EMPTY_PAGES:
                if not next_round(host, memcgs, node):
                    break
                continue
            i = next_stop(host, memcgs, node, override_low, weight)
            memcg = memcgs[i]
            part = min(want / KSWAPD_STOPS, want - gone)
            taken = shrink_lruvec(params, host, memcg, regions[i], node, part, cause)
            gone += taken
            if taken > 0.0 or not memcg.young[node]:
                visits -= 1
            if override_low and memcg.limit_low > 0.0 and taken > 0.0:
                memcg.events_low += 1.0
        if gone >= 0.25 * want:
            break
    return gone


@compiled
def total_scannable(host: Rec, memcgs: Rec, node: int, override_low: int) -> float:
    """Scannable pages of all cgroups that are due."""
    weight = 0.0
    for i in range(host.n_memcgs):
        weight += scannable(host, memcgs[i], node, override_low)
    return weight


@compiled
def next_round(host: Rec, memcgs: Rec, node: int) -> bool:
    """All have been aged: they are due again; False where nobody had been."""
    found = False
    for i in range(host.n_memcgs):
        if memcgs[i].young[node]:
            memcgs[i].young[node] = 0
            found = True
    return found


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
    if not memcg.used or memcg.young[node]:
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
