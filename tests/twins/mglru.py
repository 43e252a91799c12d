"""The multi-generational LRU, page by page, as Linux 7.3 has it under a cgroup's limit.

Names and order of work follow ``mm/vmscan.c``, ``mm/workingset.c``, ``mm/swap.c`` and
``include/linux/mm_inline.h``.  What is easily remembered wrong, and is done here as the source
does it:

* A fault puts an anonymous page into the *second youngest* generation, a file page into the
  second *oldest*; only a page whose workingset flag is restored from its shadow enters the
  youngest (``lru_gen_folio_seq``).  A page brought in by read() enters the oldest.
* A faulted page carries ``PG_referenced`` from the start (``folio_mark_accessed`` instead of
  ``folio_set_active``, new since 6.18): the first walk that finds it accessed makes it workingset
  and promotes it (``folio_update_gen``).  The eviction keeps a page it finds accessed, and
  promotes it when it has found it so before, or when it is workingset.
* A workingset page is in tier 3, anonymous or not, and ``get_tier_idx`` protects a tier that
  refaults more than tier 0: such a page moves to the next generation unaccessed (``sort_folio``).
* A limit's reclaim isolates up to 64 pages at a time, although it asks for 32, and ages at three
  generations as soon as one such scan was not enough (priority below 12).
* The page-table walk skips page-table pages that were sparse in accessed entries last time
  (Bloom filters, kept exactly here), and eviction looks around 64 neighbours
  (``lru_gen_look_around``).

What it does not know: see ``pages``; also one process only, each page mapped once, anonymous pages
always written to (so that swap-in frees their slot), no readahead, no proactive reclaim.

Units: pages of 4 KiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .pages import (
    ANON,
    DEF_PRIORITY,
    FILE,
    KIND_READ,
    MAX_RECLAIM_RETRIES,
    NO_SHADOW,
    NOT_RESIDENT,
    SWAP_CLUSTER_MAX,
    TwinResult,
    compiled,
    drive,
    list_add,
    list_add_tail,
    list_del,
    page_type,
)
from .touches import TwinRegion

MIN_NR_GENS, MAX_NR_GENS = 2, 4  # include/linux/mmzone.h
MAX_NR_TIERS = 4
LRU_REFS_MAX = 3  # LRU_REFS_WIDTH is 2 bits
MIN_LRU_BATCH = 64  # BITS_PER_LONG
MAX_LRU_BATCH = 64 * MIN_LRU_BATCH
MAX_SWAPPINESS = 200
DEFAULT_SWAPPINESS = 60
YOUNG_PER_CACHELINE = 8  # page table entries in a cache line, suitable_to_scan()
N_LISTS = MAX_NR_GENS * 2

REFAULTED, EVICTED, PROTECTED, AVG_REFAULTED, AVG_TOTAL = 0, 1, 2, 3, 4  # rows of ctrl

LRUVEC = np.dtype(
    [
        ("n_pages", np.int32),  # records before the list sentinels
        ("max_seq", np.int64),
        ("min_seq", np.int64, (2,)),
        ("walk_seq", np.int64),  # of the next page-table walk, for the filters
        ("filter_valid", np.uint8, (2,)),
        ("resident", np.int64),
        ("nr_pages", np.int64, (MAX_NR_GENS, 2)),  # by generation and type
        ("ctrl", np.int64, (5, 2, MAX_NR_TIERS)),  # the controller's counts, by type and tier
        ("swappiness", np.int64),
        ("isolated", np.int32, (MIN_LRU_BATCH,)),
    ],
    align=True,
)


@compiled
def head_of(lru: Any, gen: int, kind: int) -> int:
    """Sentinel of a generation's list."""
    return int(lru.n_pages + gen * 2 + kind)


@compiled
def nr_gens(lru: Any, kind: int) -> int:
    return int(lru.max_seq - lru.min_seq[kind] + 1)


@compiled
def evictable_min_seq(lru: Any) -> int:
    """Oldest generation among the types that swappiness lets go."""
    if lru.swappiness == 0:
        return int(lru.min_seq[FILE])
    return int(min(lru.min_seq[ANON], lru.min_seq[FILE]))


@compiled
def folio_lru_refs(pages: Any, page: int) -> int:
    return int(pages[page].refs + 1) if pages[page].referenced else 0


@compiled
def lru_tier_from_refs(refs: int, workingset: bool) -> int:
    """``order_base_2(refs)``, or the last tier for a workingset page."""
    if workingset:
        return MAX_NR_TIERS - 1
    if refs <= 1:
        return 0
    return 1 if refs == 2 else 2


@compiled
def move_to_gen(pages: Any, lru: Any, page: int, gen: int, to_tail: bool) -> None:
    """Move a listed page to another generation's list, and its count with it."""
    kind = page_type(pages, page)
    lru.nr_pages[pages[page].list_id, kind] -= 1
    lru.nr_pages[gen, kind] += 1
    pages[page].list_id = gen
    list_del(pages, page)
    if to_tail:
        list_add_tail(pages, head_of(lru, gen, kind), page)
    else:
        list_add(pages, head_of(lru, gen, kind), page)


@compiled
def lru_gen_add_folio(pages: Any, lru: Any, page: int, active: bool) -> None:
    """Put an unlisted page on the list that lru_gen_folio_seq() says."""
    kind = page_type(pages, page)
    workingset = 1 if pages[page].workingset else 0
    if active:
        age = MIN_NR_GENS - workingset
    elif kind == ANON:
        age = MIN_NR_GENS
    elif pages[page].kind == KIND_READ:
        age = MAX_NR_GENS - workingset
    else:
        age = MAX_NR_GENS - 1
    gen = max(lru.max_seq - age + 1, lru.min_seq[kind]) % MAX_NR_GENS
    pages[page].list_id = gen
    lru.nr_pages[gen, kind] += 1
    list_add(pages, head_of(lru, gen, kind), page)


@compiled
def lru_gen_set_refs(pages: Any, page: int) -> bool:
    """Note one look that found the accessed bit; true from the second look on."""
    if not pages[page].referenced and not pages[page].workingset:
        pages[page].referenced = True
        pages[page].refs = 0
        return False
    pages[page].referenced = False
    pages[page].refs = 0
    pages[page].workingset = True
    return True


@compiled
def folio_check_references(pages: Any, page: int) -> bool:
    """A look by the eviction that found the accessed bit; true if it was not the first."""
    if pages[page].workingset or folio_lru_refs(pages, page) > 1:
        pages[page].referenced = False
        pages[page].refs = 0
        pages[page].workingset = True
        return True
    lru_gen_inc_refs(pages, page)
    return False


@compiled
def lru_gen_inc_refs(pages: Any, page: int) -> None:
    """folio_mark_accessed(): an access through a file descriptor."""
    if not pages[page].referenced:
        pages[page].referenced = True
        pages[page].refs = 0
    elif pages[page].refs == LRU_REFS_MAX:
        pages[page].workingset = True
    else:
        pages[page].refs += 1


# ---- the controller --------------------------------------------------------------------------


@compiled
def positive_ctrl_err(
    lru: Any, sp_kind: int, sp_tier: int, sp_gain: int, pv_kind: int, pv_tier: int, pv_gain: int
) -> bool:
    """Whether the second position refaults little, or less than the first; tier 4 means all."""
    sp_refaulted = sp_total = pv_refaulted = pv_total = 0
    for tier in range(MAX_NR_TIERS):
        if sp_tier in (tier, MAX_NR_TIERS):
            sp_refaulted += lru.ctrl[AVG_REFAULTED, sp_kind, tier]
            sp_refaulted += lru.ctrl[REFAULTED, sp_kind, tier]
            sp_total += lru.ctrl[AVG_TOTAL, sp_kind, tier] + lru.ctrl[PROTECTED, sp_kind, tier]
            sp_total += lru.ctrl[EVICTED, sp_kind, tier]
        if pv_tier in (tier, MAX_NR_TIERS):
            pv_refaulted += lru.ctrl[AVG_REFAULTED, pv_kind, tier]
            pv_refaulted += lru.ctrl[REFAULTED, pv_kind, tier]
            pv_total += lru.ctrl[AVG_TOTAL, pv_kind, tier] + lru.ctrl[PROTECTED, pv_kind, tier]
            pv_total += lru.ctrl[EVICTED, pv_kind, tier]
    few = pv_refaulted < MIN_LRU_BATCH
    left = pv_refaulted * (sp_total + MIN_LRU_BATCH) * sp_gain
    return bool(few or left <= (sp_refaulted + 1) * pv_total * pv_gain)


@compiled
def reset_ctrl_pos(lru: Any, kind: int) -> None:
    """Fold the finished generation's counts into the averages, smoothing factor one half."""
    for tier in range(MAX_NR_TIERS):
        refaulted = lru.ctrl[AVG_REFAULTED, kind, tier] + lru.ctrl[REFAULTED, kind, tier]
        total = lru.ctrl[AVG_TOTAL, kind, tier] + lru.ctrl[PROTECTED, kind, tier]
        total += lru.ctrl[EVICTED, kind, tier]
        lru.ctrl[AVG_REFAULTED, kind, tier] = refaulted // 2
        lru.ctrl[AVG_TOTAL, kind, tier] = total // 2
        lru.ctrl[REFAULTED, kind, tier] = 0
        lru.ctrl[EVICTED, kind, tier] = 0
        lru.ctrl[PROTECTED, kind, tier] = 0


@compiled
def get_tier_idx(lru: Any, kind: int) -> int:
    """Last tier that is not protected; gains 2:3."""
    for tier in range(1, MAX_NR_TIERS):
        if not positive_ctrl_err(lru, kind, 0, 2, kind, tier, 3):
            return tier - 1
    return MAX_NR_TIERS - 1


@compiled
def get_type_to_scan(lru: Any) -> int:
    if lru.swappiness <= 1:
        return FILE
    if lru.swappiness >= MAX_SWAPPINESS:
        return ANON
    gain = MAX_SWAPPINESS - lru.swappiness
    all_tiers = MAX_NR_TIERS
    if positive_ctrl_err(lru, ANON, all_tiers, lru.swappiness, FILE, all_tiers, gain):
        return FILE
    return ANON


# ---- the aging -------------------------------------------------------------------------------


@compiled
def walk_pte_range(pages: Any, lru: Any, first: int, end: int) -> bool:
    """Clear the accessed bits under one PMD entry; true if they were dense enough to come back."""
    young = 0
    gen = lru.max_seq % MAX_NR_GENS
    for page in range(first, end):
        if pages[page].list_id == NOT_RESIDENT or not pages[page].accessed:
            continue
        pages[page].accessed = False
        young += 1
        if lru_gen_set_refs(pages, page) and pages[page].list_id != gen:
            # The page stays where it is listed until sort_folio() finds it.
            kind = page_type(pages, page)
            lru.nr_pages[pages[page].list_id, kind] -= 1
            lru.nr_pages[gen, kind] += 1
            pages[page].list_id = gen
    return young * YOUNG_PER_CACHELINE >= end - first


@compiled
def walk_mm(pages: Any, pmds: Any, lru: Any) -> None:
    """Walk the page tables, but for entries not accessed or sparse at the last walk."""
    use = lru.max_seq % 2
    fill = (lru.max_seq + 1) % 2
    for index in range(pmds.size):
        pmds[index].in_filter[fill] = 0
    for index in range(pmds.size):
        if not pmds[index].mapped or not pmds[index].young:
            continue
        pmds[index].young = False
        if lru.filter_valid[use] and not pmds[index].in_filter[use]:
            continue
        if walk_pte_range(pages, lru, pmds[index].first, pmds[index].end):
            pmds[index].in_filter[fill] = 1
    lru.filter_valid[fill] = 1


@compiled
def inc_min_seq(pages: Any, lru: Any, kind: int) -> None:
    """Merge the oldest generation into the next, to make room for a new one."""
    old_gen = lru.min_seq[kind] % MAX_NR_GENS
    head = head_of(lru, old_gen, kind)
    while not (kind == ANON and lru.swappiness == 0) and pages[head].prev != head:
        page = pages[head].prev
        note_protected(pages, lru, page, kind)
        if pages[page].list_id != old_gen:  # promoted by a walk
            list_del(pages, page)
            list_add_tail(pages, head_of(lru, pages[page].list_id, kind), page)
            continue
        pages[page].referenced = False
        pages[page].refs = 0
        move_to_gen(pages, lru, page, (old_gen + 1) % MAX_NR_GENS, True)
    reset_ctrl_pos(lru, kind)
    lru.min_seq[kind] += 1


@compiled
def note_protected(pages: Any, lru: Any, page: int, kind: int) -> None:
    """Count a page that moves on for its tier, unless it is lazily promoted workingset."""
    refs = folio_lru_refs(pages, page)
    workingset = pages[page].workingset
    if not (workingset and refs == LRU_REFS_MAX + 1):
        lru.ctrl[PROTECTED, kind, lru_tier_from_refs(refs, workingset)] += 1


@compiled
def try_to_inc_min_seq(pages: Any, lru: Any) -> bool:
    """Retire empty oldest generations, keeping the two types within reach; true if any went."""
    success = False
    anon_seq, file_seq = lru.min_seq[ANON], lru.min_seq[FILE]
    while lru.swappiness > 0 and anon_seq + MIN_NR_GENS <= lru.max_seq:
        head = head_of(lru, anon_seq % MAX_NR_GENS, ANON)
        if pages[head].next != head:
            break
        anon_seq += 1
    while file_seq + MIN_NR_GENS <= lru.max_seq:
        head = head_of(lru, file_seq % MAX_NR_GENS, FILE)
        if pages[head].next != head:
            break
        file_seq += 1
    if lru.swappiness > 0:
        seq = lru.max_seq - MIN_NR_GENS
        if anon_seq > seq and file_seq < seq:
            anon_seq = seq
        elif file_seq > seq and anon_seq < seq:
            file_seq = seq
        if anon_seq > lru.min_seq[ANON]:
            reset_ctrl_pos(lru, ANON)
            lru.min_seq[ANON] = anon_seq
            success = True
    if file_seq > lru.min_seq[FILE]:
        reset_ctrl_pos(lru, FILE)
        lru.min_seq[FILE] = file_seq
        success = True
    return success


@compiled
def try_to_inc_max_seq(pages: Any, pmds: Any, lru: Any, counters: Any) -> None:
    """Walk the page tables, then open a new youngest generation."""
    walk_mm(pages, pmds, lru)
    for kind in range(2):
        if nr_gens(lru, kind) == MAX_NR_GENS:
            inc_min_seq(pages, lru, kind)
    lru.max_seq += 1
    counters.agings += 1


# ---- the eviction ----------------------------------------------------------------------------


@compiled
def lru_gen_look_around(pages: Any, pmds: Any, lru: Any, page: int) -> bool:
    """Test and clear the accessed bit of a page and, if it was set, of its neighbours."""
    if not pages[page].accessed:
        return False
    pages[page].accessed = False
    pmd = pages[page].pmd
    first, end = pmds[pmd].first, pmds[pmd].end
    if end - first > MIN_LRU_BATCH:
        if page - first < MIN_LRU_BATCH // 2:
            end = first + MIN_LRU_BATCH
        elif end - page < MIN_LRU_BATCH // 2:
            first = end - MIN_LRU_BATCH
        else:
            first, end = page - MIN_LRU_BATCH // 2, page + MIN_LRU_BATCH // 2
    young = 1
    max_gen = lru.max_seq % MAX_NR_GENS
    for near in range(first, end):
        if pages[near].list_id == NOT_RESIDENT or not pages[near].accessed:
            continue
        pages[near].accessed = False
        young += 1
        if lru_gen_set_refs(pages, near) and pages[near].list_id != max_gen:
            move_to_gen(pages, lru, near, max_gen, False)  # folio_activate()
    if young * YOUNG_PER_CACHELINE >= end - first and lru.filter_valid[lru.max_seq % 2]:
        pmds[pmd].in_filter[lru.max_seq % 2] = 1
    return True


@compiled
def sort_folio(pages: Any, lru: Any, page: int, kind: int, tier_idx: int) -> bool:
    """Move on a page that a walk promoted or its tier protects; false if it may be evicted."""
    old_gen = lru.min_seq[kind] % MAX_NR_GENS
    if pages[page].list_id != old_gen:
        list_del(pages, page)
        list_add(pages, head_of(lru, pages[page].list_id, kind), page)
        return True
    refs = folio_lru_refs(pages, page)
    workingset = pages[page].workingset
    lazily_promoted = workingset and refs == LRU_REFS_MAX + 1
    if lru_tier_from_refs(refs, workingset) > tier_idx or lazily_promoted:
        note_protected(pages, lru, page, kind)
        pages[page].referenced = False
        pages[page].refs = 0
        move_to_gen(pages, lru, page, (old_gen + 1) % MAX_NR_GENS, False)
        return True
    return False


@compiled
def scan_folios(pages: Any, lru: Any, kind: int, counters: Any) -> tuple[int, int]:
    """Isolate up to 64 pages from the tail of the oldest generation: (scanned, isolated)."""
    if nr_gens(lru, kind) == MIN_NR_GENS:
        return 0, 0
    tier_idx = get_tier_idx(lru, kind)
    head = head_of(lru, lru.min_seq[kind] % MAX_NR_GENS, kind)
    scanned = isolated = 0
    while pages[head].prev != head and scanned < MAX_LRU_BATCH and isolated < MIN_LRU_BATCH:
        page = pages[head].prev
        scanned += 1
        if not sort_folio(pages, lru, page, kind, tier_idx):
            if not pages[page].referenced:
                pages[page].refs = 0
            lru.nr_pages[pages[page].list_id, kind] -= 1
            pages[page].list_id = NOT_RESIDENT
            list_del(pages, page)
            lru.isolated[isolated] = page
            isolated += 1
    counters.pgscan += isolated
    if isolated > 0 or scanned == MAX_LRU_BATCH:
        return scanned, isolated
    return 0, 0


@compiled
def shrink_folio_list(pages: Any, pmds: Any, lru: Any, kind: int, isolated: int) -> int:
    """Evict the isolated pages, but for those found accessed; returns how many went."""
    reclaimed = 0
    for index in range(isolated):
        page = lru.isolated[index]
        if pages[page].kind != KIND_READ and lru_gen_look_around(pages, pmds, lru, page):
            active = folio_check_references(pages, page)
            if not active and kind == FILE and lru.min_seq[FILE] == lru.max_seq - MIN_NR_GENS:
                # A rejected file page would return to the oldest generation; it is made active
                # instead and its first look forgotten.
                pages[page].referenced = False
                active = True
            lru_gen_add_folio(pages, lru, page, active)
            continue
        workingset = pages[page].workingset
        refs = folio_lru_refs(pages, page)
        pages[page].shadow = lru.min_seq[kind]
        pages[page].shadow_refs = max(refs - 1, 0)
        pages[page].shadow_workingset = workingset
        lru.ctrl[EVICTED, kind, lru_tier_from_refs(refs, workingset)] += 1
        pages[page].referenced = False
        pages[page].refs = 0
        pages[page].workingset = False
        pages[page].accessed = False
        lru.resident -= 1
        reclaimed += 1
    return reclaimed


@compiled
def evict_folios(pages: Any, pmds: Any, lru: Any, counters: Any) -> tuple[int, int]:
    """One scan of one type, the other if that gave nothing: (scanned, reclaimed)."""
    kind = get_type_to_scan(lru)
    scanned, isolated = scan_folios(pages, lru, kind, counters)
    if scanned == 0 and lru.swappiness > 0:
        kind = 1 - kind
        scanned, isolated = scan_folios(pages, lru, kind, counters)
    if try_to_inc_min_seq(pages, lru):
        scanned += 1
    if evictable_min_seq(lru) + MIN_NR_GENS > lru.max_seq:
        scanned = 0
    reclaimed = shrink_folio_list(pages, pmds, lru, kind, isolated)
    counters.pgsteal += reclaimed
    return scanned, reclaimed


@compiled
def get_nr_to_scan(pages: Any, pmds: Any, lru: Any, priority: int, counters: Any) -> int:
    """Pages to scan at this priority; when low on cold pages it ages instead and says -1."""
    gap = lru.max_seq - evictable_min_seq(lru)
    size = 0
    if gap >= MIN_NR_GENS:
        size = lru.resident
        if lru.swappiness == 0:
            size = lru.nr_pages[:, FILE].sum()
    if gap > MIN_NR_GENS or priority == DEF_PRIORITY:
        return int(size >> priority)
    try_to_inc_max_seq(pages, pmds, lru, counters)
    return -1


@compiled
def shrink_lruvec(pages: Any, pmds: Any, lru: Any, priority: int, counters: Any) -> int:
    """try_to_shrink_lruvec(): scan at one priority; returns the pages reclaimed."""
    total_scanned = total_reclaimed = 0
    while True:
        nr_to_scan = get_nr_to_scan(pages, pmds, lru, priority, counters)
        if nr_to_scan <= 0:
            break
        scanned, reclaimed = evict_folios(pages, pmds, lru, counters)
        total_reclaimed += reclaimed
        total_scanned += scanned
        if scanned == 0 or total_scanned >= nr_to_scan:
            break
    return total_reclaimed


@compiled
def try_to_free_pages(pages: Any, pmds: Any, lru: Any, counters: Any) -> int:
    """Ask for 32 pages, with rising urgency; returns the pages reclaimed."""
    reclaimed = 0
    for priority in range(DEF_PRIORITY, -1, -1):
        reclaimed += shrink_lruvec(pages, pmds, lru, priority, counters)
        if reclaimed >= SWAP_CLUSTER_MAX:
            break
    return reclaimed


@compiled
def reclaim_to(pages: Any, pmds: Any, lru: Any, target: int, counters: Any) -> None:
    """Reclaim until at most ``target`` pages are resident, or 16 tries made no progress."""
    retries = MAX_RECLAIM_RETRIES
    while lru.resident > target:
        if try_to_free_pages(pages, pmds, lru, counters) == 0:
            retries -= 1
            if retries == 0:
                counters.failures += 1
                break


# ---- the touches -----------------------------------------------------------------------------


@compiled
def lru_gen_refault(pages: Any, lru: Any, page: int, in_fault: bool, counters: Any) -> None:
    """Account a refault and give a recent workingset page its flag back.

    The shadow's reference count decides the tier that is charged.  The kernel also copies it into
    the page, where it means nothing until PG_referenced is set, which clears it.
    """
    counters.refaults += 1
    if abs(lru.max_seq - pages[page].shadow) >= MAX_NR_GENS:
        return
    workingset = pages[page].shadow_workingset
    tier = lru_tier_from_refs(pages[page].shadow_refs + 1, workingset)
    lru.ctrl[REFAULTED, page_type(pages, page), tier] += 1
    if workingset:
        pages[page].workingset = True
        counters.restores += 1
        if in_fault:
            counters.activations += 1


@compiled
def fault_in(pages: Any, pmds: Any, lru: Any, limit: int, page: int, counters: Any) -> None:
    """Charge an absent page, reclaiming first if the limit asks for it, and list it."""
    reclaim_to(pages, pmds, lru, limit - 1, counters)
    in_fault = pages[page].kind != KIND_READ
    if pages[page].shadow == NO_SHADOW:
        counters.first_touches += 1
    else:
        lru_gen_refault(pages, lru, page, in_fault, counters)
    pages[page].touched = True
    if in_fault and not pages[page].workingset:
        pages[page].referenced = True
    lru_gen_add_folio(pages, lru, page, in_fault and pages[page].workingset)
    lru.resident += 1


@compiled
def play_touches(
    pages: Any, pmds: Any, lru: Any, limit: int, touches: Any, counters: Any, region_counts: Any
) -> None:
    """Apply the limit in force, then one touch after another."""
    reclaim_to(pages, pmds, lru, limit, counters)
    for page in touches:
        region = pages[page].region
        counters.touches += 1
        region_counts[0, region] += 1
        if pages[page].list_id == NOT_RESIDENT:
            region_counts[1, region] += 1
            fault_in(pages, pmds, lru, limit, page, counters)
        if pages[page].kind == KIND_READ:
            lru_gen_inc_refs(pages, page)
        else:
            pages[page].accessed = True
            pmds[pages[page].pmd].young = True


def run_mglru(
    regions: Sequence[TwinRegion],
    limit_pages: npt.NDArray[np.integer[Any]],
    seed: int,
    n_substeps: int,
    swappiness: int = DEFAULT_SWAPPINESS,
) -> TwinResult:
    """Play a cgroup's touches against the multi-generational LRU.

    Args:
        regions: The cgroup's memory.
        limit_pages: The limit in each 100 ms sub-step, shape ``(n_substeps,)`` [pages].
        seed: Seed of the touches.
        n_substeps: Length of the run.
        swappiness: 0..200, as ``vm.swappiness``; 0 means that there is no swap.

    Raises:
        ValueError: If the limits do not fit the run, or swappiness is out of range.
    """
    if not 0 <= swappiness <= MAX_SWAPPINESS:
        raise ValueError(f"swappiness must be in 0..{MAX_SWAPPINESS}, got {swappiness}")
    state = np.zeros(1, dtype=LRUVEC)
    lru = state[0]
    lru["n_pages"] = sum(region.n_pages for region in regions)
    lru["max_seq"] = MIN_NR_GENS + 1
    lru["swappiness"] = swappiness

    def run_chunk(
        pages: Any, pmds: Any, limit: int, touches: Any, counters: Any, region_counts: Any
    ) -> None:
        play_touches(pages, pmds, lru, limit, touches, counters, region_counts)

    def count_lists(by_list: npt.NDArray[np.int64]) -> None:
        for age in range(MAX_NR_GENS):
            by_list[age] = lru["nr_pages"][(lru["max_seq"] - age) % MAX_NR_GENS].sum()

    return drive(regions, limit_pages, seed, n_substeps, N_LISTS, run_chunk, count_lists)
