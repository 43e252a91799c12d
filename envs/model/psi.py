"""Pressure stall information: kernel/sched/psi.c.

Stall shares of a sub-step come from counting stalled threads; totals and running averages then
follow the kernel's integer arithmetic exactly.

Units: microseconds; averages in fixed point with 11 fractional bits, percent.
"""

from __future__ import annotations

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Array

FIXED_1 = 2048
EXP_10, EXP_60, EXP_300 = 1677, 1981, 2034
PSI_PERIOD_US = 2_000_000
"""The averaging period is 2*HZ+1 jiffies; the model's ticks make it 2 s."""


@compiled
def calc_load(load: int, exp: int, active: int) -> int:
    """include/linux/sched/loadavg.h calc_load: one step of the exponential average."""
    new = load * exp + active * (FIXED_1 - exp)
    if active >= load:
        new += FIXED_1 - 1
    return new // FIXED_1


@compiled
def calc_avgs(avg: Array, stall_us: float, period_us: float) -> None:
    """kernel/sched/psi.c calc_avgs: move avg10, avg60 and avg300 by one period.

    Args:
        avg: int64 array of 3, fixed-point percent, changed in place.
        stall_us: Stall time in the period [us].
        period_us: Length of the period [us].
    """
    stall = min(int(stall_us), int(period_us))
    percent = stall * 100 // int(period_us)
    active = percent * FIXED_1
    avg[0] = calc_load(avg[0], EXP_10, active)
    avg[1] = calc_load(avg[1], EXP_60, active)
    avg[2] = calc_load(avg[2], EXP_300, active)


@compiled
def percent_of(fixed: int) -> float:
    """A fixed-point average as printed: percent with two decimals."""
    whole = fixed // FIXED_1
    hundredths = (fixed % FIXED_1) * 100 // FIXED_1
    return whole + hundredths * 0.01


@compiled
def some_share(stalled: float, threads: float, cpus: float) -> float:
    """Share of time with at least one stalled thread per CPU, averaged over CPUs.

    The kernel keeps SOME per CPU and weights by non-idle time (psi_group_change,
    collect_percpu_times); with threads spread evenly that is the chance that one of the
    ``threads / min(threads, cpus)`` threads of a CPU stalls.

    Args:
        stalled: Share of its time a thread stalls.
        threads: Number of threads.
        cpus: CPUs they spread over.
    """
    if stalled <= 0.0:
        return 0.0
    if stalled >= 1.0:
        return 1.0
    per_cpu = max(1.0, threads / cpus)
    if per_cpu == 1.0:
        return stalled
    return 1.0 - (1.0 - stalled) ** per_cpu


@compiled
def full_share(stalled: float, busy: float, threads: float, cpus: float) -> float:
    """Share of time in which threads stall and none of the CPU's threads runs.

    ``FULL = memstall > 0 && running == memstall_running``: every non-idle thread of the CPU
    stalls, and there is one.
    """
    if stalled <= 0.0:
        return 0.0
    busy = min(max(busy, stalled), 1.0)
    per_cpu = max(1.0, threads / cpus)
    quiet = 1.0 - busy
    if per_cpu == 1.0:
        return min(stalled, 1.0)
    return min((quiet + stalled) ** per_cpu - quiet**per_cpu, 1.0)
