"""From stalled time to pressure, and from model state to the signals a host would read.

Units: microseconds, pages inside; bytes in signals.
"""

from __future__ import annotations

import math

from memcg_gym.envs.contract.signals import PAGE_BYTES, UNLIMITED_BYTES, HostSig, Sig
from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.lruvec import on_node
from memcg_gym.envs.model.psi import PSI_PERIOD_US, calc_avgs, full_share, percent_of, some_share
from memcg_gym.envs.model.records import Array, Rec
from memcg_gym.envs.model.state import (
    ANON,
    FAST,
    FILE,
    N_BINS,
    SLOW,
    SUBSTEP_S,
    SUBSTEP_US,
    SUBSTEPS,
    UNLIMITED_PAGES,
    Kind,
    Pattern,
)
from memcg_gym.envs.model.writeback import BACKGROUND_RATIO

HOT_WINDOW_S = 60.0  # touched within this = in the working set; damo and far memory use 60-120 s
TICK_US = SUBSTEPS * SUBSTEP_US
WALK_TICKS = 10  # how often a host would walk page tables for the estimate


@compiled
def book_pressure(host: Rec, memcg: Rec) -> None:
    """One cgroup's memory, io and cpu stall of this sub-step."""
    if not memcg.alive or memcg.threads <= 0.0:
        return
    time_us = memcg.threads * SUBSTEP_US
    stalled = min((memcg.memstall_us + memcg.reclaim_us + memcg.sleep_us) / time_us, 1.0)
    waiting = min(memcg.iowait_us / time_us, 1.0)
    busy_us = memcg.done * memcg.service_us + memcg.reclaim_us + memcg.sleep_us
    busy = min(busy_us / time_us, 1.0)
    lag = 1.0 - 1.0 / max(host.cpu_slowdown, 1.0)
    threads = memcg.threads
    memcg.psi_mem_some_us += some_share(stalled, threads, host.cpus) * SUBSTEP_US
    memcg.psi_mem_full_us += full_share(stalled, busy, threads, host.cpus) * SUBSTEP_US
    memcg.psi_io_some_us += some_share(waiting, threads, host.cpus) * SUBSTEP_US
    memcg.psi_io_full_us += full_share(waiting, busy, threads, host.cpus) * SUBSTEP_US
    memcg.psi_cpu_some_us += some_share(lag * busy, threads, host.cpus) * SUBSTEP_US
    if memcg.threads_critical > 0.0:
        memcg.critical_stall_s += stalled * SUBSTEP_S
    memcg.stall_tick += stalled
    memcg.wait_tick += waiting
    memcg.busy_tick += busy


@compiled
def book_cpu(host: Rec) -> None:
    """CPU time of one sub-step: what was used, what is left, and how far work is slowed down."""
    used_us = host.cpu_used_us + host.kernel_cpu_us
    capacity_us = host.cpus * SUBSTEP_US
    host.cpu_idle_us += max(0.0, capacity_us - used_us)
    wanted = used_us / capacity_us
    host.psi_cpu_some_us += max(0.0, 1.0 - 1.0 / max(wanted, 1.0)) * SUBSTEP_US
    host.cpu_slowdown += 0.5 * (max(1.0, wanted) - host.cpu_slowdown)
    host.cpu_used_us = 0.0
    host.kernel_cpu_us = 0.0


@compiled
def host_pressure(host: Rec, memcgs: Rec) -> None:
    """The host's own pressure over the tick: threads of any cgroup on a CPU.

    Per CPU there are ``threads / cpus`` threads of each cgroup; they stall independently of each
    other.  Kernel: SOME = somebody stalls, FULL = somebody stalls and nobody runs.
    """
    none_mem = none_io = idle = full_mem = full_io = 1.0
    for i in range(host.n_memcgs):
        memcg = memcgs[i]
        if not memcg.used or memcg.busy_tick <= 0.0:
            continue
        per_cpu = memcg.threads / host.cpus
        stalled = memcg.stall_tick * (1.0 / SUBSTEPS)
        waiting = memcg.wait_tick * (1.0 / SUBSTEPS)
        busy = max(memcg.busy_tick * (1.0 / SUBSTEPS), max(stalled, waiting))
        busy = min(busy, 1.0 - 1e-12)
        rest = (1.0 - busy) ** per_cpu
        idle *= rest
        if stalled > 0.0:
            none_mem *= (1.0 - min(stalled, 1.0)) ** per_cpu
            full_mem *= (1.0 - busy + stalled) ** per_cpu
        else:
            full_mem *= rest
        if waiting > 0.0:
            none_io *= (1.0 - min(waiting, 1.0)) ** per_cpu
            full_io *= (1.0 - busy + waiting) ** per_cpu
        else:
            full_io *= rest
        memcg.stall_tick = memcg.wait_tick = memcg.busy_tick = 0.0
    host.psi_mem_some_us += (1.0 - none_mem) * TICK_US
    host.psi_io_some_us += (1.0 - none_io) * TICK_US
    host.psi_mem_full_us += max(0.0, full_mem - idle) * TICK_US
    host.psi_io_full_us += max(0.0, full_io - idle) * TICK_US


@compiled
def average_pressure(host: Rec, memcgs: Rec) -> None:
    """Every second tick: the running averages of all groups."""
    if host.tick % 2:
        return
    average_one(host.psi_avg[0], host.psi_mark_us, 0, host.psi_mem_some_us)
    average_one(host.psi_avg[1], host.psi_mark_us, 1, host.psi_mem_full_us)
    for i in range(host.n_memcgs):
        memcg = memcgs[i]
        average_one(memcg.psi_avg[0], memcg.psi_mark_us, 0, memcg.psi_mem_some_us)
        average_one(memcg.psi_avg[1], memcg.psi_mark_us, 1, memcg.psi_io_some_us)


@compiled
def average_one(avg: Array, marks: Array, which: int, total_us: float) -> None:
    """Fold the stall since the last mark into one set of averages."""
    calc_avgs(avg, total_us - marks[which], PSI_PERIOD_US)
    marks[which] = total_us


@compiled
def estimate_working_set(host: Rec, memcg: Rec, regions: Rec, tick: int) -> None:
    """What an aging walk or DAMON would say: pages touched within a minute, by node."""
    memcg.walk_tick = tick
    memcg.wss_pages = memcg.cold_fast_pages = memcg.hot_slow_pages = 0.0
    memcg.shared_pages = 0.0
    for r in range(regions.shape[0]):
        region = regions[r]
        if not region.used or region.resident_pages < 1.0:
            continue
        if region.kind == Kind.SHARED:
            memcg.shared_pages += region.resident_pages
        work = region.touches_per_s * memcg.work + region.background_per_s
        for b in range(N_BINS):
            touches = work * region.rate[b] * HOT_WINDOW_S
            if region.pattern == Pattern.SWEEP:
                hot = min(1.0, work * HOT_WINDOW_S / max(region.pages, 1.0))
            else:
                hot = 1.0 - math.exp(-touches)
            fast = on_node(region, b, FAST)
            slow = on_node(region, b, SLOW)
            memcg.wss_pages += (fast + slow) * hot
            memcg.cold_fast_pages += fast * (1.0 - hot)
            memcg.hot_slow_pages += slow * hot


@compiled
def bytes_of(pages: float) -> float:
    """Pages to bytes, with ``max`` kept as what stands for it."""
    if pages >= UNLIMITED_PAGES:
        return UNLIMITED_BYTES
    return max(0.0, pages) * PAGE_BYTES


@compiled
def export_memcg(host: Rec, memcg: Rec, out: Array) -> None:
    """Fill one cgroup's signals, shape ``(N_MEMCG_SIGNALS,)``."""
    out[Sig.USAGE_BYTES] = bytes_of(memcg.usage)
    out[Sig.SWAP_BYTES] = bytes_of(memcg.swap)
    out[Sig.ZSWAP_BYTES] = bytes_of(memcg.zswap)
    out[Sig.ANON_BYTES] = bytes_of(memcg.anon)
    out[Sig.FILE_BYTES] = bytes_of(memcg.file)
    out[Sig.SHMEM_BYTES] = bytes_of(memcg.shmem)
    out[Sig.DIRTY_BYTES] = bytes_of(memcg.dirty)
    out[Sig.WRITEBACK_BYTES] = bytes_of(memcg.writeback)
    out[Sig.FAST_BYTES] = bytes_of(memcg.node[FAST])
    out[Sig.SLOW_BYTES] = bytes_of(memcg.node[SLOW])
    out[Sig.COLD_FAST_BYTES] = bytes_of(memcg.cold_fast_pages)
    out[Sig.HOT_SLOW_BYTES] = bytes_of(memcg.hot_slow_pages)
    out[Sig.WSS_BYTES] = bytes_of(memcg.wss_pages)
    out[Sig.WSS_CONFIDENCE] = max(0.0, 1.0 - (host.tick - memcg.walk_tick) / 60.0)
    out[Sig.OWNER_MIN_BYTES] = bytes_of(memcg.owner_min)
    out[Sig.OWNER_LOW_BYTES] = bytes_of(memcg.owner_low)
    out[Sig.OWNER_HIGH_BYTES] = bytes_of(memcg.owner_high)
    out[Sig.OWNER_MAX_BYTES] = bytes_of(memcg.owner_max)
    out[Sig.OWNER_SWAP_MAX_BYTES] = bytes_of(memcg.owner_swap_max)
    out[Sig.MEMSW_CEILING_BYTES] = bytes_of(memcg.memsw)
    out[Sig.LOW_BYTES] = bytes_of(memcg.limit_low)
    out[Sig.HIGH_BYTES] = bytes_of(memcg.limit_high)
    out[Sig.UNRECLAIMABLE_BYTES] = 0.0
    export_pressure(memcg, out)
    export_reclaim(memcg, out)
    export_told(memcg, out)


@compiled
def export_pressure(memcg: Rec, out: Array) -> None:
    """PSI and memory.events."""
    out[Sig.PSI_MEM_SOME_US] = math.floor(memcg.psi_mem_some_us)
    out[Sig.PSI_MEM_FULL_US] = math.floor(memcg.psi_mem_full_us)
    out[Sig.PSI_IO_SOME_US] = math.floor(memcg.psi_io_some_us)
    out[Sig.PSI_IO_FULL_US] = math.floor(memcg.psi_io_full_us)
    out[Sig.PSI_CPU_SOME_US] = math.floor(memcg.psi_cpu_some_us)
    out[Sig.PSI_MEM_SOME_AVG10] = percent_of(memcg.psi_avg[0, 0])
    out[Sig.PSI_MEM_SOME_AVG60] = percent_of(memcg.psi_avg[0, 1])
    out[Sig.PSI_IO_SOME_AVG10] = percent_of(memcg.psi_avg[1, 0])
    out[Sig.PSI_IO_SOME_AVG60] = percent_of(memcg.psi_avg[1, 1])
    out[Sig.EVENTS_LOW] = math.floor(memcg.events_low)
    out[Sig.EVENTS_HIGH] = math.floor(memcg.events_high)
    out[Sig.EVENTS_MAX] = math.floor(memcg.events_max)
    out[Sig.EVENTS_OOM_KILL] = memcg.oom_kill


@compiled
def export_reclaim(memcg: Rec, out: Array) -> None:
    """The counters of memory.stat, whole pages."""
    out[Sig.REFAULT_ANON] = math.floor(memcg.refault[ANON])
    out[Sig.REFAULT_FILE] = math.floor(memcg.refault[FILE])
    out[Sig.ACTIVATE] = math.floor(memcg.activate)
    out[Sig.RESTORE] = math.floor(memcg.restore)
    out[Sig.PGSCAN_DIRECT] = math.floor(memcg.pgscan[0])
    out[Sig.PGSTEAL_DIRECT] = math.floor(memcg.pgsteal[0])
    out[Sig.PGSCAN_KSWAPD] = math.floor(memcg.pgscan[1])
    out[Sig.PGSTEAL_KSWAPD] = math.floor(memcg.pgsteal[1])
    out[Sig.PGSCAN_PROACTIVE] = math.floor(memcg.pgscan[2])
    out[Sig.PGSTEAL_PROACTIVE] = math.floor(memcg.pgsteal[2])
    out[Sig.PGDEMOTE] = math.floor(memcg.pgdemote)
    out[Sig.PGPROMOTE] = math.floor(memcg.pgpromote)
    out[Sig.PGMAJFAULT] = math.floor(memcg.pgmajfault)
    out[Sig.PGFAULT] = math.floor(memcg.pgfault)
    out[Sig.SWAPOUT_PAGES] = math.floor(memcg.swapout)
    out[Sig.CHARGE_PAGES] = math.floor(memcg.charge_pages)
    out[Sig.CRITICAL_CHARGE_PAGES] = math.floor(memcg.critical_charge_pages)
    out[Sig.LOCK_KERNEL_HELD_US] = math.floor(memcg.lock_kernel_us)
    out[Sig.LOCK_USER_HELD_US] = math.floor(memcg.lock_user_us)
    waited_us = math.floor(memcg.lock_wait_us)
    out[Sig.LOCK_WAITERS] = (waited_us - out[Sig.LOCK_WAIT_US]) * 1e-6
    out[Sig.LOCK_WAIT_US] = waited_us
    out[Sig.SHARED_BYTES] = bytes_of(memcg.shared_pages)
    out[Sig.SHARERS] = memcg.sharers


@compiled
def export_told(memcg: Rec, out: Array) -> None:
    """What comes over the shedding channel and from configuration."""
    out[Sig.LOAD_RATIO] = memcg.load * (1.0 - memcg.shed)
    out[Sig.SLACK_RATIO] = 1.0 - memcg.p99_us / memcg.slo_us
    out[Sig.SLACK_VALID] = 1.0 if memcg.alive else 0.0
    out[Sig.SHED_HONOURED_RATIO] = memcg.honoured
    out[Sig.PRIORITY] = memcg.priority
    out[Sig.KILL_RANK] = memcg.kill_rank


@compiled
def export_host(host: Rec, memcgs: Rec, out: Array) -> None:
    """Fill the host's signals, shape ``(N_HOST_SIGNALS,)``."""
    free = max(0.0, host.node_free[FAST]) + max(0.0, host.node_free[SLOW])
    cache = 0.0
    for i in range(host.n_memcgs):
        cache += max(0.0, memcgs[i].file - memcgs[i].dirty)
    # si_mem_available: free above the low watermarks plus half of the page cache at least
    low = host.wmark_low[FAST] + host.wmark_low[SLOW]
    available = max(0.0, free - low) + cache - min(0.5 * cache, low)
    out[HostSig.TOTAL_BYTES] = host.total_pages * PAGE_BYTES
    out[HostSig.FREE_BYTES] = free * PAGE_BYTES
    out[HostSig.AVAILABLE_BYTES] = min(available, host.total_pages) * PAGE_BYTES
    out[HostSig.FAST_TOTAL_BYTES] = host.node_pages[FAST] * PAGE_BYTES
    out[HostSig.FAST_FREE_BYTES] = max(0.0, host.node_free[FAST]) * PAGE_BYTES
    out[HostSig.SLOW_TOTAL_BYTES] = host.node_pages[SLOW] * PAGE_BYTES
    out[HostSig.SLOW_FREE_BYTES] = max(0.0, host.node_free[SLOW]) * PAGE_BYTES
    out[HostSig.SWAP_TOTAL_BYTES] = host.swap_pages * PAGE_BYTES
    out[HostSig.SWAP_FREE_BYTES] = max(0.0, host.swap_pages - host.swap_used) * PAGE_BYTES
    out[HostSig.PSI_MEM_SOME_US] = math.floor(host.psi_mem_some_us)
    out[HostSig.PSI_MEM_FULL_US] = math.floor(host.psi_mem_full_us)
    out[HostSig.PSI_IO_SOME_US] = math.floor(host.psi_io_some_us)
    out[HostSig.PSI_IO_FULL_US] = math.floor(host.psi_io_full_us)
    out[HostSig.PSI_CPU_SOME_US] = math.floor(host.psi_cpu_some_us)
    out[HostSig.PSI_MEM_SOME_AVG10] = percent_of(host.psi_avg[0, 0])
    out[HostSig.PSI_MEM_FULL_AVG10] = percent_of(host.psi_avg[1, 0])
    out[HostSig.CPU_IDLE_US] = math.floor(host.cpu_idle_us)
    out[HostSig.CPUS] = host.cpus
    out[HostSig.DIRTY_BYTES] = host.dirty_pages * PAGE_BYTES
    backlog = max(0.0, host.dirty_pages - BACKGROUND_RATIO * host.total_pages)
    out[HostSig.FLUSHER_BACKLOG_BYTES] = backlog * PAGE_BYTES
    out[HostSig.SWAPOUT_PAGES] = math.floor(host.swapout_pages)
    out[HostSig.UPTIME_US] = host.tick * 1e6
