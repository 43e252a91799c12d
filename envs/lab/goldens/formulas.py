"""The kernel's formulas, worked out apart from the model's, so that one can err without the other.

What depends on the length of a jiffy takes it as an argument; the model has one HZ.

Units: pages of 4 KiB; jiffies; fixed-point percent in the averages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PAGES_PER_MIB = 256
CHARGE_BATCH_PAGES = 64  # include/linux/memcontrol.h MEMCG_CHARGE_BATCH
MAX_RETRIES = 16  # mm/internal.h MAX_RECLAIM_RETRIES
FIXED_ONE = 1 << 11
DECAY = {10: 1677, 60: 1981, 300: 2034}  # kernel/sched/psi.c EXP_10s, EXP_60s, EXP_300s


def high_delay_jiffies(usage_pages: int, high_pages: int, charged_pages: int, hz: int) -> int:
    """mm/memcontrol.c calculate_overage, calculate_high_delay: a return to user mode sleeps this.

    In seconds min(2, n * f * f), with f the overage as a share of memory.high.
    """
    if usage_pages <= high_pages:
        return 0
    overage = ((usage_pages - high_pages) << 20) // max(high_pages, 1)
    delay = (overage * overage * hz) >> 34
    return min(delay * charged_pages // CHARGE_BATCH_PAGES, 2 * hz)


def slept(jiffies: int, hz: int) -> bool:
    """Penalties of up to a hundredth of a second are not slept."""
    return jiffies > hz // 100


def effective_protection(
    usage: float,
    setting: float,
    parent_usage: float,
    parent_effective: float,
    siblings_protected: float,
    *,
    recursive: bool,
) -> float:
    """mm/page_counter.c effective_protection: what memory.min or memory.low comes to."""
    claimed = min(usage, setting)
    if siblings_protected > parent_effective:
        return claimed / siblings_protected * parent_effective
    spare = parent_effective - siblings_protected
    if not recursive or spare <= 0.0 or usage <= claimed or parent_usage <= siblings_protected:
        return claimed
    return claimed + spare * (usage - claimed) / (parent_usage - siblings_protected)


def next_average(fixed: int, window_s: int, stalled: float) -> int:
    """kernel/sched/psi.c calc_avgs: one period more.

    Args:
        fixed: The average, in percent with 11 fractional bits.
        window_s: Which of the three.
        stalled: Share of the period that was stalled; the kernel counts whole percents.
    """
    decay, now = DECAY[window_s], int(stalled * 100) * FIXED_ONE
    total = fixed * decay + now * (FIXED_ONE - decay)
    if now >= fixed:
        total += FIXED_ONE - 1
    return total // FIXED_ONE


def min_free_kib(lowmem_kib: int) -> int:
    """mm/page_alloc.c calculate_min_free_kbytes."""
    return min(max(math.isqrt(16 * lowmem_kib), 128), 262_144)


def huge_page_min_free_kib(zones: int, lowmem_pages: int) -> int:
    """mm/khugepaged.c set_recommended_min_free_kbytes: what huge pages want free at least.

    Two blocks a zone, and one for each pair of migration types that are kept apart (3 * 3).
    """
    block_pages = 512
    pages = block_pages * zones * (2 + 3 * 3)
    return min(pages, lowmem_pages // 20) * 4


def watermarks(
    min_free_pages: int, managed: Sequence[int], scale: int = 10
) -> list[tuple[int, int, int, int]]:
    """mm/page_alloc.c __setup_per_zone_wmarks: min, low, high and promo of each zone."""
    total = sum(managed)
    marks = []
    for pages in managed:
        low = min_free_pages * pages // total
        gap = max(low >> 2, pages * scale // 10_000)
        marks.append((low, low + gap, low + 2 * gap, low + 3 * gap))
    return marks


def dirty_limits(dirtyable_pages: int, ratio: int = 20, background: int = 10) -> tuple[int, int]:
    """mm/page-writeback.c domain_dirty_limits: threshold and background threshold of the host."""
    per_page = [percent * 4096 // 100 for percent in (ratio, background)]
    threshold, below = (share * dirtyable_pages // 4096 for share in per_page)
    return threshold, below
