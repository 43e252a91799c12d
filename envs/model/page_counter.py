"""Limits and protection: mm/page_counter.c and the memory.high penalty of mm/memcontrol.c.

Units: pages; the delay in microseconds.
"""

from __future__ import annotations

from memcg_gym.envs.model.jit import compiled

HZ = 1000
MEMCG_CHARGE_BATCH = 64  # include/linux/memcontrol.h
MEMCG_DELAY_PRECISION_SHIFT = 20
MEMCG_DELAY_SCALING_SHIFT = 14
MEMCG_MAX_HIGH_DELAY_JIFFIES = 2 * HZ
NO_SLEEP_JIFFIES = HZ // 100  # penalties up to this are not slept


@compiled
def calculate_overage(usage: float, high: float) -> int:
    """mm/memcontrol.c calculate_overage: (usage - high) / high in 20-bit fixed point."""
    usage_pages = int(usage)
    high_pages = max(int(high), 1)
    if usage_pages <= high_pages:
        return 0
    return ((usage_pages - high_pages) << MEMCG_DELAY_PRECISION_SHIFT) // high_pages


@compiled
def calculate_high_delay(overage: int, nr_pages: int) -> int:
    """mm/memcontrol.c calculate_high_delay, capped: jiffies (= ms) one return to user sleeps.

    The square of the overage; closed form: seconds = min(2, nr_pages * f**2), f = usage/high - 1.

    Args:
        overage: From :func:`calculate_overage`.
        nr_pages: Pages the task charged over high since it last returned to user mode.
    """
    if overage <= 0:
        return 0
    overage = min(overage, 1 << 24)  # far beyond the cap; keeps the square inside 64 bits
    penalty = overage * overage * HZ
    penalty >>= MEMCG_DELAY_PRECISION_SHIFT
    penalty >>= MEMCG_DELAY_SCALING_SHIFT
    penalty = penalty * int(nr_pages) // MEMCG_CHARGE_BATCH
    return min(penalty, MEMCG_MAX_HIGH_DELAY_JIFFIES)


@compiled
def high_delay_us(usage: float, high: float, nr_pages: int) -> float:
    """Sleep of one task that returns to user mode over memory.high [us]; 0 up to 10 ms."""
    jiffies = calculate_high_delay(calculate_overage(usage, high), nr_pages)
    if jiffies <= NO_SLEEP_JIFFIES:
        return 0.0
    return jiffies * (1e6 / HZ)


@compiled
def effective_protection(
    usage: float,
    parent_usage: float,
    setting: float,
    parent_effective: float,
    siblings_protected: float,
    recursive: bool,
) -> float:
    """mm/page_counter.c effective_protection: what memory.min or memory.low is really worth.

    Args:
        usage, parent_usage: Charge of the cgroup and of its parent.
        setting: memory.min or memory.low.
        parent_effective: Effective protection of the parent.
        siblings_protected: Sum over the parent's children of min(usage, setting).
        recursive: True with mount option memory_recursiveprot.
    """
    protected = min(usage, setting)
    if siblings_protected > parent_effective:
        return protected * parent_effective / siblings_protected
    effective = protected
    if (
        recursive
        and parent_effective > siblings_protected
        and parent_usage > siblings_protected
        and usage > protected
    ):
        unclaimed = parent_effective - siblings_protected
        effective += unclaimed * (usage - protected) / (parent_usage - siblings_protected)
    return effective


@compiled
def scan_share(protection: float, size: float) -> float:
    """mm/vmscan.c apply_proportional_protection: share of an lruvec that is left to scan."""
    return 1.0 - min(protection / (max(size, protection) + 1.0), 1.0)
