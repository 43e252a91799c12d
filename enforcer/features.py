"""From raw signals to the contract's fixed-point vector: the one place where it is computed.

Plain scalar functions over float64 arrays.  The daemon calls them as they are; the model compiles
them.  Nothing here knows whether a number came from a kernel or from the model.

Units: signals in bytes, microseconds, pages; rates per second; ratios plain.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np

from memcg_gym.envs.contract.features import (
    FAST_ALPHA,
    FEATURES,
    MISSING_FIXED,
    N_FEATURES,
    SHIFT,
    SLOW_ALPHA,
    F,
)
from memcg_gym.envs.contract.heads import N_HEADS, Head
from memcg_gym.envs.contract.signals import PAGE_BYTES, HostSig, Sig

MIN_USAGE_BYTES = 1 << 20
"""Rates are over usage; an emptier cgroup is treated as holding this much, so a few refaults of a
cgroup that has just been killed do not look like thrashing."""

ONE_FIXED = 1 << SHIFT
LOW_FIXED = np.array([f.low_fixed for f in FEATURES], dtype=np.int64)
HIGH_FIXED = np.array([f.high_fixed for f in FEATURES], dtype=np.int64)
FALLBACK_FIXED = np.array(
    [MISSING_FIXED if f.fallback is None else math.floor(f.fallback * ONE_FIXED) for f in FEATURES],
    dtype=np.int64,
)


class Average(IntEnum):
    """Index of a moving average kept per cgroup between ticks."""

    GROWTH_SLOW = 0
    PSI_MEM_FAST = 1
    PSI_MEM_SLOW = 2
    REFAULT_SLOW = 3


class Guard(IntEnum):
    """Index into the shield's per-cgroup state (int64)."""

    IN_FORCE = 0
    ACCEPTED = N_HEADS
    DWELL_LEFT = 2 * N_HEADS
    DUTY_TOKENS = 3 * N_HEADS
    LEASE_LEFT = 4 * N_HEADS
    SIZE = 4 * N_HEADS + 1


N_AVERAGES = len(Average)


def seconds_between(host_now: np.ndarray, host_before: np.ndarray) -> float:
    """Length of the tick [s]; at least a millisecond, so that a double read cannot divide by 0."""
    elapsed_us = host_now[HostSig.UPTIME_US] - host_before[HostSig.UPTIME_US]
    return float(max(elapsed_us * 1e-6, 1e-3))


def update_averages(
    now: np.ndarray, before: np.ndarray, tick_s: float, averages: np.ndarray
) -> None:
    """Move the four averages of one cgroup by one tick.

    Args:
        now, before: Signals at the end of this tick and of the last, shape ``(N_MEMCG_SIGNALS,)``.
        tick_s: Length of the tick [s].
        averages: Changed in place, shape ``(N_AVERAGES,)``; zeros at birth.
    """
    base_bytes = max(now[Sig.USAGE_BYTES], MIN_USAGE_BYTES)
    growth = (now[Sig.USAGE_BYTES] - before[Sig.USAGE_BYTES]) / base_bytes / tick_s
    some = (now[Sig.PSI_MEM_SOME_US] - before[Sig.PSI_MEM_SOME_US]) * 1e-6 / tick_s
    refaults = (
        (now[Sig.REFAULT_ANON] - before[Sig.REFAULT_ANON])
        + (now[Sig.REFAULT_FILE] - before[Sig.REFAULT_FILE])
    ) * (PAGE_BYTES / base_bytes / tick_s)
    move_average(averages, Average.GROWTH_SLOW, SLOW_ALPHA, growth)
    move_average(averages, Average.PSI_MEM_FAST, FAST_ALPHA, some)
    move_average(averages, Average.PSI_MEM_SLOW, SLOW_ALPHA, some)
    move_average(averages, Average.REFAULT_SLOW, SLOW_ALPHA, refaults)


def move_average(averages: np.ndarray, which: int, alpha: float, value: float) -> None:
    """One exponential step; a signal that could not be read leaves the average where it is."""
    if not math.isnan(value):
        averages[which] += alpha * (value - averages[which])


def fill_features(
    now: np.ndarray,
    before: np.ndarray,
    host_now: np.ndarray,
    host_before: np.ndarray,
    averages: np.ndarray,
    guard: np.ndarray,
    vector: np.ndarray,
) -> None:
    """Fill one cgroup's vector.

    Args:
        now, before: This cgroup's signals, shape ``(N_MEMCG_SIGNALS,)``; NaN = could not be read.
        host_now, host_before: The host's, shape ``(N_HOST_SIGNALS,)``.
        averages: Already moved to this tick, shape ``(N_AVERAGES,)``.
        guard: The shield's state of this cgroup, shape ``(Guard.SIZE,)``, int64.
        vector: Filled in place, shape ``(N_FEATURES,)``, int32 fixed point.
    """
    tick_s = seconds_between(host_now, host_before)
    fill_own(now, before, host_now, averages, tick_s, vector)
    fill_pressure(now, before, averages, tick_s, vector)
    fill_reclaim(now, before, tick_s, vector)
    fill_locks(now, before, tick_s, vector)
    fill_told(now, before, vector)
    fill_in_force(guard, vector)
    fill_host(host_now, host_before, tick_s, vector)


def fill_own(
    now: np.ndarray,
    before: np.ndarray,
    host_now: np.ndarray,
    averages: np.ndarray,
    tick_s: float,
    vector: np.ndarray,
) -> None:
    """Usage, limits, tiers and the working set."""
    usage = now[Sig.USAGE_BYTES]
    base = max(usage, MIN_USAGE_BYTES)
    total = host_now[HostSig.TOTAL_BYTES]
    limit = min(min(now[Sig.OWNER_HIGH_BYTES], now[Sig.OWNER_MAX_BYTES]), total)
    put(vector, F.USAGE_RATIO, usage / max(limit, 1.0))
    put(
        vector,
        F.HEADROOM_RATIO,
        (min(now[Sig.OWNER_MAX_BYTES], total) - usage) / max(total, 1.0),
    )
    put(vector, F.GROWTH, (usage - before[Sig.USAGE_BYTES]) / base / tick_s)
    put(vector, F.GROWTH_SLOW, averages[Average.GROWTH_SLOW])
    put(vector, F.REFAULT_SLOW, averages[Average.REFAULT_SLOW])
    committed = usage + now[Sig.SWAP_BYTES]
    ceiling = now[Sig.MEMSW_CEILING_BYTES]
    put(vector, F.MEMSW_RATIO, committed / ceiling if ceiling > 0.0 else 0.0)
    put(vector, F.SWAP_RATIO, now[Sig.SWAP_BYTES] / max(committed, 1.0))
    fast = now[Sig.FAST_BYTES]
    slow = now[Sig.SLOW_BYTES]
    put(vector, F.SLOW_SHARE, slow / max(fast + slow, 1.0))
    put(vector, F.COLD_FAST_SHARE, now[Sig.COLD_FAST_BYTES] / max(fast, 1.0))
    put(vector, F.HOT_SLOW_SHARE, now[Sig.HOT_SLOW_BYTES] / max(slow, 1.0))
    put(vector, F.PROMOTE, rate(now, before, Sig.PGPROMOTE, tick_s) * PAGE_BYTES / base)
    put(vector, F.DEMOTE, rate(now, before, Sig.PGDEMOTE, tick_s) * PAGE_BYTES / base)
    put(vector, F.DIRTY_SHARE, (now[Sig.DIRTY_BYTES] + now[Sig.WRITEBACK_BYTES]) / base)
    put(vector, F.SHARED_SHARE, now[Sig.SHARED_BYTES] / base)
    put(vector, F.SHARERS, now[Sig.SHARERS])
    put(vector, F.WSS_RATIO, now[Sig.WSS_BYTES] / base)
    put(vector, F.WSS_CONFIDENCE, now[Sig.WSS_CONFIDENCE])
    put(vector, F.PROTECTION, now[Sig.LOW_BYTES] / base)


def fill_pressure(
    now: np.ndarray, before: np.ndarray, averages: np.ndarray, tick_s: float, vector: np.ndarray
) -> None:
    """PSI as deltas of ``total`` over the tick, its averages, and memory.events deltas."""
    put(vector, F.PSI_MEM_SOME, rate(now, before, Sig.PSI_MEM_SOME_US, tick_s) * 1e-6)
    put(vector, F.PSI_MEM_FULL, rate(now, before, Sig.PSI_MEM_FULL_US, tick_s) * 1e-6)
    put(vector, F.PSI_IO_SOME, rate(now, before, Sig.PSI_IO_SOME_US, tick_s) * 1e-6)
    put(vector, F.PSI_IO_FULL, rate(now, before, Sig.PSI_IO_FULL_US, tick_s) * 1e-6)
    put(vector, F.PSI_CPU_SOME, rate(now, before, Sig.PSI_CPU_SOME_US, tick_s) * 1e-6)
    put(vector, F.PSI_MEM_AVG10, now[Sig.PSI_MEM_SOME_AVG10] * 0.01)
    put(vector, F.PSI_MEM_FAST, averages[Average.PSI_MEM_FAST])
    put(vector, F.PSI_MEM_SLOW, averages[Average.PSI_MEM_SLOW])
    put(vector, F.EVENTS_HIGH, now[Sig.EVENTS_HIGH] - before[Sig.EVENTS_HIGH])
    put(vector, F.EVENTS_MAX, now[Sig.EVENTS_MAX] - before[Sig.EVENTS_MAX])
    put(vector, F.EVENTS_OOM_KILL, now[Sig.EVENTS_OOM_KILL] - before[Sig.EVENTS_OOM_KILL])


def fill_reclaim(now: np.ndarray, before: np.ndarray, tick_s: float, vector: np.ndarray) -> None:
    """Refaults and the efficiency of reclaim."""
    per_usage = PAGE_BYTES / max(now[Sig.USAGE_BYTES], MIN_USAGE_BYTES)
    put(vector, F.REFAULT_ANON, rate(now, before, Sig.REFAULT_ANON, tick_s) * per_usage)
    put(vector, F.REFAULT_FILE, rate(now, before, Sig.REFAULT_FILE, tick_s) * per_usage)
    put(vector, F.ACTIVATE, rate(now, before, Sig.ACTIVATE, tick_s) * per_usage)
    put(vector, F.RESTORE, rate(now, before, Sig.RESTORE, tick_s) * per_usage)
    scanned = rate(now, before, Sig.PGSCAN_DIRECT, tick_s)
    stolen = rate(now, before, Sig.PGSTEAL_DIRECT, tick_s)
    put(vector, F.SCAN_DIRECT, scanned * per_usage)
    put(vector, F.EFFICIENCY_DIRECT, efficiency(stolen, scanned))
    scanned = rate(now, before, Sig.PGSCAN_KSWAPD, tick_s) + rate(
        now, before, Sig.PGSCAN_PROACTIVE, tick_s
    )
    stolen = rate(now, before, Sig.PGSTEAL_KSWAPD, tick_s) + rate(
        now, before, Sig.PGSTEAL_PROACTIVE, tick_s
    )
    put(vector, F.EFFICIENCY_BACKGROUND, efficiency(stolen, scanned))


def fill_locks(now: np.ndarray, before: np.ndarray, tick_s: float, vector: np.ndarray) -> None:
    """Locks held by allocators of this cgroup, and who charges."""
    put(vector, F.LOCK_KERNEL_SHARE, rate(now, before, Sig.LOCK_KERNEL_HELD_US, tick_s) * 1e-6)
    put(vector, F.LOCK_USER_SHARE, rate(now, before, Sig.LOCK_USER_HELD_US, tick_s) * 1e-6)
    put(vector, F.LOCK_WAITERS, now[Sig.LOCK_WAITERS])
    put(vector, F.LOCK_WAIT_SHARE, rate(now, before, Sig.LOCK_WAIT_US, tick_s) * 1e-6)
    charged = rate(now, before, Sig.CHARGE_PAGES, tick_s)
    critical = rate(now, before, Sig.CRITICAL_CHARGE_PAGES, tick_s)
    put(vector, F.CRITICAL_SHARE, critical / max(charged, 1e-9))


def fill_told(now: np.ndarray, before: np.ndarray, vector: np.ndarray) -> None:
    """What the workload and the owner say."""
    put(vector, F.LOAD, now[Sig.LOAD_RATIO])
    put(vector, F.SLACK, now[Sig.SLACK_RATIO])
    put(vector, F.SLACK_VALID, now[Sig.SLACK_VALID])
    put(vector, F.SHED_HONOURED, now[Sig.SHED_HONOURED_RATIO])
    put(vector, F.PRIORITY, now[Sig.PRIORITY])
    put(vector, F.KILL_RANK, now[Sig.KILL_RANK])


def fill_in_force(guard: np.ndarray, vector: np.ndarray) -> None:
    """Levels now in force, dwell, lease, and decisions on their way."""
    dwell = 0
    pending = 0
    for head in range(N_HEADS):
        dwell = max(dwell, guard[Guard.DWELL_LEFT + head])
        pending += guard[Guard.ACCEPTED + head] != guard[Guard.IN_FORCE + head]
    for head in range(Head.KILL):
        vector[F.LEVEL_THROTTLE + head] = guard[Guard.IN_FORCE + head] * ONE_FIXED
    vector[F.DWELL_LEFT] = min(dwell, 64) * ONE_FIXED
    vector[F.LEASE_LEFT] = min(guard[Guard.LEASE_LEFT], 64) * ONE_FIXED
    vector[F.PENDING] = pending * ONE_FIXED


def fill_host(
    host_now: np.ndarray, host_before: np.ndarray, tick_s: float, vector: np.ndarray
) -> None:
    """What all cgroups of a host share."""
    total = max(host_now[HostSig.TOTAL_BYTES], 1.0)
    put(vector, F.HOST_UTIL, 1.0 - host_now[HostSig.AVAILABLE_BYTES] / total)
    put(vector, F.HOST_FREE_SLOPE, rate(host_now, host_before, HostSig.FREE_BYTES, tick_s) / total)
    put(
        vector,
        F.HOST_FAST_FREE,
        host_now[HostSig.FAST_FREE_BYTES] / max(host_now[HostSig.FAST_TOTAL_BYTES], 1.0),
    )
    put(
        vector,
        F.HOST_PSI_MEM_SOME,
        rate(host_now, host_before, HostSig.PSI_MEM_SOME_US, tick_s) * 1e-6,
    )
    put(
        vector,
        F.HOST_PSI_MEM_FULL,
        rate(host_now, host_before, HostSig.PSI_MEM_FULL_US, tick_s) * 1e-6,
    )
    put(
        vector,
        F.HOST_PSI_IO_SOME,
        rate(host_now, host_before, HostSig.PSI_IO_SOME_US, tick_s) * 1e-6,
    )
    cpus_us = max(host_now[HostSig.CPUS], 1.0) * 1e6
    put(vector, F.HOST_CPU_IDLE, rate(host_now, host_before, HostSig.CPU_IDLE_US, tick_s) / cpus_us)
    put(vector, F.FLUSHER_BACKLOG, host_now[HostSig.FLUSHER_BACKLOG_BYTES] / total)


def rate(now: np.ndarray, before: np.ndarray, counter: int, tick_s: float) -> float:
    """Growth of a cumulative counter per second."""
    return float((now[counter] - before[counter]) / tick_s)


def efficiency(stolen: float, scanned: float) -> float:
    """Pages stolen over scanned; 1 where nothing was scanned; NaN stays NaN."""
    if scanned <= 0.0:
        return 1.0
    return stolen / scanned


def put(vector: np.ndarray, feature: int, value: float) -> None:
    """Store a value in fixed point: floor, saturated at the range; NaN takes the fallback."""
    if math.isnan(value):
        vector[feature] = FALLBACK_FIXED[feature]
        return
    scaled = value * ONE_FIXED
    if scaled <= LOW_FIXED[feature]:  # compared as floats: an infinity has no integer
        vector[feature] = LOW_FIXED[feature]
    elif scaled >= HIGH_FIXED[feature]:
        vector[feature] = HIGH_FIXED[feature]
    else:
        vector[feature] = math.floor(scaled)


FEATURE_FUNCTIONS = (
    seconds_between,
    move_average,
    update_averages,
    rate,
    efficiency,
    put,
    fill_own,
    fill_pressure,
    fill_reclaim,
    fill_locks,
    fill_told,
    fill_in_force,
    fill_host,
    fill_features,
)
"""In the order a compiler needs them: each uses only those before it."""

__all__ = [
    "FEATURE_FUNCTIONS",
    "N_AVERAGES",
    "N_FEATURES",
    "Average",
    "Guard",
    "fill_features",
    "seconds_between",
    "update_averages",
]
