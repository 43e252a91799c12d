"""From levels to knobs, for each host kind: what a level means on this host, in bytes.

The table and the policies are hook-agnostic; this is the only place that knows that ``throttle``
is a position of memory.high on a stock host and a delay hook on a memcg_ext host.

Units: bytes, microseconds.
"""

from __future__ import annotations

import math

import numpy as np

from memcg_gym.envs.contract.heads import HEADS, LIFT_LEVEL, PROMOTE_LEVEL, Head, HostKind
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import UNLIMITED_BYTES, Sig

# Level 0 is the owner's value and never looked up.
THROTTLE_MS = np.array([0.0, *HEADS[Head.THROTTLE].levels[1:]])
THROTTLE_POSITION = np.array([0.0, *HEADS[Head.THROTTLE].stock_levels[1:]])
RECLAIM_PER_S = np.array(HEADS[Head.RECLAIM].levels)
DEMOTE_PER_S = np.array(HEADS[Head.DEMOTE].levels)
PROTECT_RATIO = np.array([0.0, *HEADS[Head.PROTECT].levels[1:]])
SHED_RATIO = np.array(HEADS[Head.SHED].levels)
FLUSH_FACTOR = np.array(HEADS[Head.FLUSH].levels)


def levels_to_knobs(
    levels: np.ndarray, now: np.ndarray, host_kind: int, tick_s: float, knobs: np.ndarray
) -> None:
    """What to write for one cgroup.

    Args:
        levels: Accepted levels, shape ``(N_HEADS,)``.
        now: The cgroup's signals, shape ``(N_MEMCG_SIGNALS,)``.
        host_kind: A :class:`HostKind`.
        tick_s: Length of a tick [s].
        knobs: Filled in place, shape ``(N_KNOBS,)``.
    """
    owner_knobs(now, knobs)
    if host_kind == HostKind.BPF:
        knobs[Knob.TAGGED] = 1.0
    throttle_knobs(levels[Head.THROTTLE], now, host_kind, knobs)
    usage = now[Sig.USAGE_BYTES]
    knobs[Knob.RECLAIM_BYTES] = RECLAIM_PER_S[levels[Head.RECLAIM]] * usage * tick_s
    if levels[Head.DEMOTE] == PROMOTE_LEVEL:
        knobs[Knob.PROMOTE_PREFERRED] = 1.0
    else:
        share = DEMOTE_PER_S[levels[Head.DEMOTE]]
        demote_bytes = share * now[Sig.FAST_BYTES] * tick_s
        knobs[Knob.DEMOTE_BYTES] = 0.0 if math.isnan(demote_bytes) else demote_bytes
    if levels[Head.PROTECT] > 0 and not math.isnan(now[Sig.WSS_BYTES]):
        knobs[Knob.LOW_BYTES] = PROTECT_RATIO[levels[Head.PROTECT]] * now[Sig.WSS_BYTES]
    knobs[Knob.SHED_RATIO] = SHED_RATIO[levels[Head.SHED]]
    knobs[Knob.FLUSH_WEIGHT] = FLUSH_FACTOR[levels[Head.FLUSH]]
    knobs[Knob.KILL] = 1.0 if levels[Head.KILL] > 0 else 0.0


def owner_knobs(now: np.ndarray, knobs: np.ndarray) -> None:
    """The owner's configuration as knobs: what is written back when management ends.

    A combined memory+swap ceiling C is configuration too: ``swap.max = max(0, C - current)``.
    """
    knobs[Knob.MIN_BYTES] = now[Sig.OWNER_MIN_BYTES]
    knobs[Knob.LOW_BYTES] = now[Sig.OWNER_LOW_BYTES]
    knobs[Knob.HIGH_BYTES] = now[Sig.OWNER_HIGH_BYTES]
    knobs[Knob.MAX_BYTES] = now[Sig.OWNER_MAX_BYTES]
    swap_max = now[Sig.OWNER_SWAP_MAX_BYTES]
    ceiling = now[Sig.MEMSW_CEILING_BYTES]
    if ceiling > 0.0 and not math.isnan(now[Sig.USAGE_BYTES]):
        swap_max = min(swap_max, max(0.0, ceiling - now[Sig.USAGE_BYTES]))
    knobs[Knob.SWAP_MAX_BYTES] = swap_max
    knobs[Knob.RECLAIM_BYTES] = 0.0
    knobs[Knob.DEMOTE_BYTES] = 0.0
    knobs[Knob.PROMOTE_PREFERRED] = 0.0
    knobs[Knob.SHED_RATIO] = 0.0
    knobs[Knob.FLUSH_WEIGHT] = 1.0
    knobs[Knob.KILL] = 0.0
    knobs[Knob.STALL_CEILING_US] = 0.0
    knobs[Knob.TAGGED] = 0.0


def throttle_knobs(level: int, now: np.ndarray, host_kind: int, knobs: np.ndarray) -> None:
    """memory.high on a stock host, the delay hook's ceiling on a bpf host.

    Never above the owner's memory.high (that would be ``lift``), never below memory.min.
    """
    if level == 0:
        return
    if level == LIFT_LEVEL:
        knobs[Knob.HIGH_BYTES] = UNLIMITED_BYTES
        return
    if host_kind == HostKind.BPF:
        knobs[Knob.STALL_CEILING_US] = THROTTLE_MS[level] * 1000.0
        return
    position = THROTTLE_POSITION[level] * now[Sig.USAGE_BYTES]
    knobs[Knob.HIGH_BYTES] = min(now[Sig.OWNER_HIGH_BYTES], max(position, now[Sig.OWNER_MIN_BYTES]))


ADAPTER_FUNCTIONS = (owner_knobs, throttle_knobs, levels_to_knobs)
"""In the order a compiler needs them."""
