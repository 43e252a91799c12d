"""The knobs that heads and hand policies turn, as numbers a host can write.

Learned policies speak in levels (``heads.py``) and an adapter makes knobs of them; hand policies
that people run today write the kernel's files directly, and so set knobs themselves.

Units: bytes, bytes per second, microseconds, ratios, as named.
"""

from __future__ import annotations

from enum import IntEnum


class Knob(IntEnum):
    """Index of a knob, with the file or hook that carries it."""

    MIN_BYTES = 0
    """memory.min"""
    LOW_BYTES = 1
    """memory.low"""
    HIGH_BYTES = 2
    """memory.high"""
    MAX_BYTES = 3
    """memory.max"""
    SWAP_MAX_BYTES = 4
    """memory.swap.max"""
    RECLAIM_BYTES = 5
    """memory.reclaim, bytes to write over this tick"""
    DEMOTE_BYTES = 6
    """DAMOS migrate_cold quota over this tick"""
    PROMOTE_PREFERRED = 7
    """1: promotion without rate limit for this cgroup"""
    SHED_RATIO = 8
    """shedding channel: share of load to drop"""
    FLUSH_WEIGHT = 9
    """io.weight and cpu.weight, times the owner's"""
    KILL = 10
    """1: cgroup.kill"""
    STALL_CEILING_US = 11
    """bpf hosts: longest stall of a throttleable thread per charge; 0 = the kernel's own penalty"""
    TAGGED = 12
    """1: lock holders and critical threads are known and spared (bpf hosts)"""


N_KNOBS = len(Knob)
