"""The seven action heads: what a policy may ask for, and what each level means.

Level 0 of every head is the owner's configured value, so the all-zero action is "as if we were
not there".  A level's meaning is a number here and nowhere else; an adapter per host kind turns
it into knobs (``enforcer/adapter.py``).

Units: each head names its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

OWNER = float("nan")
"""The value of level 0: whatever the owner configured."""


class Head(IntEnum):
    """Index of an action head."""

    THROTTLE = 0
    RECLAIM = 1
    DEMOTE = 2
    PROTECT = 3
    SHED = 4
    FLUSH = 5
    KILL = 6


class HostKind(IntEnum):
    """How decisions reach the kernel."""

    STOCK = 0
    """Userspace writes cgroup files; a decision takes effect one tick later."""
    BPF = 1
    """Hooks decide per thread within the tick (memcg_ext)."""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """One action head.

    Attributes:
        name: Stable name.
        meaning: One line.
        unit: Unit of ``levels``.
        levels: Number each level stands for; index 0 is the owner's value.
        stock_levels: The position of the knob on a stock host, where it differs from ``levels``.
        stock: Knob on a stock cgroup v2 host.
        bpf: Knob on a memcg_ext host.
        dwell_ticks: Ticks a level stays before it may change to another non-zero one.
        duty_cap: Long-run share of time the head may spend above ``duty_level``: a token bucket
            that refills with this share of a tick per tick and holds it times
            ``DUTY_WINDOW_TICKS``.
        duty_level: Highest level that costs no duty.
    """

    name: str
    meaning: str
    unit: str
    levels: tuple[float, ...]
    stock: str
    bpf: str
    stock_levels: tuple[float, ...] = ()
    dwell_ticks: int = 0
    duty_cap: float = 1.0
    duty_level: int = 255

    @property
    def n_levels(self) -> int:
        """How many levels the head has."""
        return len(self.levels)


LIFT_LEVEL = 1
"""Throttle level that lifts the owner's memory.high: nobody stalls, so the shield permits it."""

PROMOTE_LEVEL = 4
"""Demote level that prefers promotion instead."""

HEADS: tuple[HeadSpec, ...] = (
    HeadSpec(
        "throttle",
        "ceiling on the stall a throttleable allocator may take",
        "ms",
        (OWNER, 0.0, 10.0, 100.0, 2000.0),
        "memory.high at this share of memory.current (0 = max)",
        "delay hook (get_high_delay_ms and successors), at most this long",
        # Without growth, the overage usage/high - 1 (0, 3.1, 8.7 %) keeps one batch's delay of
        # 64 * overage**2 seconds under the ceiling (mm/memcontrol.c calculate_high_delay).
        stock_levels=(OWNER, 0.0, 1.0, 0.97, 0.92),
        dwell_ticks=2,
        duty_cap=0.5,
        duty_level=2,
    ),
    HeadSpec(
        "reclaim",
        "background reclaim rate, share of usage per second",
        "1/s",
        (0.0, 0.0025, 0.01, 0.03, 0.10),
        "worker writing memory.reclaim",
        "bpf_wq and a reclaim kfunc",
        dwell_ticks=1,
    ),
    HeadSpec(
        "demote",
        "fast-to-slow rate, share of fast-tier usage per second; the last level prefers promotion",
        "1/s",
        (0.0, 0.01, 0.05, 0.20, -1.0),
        "DAMOS migrate_cold with a memcg filter, or per-node reclaim; promotion rate limit",
        "the same, or tier-aware limits",
        dwell_ticks=2,
    ),
    HeadSpec(
        "protect",
        "protected share of the working-set estimate",
        "ratio",
        # 1.5: the estimate counts resident pages only, so a squeezed cgroup needs room to grow back
        (OWNER, 0.0, 0.6, 1.0, 1.5),
        "memory.low",
        "below_low and below_min hooks",
        dwell_ticks=5,
    ),
    HeadSpec(
        "shed",
        "ask the workload to drop this share of its load",
        "ratio",
        (0.0, 0.05, 0.15, 0.35),
        "shedding channel: shed message",
        "the same",
        dwell_ticks=5,
        duty_cap=0.5,
        duty_level=1,
    ),
    HeadSpec(
        "flush",
        "CPU and IO weight of this cgroup's writeback, times the owner's",
        "factor",
        (1.0, 3.0, 10.0),
        "io.weight, cpu.weight",
        "sched_ext boost of the flusher",
        dwell_ticks=2,
    ),
    HeadSpec(
        "kill",
        "hand this cgroup to the OOM killer or the job scheduler",
        "flag",
        (0.0, 1.0),
        "memory.oom.group and cgroup.kill, or a drain call",
        "BPF OOM",
    ),
)

N_HEADS = len(HEADS)
LEVEL_COUNTS: tuple[int, ...] = tuple(h.n_levels for h in HEADS)
DUTY_WINDOW_TICKS = 60
