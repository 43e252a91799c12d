from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcg_gym.enforcer.features import HIGH_FIXED, LOW_FIXED, Guard
from memcg_gym.enforcer.shield import (
    DUTY_CAPACITY,
    DUTY_LEVEL,
    DUTY_REFILL,
    DWELL_TICKS,
    RECLAIM_BASIS_POINTS,
    SHIELD_FUNCTIONS,
    TOKEN,
    HostGuard,
    Line,
    expire_lease,
    line_array,
    put_in_force,
    reset_guard,
    reset_host_guard,
    shield_host_tick,
    shield_row,
)
from memcg_gym.envs.contract.features import MISSING_FIXED, N_FEATURES, F
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

ONE = 1 << 16
LINES = line_array(ShieldLines())


class Row:
    """One cgroup under the shield, on a calm host, nothing in force."""

    def __init__(self, kind: HostKind = HostKind.STOCK) -> None:
        self.kind = kind
        self.vector = np.zeros(N_FEATURES, dtype=np.int32)
        self.supported = np.ones(N_HEADS, dtype=np.int64)
        self.usage_bytes, self.min_bytes = 1000.0, 0.0
        self.guard = np.zeros(Guard.SIZE, dtype=np.int64)
        self.host_guard = np.zeros(HostGuard.SIZE, dtype=np.int64)
        reset_guard(self.guard)
        reset_host_guard(self.host_guard)

    def ask(self, active: bool = True, /, **levels: int) -> tuple[dict[str, int], Shielded]:
        """What is accepted (heads above 0), and why it is less than what was asked for."""
        asked = np.zeros(N_HEADS, dtype=np.int64)
        for name, level in levels.items():
            asked[Head[name.upper()]] = level
        mask = shield_row(asked, self.vector, self.usage_bytes, self.min_bytes, self.supported,
                          self.kind, self.guard, self.host_guard, LINES, active)  # fmt: skip
        found = {Head(i).name.lower(): int(level) for i, level in enumerate(asked) if level}
        return found, Shielded(mask)

    def press(self, ticks: int = 10) -> None:
        """Let extreme pressure last."""
        self.vector[F.HOST_PSI_MEM_FULL] = self.vector[F.HOST_UTIL] = ONE
        for _ in range(ticks):
            shield_host_tick(self.vector, self.host_guard, LINES)


@pytest.fixture
def row() -> Row:
    return Row()


NOTHING = Shielded(0)


def test_what_breaks_no_rule_stands(row: Row) -> None:
    asked = {"throttle": 4, "reclaim": 4, "demote": 4, "protect": 4, "shed": 3, "flush": 2}
    assert row.ask(**asked) == (asked, NOTHING)


@pytest.mark.parametrize(("head", "level"), [(h, n) for h, n in enumerate(LEVEL_COUNTS)])
def test_a_level_nobody_defined_selects_the_default(row: Row, head: int, level: int) -> None:
    name = Head(head).name.lower()
    others = {"reclaim": 1, "flush": 1}
    assert row.ask(**{**others, name: level}) == ({}, Shielded.LEVEL)
    assert row.ask(**{**others, name: -1}) == ({}, Shielded.LEVEL)


@pytest.mark.parametrize("feature", range(N_FEATURES))
def test_an_observation_out_of_range_selects_the_default(row: Row, feature: int) -> None:
    for value in (MISSING_FIXED, LOW_FIXED[feature] - 1, HIGH_FIXED[feature] + 1):
        row.vector[feature] = value
        assert row.ask(reclaim=1, protect=2) == ({}, Shielded.STALE)
    for value in (LOW_FIXED[feature], HIGH_FIXED[feature]):
        row.vector[feature] = value
        assert row.ask(protect=2)[1] == NOTHING


@pytest.mark.parametrize("head", range(N_HEADS - 1))
def test_a_head_without_a_knob_is_dropped_and_said(row: Row, head: int) -> None:
    row.supported[head] = 0
    name = Head(head).name.lower()
    assert row.ask(**{name: 1}) == ({}, Shielded.UNSUPPORTED)
    assert row.ask() == ({}, NOTHING)


@pytest.mark.parametrize("seen", [F.LOCK_KERNEL_SHARE, F.LOCK_USER_SHARE, F.CRITICAL_SHARE])
def test_a_holder_is_not_throttled_on_a_stock_host(row: Row, seen: F) -> None:
    row.vector[seen] = 1
    assert row.ask(throttle=2, reclaim=1) == ({"reclaim": 1}, Shielded.HOLDER)


def test_a_holder_may_be_relieved(row: Row) -> None:
    row.vector[F.LOCK_USER_SHARE] = ONE
    assert row.ask(throttle=LIFT_LEVEL) == ({"throttle": LIFT_LEVEL}, NOTHING)


def test_a_bpf_host_spares_the_thread_itself() -> None:
    row = Row(HostKind.BPF)
    row.vector[F.LOCK_USER_SHARE] = ONE
    assert row.ask(throttle=4) == ({"throttle": 4}, NOTHING)


@pytest.mark.parametrize(("level", "min_bytes", "stands"), [
    (4, 900.0, True), (4, 900.1, False), (1, 997.5, True), (1, 997.6, False), (1, 1001.0, False),
])  # fmt: skip
def test_reclaim_stops_at_memory_min(row: Row, level: int, min_bytes: float, stands: bool) -> None:
    row.min_bytes = min_bytes
    expected = ({"reclaim": level}, NOTHING) if stands else ({}, Shielded.BELOW_MIN)
    assert row.ask(reclaim=level) == expected


def test_a_usage_that_cannot_be_read_is_not_reclaimed(row: Row) -> None:
    row.usage_bytes = np.nan
    assert row.ask(reclaim=1) == ({}, Shielded.BELOW_MIN)


def test_a_kill_needs_lasting_extreme_pressure(row: Row) -> None:
    assert row.ask(kill=1) == ({}, Shielded.KILL_PRESSURE)
    row.press(ticks=9)
    assert row.ask(kill=1) == ({}, Shielded.KILL_PRESSURE)
    row.press(ticks=1)
    assert row.ask(kill=1) == ({"kill": 1}, NOTHING)


@pytest.mark.parametrize(
    ("full", "util", "counts"),
    [(0.2, 0.97, True), (0.19, 1.0, False), (1.0, 0.96, False), (1.0, 1.0, True)],
)
def test_pressure_is_extreme_when_both_lines_are_reached(
    row: Row, full: float, util: float, counts: bool
) -> None:
    row.press(ticks=3)
    row.vector[F.HOST_PSI_MEM_FULL] = int(full * ONE)
    row.vector[F.HOST_UTIL] = int(util * ONE)
    shield_host_tick(row.vector, row.host_guard, LINES)
    assert row.host_guard[HostGuard.PRESSURE_TICKS] == (4 if counts else 0)


def test_missing_host_pressure_is_not_extreme(row: Row) -> None:
    row.press(ticks=3)
    row.vector[F.HOST_PSI_MEM_FULL] = MISSING_FIXED
    shield_host_tick(row.vector, row.host_guard, LINES)
    assert row.host_guard[HostGuard.PRESSURE_TICKS] == 0


def test_only_the_lowest_value_is_killed(row: Row) -> None:
    row.press()
    row.vector[F.KILL_RANK] = ONE
    assert row.ask(kill=1) == ({}, Shielded.KILL_RANK)
    row.vector[F.KILL_RANK] = 0
    assert row.ask(kill=1) == ({"kill": 1}, NOTHING)


def test_a_host_has_one_kill_token_and_earns_the_next(row: Row) -> None:
    row.press()
    assert row.ask(kill=1) == ({"kill": 1}, NOTHING)
    assert row.ask(kill=1) == ({}, Shielded.KILL_TOKEN)
    row.press(ticks=KILL_TOKEN_TICKS - 1)
    assert row.ask(kill=1) == ({}, Shielded.KILL_TOKEN)
    row.press(ticks=1)
    assert row.ask(kill=1) == ({"kill": 1}, NOTHING)


def test_a_refused_kill_costs_no_token(row: Row) -> None:
    row.ask(kill=1)
    assert row.host_guard[HostGuard.KILL_TOKENS] == 1


def test_every_reason_against_a_kill_is_given(row: Row) -> None:
    row.vector[F.KILL_RANK] = ONE
    row.host_guard[HostGuard.KILL_TOKENS] = 0
    assert row.ask(kill=1)[1] == (Shielded.KILL_PRESSURE | Shielded.KILL_RANK | Shielded.KILL_TOKEN)


@pytest.mark.parametrize("head", range(N_HEADS - 1))
def test_a_level_is_held_for_its_dwell(row: Row, head: int) -> None:
    name = Head(head).name.lower()
    assert row.ask(**{name: 1})[0] == {name: 1}
    for _ in range(DWELL_TICKS[head]):
        assert row.ask(**{name: 2}) == ({name: 1}, Shielded.DWELL)
    assert row.ask(**{name: 2}) == ({name: 2}, NOTHING)


def test_going_back_to_the_owners_value_is_always_allowed(row: Row) -> None:
    row.ask(protect=3)
    assert row.ask() == ({}, NOTHING)
    assert row.ask(protect=3) == ({}, Shielded.DWELL)


def test_duty_is_bounded_over_any_window(row: Row) -> None:
    head = Head.THROTTLE
    used = []
    for _ in range(5 * DUTY_WINDOW_TICKS):
        accepted, mask = row.ask(throttle=4)
        assert accepted["throttle"] in (4, DUTY_LEVEL[head])
        assert (mask == NOTHING) == (accepted["throttle"] == 4)
        used.append(accepted["throttle"] > DUTY_LEVEL[head])
    for n in range(1, len(used) + 1):
        assert sum(used[:n]) * TOKEN <= DUTY_CAPACITY[head] + n * DUTY_REFILL[head]
    late = used[-2 * DUTY_WINDOW_TICKS :]
    share = HEADS[head].duty_cap
    for start in range(DUTY_WINDOW_TICKS):
        window = late[start : start + DUTY_WINDOW_TICKS]
        assert sum(window) <= share * DUTY_WINDOW_TICKS + 1
    assert sum(late) >= 0.9 * share * len(late)


def test_levels_up_to_the_duty_level_are_free(row: Row) -> None:
    for _ in range(3 * DUTY_WINDOW_TICKS):
        assert row.ask(throttle=2, shed=1, reclaim=4, protect=4)[1] == NOTHING


def test_duty_comes_back_while_the_head_rests(row: Row) -> None:
    for _ in range(3 * DUTY_WINDOW_TICKS):
        row.ask(throttle=4)
    for _ in range(2 * DUTY_WINDOW_TICKS):
        row.ask()
    assert row.guard[Guard.DUTY_TOKENS + Head.THROTTLE] == DUTY_CAPACITY[Head.THROTTLE]
    assert row.ask(throttle=4) == ({"throttle": 4}, NOTHING)


def test_a_lease_expires_unless_a_decision_renews_it(row: Row) -> None:
    row.ask(throttle=2, protect=3)
    put_in_force(row.guard)
    assert [expire_lease(row.guard) for _ in range(LEASE_TICKS - 1)] == [False] * (LEASE_TICKS - 1)
    assert row.guard[Guard.IN_FORCE + Head.PROTECT] == 3
    row.ask(throttle=2, protect=3)
    assert row.guard[Guard.LEASE_LEFT] == LEASE_TICKS
    assert [expire_lease(row.guard) for _ in range(LEASE_TICKS)][-1] is True
    assert not row.guard[Guard.IN_FORCE : Guard.IN_FORCE + N_HEADS].any()
    assert not row.guard[Guard.ACCEPTED : Guard.ACCEPTED + N_HEADS].any()


def test_accepted_levels_wait_until_they_are_put_in_force(row: Row) -> None:
    row.ask(flush=2)
    assert row.guard[Guard.IN_FORCE + Head.FLUSH] == 0
    put_in_force(row.guard)
    assert row.guard[Guard.IN_FORCE + Head.FLUSH] == 2


def test_an_inactive_shield_changes_nothing(row: Row) -> None:
    row.vector[:] = MISSING_FIXED
    row.supported[:] = 0
    row.min_bytes = 1e9
    asked = {"throttle": 4, "reclaim": 4, "kill": 1}
    for _ in range(2 * DUTY_WINDOW_TICKS):
        assert row.ask(False, **asked) == (asked, NOTHING)
    other = {"throttle": 3, "reclaim": 1, "kill": 1}
    assert row.ask(False, **other) == (other, NOTHING)
    assert row.host_guard[HostGuard.KILL_TOKENS] == 1


def test_an_inactive_shield_still_keeps_what_features_show(row: Row) -> None:
    row.ask(False, protect=3)
    assert row.guard[Guard.ACCEPTED + Head.PROTECT] == 3
    assert row.guard[Guard.DWELL_LEFT + Head.PROTECT] == DWELL_TICKS[Head.PROTECT]
    assert row.guard[Guard.LEASE_LEFT] == LEASE_TICKS


def test_dwell_does_not_bring_back_a_throttle_on_a_holder(row: Row) -> None:
    row.ask(throttle=4)
    row.vector[F.LOCK_USER_SHARE] = 1
    accepted, _ = row.ask(throttle=LIFT_LEVEL)
    assert accepted.get("throttle", 0) <= LIFT_LEVEL


def test_dwell_does_not_bring_back_reclaim_below_memory_min(row: Row) -> None:
    row.ask(reclaim=4)
    row.min_bytes = 950.0
    assert row.ask(reclaim=1)[0] in ({}, {"reclaim": 1})


def test_dwell_runs_out_while_nothing_is_decided(row: Row) -> None:
    row.ask(protect=3)
    for _ in range(LEASE_TICKS + DWELL_TICKS[Head.PROTECT]):
        expire_lease(row.guard)
    assert row.ask(protect=3) == ({"protect": 3}, NOTHING)


def test_duty_comes_back_while_nothing_is_decided(row: Row) -> None:
    for _ in range(3 * DUTY_WINDOW_TICKS):
        row.ask(throttle=4)
    for _ in range(2 * DUTY_WINDOW_TICKS + LEASE_TICKS):
        expire_lease(row.guard)
    assert row.guard[Guard.DUTY_TOKENS + Head.THROTTLE] == DUTY_CAPACITY[Head.THROTTLE]


def any_vector(rng: np.random.Generator) -> np.ndarray:
    """A vector in which locks, rank and pressure vary; sometimes something is missing."""
    vector = rng.integers(LOW_FIXED, HIGH_FIXED + 1).astype(np.int32)
    for feature in (F.LOCK_KERNEL_SHARE, F.LOCK_USER_SHARE, F.CRITICAL_SHARE, F.KILL_RANK):
        vector[feature] *= rng.random() < 0.2
    if rng.random() < 0.5:
        vector[[F.HOST_PSI_MEM_FULL, F.HOST_UTIL]] = ONE
    if rng.random() < 0.05:
        vector[rng.integers(0, N_FEATURES)] = MISSING_FIXED
    return vector


def any_levels(rng: np.random.Generator) -> np.ndarray:
    """Mostly levels that exist, sometimes none at all or one that does not."""
    levels = rng.integers(0, LEVEL_COUNTS)
    levels[rng.random(N_HEADS) < rng.choice([0.0, 0.5, 1.0])] = 0
    if rng.random() < 0.05:
        levels[rng.integers(0, N_HEADS)] = rng.choice([-1, 5, 255])
    return levels


@given(st.integers(0, 2**32 - 1), st.sampled_from(HostKind))
@settings(deadline=None, max_examples=100)
def test_every_rule_moves_towards_zero_or_holds(seed: int, kind: HostKind) -> None:
    rng = np.random.default_rng(seed)
    row = Row(kind)
    for _ in range(40):
        asked, vector = any_levels(rng), any_vector(rng)
        row.supported = (rng.random(N_HEADS) < 0.9).astype(np.int64)
        row.min_bytes = float(rng.choice([0.0, 920.0, 980.0, 1100.0]))
        shield_host_tick(vector, row.host_guard, LINES)
        row.host_guard[HostGuard.PRESSURE_TICKS] += int(rng.integers(0, 2)) * 20
        held = row.guard[Guard.ACCEPTED : Guard.ACCEPTED + N_HEADS].copy()
        tokens = row.host_guard[HostGuard.KILL_TOKENS]
        pressure_ticks = row.host_guard[HostGuard.PRESSURE_TICKS]
        levels = asked.copy()
        mask = shield_row(levels, vector, row.usage_bytes, row.min_bytes, row.supported, kind,
                          row.guard, row.host_guard, LINES, True)  # fmt: skip
        for head in range(N_HEADS):
            assert levels[head] in {asked[head], held[head], DUTY_LEVEL[head], 0}
            assert 0 <= levels[head] < LEVEL_COUNTS[head]
        assert mask != 0 or (levels == asked).all()
        if mask & (Shielded.STALE | Shielded.LEVEL):
            assert not levels.any()
        assert not levels[row.supported == 0].any()
        seen = vector[[F.LOCK_KERNEL_SHARE, F.LOCK_USER_SHARE, F.CRITICAL_SHARE]].any()
        if kind == HostKind.STOCK and seen:
            assert levels[Head.THROTTLE] <= LIFT_LEVEL
        if levels[Head.RECLAIM]:
            share = RECLAIM_BASIS_POINTS[levels[Head.RECLAIM]] / 10_000
            assert row.usage_bytes * (1 - share) >= row.min_bytes - 1e-9
        if levels[Head.KILL]:
            assert tokens == 1 and vector[F.KILL_RANK] == 0
            assert pressure_ticks >= LINES[Line.KILL_HOLD_TICKS]
            assert row.host_guard[HostGuard.KILL_TOKENS] == 0
        assert (row.guard[Guard.DUTY_TOKENS : Guard.DUTY_TOKENS + N_HEADS] >= 0).all()
        assert (row.guard[Guard.ACCEPTED : Guard.ACCEPTED + N_HEADS] == levels).all()
        put_in_force(row.guard)


def test_lines_are_fixed_point() -> None:
    lines = line_array(ShieldLines(kill_psi_full_ratio=0.5, kill_util_ratio=1.0, kill_hold_ticks=3))
    assert lines.tolist() == [ONE // 2, ONE, 3]


def test_each_function_is_listed_after_those_it_uses() -> None:
    names = [function.__name__ for function in SHIELD_FUNCTIONS]
    for i, function in enumerate(SHIELD_FUNCTIONS):
        assert set(function.__code__.co_names) & set(names) <= set(names[:i])
