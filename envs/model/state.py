"""The whole state of the model, as record arrays: hosts[H], memcgs[H, N], regions[H, N, R].

Pages are floats: the model is a mean field, not a page list.  A *region* is a piece of one
cgroup's memory with one access pattern, cut into heat *bins* (for ``loop`` and ``stream``: into
sectors, in order).  Each bin's pages are resident on a NUMA node in a generation (MGLRU; slot =
seq % 4) or list (classic: 0 inactive, 1 active, 2 and 3 the same with PG_referenced), or not
resident by the generation they were evicted in, or were never touched.  Regions of several cgroups
that are one shared object form a ring: each holds the pages it is charged for and the shadows of
those evicted from it.

Units: pages of 4 KiB, seconds, microseconds; ``*_us`` counters are cumulative.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from memcg_gym.envs.contract.signals import PAGE_BYTES

N_BINS = 8
N_GENS = 4
GEN_MASK = N_GENS - 1  # slot = seq & GEN_MASK: a power of two needs no division
N_NODES = 2
N_TYPES = 2
FAST, SLOW = 0, 1
ANON, FILE = 0, 1
INACTIVE, ACTIVE = 0, 1
REFERENCED = 2  # classic lists: added to the list for pages with PG_referenced

SUBSTEPS = 10
SUBSTEP_S = 0.1
SUBSTEP_US = SUBSTEP_S * 1e6
N_LATENCY_BINS = 64

UNLIMITED_PAGES = float(2**50 // PAGE_BYTES)


class Kind(IntEnum):
    """What a region's pages are."""

    ANON = 0
    FILE = 1
    FILE_READ = 2
    SHARED = 3


class Pattern(IntEnum):
    """How a region is touched."""

    HEAT = 0
    SWEEP = 1
    IDLE = 2


class Lru(IntEnum):
    """Which reclaim the host's kernel runs."""

    MGLRU = 0
    CLASSIC = 1


class LockRole(IntEnum):
    """What a cgroup does with its lock."""

    NONE = 0
    HOLDER = 1
    WAITER = 2


F8, I8 = "f8", "i8"
Fields = list[tuple[Any, ...]]

PARAMS: Fields = [
    # Costs nobody measured here are assumptions until the kernel lab calibrates them.
    ("minor_fault_us", F8),
    ("zswap_load_us", F8),
    ("zswap_store_us", F8),
    ("scan_us", F8),
    ("steal_us", F8),
    ("migrate_us", F8),
    ("readahead_pages", F8),
    ("loads_per_touch", F8),
    ("kswapd_pages_per_s", F8),
    ("hint_scan_pages_per_s", F8),
    ("promote_threshold_s", F8),
    ("promote_pages_per_s", F8),
    ("charge_batch_pages", F8),
    ("queue_s", F8),
]

HOST: Fields = [
    ("kind", I8), ("lru", I8), ("cpus", F8), ("n_memcgs", I8), ("n_nodes", I8),
    ("demotion", I8), ("numa_balancing", I8), ("swappiness", F8),
    ("tick", I8), ("substep", I8), ("seed", "u8"),
    # memory
    ("total_pages", F8), ("reserved_pages", F8),
    ("node_pages", F8, (N_NODES,)), ("node_free", F8, (N_NODES,)),
    ("wmark_min", F8, (N_NODES,)), ("wmark_low", F8, (N_NODES,)),
    ("wmark_high", F8, (N_NODES,)), ("wmark_promo", F8, (N_NODES,)),
    ("kswapd_on", I8, (N_NODES,)),
    ("swap_pages", F8), ("swap_used", F8),
    ("zswap_max_pages", F8), ("zswap_pages", F8), ("zswap_compression", F8),
    # device
    ("disk_iops", F8), ("disk_latency_us", F8), ("disk_write_cost", F8),
    ("io_slots", F8), ("io_backlog", F8), ("io_latency_us", F8), ("io_load", F8),
    # tiers
    ("dram_ns", F8), ("slow_ns", F8), ("slow_touches_per_s", F8), ("slow_touches", F8),
    ("slow_extra_us", F8), ("promote_budget", F8),
    # CPU
    ("cpu_used_us", F8), ("cpu_slowdown", F8), ("cpu_idle_us", F8), ("kernel_cpu_us", F8),
    ("flusher_cpu_ratio", F8),
    # pressure
    ("scan_cursor", F8),
    ("psi_mem_some_us", F8), ("psi_mem_full_us", F8), ("psi_io_some_us", F8),
    ("psi_io_full_us", F8), ("psi_cpu_some_us", F8),
    ("psi_mark_us", F8, (2,)), ("psi_avg", I8, (2, 3)),
    # counters and metrics of this tick
    ("swapout_pages", F8), ("swap_write_pages", F8), ("oom_kills", F8), ("global_direct_us", F8),
    ("dirty_pages", F8), ("kernel_lock_stall_us", F8), ("psi_full_tick", F8),
]  # fmt: skip

MEMCG: Fields = [
    ("used", I8), ("present", I8), ("born", I8), ("alive", I8), ("stays_s", F8), ("vacant_s", F8),
    ("tenancy_left_s", F8), ("restart_left", I8), ("restart_s", I8),
    ("priority", I8), ("kill_rank", I8), ("value", F8),
    # limits: the owner's, and those in force
    ("owner_min", F8), ("owner_low", F8), ("owner_high", F8), ("owner_max", F8),
    ("owner_swap_max", F8), ("memsw", F8),
    ("limit_min", F8), ("limit_low", F8), ("limit_high", F8), ("limit_max", F8),
    ("swap_max", F8),
    # what is asked for over this tick
    ("reclaim_left", F8), ("demote_left", F8), ("promote_preferred", I8), ("shed_asked", F8),
    ("flush_weight", F8), ("stall_ceiling_us", F8), ("tagged", I8),
    # charge
    ("usage", F8), ("anon", F8), ("file", F8), ("shmem", F8), ("node", F8, (N_NODES,)),
    ("swap", F8), ("zswap", F8), ("dirty", F8), ("writeback", F8),
    # lruvecs
    ("max_seq", I8, (N_NODES,)), ("min_seq", I8, (N_NODES, N_TYPES)),
    ("gen", F8, (N_NODES, N_TYPES, N_GENS)),
    ("refaulted", F8, (N_TYPES,)), ("evicted", F8, (N_TYPES,)),
    ("cost", F8, (N_TYPES,)), ("scan_clock", F8, (N_NODES, N_TYPES)),
    ("young", I8, (N_NODES,)),  # memcg LRU: aged since the last round, global reclaim passes by
    ("activated", F8, (N_TYPES,)), ("aged", F8),  # classic: since the last reclaim
    # workload
    ("threads", F8), ("threads_critical", F8), ("requests_per_s", F8), ("cpu_us", F8),
    ("slo_us", F8), ("load", F8), ("queue", F8), ("service_us", F8), ("base_us", F8),
    ("trace_offset", I8), ("trace_swing", F8), ("trace_kind", I8), ("trace_smooth", I8),
    ("phase_active_s", F8), ("phase_idle_s", F8), ("phase_idle_load", F8),
    ("phase_overlap", F8), ("phase_left_s", F8), ("phase_idle", I8),
    ("burst_every_s", F8), ("burst_hold_s", F8), ("burst_pages_per_s", F8),
    ("burst_left_s", F8), ("burst_on", I8), ("series", I8), ("burst_on_path", F8),
    ("compliance", F8), ("shed_delay_s", F8), ("shed", F8), ("honoured", F8),
    # lock
    ("lock", I8), ("lock_role", I8), ("lock_kernel", I8), ("lock_section_us", F8),
    ("lock_per_s", F8), ("lock_charge_share", F8), ("lock_stalled", F8), ("lock_event_us", F8),
    ("lock_waiting_us", F8),
    # sub-step scratch
    ("charged", F8), ("critical_charged", F8), ("work", F8), ("done", F8),
    ("memstall_us", F8), ("iowait_us", F8), ("fault_us", F8), ("sleep_us", F8),
    ("sleep_event_us", F8), ("reclaim_us", F8), ("slow_touches", F8), ("disk_faults", F8),
    ("stall_tick", F8), ("wait_tick", F8), ("busy_tick", F8),
    ("burst_charged", F8), ("burst_page_us", F8), ("lock_wait_p", F8), ("lock_wait_event_us", F8),
    ("dirty_pause_us", F8), ("node_share", F8, (N_NODES,)),
    # cumulative counters, as in memory.stat, memory.events, *.pressure
    ("psi_mem_some_us", F8), ("psi_mem_full_us", F8), ("psi_io_some_us", F8),
    ("psi_io_full_us", F8), ("psi_cpu_some_us", F8),
    ("psi_mark_us", F8, (2,)), ("psi_avg", I8, (2, 3)),
    ("refault", F8, (N_TYPES,)), ("activate", F8), ("restore", F8),
    ("pgscan", F8, (3,)), ("pgsteal", F8, (3,)), ("pgdemote", F8), ("pgpromote", F8),
    ("pgmajfault", F8), ("pgfault", F8), ("events_low", F8), ("events_high", F8),
    ("events_max", F8), ("oom_kill", F8), ("lock_kernel_us", F8), ("lock_user_us", F8),
    ("lock_wait_us", F8), ("charge_pages", F8), ("critical_charge_pages", F8),
    ("swapout", F8), ("zswapped_pages", F8), ("disked_pages", F8),
    # estimates a host would make every ten ticks
    ("wss_pages", F8), ("cold_fast_pages", F8), ("hot_slow_pages", F8), ("walk_tick", I8),
    ("shared_pages", F8), ("sharers", F8),
    # metrics of this tick
    ("latency", F8, (N_LATENCY_BINS,)), ("p99_us", F8), ("requests", F8), ("failed", F8),
    ("arrived", F8), ("inversion_s", F8), ("critical_stall_s", F8), ("swap_write_tick", F8),
    ("killed", I8), ("harm_s", F8),
]  # fmt: skip

REGION: Fields = [
    ("used", I8), ("kind", I8), ("pattern", I8), ("type", I8), ("burst", I8),
    ("pages", F8), ("touches_per_s", F8), ("background_per_s", F8),
    ("write_share", F8), ("critical_share", F8),
    ("ring_memcg", I8), ("ring_region", I8), ("position", F8),
    ("bin_pages", F8, (N_BINS,)), ("bin_heat", F8, (N_BINS,)),
    ("rate", F8, (N_BINS,)),  # touches per page and second at nominal load
    ("absent", F8, (N_BINS,)),  # never touched
    ("resident", F8, (N_BINS, N_NODES, N_GENS)),
    ("few", I8, (N_BINS,)),  # expects few faults: served every fifth sub-step
    ("fresh", F8, (N_BINS, N_NODES, N_GENS)),  # of those, faulted and not looked at: accessed
    ("referenced", F8, (N_BINS,)), ("workingset", F8, (N_BINS,)),
    ("evicted", F8, (N_BINS, N_GENS)), ("evicted_old", F8, (N_BINS,)),
    ("evicted_workingset", F8, (N_BINS,)),
    ("touched", F8, (N_BINS,)), ("mark", F8, (N_BINS, N_NODES)),  # touches per page, at last walk
    ("accessed", F8, (N_BINS,)),  # scratch of reclaim
    ("looks", F8, (N_NODES,)),  # accessed pages the eviction met whose neighbours are not seen to
    ("skipped", F8, (N_NODES,)),  # share of the page tables the next walk passes over
    ("dirty", F8), ("resident_pages", F8), ("gone_pages", F8),
]  # fmt: skip


def record(fields: Fields) -> np.dtype[Any]:
    """An aligned record dtype whose elements allow attribute access, compiled or not."""
    return np.dtype((np.record, np.dtype(fields, align=True)))


HOST_DTYPE = record(HOST)
MEMCG_DTYPE = record(MEMCG)
REGION_DTYPE = record(REGION)
PARAMS_DTYPE = record(PARAMS)
