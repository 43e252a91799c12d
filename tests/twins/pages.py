"""What both twins share: the page records, their lists, the address space and the result.

A page is one record; lists are circular and doubly linked through record indices, with one
sentinel record per list behind the last page, so that nothing is allocated while a twin runs.
The order of list operations is the kernel's: ``list_add`` puts a page at the head, reclaim takes
from the tail.

What it does not know: folios larger than a page, more than one node or zone, dirty pages and
writeback (an evicted page is gone at once), swap readahead, shadow entries lost to their own
shrinker, and the translation cache that can hide an access from the accessed bit.

Units: pages of 4 KiB; seconds; a sub-step is 100 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from .touches import PMD_PAGES, SUBSTEPS_PER_S, TouchGenerator, TwinRegion

Function = TypeVar("Function", bound=Callable[..., Any])

ANON, FILE = 0, 1  # the kernel's two LRU types
KIND_ANON, KIND_MAPPED, KIND_READ = 0, 1, 2
KIND_CODE = {"anon": KIND_ANON, "mapped": KIND_MAPPED, "read": KIND_READ}

SWAP_CLUSTER_MAX = 32  # pages a limit reclaim asks for (include/linux/swap.h)
DEF_PRIORITY = 12  # include/linux/mmzone.h
MAX_RECLAIM_RETRIES = 16  # mm/internal.h
NOT_RESIDENT = -1
NO_SHADOW = -1

PAGE = np.dtype(
    [
        ("next", np.int32),
        ("prev", np.int32),
        ("region", np.int16),
        ("kind", np.int8),
        ("list_id", np.int8),  # MGLRU: generation number; classic: list; NOT_RESIDENT if evicted
        ("pmd", np.int32),
        ("accessed", np.bool_),  # the page table entry's accessed bit
        ("referenced", np.bool_),  # PG_referenced
        ("workingset", np.bool_),  # PG_workingset
        ("refs", np.int8),  # LRU_REFS_MASK, accesses through file descriptors after the first
        ("touched", np.bool_),  # ever, for the conservation law
        ("shadow", np.int64),  # eviction clock in the shadow entry; NO_SHADOW before any eviction
        ("shadow_workingset", np.bool_),
        ("shadow_refs", np.int8),
    ],
    align=True,
)

PMD = np.dtype(
    [
        ("first", np.int32),  # first page under this entry
        ("end", np.int32),  # one past the last
        ("mapped", np.bool_),  # false for a file only read(): it has no page table
        ("young", np.bool_),  # the accessed bit of the entry itself
        ("in_filter", np.uint8, (2,)),  # MGLRU's two Bloom filters, kept exactly
    ],
    align=True,
)

COUNTERS = np.dtype(
    [
        ("touches", np.int64),
        ("first_touches", np.int64),
        ("refaults", np.int64),
        ("activations", np.int64),
        ("restores", np.int64),
        ("pgscan", np.int64),
        ("pgsteal", np.int64),
        ("agings", np.int64),
        ("failures", np.int64),
        ("resident", np.int64),
        ("workingset", np.int64),
    ],
    align=True,
)


def compiled(function: Function) -> Function:
    """Compile with numba, keeping the signature that the type checker sees."""
    return cast(Function, numba.njit(cache=True)(function))


@compiled
def list_init(pages: Any, head: int) -> None:
    pages[head].next = head
    pages[head].prev = head


@compiled
def list_add(pages: Any, head: int, page: int) -> None:
    """Insert at the head: the last to be taken."""
    after = pages[head].next
    pages[page].next = after
    pages[page].prev = head
    pages[after].prev = page
    pages[head].next = page


@compiled
def list_add_tail(pages: Any, head: int, page: int) -> None:
    """Insert at the tail: the next to be taken."""
    before = pages[head].prev
    pages[page].next = head
    pages[page].prev = before
    pages[before].next = page
    pages[head].prev = page


@compiled
def list_del(pages: Any, page: int) -> None:
    before = pages[page].prev
    after = pages[page].next
    pages[before].next = after
    pages[after].prev = before


@compiled
def page_type(pages: Any, page: int) -> int:
    """The LRU type: ANON or FILE."""
    return ANON if pages[page].kind == KIND_ANON else FILE


@dataclass(frozen=True)
class TwinResult:
    """One run of a twin, per second; the arrays have shape ``(n_seconds,)`` unless said.

    Attributes:
        touches: Page touches of the program.
        misses: Touches that found the page absent: refaults and first touches.
        first_touches: Touches of a page never seen before.
        refaults: ``workingset_refault_*``: misses that found a shadow entry.
        activations: ``workingset_activate_*``.
        restores: ``workingset_restore_*``.
        pgscan: Pages taken off a list to be evicted.
        pgsteal: Pages evicted.
        agings: Page-table walks that opened a generation (MGLRU only).
        failures: Charges that went past the limit because reclaim made no progress.
        resident: Resident pages at the end of the second.
        workingset: Resident pages with the workingset flag at the end of the second.
        resident_by_list: Resident pages at the end of the second, ``(n_seconds, 4)``.  MGLRU:
            by age of the generation, youngest first.  Classic: inactive anon, active anon,
            inactive file, active file.
        region_resident: Resident pages of each region, ``(n_seconds, n_regions)``.
        region_touches: Touches of each region, same shape.
        region_misses: Misses of each region, same shape.
        n_touched: Distinct pages touched since the start.
        n_nonresident: Pages that were touched and are not resident at the end.
    """

    touches: npt.NDArray[np.int64]
    misses: npt.NDArray[np.int64]
    first_touches: npt.NDArray[np.int64]
    refaults: npt.NDArray[np.int64]
    activations: npt.NDArray[np.int64]
    restores: npt.NDArray[np.int64]
    pgscan: npt.NDArray[np.int64]
    pgsteal: npt.NDArray[np.int64]
    agings: npt.NDArray[np.int64]
    failures: npt.NDArray[np.int64]
    resident: npt.NDArray[np.int64]
    workingset: npt.NDArray[np.int64]
    resident_by_list: npt.NDArray[np.int64]
    region_resident: npt.NDArray[np.int64]
    region_touches: npt.NDArray[np.int64]
    region_misses: npt.NDArray[np.int64]
    n_touched: int
    n_nonresident: int

    def miss_ratio(self, from_s: int, to_s: int | None = None) -> float:
        """Share of the touches in seconds ``[from_s, to_s)`` that missed."""
        touches = int(self.touches[from_s:to_s].sum())
        return int(self.misses[from_s:to_s].sum()) / touches if touches else 0.0

    def region_miss_ratio(self, region: int, from_s: int, to_s: int | None = None) -> float:
        """Share of one region's touches in seconds ``[from_s, to_s)`` that missed."""
        touches = int(self.region_touches[from_s:to_s, region].sum())
        return int(self.region_misses[from_s:to_s, region].sum()) / touches if touches else 0.0


def address_space(
    regions: Sequence[TwinRegion], n_lists: int
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Lay the regions out, each from a fresh page-table page on.

    Returns:
        The page records, ``n_lists`` sentinels last, and the records of the PMD entries.
    """
    n_pages = sum(region.n_pages for region in regions)
    pages = np.zeros(n_pages + n_lists, dtype=PAGE)
    pages["list_id"] = NOT_RESIDENT
    pages["shadow"] = NO_SHADOW
    pmds: list[tuple[int, int, bool, bool, tuple[int, int]]] = []
    first = 0
    for index, region in enumerate(regions):
        here = slice(first, first + region.n_pages)
        pages["region"][here] = index
        pages["kind"][here] = KIND_CODE[region.kind]
        pages["pmd"][here] = len(pmds) + np.arange(region.n_pages) // PMD_PAGES
        for start in range(here.start, here.stop, PMD_PAGES):
            end = min(start + PMD_PAGES, here.stop)
            pmds.append((start, end, region.kind != "read", False, (0, 0)))
        first = here.stop
    for head in range(n_pages, n_pages + n_lists):
        pages[head]["next"] = pages[head]["prev"] = head
    return pages, np.array(pmds, dtype=PMD)


def drive(
    regions: Sequence[TwinRegion],
    limit_pages: npt.NDArray[np.integer[Any]],
    seed: int,
    n_substeps: int,
    n_lists: int,
    run_chunk: Callable[..., None],
    count_lists: Callable[..., None],
) -> TwinResult:
    """Feed one twin its touches sub-step by sub-step and collect what it counts.

    Args:
        regions: The cgroup's memory.
        limit_pages: Limit in force in each sub-step, shape ``(n_substeps,)`` [pages].
        seed: Seed of the touches; the twins themselves are deterministic.
        n_substeps: How many 100 ms sub-steps to run.
        n_lists: Lists the twin keeps.
        run_chunk: ``(pages, pmds, limit, touches, counters, region_counts)``: play a chunk.
        count_lists: ``(by_list)``: write the list sizes of this moment.

    Raises:
        ValueError: If the limits do not cover the sub-steps, or a limit is below one page.
    """
    limits = np.asarray(limit_pages, dtype=np.int64)
    if limits.shape != (n_substeps,) or n_substeps % SUBSTEPS_PER_S != 0 or n_substeps <= 0:
        raise ValueError(
            f"limit_pages must have one limit for each of n_substeps={n_substeps} sub-steps, "
            f"whole seconds of {SUBSTEPS_PER_S}; got shape {limits.shape}"
        )
    if limits.min() < 1:
        raise ValueError(f"limit_pages must be at least 1, got {limits.min()}")
    generator = TouchGenerator(regions, seed)
    pages, pmds = address_space(regions, n_lists)
    n_pages = pages.size - n_lists
    n_seconds = n_substeps // SUBSTEPS_PER_S
    counters = np.zeros(n_seconds, dtype=COUNTERS)
    by_list = np.zeros((n_seconds, 4), dtype=np.int64)
    region_counts = np.zeros((n_seconds, 2, len(regions)), dtype=np.int64)
    region_resident = np.zeros((n_seconds, len(regions)), dtype=np.int64)
    discarded = np.zeros(1, dtype=COUNTERS)
    run_chunk(
        pages, pmds, limits[0], generator.prefault(), discarded[0], np.zeros_like(region_counts[0])
    )
    for substep in range(n_substeps):
        second, within = divmod(substep, SUBSTEPS_PER_S)
        touches = generator.substep(substep)
        run_chunk(pages, pmds, limits[substep], touches, counters[second], region_counts[second])
        if within == SUBSTEPS_PER_S - 1:
            count_lists(by_list[second])
            resident = pages[:n_pages]["list_id"] != NOT_RESIDENT
            counters[second]["resident"] = np.count_nonzero(resident)
            counters[second]["workingset"] = np.count_nonzero(
                resident & pages[:n_pages]["workingset"]
            )
            region_resident[second] = np.bincount(
                pages[:n_pages]["region"][resident], minlength=len(regions)
            )
    touched = pages[:n_pages]["touched"]
    away = touched & (pages[:n_pages]["list_id"] == NOT_RESIDENT)
    columns: dict[str, npt.NDArray[np.int64]] = {
        name: counters[name].copy() for name in COUNTERS.names or ()
    }
    return TwinResult(
        **columns,
        misses=columns["first_touches"] + columns["refaults"],
        resident_by_list=by_list,
        region_resident=region_resident,
        region_touches=region_counts[:, 0],
        region_misses=region_counts[:, 1],
        n_touched=int(np.count_nonzero(touched)),
        n_nonresident=int(np.count_nonzero(away)),
    )
