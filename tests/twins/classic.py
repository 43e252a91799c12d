"""The active and inactive lists, page by page, as Linux 6.18 has them under a cgroup's limit.

Names and order of work follow ``mm/vmscan.c``, ``mm/workingset.c`` and ``mm/swap.c``:

* Every page enters the inactive list of its type, anonymous ones too, unless its refault is
  recent: then it enters the active list (``workingset_refault``).
* At the tail of the inactive list a page gets a second chance for its accessed bit and is
  activated for the second one (``folio_check_references``).  A file page that is only read()
  is activated by its second access (``folio_mark_accessed``).
* The active list is taken in order, accessed or not (``shrink_active_list``): only the inactive
  list looks.
* Anonymous and file lists share the scanning by their costs (``get_scan_count``).

What it does not know: see ``pages``; also one process only, each page mapped once, no executable
mappings, anonymous pages always dirty (each eviction costs a write), swap never full.

Units: pages of 4 KiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .mglru import DEFAULT_SWAPPINESS, MAX_SWAPPINESS
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
    list_del,
    page_type,
)
from .touches import TwinRegion

INACTIVE, ACTIVE = 0, 1  # list id = 2 * type + this
N_LISTS = 4
PAGES_PER_GB_SHIFT = 18

LRUVEC = np.dtype(
    [
        ("n_pages", np.int32),  # records before the list sentinels
        ("size", np.int64, (N_LISTS,)),
        ("resident", np.int64),
        ("nonresident_age", np.int64),
        ("cost", np.int64, (2,)),  # anon_cost and file_cost
        ("activated", np.int64, (2,)),  # WORKINGSET_ACTIVATE_*, by type
        ("activated_before", np.int64, (2,)),  # the same at the end of the last reclaim
        ("may_deactivate", np.uint8, (2,)),
        ("skipped_deactivate", np.bool_),
        ("swappiness", np.int64),
        ("to_scan", np.int64, (N_LISTS,)),
        ("targets", np.int64, (N_LISTS,)),
        ("isolated", np.int32, (SWAP_CLUSTER_MAX,)),
    ],
    align=True,
)


@compiled
def add_to_list(pages: Any, lru: Any, page: int, list_id: int) -> None:
    pages[page].list_id = list_id
    lru.size[list_id] += 1
    list_add(pages, lru.n_pages + list_id, page)


@compiled
def take_off_list(pages: Any, lru: Any, page: int) -> None:
    lru.size[pages[page].list_id] -= 1
    pages[page].list_id = NOT_RESIDENT
    list_del(pages, page)


@compiled
def inactive_is_low(lru: Any, kind: int) -> bool:
    """Whether the inactive list is short of its ratio: 1 below 1 GB, else sqrt(10 * GB)."""
    inactive, active = lru.size[2 * kind + INACTIVE], lru.size[2 * kind + ACTIVE]
    size_gb = (inactive + active) >> PAGES_PER_GB_SHIFT
    ratio = int(np.sqrt(10.0 * size_gb)) if size_gb > 0 else 1
    return bool(inactive * ratio < active)


@compiled
def lru_note_cost(lru: Any, kind: int, nr_io: int, nr_rotated: int) -> None:
    cost = nr_io * SWAP_CLUSTER_MAX + nr_rotated
    if cost == 0:
        return
    lru.cost[kind] += cost
    if lru.cost[ANON] + lru.cost[FILE] > lru.resident // 4:
        lru.cost[ANON] //= 2
        lru.cost[FILE] //= 2


# ---- scanning --------------------------------------------------------------------------------


@compiled
def shrink_active_list(pages: Any, lru: Any, nr_to_scan: int, kind: int) -> None:
    """Move pages from the tail of the active list to the inactive list, clearing accessed bits."""
    head = lru.n_pages + 2 * kind + ACTIVE
    for _ in range(nr_to_scan):
        page = pages[head].prev
        if page == head:
            break
        pages[page].accessed = False
        pages[page].workingset = True
        take_off_list(pages, lru, page)
        add_to_list(pages, lru, page, 2 * kind + INACTIVE)


@compiled
def shrink_inactive_list(pages: Any, lru: Any, nr_to_scan: int, kind: int, counters: Any) -> int:
    """Scan pages at the tail of the inactive list; returns the pages evicted."""
    head = lru.n_pages + 2 * kind + INACTIVE
    taken = 0
    while taken < nr_to_scan and pages[head].prev != head:
        lru.isolated[taken] = pages[head].prev
        take_off_list(pages, lru, lru.isolated[taken])
        taken += 1
    reclaimed = 0
    for index in range(taken):
        page = lru.isolated[index]
        if pages[page].accessed and pages[page].kind != KIND_READ:
            second_look = pages[page].referenced
            pages[page].accessed = False
            pages[page].referenced = True
            if second_look:
                add_to_list(pages, lru, page, 2 * kind + ACTIVE)
                lru.nonresident_age += 1
            else:
                add_to_list(pages, lru, page, 2 * kind + INACTIVE)
            continue
        pages[page].shadow = lru.nonresident_age
        pages[page].shadow_workingset = pages[page].workingset
        lru.nonresident_age += 1
        pages[page].referenced = False
        pages[page].workingset = False
        pages[page].accessed = False
        lru.resident -= 1
        reclaimed += 1
    counters.pgscan += taken
    counters.pgsteal += reclaimed
    lru_note_cost(lru, kind, reclaimed if kind == ANON else 0, taken - reclaimed)
    return reclaimed


@compiled
def prepare_scan_control(lru: Any, force_deactivate: bool) -> None:
    """Allow deactivation where pages were activated by refaults or the inactive list is short."""
    for kind in range(2):
        lru.may_deactivate[kind] = (
            force_deactivate
            or lru.activated[kind] != lru.activated_before[kind]
            or inactive_is_low(lru, kind)
        )


@compiled
def get_scan_count(lru: Any, priority: int) -> None:
    """Pages to scan of each list: its size by priority, shared by swappiness and cost."""
    trim_cache = lru.size[2 * FILE + INACTIVE] >> priority > 0 and not lru.may_deactivate[FILE]
    total = lru.cost[ANON] + lru.cost[FILE]
    anon_cost, file_cost = total + lru.cost[ANON], total + lru.cost[FILE]
    total = anon_cost + file_cost
    anon_share = lru.swappiness * (total + 1) // (anon_cost + 1)
    file_share = (MAX_SWAPPINESS - lru.swappiness) * (total + 1) // (file_cost + 1)
    for list_id in range(N_LISTS):
        kind = list_id // 2
        scan = lru.size[list_id] >> priority
        if lru.swappiness == 0:
            scan = scan if kind == FILE else 0
        elif priority == 0:
            pass
        elif trim_cache:
            scan = scan if kind == FILE else 0
        else:
            share = anon_share if kind == ANON else file_share
            scan = scan * share // (anon_share + file_share)
        lru.to_scan[list_id] = scan
        lru.targets[list_id] = scan


@compiled
def stop_the_smaller(lru: Any) -> bool:
    """After enough was reclaimed: drop the smaller type, scale the other; true if all is done."""
    nr_file = lru.to_scan[2] + lru.to_scan[3]
    nr_anon = lru.to_scan[0] + lru.to_scan[1]
    if nr_file == 0 or nr_anon == 0:
        return True
    smaller = ANON if nr_file > nr_anon else FILE
    left = min(nr_file, nr_anon)
    scan_target = lru.targets[2 * smaller] + lru.targets[2 * smaller + 1] + 1
    percentage = left * 100 // scan_target
    lru.to_scan[2 * smaller] = lru.to_scan[2 * smaller + 1] = 0
    for list_id in range(2 * (1 - smaller), 2 * (1 - smaller) + 2):
        scanned = lru.targets[list_id] - lru.to_scan[list_id]
        scan = lru.targets[list_id] * (100 - percentage) // 100
        lru.to_scan[list_id] = scan - min(scan, scanned)
    return False


@compiled
def shrink_lruvec(pages: Any, lru: Any, priority: int, counters: Any) -> int:
    """Scan all lists at one priority in batches of 32; returns the pages reclaimed."""
    get_scan_count(lru, priority)
    reclaimed = 0
    while lru.to_scan[0] > 0 or lru.to_scan[2] > 0 or lru.to_scan[3] > 0:
        for list_id in range(N_LISTS):
            batch = min(lru.to_scan[list_id], SWAP_CLUSTER_MAX)
            if batch == 0:
                continue
            lru.to_scan[list_id] -= batch
            kind = list_id // 2
            if list_id % 2 == INACTIVE:
                reclaimed += shrink_inactive_list(pages, lru, batch, kind, counters)
            elif lru.may_deactivate[kind]:
                shrink_active_list(pages, lru, batch, kind)
            else:
                lru.skipped_deactivate = True
        if reclaimed >= SWAP_CLUSTER_MAX and stop_the_smaller(lru):
            break
    if lru.swappiness > 0 and inactive_is_low(lru, ANON):
        shrink_active_list(pages, lru, SWAP_CLUSTER_MAX, ANON)
    return reclaimed


@compiled
def try_to_free_pages(pages: Any, lru: Any, counters: Any) -> int:
    """Ask for 32 pages, with rising urgency; once more with deactivation forced if in vain."""
    reclaimed = 0
    for force_deactivate in (False, True):
        lru.skipped_deactivate = False
        for priority in range(DEF_PRIORITY, -1, -1):
            prepare_scan_control(lru, force_deactivate)
            reclaimed += shrink_lruvec(pages, lru, priority, counters)
            if reclaimed >= SWAP_CLUSTER_MAX:
                break
        lru.activated_before[ANON] = lru.activated[ANON]
        lru.activated_before[FILE] = lru.activated[FILE]
        if reclaimed > 0 or not lru.skipped_deactivate:
            break
    return reclaimed


@compiled
def reclaim_to(pages: Any, lru: Any, target: int, counters: Any) -> None:
    """Reclaim until at most ``target`` pages are resident, or 16 tries made no progress."""
    retries = MAX_RECLAIM_RETRIES
    while lru.resident > target:
        if try_to_free_pages(pages, lru, counters) == 0:
            retries -= 1
            if retries == 0:
                counters.failures += 1
                break


# ---- the touches -----------------------------------------------------------------------------


@compiled
def workingset_refault(pages: Any, lru: Any, page: int, kind: int, counters: Any) -> bool:
    """Account a refault; true if it is recent enough to be activated."""
    counters.refaults += 1
    distance = lru.nonresident_age - pages[page].shadow
    workingset_size = lru.size[2 * FILE + ACTIVE]
    if kind == ANON:
        workingset_size += lru.size[2 * FILE + INACTIVE]
    if lru.swappiness > 0:
        workingset_size += lru.size[2 * ANON + ACTIVE]
        if kind == FILE:
            workingset_size += lru.size[2 * ANON + INACTIVE]
    if distance > workingset_size:
        return False
    lru.nonresident_age += 1
    lru.activated[kind] += 1
    counters.activations += 1
    if pages[page].shadow_workingset:
        pages[page].workingset = True
        lru_note_cost(lru, kind, 1, 0)
        counters.restores += 1
    return True


@compiled
def fault_in(pages: Any, lru: Any, limit: int, page: int, counters: Any) -> None:
    """Charge an absent page, reclaiming first if the limit asks for it, and list it."""
    reclaim_to(pages, lru, limit - 1, counters)
    kind = page_type(pages, page)
    list_id = 2 * kind + INACTIVE
    if pages[page].shadow == NO_SHADOW:
        counters.first_touches += 1
    elif workingset_refault(pages, lru, page, kind, counters):
        list_id = 2 * kind + ACTIVE
    pages[page].touched = True
    add_to_list(pages, lru, page, list_id)
    lru.resident += 1


@compiled
def folio_mark_accessed(pages: Any, lru: Any, page: int) -> None:
    """An access through a file descriptor: referenced, then active."""
    if not pages[page].referenced:
        pages[page].referenced = True
    elif pages[page].list_id == 2 * FILE + INACTIVE:
        take_off_list(pages, lru, page)
        add_to_list(pages, lru, page, 2 * FILE + ACTIVE)
        pages[page].referenced = False
        lru.nonresident_age += 1


@compiled
def play_touches(
    pages: Any, lru: Any, limit: int, touches: Any, counters: Any, region_counts: Any
) -> None:
    """Apply the limit in force, then one touch after another."""
    reclaim_to(pages, lru, limit, counters)
    for page in touches:
        region = pages[page].region
        counters.touches += 1
        region_counts[0, region] += 1
        if pages[page].list_id == NOT_RESIDENT:
            region_counts[1, region] += 1
            fault_in(pages, lru, limit, page, counters)
        if pages[page].kind == KIND_READ:
            folio_mark_accessed(pages, lru, page)
        else:
            pages[page].accessed = True


def run_classic(
    regions: Sequence[TwinRegion],
    limit_pages: npt.NDArray[np.integer[Any]],
    seed: int,
    n_substeps: int,
    swappiness: int = DEFAULT_SWAPPINESS,
) -> TwinResult:
    """Play a cgroup's touches against the active and inactive lists.

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
    lru["swappiness"] = swappiness

    def run_chunk(
        pages: Any, _pmds: Any, limit: int, touches: Any, counters: Any, region_counts: Any
    ) -> None:
        play_touches(pages, lru, limit, touches, counters, region_counts)

    def count_lists(by_list: npt.NDArray[np.int64]) -> None:
        by_list[:] = lru["size"]

    return drive(regions, limit_pages, seed, n_substeps, N_LISTS, run_chunk, count_lists)
