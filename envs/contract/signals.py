"""Raw signals: what a Linux host really offers, before any arithmetic.

A *signal* is one number read from the kernel (a file and a key, a tracepoint, or the shedding
channel).  The model exports the same numbers, so ``enforcer/features.py`` turns signals into
features with one arithmetic for both worlds.  Counters are cumulative, as in the kernel.

Units: bytes, microseconds, pages (4 KiB) and plain counts, named in each signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

UNLIMITED_BYTES = float(2**50)
"""What stands for ``max`` in a limit file: far above any host, exact in a float64."""

PAGE_BYTES = 4096


class Sig(IntEnum):
    """Index of a per-cgroup signal."""

    USAGE_BYTES = 0
    SWAP_BYTES = 1
    ZSWAP_BYTES = 2
    ANON_BYTES = 3
    FILE_BYTES = 4
    SHMEM_BYTES = 5
    DIRTY_BYTES = 6
    WRITEBACK_BYTES = 7
    FAST_BYTES = 8
    SLOW_BYTES = 9
    COLD_FAST_BYTES = 10
    HOT_SLOW_BYTES = 11
    WSS_BYTES = 12
    WSS_CONFIDENCE = 13
    OWNER_MIN_BYTES = 14
    OWNER_LOW_BYTES = 15
    OWNER_HIGH_BYTES = 16
    OWNER_MAX_BYTES = 17
    OWNER_SWAP_MAX_BYTES = 18
    MEMSW_CEILING_BYTES = 19
    LOW_BYTES = 20
    HIGH_BYTES = 21
    PSI_MEM_SOME_US = 22
    PSI_MEM_FULL_US = 23
    PSI_IO_SOME_US = 24
    PSI_IO_FULL_US = 25
    PSI_CPU_SOME_US = 26
    PSI_MEM_SOME_AVG10 = 27
    REFAULT_ANON = 28
    REFAULT_FILE = 29
    ACTIVATE = 30
    RESTORE = 31
    PGSCAN_DIRECT = 32
    PGSTEAL_DIRECT = 33
    PGSCAN_KSWAPD = 34
    PGSTEAL_KSWAPD = 35
    PGSCAN_PROACTIVE = 36
    PGSTEAL_PROACTIVE = 37
    PGDEMOTE = 38
    PGPROMOTE = 39
    PGMAJFAULT = 40
    EVENTS_LOW = 41
    EVENTS_HIGH = 42
    EVENTS_MAX = 43
    EVENTS_OOM_KILL = 44
    LOCK_KERNEL_HELD_US = 45
    LOCK_USER_HELD_US = 46
    LOCK_WAITERS = 47
    LOCK_WAIT_US = 48
    CHARGE_PAGES = 49
    CRITICAL_CHARGE_PAGES = 50
    SHARED_BYTES = 51
    SHARERS = 52
    LOAD_RATIO = 53
    SLACK_RATIO = 54
    SLACK_VALID = 55
    SHED_HONOURED_RATIO = 56
    PRIORITY = 57
    KILL_RANK = 58
    PSI_MEM_SOME_AVG60 = 59
    PSI_IO_SOME_AVG10 = 60
    PSI_IO_SOME_AVG60 = 61
    UNRECLAIMABLE_BYTES = 62
    PGFAULT = 63
    SWAPOUT_PAGES = 64


class HostSig(IntEnum):
    """Index of a per-host signal."""

    TOTAL_BYTES = 0
    FREE_BYTES = 1
    AVAILABLE_BYTES = 2
    FAST_TOTAL_BYTES = 3
    FAST_FREE_BYTES = 4
    SLOW_TOTAL_BYTES = 5
    SLOW_FREE_BYTES = 6
    SWAP_TOTAL_BYTES = 7
    SWAP_FREE_BYTES = 8
    PSI_MEM_SOME_US = 9
    PSI_MEM_FULL_US = 10
    PSI_IO_SOME_US = 11
    PSI_IO_FULL_US = 12
    PSI_CPU_SOME_US = 13
    PSI_MEM_SOME_AVG10 = 14
    PSI_MEM_FULL_AVG10 = 15
    CPU_IDLE_US = 16
    CPUS = 17
    DIRTY_BYTES = 18
    FLUSHER_BACKLOG_BYTES = 19
    SWAPOUT_PAGES = 20
    UPTIME_US = 21


@dataclass(frozen=True, slots=True)
class Signal:
    """Where a number comes from on a real host.

    Attributes:
        name: Lower-case name, the member of :class:`Sig` or :class:`HostSig` it belongs to.
        unit: ``bytes``, ``us``, ``pages``, ``count``, ``ratio`` or ``percent``.
        source: Kernel file and key, tracepoint, or protocol.
        cumulative: True for counters that only grow.
        since: First kernel that offers it, ``"5.2"``; ``""`` where it is not the kernel's.
        required: A host without it cannot be managed (the default action is taken).
    """

    name: str
    unit: str
    source: str
    cumulative: bool = False
    since: str = "4.20"
    required: bool = False


def _memcg_signals() -> tuple[Signal, ...]:
    stat = "memory.stat: "
    channel = "shedding channel: "
    owner = "value found in {} when management began"
    table = {
        Sig.USAGE_BYTES: Signal("", "bytes", "memory.current", required=True),
        Sig.SWAP_BYTES: Signal("", "bytes", "memory.swap.current"),
        Sig.ZSWAP_BYTES: Signal("", "bytes", "memory.zswap.current", since="5.19"),
        Sig.ANON_BYTES: Signal("", "bytes", stat + "anon", required=True),
        Sig.FILE_BYTES: Signal("", "bytes", stat + "file", required=True),
        Sig.SHMEM_BYTES: Signal("", "bytes", stat + "shmem"),
        Sig.DIRTY_BYTES: Signal("", "bytes", stat + "file_dirty"),
        Sig.WRITEBACK_BYTES: Signal("", "bytes", stat + "file_writeback"),
        Sig.FAST_BYTES: Signal(
            "", "bytes", "memory.numa_stat: anon + file on fast nodes", since="5.8"
        ),
        Sig.SLOW_BYTES: Signal(
            "", "bytes", "memory.numa_stat: anon + file on slow nodes", since="5.8"
        ),
        Sig.COLD_FAST_BYTES: Signal(
            "", "bytes", "lru_gen debugfs: generations untouched for 60 s on fast nodes; or DAMON"
        ),
        Sig.HOT_SLOW_BYTES: Signal(
            "", "bytes", "lru_gen debugfs: youngest generations on slow nodes; or DAMON"
        ),
        Sig.WSS_BYTES: Signal(
            "", "bytes", "lru_gen debugfs: generations touched within 60 s; or DAMON"
        ),
        Sig.WSS_CONFIDENCE: Signal("", "ratio", "age of the last aging walk; 0 = never walked"),
        Sig.OWNER_MIN_BYTES: Signal("", "bytes", owner.format("memory.min")),
        Sig.OWNER_LOW_BYTES: Signal("", "bytes", owner.format("memory.low")),
        Sig.OWNER_HIGH_BYTES: Signal("", "bytes", owner.format("memory.high")),
        Sig.OWNER_MAX_BYTES: Signal("", "bytes", owner.format("memory.max")),
        Sig.OWNER_SWAP_MAX_BYTES: Signal("", "bytes", owner.format("memory.swap.max")),
        Sig.MEMSW_CEILING_BYTES: Signal(
            "", "bytes", "configuration: combined memory+swap ceiling", since=""
        ),
        Sig.LOW_BYTES: Signal("", "bytes", "memory.low", required=True),
        Sig.HIGH_BYTES: Signal("", "bytes", "memory.high", required=True),
        Sig.PSI_MEM_SOME_US: Signal("", "us", "memory.pressure: some total", True, required=True),
        Sig.PSI_MEM_FULL_US: Signal("", "us", "memory.pressure: full total", True, required=True),
        Sig.PSI_IO_SOME_US: Signal("", "us", "io.pressure: some total", True),
        Sig.PSI_IO_FULL_US: Signal("", "us", "io.pressure: full total", True),
        Sig.PSI_CPU_SOME_US: Signal("", "us", "cpu.pressure: some total", True),
        Sig.PSI_MEM_SOME_AVG10: Signal("", "percent", "memory.pressure: some avg10"),
        Sig.REFAULT_ANON: Signal(
            "", "pages", stat + "workingset_refault_anon", True, "5.9", required=True
        ),
        Sig.REFAULT_FILE: Signal(
            "", "pages", stat + "workingset_refault_file", True, "5.9", required=True
        ),
        Sig.ACTIVATE: Signal(
            "", "pages", stat + "workingset_activate_anon + workingset_activate_file", True, "5.9"
        ),
        Sig.RESTORE: Signal(
            "", "pages", stat + "workingset_restore_anon + workingset_restore_file", True, "5.9"
        ),
        Sig.PGSCAN_DIRECT: Signal("", "pages", stat + "pgscan_direct", True, "5.18"),
        Sig.PGSTEAL_DIRECT: Signal("", "pages", stat + "pgsteal_direct", True, "5.18"),
        Sig.PGSCAN_KSWAPD: Signal("", "pages", stat + "pgscan_kswapd", True, "5.18"),
        Sig.PGSTEAL_KSWAPD: Signal("", "pages", stat + "pgsteal_kswapd", True, "5.18"),
        Sig.PGSCAN_PROACTIVE: Signal("", "pages", stat + "pgscan_proactive", True, "6.16"),
        Sig.PGSTEAL_PROACTIVE: Signal("", "pages", stat + "pgsteal_proactive", True, "6.16"),
        Sig.PGDEMOTE: Signal(
            "",
            "pages",
            stat + "pgdemote_kswapd + pgdemote_direct + pgdemote_khugepaged + pgdemote_proactive",
            True,
            "6.9",
        ),
        Sig.PGPROMOTE: Signal("", "pages", stat + "pgpromote_success", True, "6.9"),
        Sig.PGMAJFAULT: Signal("", "pages", stat + "pgmajfault", True, required=True),
        Sig.EVENTS_LOW: Signal("", "count", "memory.events: low", True),
        Sig.EVENTS_HIGH: Signal("", "count", "memory.events: high", True),
        Sig.EVENTS_MAX: Signal("", "count", "memory.events: max", True),
        Sig.EVENTS_OOM_KILL: Signal("", "count", "memory.events: oom_kill", True),
        Sig.LOCK_KERNEL_HELD_US: Signal(
            "",
            "us",
            "tracepoints lock:contention_begin/end: time a task of this cgroup held a lock "
            "others waited for",
            True,
            "5.19",
        ),
        Sig.LOCK_USER_HELD_US: Signal(
            "",
            "us",
            "futex waits with the owner's thread id, or a tag: time a task of this cgroup held "
            "a mutex others waited for",
            True,
        ),
        Sig.LOCK_WAITERS: Signal("", "count", "same: waiters on this cgroup's locks, tick mean"),
        Sig.LOCK_WAIT_US: Signal("", "us", "same: time waiters spent on this cgroup's locks", True),
        Sig.CHARGE_PAGES: Signal("", "pages", stat + "pgfault (allocating faults)", True),
        Sig.CRITICAL_CHARGE_PAGES: Signal(
            "", "pages", "faults by threads tagged latency-critical (tag file or prctl hint)", True
        ),
        Sig.SHARED_BYTES: Signal(
            "", "bytes", "DAMON or PSS scan: bytes charged here and mapped by other cgroups"
        ),
        Sig.SHARERS: Signal("", "count", "same: other cgroups that map them"),
        Sig.LOAD_RATIO: Signal("", "ratio", channel + "load over nominal", since=""),
        Sig.SLACK_RATIO: Signal(
            "", "ratio", channel + "slack to the service objective, negative when missed", since=""
        ),
        Sig.SLACK_VALID: Signal("", "ratio", channel + "1 when the two above are fresh", since=""),
        Sig.SHED_HONOURED_RATIO: Signal(
            "", "ratio", channel + "share of the last shed request that was honoured", since=""
        ),
        Sig.PRIORITY: Signal("", "count", "configuration: 0 = batch .. 3 = critical", since=""),
        Sig.KILL_RANK: Signal(
            "", "count", "configuration: rank by value, 0 = lowest value on the host", since=""
        ),
        Sig.PSI_MEM_SOME_AVG60: Signal("", "percent", "memory.pressure: some avg60"),
        Sig.PSI_IO_SOME_AVG10: Signal("", "percent", "io.pressure: some avg10"),
        Sig.PSI_IO_SOME_AVG60: Signal("", "percent", "io.pressure: some avg60"),
        Sig.UNRECLAIMABLE_BYTES: Signal("", "bytes", stat + "unevictable + slab_unreclaimable"),
        Sig.PGFAULT: Signal("", "pages", stat + "pgfault", True),
        Sig.SWAPOUT_PAGES: Signal("", "pages", stat + "pswpout", True, "6.8"),
    }
    return _named(Sig, table)


def _host_signals() -> tuple[Signal, ...]:
    info = "/proc/meminfo: "
    node = "/sys/devices/system/node/nodeN/meminfo: "
    table = {
        HostSig.TOTAL_BYTES: Signal("", "bytes", info + "MemTotal", required=True),
        HostSig.FREE_BYTES: Signal("", "bytes", info + "MemFree", required=True),
        HostSig.AVAILABLE_BYTES: Signal("", "bytes", info + "MemAvailable", required=True),
        HostSig.FAST_TOTAL_BYTES: Signal("", "bytes", node + "MemTotal of fast nodes"),
        HostSig.FAST_FREE_BYTES: Signal("", "bytes", node + "MemFree of fast nodes"),
        HostSig.SLOW_TOTAL_BYTES: Signal("", "bytes", node + "MemTotal of slow nodes"),
        HostSig.SLOW_FREE_BYTES: Signal("", "bytes", node + "MemFree of slow nodes"),
        HostSig.SWAP_TOTAL_BYTES: Signal("", "bytes", info + "SwapTotal"),
        HostSig.SWAP_FREE_BYTES: Signal("", "bytes", info + "SwapFree"),
        HostSig.PSI_MEM_SOME_US: Signal(
            "", "us", "/proc/pressure/memory: some total", True, required=True
        ),
        HostSig.PSI_MEM_FULL_US: Signal(
            "", "us", "/proc/pressure/memory: full total", True, required=True
        ),
        HostSig.PSI_IO_SOME_US: Signal("", "us", "/proc/pressure/io: some total", True),
        HostSig.PSI_IO_FULL_US: Signal("", "us", "/proc/pressure/io: full total", True),
        HostSig.PSI_CPU_SOME_US: Signal("", "us", "/proc/pressure/cpu: some total", True),
        HostSig.PSI_MEM_SOME_AVG10: Signal("", "percent", "/proc/pressure/memory: some avg10"),
        HostSig.PSI_MEM_FULL_AVG10: Signal("", "percent", "/proc/pressure/memory: full avg10"),
        HostSig.CPU_IDLE_US: Signal("", "us", "/proc/stat: idle + iowait of all CPUs", True),
        HostSig.CPUS: Signal("", "count", "/proc/stat: number of cpuN lines"),
        HostSig.DIRTY_BYTES: Signal("", "bytes", info + "Dirty + Writeback"),
        HostSig.FLUSHER_BACKLOG_BYTES: Signal(
            "", "bytes", info + "Dirty above /proc/vmstat: nr_dirty_background_threshold"
        ),
        HostSig.SWAPOUT_PAGES: Signal("", "pages", "/proc/vmstat: pswpout", True),
        HostSig.UPTIME_US: Signal("", "us", "CLOCK_MONOTONIC when the vector was read", True),
    }
    return _named(HostSig, table)


def _named(index: type[IntEnum], table: Mapping[Any, Signal]) -> tuple[Signal, ...]:
    return tuple(
        Signal(m.name.lower(), s.unit, s.source, s.cumulative, s.since, s.required)
        for m in index
        for s in (table[m],)
    )


MEMCG_SIGNALS: tuple[Signal, ...] = _memcg_signals()
HOST_SIGNALS: tuple[Signal, ...] = _host_signals()
N_MEMCG_SIGNALS = len(Sig)
N_HOST_SIGNALS = len(HostSig)
