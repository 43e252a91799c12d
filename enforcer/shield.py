"""The shield: invariants that hold whatever a policy or a table asks for.

It runs after every decision, in the environment during training too, because dwell times and
duty caps that are added afterwards cost a third of the score.  Integer arithmetic on the
contract's fixed-point vector only, so that C and BPF can repeat it bit for bit.

Order of the rules: unknown level, stale vector, dwell, unsupported head, lock holders and critical
threads, memory.min, kill, duty.  Every rule can only move a head towards level 0 or keep
the level in force.

Units: ticks; duty tokens in thousandths of a tick.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from memcg_gym.enforcer.features import HIGH_FIXED, LOW_FIXED, Guard
from memcg_gym.envs.contract.features import N_FEATURES, SHIFT, F
from memcg_gym.envs.contract.heads import (
    DUTY_WINDOW_TICKS,
    HEADS,
    LEVEL_COUNTS,
    LIFT_LEVEL,
    N_HEADS,
    Head,
    HostKind,
)
from memcg_gym.envs.contract.shield_rules import (
    KILL_TOKEN_TICKS,
    LEASE_TICKS,
    Shielded,
    ShieldLines,
)

TOKEN = 1000
"""One tick of duty, in thousandths."""

N_LEVELS = np.array(LEVEL_COUNTS, dtype=np.int64)
DWELL_TICKS = np.array([h.dwell_ticks for h in HEADS], dtype=np.int64)
DUTY_LEVEL = np.array([h.duty_level for h in HEADS], dtype=np.int64)
DUTY_REFILL = np.array([round(h.duty_cap * TOKEN) for h in HEADS], dtype=np.int64)
DUTY_CAPACITY = DUTY_REFILL * DUTY_WINDOW_TICKS
RECLAIM_BASIS_POINTS = np.array(
    [round(v * 10_000) for v in HEADS[Head.RECLAIM].levels], dtype=np.int64
)

HOLDER_FEATURES = (F.LOCK_KERNEL_SHARE, F.LOCK_USER_SHARE, F.CRITICAL_SHARE)
"""What :func:`spare_holders` looks at.  On a host where nobody tells them they read 0, as if there
were neither locks nor critical threads, so throttling is not offered there."""

# The flags as plain integers, for compilers that do not know IntFlag.
STALE, HOLDER, BELOW_MIN = int(Shielded.STALE), int(Shielded.HOLDER), int(Shielded.BELOW_MIN)
KILL_PRESSURE, KILL_RANK = int(Shielded.KILL_PRESSURE), int(Shielded.KILL_RANK)
KILL_TOKEN, DWELL, DUTY = int(Shielded.KILL_TOKEN), int(Shielded.DWELL), int(Shielded.DUTY)
UNSUPPORTED, LEVEL = int(Shielded.UNSUPPORTED), int(Shielded.LEVEL)


class HostGuard(IntEnum):
    """Index into the shield's per-host state (int64)."""

    PRESSURE_TICKS = 0
    KILL_TOKENS = 1
    TOKEN_TICKS = 2
    SIZE = 3


class Line(IntEnum):
    """Index into the shield's lines (int64), made by :func:`line_array`."""

    KILL_PSI_FULL = 0
    KILL_UTIL = 1
    KILL_HOLD_TICKS = 2
    SIZE = 3


def line_array(lines: ShieldLines) -> np.ndarray:
    """The objective's lines in fixed point, shape ``(Line.SIZE,)``, int64."""
    return np.array(
        [
            int(lines.kill_psi_full_ratio * (1 << SHIFT)),
            int(lines.kill_util_ratio * (1 << SHIFT)),
            lines.kill_hold_ticks,
        ],
        dtype=np.int64,
    )


def reset_guard(guard: np.ndarray) -> None:
    """A cgroup's shield state at birth: nothing in force, full duty buckets.

    Args:
        guard: Shape ``(Guard.SIZE,)``, int64.
    """
    for i in range(Guard.SIZE):
        guard[i] = 0
    for head in range(N_HEADS):
        guard[Guard.DUTY_TOKENS + head] = DUTY_CAPACITY[head]


def reset_host_guard(host_guard: np.ndarray) -> None:
    """The host's shield state at start: one kill token, no pressure seen."""
    host_guard[HostGuard.PRESSURE_TICKS] = 0
    host_guard[HostGuard.KILL_TOKENS] = 1
    host_guard[HostGuard.TOKEN_TICKS] = 0


def shield_host_tick(vector: np.ndarray, host_guard: np.ndarray, lines: np.ndarray) -> None:
    """Once a tick and host, before its rows: count extreme pressure, earn the kill token.

    Args:
        vector: Any row's vector (only per-host features are read), shape ``(N_FEATURES,)``.
        host_guard: Shape ``(HostGuard.SIZE,)``, int64, changed in place.
        lines: From :func:`line_array`.
    """
    extreme = (
        vector[F.HOST_PSI_MEM_FULL] >= lines[Line.KILL_PSI_FULL]
        and vector[F.HOST_UTIL] >= lines[Line.KILL_UTIL]
    )
    if extreme:
        host_guard[HostGuard.PRESSURE_TICKS] += 1
    else:
        host_guard[HostGuard.PRESSURE_TICKS] = 0
    if host_guard[HostGuard.KILL_TOKENS] < 1:
        host_guard[HostGuard.TOKEN_TICKS] += 1
        if host_guard[HostGuard.TOKEN_TICKS] >= KILL_TOKEN_TICKS:
            host_guard[HostGuard.KILL_TOKENS] = 1
            host_guard[HostGuard.TOKEN_TICKS] = 0


def shield_row(
    levels: np.ndarray,
    vector: np.ndarray,
    usage_bytes: float,
    min_bytes: float,
    supported: np.ndarray,
    host_kind: int,
    guard: np.ndarray,
    host_guard: np.ndarray,
    lines: np.ndarray,
    active: bool,
) -> int:
    """Let one cgroup's decision through, or less of it.

    Args:
        levels: The decision, shape ``(N_HEADS,)``, changed in place to what is accepted.
        vector: The fixed-point vector the decision was made on.
        usage_bytes, min_bytes: memory.current and memory.min.
        supported: 1 where the host has a knob for the head, shape ``(N_HEADS,)``.
        host_kind: A :class:`HostKind`.
        guard, host_guard: The shield's state, changed in place.
        lines: From :func:`line_array`.
        active: False switches the invariants off (hand policies run without a shield); state that
            the features show is still kept.

    Returns:
        A :class:`Shielded` bit mask; 0 = the decision stands.
    """
    mask = 0
    if active:
        mask |= default_if_unusable(levels, vector)
        # Before the invariants: a level that is held must obey them as a new one does.
        mask |= hold_dwell(levels, guard)
        mask |= drop_unsupported(levels, supported)
        mask |= spare_holders(levels, vector, host_kind)
        mask |= keep_min(levels, usage_bytes, min_bytes)
        mask |= judge_kill(levels, vector, host_guard, lines)
        mask |= cap_duty(levels, guard)
    accept(levels, guard)
    return mask


def default_if_unusable(levels: np.ndarray, vector: np.ndarray) -> int:
    """Stale, missing or out-of-range input, or a level nobody defined: all zero."""
    mask = 0
    for head in range(N_HEADS):
        if levels[head] < 0 or levels[head] >= N_LEVELS[head]:
            mask |= LEVEL
    for i in range(N_FEATURES):
        if vector[i] < LOW_FIXED[i] or vector[i] > HIGH_FIXED[i]:
            mask |= STALE
            break
    if mask:
        for head in range(N_HEADS):
            levels[head] = 0
    return mask


def drop_unsupported(levels: np.ndarray, supported: np.ndarray) -> int:
    """A head without a knob is level 0, and said so."""
    mask = 0
    for head in range(N_HEADS):
        if levels[head] != 0 and supported[head] == 0:
            levels[head] = 0
            mask |= UNSUPPORTED
    return mask


def spare_holders(levels: np.ndarray, vector: np.ndarray, host_kind: int) -> int:
    """No throttling where a lock holder or critical thread was seen last tick.

    On a stock host memory.high stalls whoever allocates, so the whole cgroup is spared; on a bpf
    host the hook spares the thread, and the level may stand.
    """
    if levels[Head.THROTTLE] <= LIFT_LEVEL or host_kind == HostKind.BPF:
        return 0
    seen = (
        vector[F.LOCK_KERNEL_SHARE] > 0
        or vector[F.LOCK_USER_SHARE] > 0
        or vector[F.CRITICAL_SHARE] > 0
    )
    if not seen:
        return 0
    levels[Head.THROTTLE] = 0
    return HOLDER


def keep_min(levels: np.ndarray, usage_bytes: float, min_bytes: float) -> int:
    """No background reclaim that would take usage below memory.min."""
    level = levels[Head.RECLAIM]
    if level == 0:
        return 0
    left_bytes = usage_bytes - usage_bytes * RECLAIM_BASIS_POINTS[level] / 10_000.0
    if left_bytes >= min_bytes:
        return 0
    levels[Head.RECLAIM] = 0
    return BELOW_MIN


def judge_kill(
    levels: np.ndarray, vector: np.ndarray, host_guard: np.ndarray, lines: np.ndarray
) -> int:
    """Kill only under lasting extreme pressure, the lowest value first, one token a host."""
    if levels[Head.KILL] == 0:
        return 0
    mask = 0
    if host_guard[HostGuard.PRESSURE_TICKS] < lines[Line.KILL_HOLD_TICKS]:
        mask |= KILL_PRESSURE
    if vector[F.KILL_RANK] != 0:
        mask |= KILL_RANK
    if host_guard[HostGuard.KILL_TOKENS] < 1:
        mask |= KILL_TOKEN
    if mask:
        levels[Head.KILL] = 0
    else:
        host_guard[HostGuard.KILL_TOKENS] = 0
    return mask


def hold_dwell(levels: np.ndarray, guard: np.ndarray) -> int:
    """A level stays for its dwell time; going back to the owner's value is always allowed."""
    mask = 0
    for head in range(N_HEADS):
        held = guard[Guard.ACCEPTED + head]
        if levels[head] != held and levels[head] != 0 and guard[Guard.DWELL_LEFT + head] > 0:
            levels[head] = held
            mask |= DWELL
    return mask


def cap_duty(levels: np.ndarray, guard: np.ndarray) -> int:
    """A token bucket bounds the share of the window a head spends above its free level."""
    mask = 0
    for head in range(N_HEADS):
        if levels[head] > DUTY_LEVEL[head] and guard[Guard.DUTY_TOKENS + head] < TOKEN:
            levels[head] = DUTY_LEVEL[head]
            mask |= DUTY
    return mask


def book_tick(guard: np.ndarray, head: int, level: int) -> None:
    """One tick of a head at a level: dwell counts down or starts, duty is spent and earned."""
    if level != guard[Guard.ACCEPTED + head]:
        guard[Guard.DWELL_LEFT + head] = DWELL_TICKS[head]
    elif guard[Guard.DWELL_LEFT + head] > 0:
        guard[Guard.DWELL_LEFT + head] -= 1
    tokens = guard[Guard.DUTY_TOKENS + head]
    if level > DUTY_LEVEL[head]:
        tokens -= TOKEN
    guard[Guard.DUTY_TOKENS + head] = min(max(tokens, 0) + DUTY_REFILL[head], DUTY_CAPACITY[head])
    guard[Guard.ACCEPTED + head] = level


def accept(levels: np.ndarray, guard: np.ndarray) -> None:
    """Book the accepted levels: dwell, duty, lease."""
    for head in range(N_HEADS):
        book_tick(guard, head, levels[head])
    guard[Guard.LEASE_LEFT] = LEASE_TICKS


def put_in_force(guard: np.ndarray) -> None:
    """The accepted levels take effect (a stock host calls this one tick later)."""
    for head in range(N_HEADS):
        guard[Guard.IN_FORCE + head] = guard[Guard.ACCEPTED + head]


def expire_lease(guard: np.ndarray) -> bool:
    """A tick without a decision: count the lease down; True when it ended and all went to 0."""
    if guard[Guard.LEASE_LEFT] > 0:
        guard[Guard.LEASE_LEFT] -= 1
    ended = guard[Guard.LEASE_LEFT] == 0
    for head in range(N_HEADS):
        book_tick(guard, head, 0 if ended else guard[Guard.ACCEPTED + head])
        if ended:
            guard[Guard.IN_FORCE + head] = 0
    return bool(ended)


SHIELD_FUNCTIONS = (
    reset_guard,
    reset_host_guard,
    shield_host_tick,
    default_if_unusable,
    drop_unsupported,
    spare_holders,
    keep_min,
    judge_kill,
    hold_dwell,
    cap_duty,
    book_tick,
    accept,
    put_in_force,
    expire_lease,
    shield_row,
)
"""In the order a compiler needs them."""
