"""Refaults: mm/workingset.c for MGLRU, by bins instead of pages.

An evicted page leaves a shadow with the generation it was evicted in.  A refault is *recent*
while fewer than four generations have passed; a page that carried the workingset flag then
restores it and is activated, and only then does waiting for it count as memory pressure.

Units: pages.
"""

from __future__ import annotations

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import FAST, GEN_MASK, N_BINS, N_GENS, Lru


@compiled
def workingset_eviction(
    region: Rec, b: int, seq: int, pages: float, workingset_pages: float
) -> None:
    """Leave shadows for pages evicted in generation ``seq``."""
    region.evicted[b, seq & GEN_MASK] += pages
    region.evicted_workingset[b] += workingset_pages
    region.gone_pages += pages


@compiled
def forget_generation(region: Rec, seq: int) -> None:
    """A new youngest generation: shadows four generations old stop being recent."""
    slot = seq & GEN_MASK
    for b in range(N_BINS):
        old = region.evicted[b, slot]
        if old > 0.0:
            region.evicted_old[b] += old
            region.evicted[b, slot] = 0.0


@compiled
def workingset_refault(
    lru: int, memcg: Rec, region: Rec, source: Rec, b: int, share: float
) -> tuple[float, float, float]:
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
        Pages that come back, how many of them go to the youngest generation or the active list,
        and how many carry the workingset flag again.
    """
    recent = 0.0
    if lru == Lru.CLASSIC:
        recent -= (
            source.evicted[b, oldest_slot(lru, memcg, region)] * share * too_old(memcg, region)
        )
    gone = 0.0
    for slot in range(N_GENS):
        pages = source.evicted[b, slot] * share
        gone += pages
        source.evicted[b, slot] -= pages
    recent += gone
    old = source.evicted_old[b] * share
    source.evicted_old[b] -= old
    back = gone + old
    if back <= 0.0:
        return 0.0, 0.0, 0.0
    flagged = source.evicted_workingset[b] * share
    source.evicted_workingset[b] -= flagged
    source.gone_pages -= back
    if source.ring_memcg != region.ring_memcg or source.ring_region != region.ring_region:
        return back, 0.0, 0.0
    return account_refault(lru, memcg, region, back, recent, flagged)


@compiled
def refault_oldest(
    lru: int, memcg: Rec, region: Rec, b: int, pages: float
) -> tuple[float, float, float]:
    """The same for up to ``pages`` of a sweep, which meets those evicted longest ago first."""
    shadows = region.evicted_old[b]
    for slot in range(N_GENS):
        shadows += region.evicted[b, slot]
    back = min(pages, shadows)
    if back <= 0.0:
        return 0.0, 0.0, 0.0
    old = min(region.evicted_old[b], back)
    region.evicted_old[b] -= old
    left = back - old
    recent = 0.0
    oldest = oldest_slot(lru, memcg, region)
    for age in range(N_GENS):
        slot = (oldest + age) & GEN_MASK
        taken = min(region.evicted[b, slot], left)
        region.evicted[b, slot] -= taken
        left -= taken
        recent += taken
        if age == 0 and lru == Lru.CLASSIC:
            recent -= taken * too_old(memcg, region)
    flagged = region.evicted_workingset[b] * (back / shadows)
    region.evicted_workingset[b] -= flagged
    region.gone_pages -= back
    return account_refault(lru, memcg, region, back, recent, flagged)


@compiled
def oldest_slot(lru: int, memcg: Rec, region: Rec) -> int:
    """The slot of the shadows that are the next to stop being recent."""
    newest = memcg.max_seq[FAST] if lru == Lru.MGLRU else memcg.min_seq[FAST, region.type]
    return int((newest + 1) & GEN_MASK)


@compiled
def too_old(memcg: Rec, region: Rec) -> float:
    """Classic lists: the share of the oldest slot that is out of reach already.

    Three slots are as wide as the distance that counts as recent; of the fourth, as much is out
    as the newest has filled (``age_shadows`` in vmscan).
    """
    return float(memcg.scan_clock[FAST, region.type])


@compiled
def account_refault(
    lru: int, memcg: Rec, region: Rec, back: float, recent: float, flagged: float
) -> tuple[float, float, float]:
    """workingset_refault_*, _activate_*, _restore_*; returns what workingset_refault does."""
    restored = flagged * (recent / back)
    memcg.refault[region.type] += back
    memcg.restore += restored
    if lru == Lru.MGLRU:
        memcg.refaulted[region.type] += recent
        memcg.activate += restored  # since 7.x only where the flag comes back
        return back, restored, restored
    memcg.activate += recent
    # Classic: a recent refault is activated on the spot (workingset_refault).
    memcg.activated[region.type] += recent
    memcg.aged += recent
    memcg.cost[region.type] += restored * 32.0  # lru_note_cost_refault
    return back, recent, restored
