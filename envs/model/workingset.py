"""Refaults: mm/workingset.c for MGLRU, by bins instead of pages.

An evicted page leaves a shadow with the generation it was evicted in.  A refault is *recent*, and
activates, while fewer than four generations have passed; a page that carried the workingset flag
restores it, and only then does waiting for it count as memory pressure.

Units: pages.
"""

from __future__ import annotations

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import N_BINS, N_GENS, Lru


@compiled
def workingset_eviction(
    region: Rec, b: int, seq: int, pages: float, workingset_pages: float
) -> None:
    """Leave shadows for pages evicted in generation ``seq``."""
    region.evicted[b, seq % N_GENS] += pages
    region.evicted_workingset[b] += workingset_pages
    region.gone_pages += pages


@compiled
def forget_generation(region: Rec, seq: int) -> None:
    """A new youngest generation: shadows four generations old stop being recent."""
    slot = seq % N_GENS
    for b in range(N_BINS):
        old = region.evicted[b, slot]
        if old > 0.0:
            region.evicted_old[b] += old
            region.evicted[b, slot] = 0.0


@compiled
def workingset_refault(
    lru: int, memcg: Rec, region: Rec, source: Rec, b: int, share: float
) -> tuple[float, float]:
    """Take the refaulting share of a bin's shadows and account it.

    Args:
        lru: A :class:`Lru`.
        memcg: Who faults, and is charged.
        region: Where the pages go.
        source: The record that holds the shadows; a refault counts only in the lruvec that
            evicted the page (lru_gen_refault), so not for another cgroup's.
        b: Bin.
        share: Share of the bin's shadows that is touched now.

    Returns:
        Pages that come back, and how many of them carry the workingset flag again.
    """
    recent = 0.0
    for slot in range(N_GENS):
        pages = source.evicted[b, slot] * share
        recent += pages
        source.evicted[b, slot] -= pages
    old = source.evicted_old[b] * share
    source.evicted_old[b] -= old
    back = recent + old
    if back <= 0.0:
        return 0.0, 0.0
    flagged = source.evicted_workingset[b] * share
    source.evicted_workingset[b] -= flagged
    source.gone_pages -= back
    if source.ring_memcg != region.ring_memcg or source.ring_region != region.ring_region:
        return back, 0.0
    restored = flagged * (recent / back)
    memcg.refault[region.type] += back
    memcg.activate += recent
    memcg.restore += restored
    if lru == Lru.MGLRU:
        memcg.refaulted[region.type] += recent
        return back, restored
    # Classic: a recent refault is activated and flagged on the spot (workingset_refault).
    memcg.cost[region.type] += recent * 32.0  # lru_note_cost_refault
    return back, recent
