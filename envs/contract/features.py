"""The features an agent may see: at most 64 numbers, each measurable on a real host.

The values are fixed-point integers: ``fixed = floor(value * 2**SHIFT)`` clipped to the feature's
range, so that a threshold in a rule table means bytes over bytes, seconds over seconds, or a
count, and means the same in Python, C and BPF.  There is no running normalisation anywhere.

How each one is computed from signals is ``enforcer/features.py``; this module only says what it
is.  Privileged model state is not here and must never be.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

SHIFT = 16
"""Fixed-point shift of every feature; Q16 keeps |x| < 2**24 for |value| < 256 (float32-exact)."""

SLOW_ALPHA = 1.0 / 32.0
FAST_ALPHA = 1.0 / 4.0
"""Moving averages over about 32 and 4 ticks; powers of two, so exact in binary."""

MISSING_FIXED = -(2**31)
"""What a vector holds where a required signal could not be read; the shield takes the default."""


class F(IntEnum):
    """Index of a feature in the vector."""

    USAGE_RATIO = 0
    HEADROOM_RATIO = 1
    GROWTH = 2
    GROWTH_SLOW = 3
    MEMSW_RATIO = 4
    SWAP_RATIO = 5
    PSI_MEM_SOME = 6
    PSI_MEM_FULL = 7
    PSI_IO_SOME = 8
    PSI_IO_FULL = 9
    PSI_CPU_SOME = 10
    PSI_MEM_AVG10 = 11
    PSI_MEM_FAST = 12
    PSI_MEM_SLOW = 13
    REFAULT_ANON = 14
    REFAULT_FILE = 15
    REFAULT_SLOW = 16
    ACTIVATE = 17
    RESTORE = 18
    EFFICIENCY_DIRECT = 19
    EFFICIENCY_BACKGROUND = 20
    SCAN_DIRECT = 21
    SLOW_SHARE = 22
    COLD_FAST_SHARE = 23
    HOT_SLOW_SHARE = 24
    PROMOTE = 25
    DEMOTE = 26
    DIRTY_SHARE = 27
    LOCK_KERNEL_SHARE = 28
    LOCK_USER_SHARE = 29
    LOCK_WAITERS = 30
    LOCK_WAIT_SHARE = 31
    CRITICAL_SHARE = 32
    SHARED_SHARE = 33
    SHARERS = 34
    WSS_RATIO = 35
    WSS_CONFIDENCE = 36
    LOAD = 37
    SLACK = 38
    SLACK_VALID = 39
    SHED_HONOURED = 40
    PRIORITY = 41
    KILL_RANK = 42
    PROTECTION = 43
    FLUSHER_BACKLOG = 44
    EVENTS_HIGH = 45
    EVENTS_MAX = 46
    EVENTS_OOM_KILL = 47
    LEVEL_THROTTLE = 48
    LEVEL_RECLAIM = 49
    LEVEL_DEMOTE = 50
    LEVEL_PROTECT = 51
    LEVEL_SHED = 52
    LEVEL_FLUSH = 53
    DWELL_LEFT = 54
    LEASE_LEFT = 55
    PENDING = 56
    HOST_UTIL = 57
    HOST_FREE_SLOPE = 58
    HOST_FAST_FREE = 59
    HOST_PSI_MEM_SOME = 60
    HOST_PSI_MEM_FULL = 61
    HOST_PSI_IO_SOME = 62
    HOST_CPU_IDLE = 63


N_FEATURES = len(F)


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of the contract.

    Attributes:
        id: Stable id, never reused; a removed feature leaves a hole.
        name: Lower-case name.
        unit: Unit of the value.
        low, high: Range; values beyond saturate.
        meaning: One line.
        signals: Names of the signals it is made of.
        fallback: Value where a host lacks the signal; None = required.
        per_host: True for features that are alike for all cgroups of a host.
    """

    id: int
    name: str
    unit: str
    low: float
    high: float
    meaning: str
    signals: tuple[str, ...]
    fallback: float | None = None
    per_host: bool = False

    @property
    def low_fixed(self) -> int:
        """Lower end of the range in fixed point."""
        return int(self.low * (1 << SHIFT))

    @property
    def high_fixed(self) -> int:
        """Upper end of the range in fixed point."""
        return int(self.high * (1 << SHIFT))


def _features() -> tuple[Feature, ...]:
    r, s = "ratio", "1/s"
    psi = "of the tick in which {} stalled on {}"
    some, full = "some task", "all non-idle tasks"
    rows: list[tuple[F, str, float, float, str, tuple[str, ...], float | None]] = [
        (F.USAGE_RATIO, r, 0, 4, "usage over the owner's effective limit min(high, max, host)",
         ("usage_bytes", "owner_high_bytes", "owner_max_bytes"), None),
        (F.HEADROOM_RATIO, r, -1, 1, "memory left under the owner's max, over host memory",
         ("usage_bytes", "owner_max_bytes"), None),
        (F.GROWTH, s, -4, 4, "usage growth over usage", ("usage_bytes",), None),
        (F.GROWTH_SLOW, s, -4, 4, "the same, averaged over 32 ticks", ("usage_bytes",), None),
        (F.MEMSW_RATIO, r, 0, 4, "memory + swap over the combined ceiling; 0 = no ceiling",
         ("usage_bytes", "swap_bytes", "memsw_ceiling_bytes"), 0.0),
        (F.SWAP_RATIO, r, 0, 1, "swap over memory + swap", ("usage_bytes", "swap_bytes"), 0.0),
        (F.PSI_MEM_SOME, r, 0, 1, "share " + psi.format(some, "memory"), ("psi_mem_some_us",), None),
        (F.PSI_MEM_FULL, r, 0, 1, "share " + psi.format(full, "memory"), ("psi_mem_full_us",), None),
        (F.PSI_IO_SOME, r, 0, 1, "share " + psi.format(some, "io"), ("psi_io_some_us",), 0.0),
        (F.PSI_IO_FULL, r, 0, 1, "share " + psi.format(full, "io"), ("psi_io_full_us",), 0.0),
        (F.PSI_CPU_SOME, r, 0, 1, "share " + psi.format(some, "cpu"), ("psi_cpu_some_us",), 0.0),
        (F.PSI_MEM_AVG10, r, 0, 1, "memory some avg10 / 100 (lags by ten seconds)",
         ("psi_mem_some_avg10",), 0.0),
        (F.PSI_MEM_FAST, r, 0, 1, "memory some, averaged over 4 ticks", ("psi_mem_some_us",), None),
        (F.PSI_MEM_SLOW, r, 0, 1, "memory some, averaged over 32 ticks", ("psi_mem_some_us",), None),
        (F.REFAULT_ANON, s, 0, 16, "anon refaults over usage", ("refault_anon",), None),
        (F.REFAULT_FILE, s, 0, 16, "file refaults over usage", ("refault_file",), None),
        (F.REFAULT_SLOW, s, 0, 16, "all refaults over usage, averaged over 32 ticks",
         ("refault_anon", "refault_file"), None),
        (F.ACTIVATE, s, 0, 16, "refaults inside the working set over usage", ("activate",), 0.0),
        (F.RESTORE, s, 0, 16, "refaults of pages once in the working set over usage",
         ("restore",), 0.0),
        (F.EFFICIENCY_DIRECT, r, 0, 1, "pages stolen over scanned, direct reclaim; 1 = no scan",
         ("pgscan_direct", "pgsteal_direct"), 1.0),
        (F.EFFICIENCY_BACKGROUND, r, 0, 1, "the same for kswapd and proactive reclaim",
         ("pgscan_kswapd", "pgsteal_kswapd", "pgscan_proactive", "pgsteal_proactive"), 1.0),
        (F.SCAN_DIRECT, s, 0, 16, "pages scanned by direct reclaim over usage",
         ("pgscan_direct",), 0.0),
        (F.SLOW_SHARE, r, 0, 1, "share of usage on the slow tier", ("fast_bytes", "slow_bytes"), 0.0),
        (F.COLD_FAST_SHARE, r, 0, 1, "cold share of the fast-tier pages",
         ("cold_fast_bytes", "fast_bytes"), 0.0),
        (F.HOT_SLOW_SHARE, r, 0, 1, "hot share of the slow-tier pages",
         ("hot_slow_bytes", "slow_bytes"), 0.0),
        (F.PROMOTE, s, 0, 4, "promoted pages over usage", ("pgpromote",), 0.0),
        (F.DEMOTE, s, 0, 4, "demoted pages over usage", ("pgdemote",), 0.0),
        (F.DIRTY_SHARE, r, 0, 1, "dirty and writeback pages over usage",
         ("dirty_bytes", "writeback_bytes"), 0.0),
        (F.LOCK_KERNEL_SHARE, r, 0, 1, "share of the tick allocators held a contended kernel lock",
         ("lock_kernel_held_us",), 0.0),
        (F.LOCK_USER_SHARE, r, 0, 1, "share of the tick allocators held a contended user mutex",
         ("lock_user_held_us",), 0.0),
        (F.LOCK_WAITERS, "count", 0, 64, "mean waiters on this cgroup's locks", ("lock_waiters",), 0.0),
        (F.LOCK_WAIT_SHARE, r, 0, 64, "waiting time on this cgroup's locks over the tick",
         ("lock_wait_us",), 0.0),
        (F.CRITICAL_SHARE, r, 0, 1, "share of the tick's charge by latency-critical threads",
         ("charge_pages", "critical_charge_pages"), 0.0),
        (F.SHARED_SHARE, r, 0, 1, "share of usage mapped by other cgroups", ("shared_bytes",), 0.0),
        (F.SHARERS, "count", 0, 64, "other cgroups that map it", ("sharers",), 0.0),
        (F.WSS_RATIO, r, 0, 2, "working-set estimate over usage", ("wss_bytes",), 1.0),
        (F.WSS_CONFIDENCE, r, 0, 1, "how far the estimate can be trusted", ("wss_confidence",), 0.0),
        (F.LOAD, r, 0, 8, "load over nominal, told by the workload", ("load_ratio",), 1.0),
        (F.SLACK, r, -8, 1, "slack to the service objective: 1 - p99 / objective",
         ("slack_ratio",), 0.0),
        (F.SLACK_VALID, r, 0, 1, "1 when load and slack are fresh", ("slack_valid",), 0.0),
        (F.SHED_HONOURED, r, 0, 1, "share of the last shed request that was honoured",
         ("shed_honoured_ratio",), 0.0),
        (F.PRIORITY, "count", 0, 3, "priority class, 3 = critical", ("priority",), 0.0),
        (F.KILL_RANK, "count", 0, 64, "rank by value, 0 = lowest on the host", ("kill_rank",), 64.0),
        (F.PROTECTION, r, 0, 4, "memory.low in force over usage", ("low_bytes", "usage_bytes"), None),
        (F.FLUSHER_BACKLOG, r, 0, 1, "host's dirty pages above the background threshold, over host "
         "memory", ("flusher_backlog_bytes",), 0.0),
        (F.EVENTS_HIGH, "count", 0, 255, "memory.events high over the tick", ("events_high",), 0.0),
        (F.EVENTS_MAX, "count", 0, 255, "memory.events max over the tick", ("events_max",), 0.0),
        (F.EVENTS_OOM_KILL, "count", 0, 255, "memory.events oom_kill over the tick",
         ("events_oom_kill",), 0.0),
        (F.LEVEL_THROTTLE, "level", 0, 8, "throttle level in force", (), None),
        (F.LEVEL_RECLAIM, "level", 0, 8, "reclaim level in force", (), None),
        (F.LEVEL_DEMOTE, "level", 0, 8, "demote level in force", (), None),
        (F.LEVEL_PROTECT, "level", 0, 8, "protect level in force", (), None),
        (F.LEVEL_SHED, "level", 0, 8, "shed level in force", (), None),
        (F.LEVEL_FLUSH, "level", 0, 8, "flush level in force", (), None),
        (F.DWELL_LEFT, "ticks", 0, 64, "longest dwell left over the heads", (), None),
        (F.LEASE_LEFT, "ticks", 0, 64, "ticks until the lease ends", (), None),
        (F.PENDING, "count", 0, 8, "heads with a decision not yet in force", (), None),
        (F.HOST_UTIL, r, 0, 1, "1 - available over total memory",
         ("total_bytes", "available_bytes"), None),
        (F.HOST_FREE_SLOPE, s, -1, 1, "change of free memory over total memory",
         ("free_bytes", "total_bytes"), None),
        (F.HOST_FAST_FREE, r, 0, 1, "free share of the fast tier",
         ("fast_free_bytes", "fast_total_bytes"), 0.0),
        (F.HOST_PSI_MEM_SOME, r, 0, 1, "host: share " + psi.format(some, "memory"),
         ("psi_mem_some_us",), None),
        (F.HOST_PSI_MEM_FULL, r, 0, 1, "host: share " + psi.format(full, "memory"),
         ("psi_mem_full_us",), None),
        (F.HOST_PSI_IO_SOME, r, 0, 1, "host: share " + psi.format(some, "io"),
         ("psi_io_some_us",), 0.0),
        (F.HOST_CPU_IDLE, r, 0, 1, "idle share of all CPUs", ("cpu_idle_us", "cpus"), 1.0),
    ]  # fmt: skip
    return tuple(
        Feature(
            int(f),
            f.name.lower(),
            unit,
            float(low),
            float(high),
            meaning,
            signals,
            fallback,
            f.name.startswith("HOST_") or f is F.FLUSHER_BACKLOG,
        )
        for f, unit, low, high, meaning, signals, fallback in rows
    )


FEATURES: tuple[Feature, ...] = _features()
