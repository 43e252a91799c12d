from __future__ import annotations

import math

import numpy as np
import pytest

from memcg_gym.enforcer.features import (
    FEATURE_FUNCTIONS,
    N_AVERAGES,
    Average,
    Guard,
    efficiency,
    fill_features,
    put,
    seconds_between,
    update_averages,
)
from memcg_gym.envs.contract.features import FEATURES, MISSING_FIXED, N_FEATURES, F
from memcg_gym.envs.contract.heads import Head
from memcg_gym.envs.contract.signals import (
    HOST_SIGNALS,
    MEMCG_SIGNALS,
    N_HOST_SIGNALS,
    N_MEMCG_SIGNALS,
    UNLIMITED_BYTES,
    HostSig,
    Sig,
)

ONE = 1 << 16
MIB = float(1 << 20)
GIB = float(1 << 30)


class World:
    """A cgroup of 1 GiB on a host of 4 GiB, one second of it, in which nothing happens."""

    def __init__(self) -> None:
        self.now = np.zeros(N_MEMCG_SIGNALS)
        self.now[Sig.USAGE_BYTES] = GIB
        self.now[[Sig.OWNER_HIGH_BYTES, Sig.OWNER_MAX_BYTES]] = UNLIMITED_BYTES
        self.now[Sig.OWNER_SWAP_MAX_BYTES] = UNLIMITED_BYTES
        self.now[Sig.FAST_BYTES] = GIB
        self.host_now = np.zeros(N_HOST_SIGNALS)
        self.host_now[[HostSig.TOTAL_BYTES, HostSig.FAST_TOTAL_BYTES]] = 4 * GIB
        self.host_now[[HostSig.FREE_BYTES, HostSig.AVAILABLE_BYTES]] = 2 * GIB
        self.host_now[HostSig.CPUS] = 4
        self.host_now[HostSig.UPTIME_US] = 50e6
        self.before = self.now.copy()
        self.host_before = self.host_now.copy()
        self.host_before[HostSig.UPTIME_US] = 49e6
        self.averages = np.zeros(N_AVERAGES)
        self.guard = np.zeros(Guard.SIZE, dtype=np.int64)

    def vector(self) -> np.ndarray:
        vector = np.full(N_FEATURES, 12345678, dtype=np.int32)
        fill_features(self.now, self.before, self.host_now, self.host_before, self.averages,
                      self.guard, vector)  # fmt: skip
        return vector

    def feature(self, feature: F) -> int:
        return int(self.vector()[feature])


@pytest.fixture
def world() -> World:
    return World()


def test_every_feature_is_written(world: World) -> None:
    vector = world.vector()
    low = np.array([f.low_fixed for f in FEATURES])
    high = np.array([f.high_fixed for f in FEATURES])
    assert ((vector >= low) & (vector <= high)).all()


@pytest.mark.parametrize(
    ("high", "maximum", "expected"),
    [(2 * GIB, UNLIMITED_BYTES, 0.5), (2 * GIB, 1.25 * GIB, 0.8), (UNLIMITED_BYTES,) * 2 + (0.25,)],
)
def test_usage_is_over_the_tightest_limit(
    world: World, high: float, maximum: float, expected: float
) -> None:
    world.now[[Sig.OWNER_HIGH_BYTES, Sig.OWNER_MAX_BYTES]] = high, maximum
    assert world.feature(F.USAGE_RATIO) == math.floor(expected * ONE)


@pytest.mark.parametrize(
    ("feature", "signal", "grows_by", "expected"),
    [
        # 64 MiB more than before, over 1 GiB now, in one second.
        (F.GROWTH, Sig.USAGE_BYTES, 64 * MIB, 64 / 1088),
        (F.PSI_MEM_SOME, Sig.PSI_MEM_SOME_US, 105_000, 0.105),
        (F.PSI_MEM_FULL, Sig.PSI_MEM_FULL_US, 20_000, 0.02),
        (F.PSI_IO_SOME, Sig.PSI_IO_SOME_US, 250_000, 0.25),
        (F.PSI_IO_FULL, Sig.PSI_IO_FULL_US, 125_000, 0.125),
        (F.PSI_CPU_SOME, Sig.PSI_CPU_SOME_US, 500_000, 0.5),
        # 2621 of the 262144 pages in use.
        (F.REFAULT_ANON, Sig.REFAULT_ANON, 2621, 2621 / 262144),
        (F.REFAULT_FILE, Sig.REFAULT_FILE, 262144, 1.0),
        (F.ACTIVATE, Sig.ACTIVATE, 131072, 0.5),
        (F.RESTORE, Sig.RESTORE, 65536, 0.25),
        (F.SCAN_DIRECT, Sig.PGSCAN_DIRECT, 65536, 0.25),
        (F.PROMOTE, Sig.PGPROMOTE, 32768, 0.125),
        (F.DEMOTE, Sig.PGDEMOTE, 16384, 0.0625),
        (F.LOCK_KERNEL_SHARE, Sig.LOCK_KERNEL_HELD_US, 1000, 0.001),
        (F.LOCK_USER_SHARE, Sig.LOCK_USER_HELD_US, 500_000, 0.5),
        (F.LOCK_WAIT_SHARE, Sig.LOCK_WAIT_US, 3_000_000, 3.0),
        (F.EVENTS_HIGH, Sig.EVENTS_HIGH, 7, 7.0),
        (F.EVENTS_MAX, Sig.EVENTS_MAX, 2, 2.0),
        (F.EVENTS_OOM_KILL, Sig.EVENTS_OOM_KILL, 1, 1.0),
    ],
)
def test_counters_count_what_was_added_in_the_tick(
    world: World, feature: F, signal: Sig, grows_by: float, expected: float
) -> None:
    world.now[signal] += grows_by
    assert world.feature(feature) == math.floor(expected * ONE)


@pytest.mark.parametrize(
    ("feature", "signals", "expected"),
    [
        (F.HEADROOM_RATIO, {Sig.OWNER_MAX_BYTES: 2 * GIB}, 0.25),
        (F.HEADROOM_RATIO, {Sig.OWNER_MAX_BYTES: GIB / 2}, -0.125),
        (F.HEADROOM_RATIO, {}, 0.75),
        (F.MEMSW_RATIO, {Sig.SWAP_BYTES: GIB / 2, Sig.MEMSW_CEILING_BYTES: 2 * GIB}, 0.75),
        (F.MEMSW_RATIO, {Sig.SWAP_BYTES: GIB / 2}, 0.0),
        (F.SWAP_RATIO, {Sig.SWAP_BYTES: GIB}, 0.5),
        (F.SLOW_SHARE, {Sig.FAST_BYTES: GIB / 4, Sig.SLOW_BYTES: GIB * 0.75}, 0.75),
        (F.COLD_FAST_SHARE, {Sig.COLD_FAST_BYTES: GIB / 8}, 0.125),
        (F.HOT_SLOW_SHARE, {Sig.SLOW_BYTES: GIB, Sig.HOT_SLOW_BYTES: GIB / 4}, 0.25),
        (F.DIRTY_SHARE, {Sig.DIRTY_BYTES: GIB / 8, Sig.WRITEBACK_BYTES: GIB / 8}, 0.25),
        (F.SHARED_SHARE, {Sig.SHARED_BYTES: GIB / 2}, 0.5),
        (F.SHARERS, {Sig.SHARERS: 3}, 3.0),
        (F.WSS_RATIO, {Sig.WSS_BYTES: GIB / 2}, 0.5),
        (F.PROTECTION, {Sig.LOW_BYTES: GIB / 4}, 0.25),
        (F.PSI_MEM_AVG10, {Sig.PSI_MEM_SOME_AVG10: 12.5}, 0.125),
        (F.LOCK_WAITERS, {Sig.LOCK_WAITERS: 2.5}, 2.5),
        (F.LOAD, {Sig.LOAD_RATIO: 1.5}, 1.5),
        (F.SLACK, {Sig.SLACK_RATIO: -0.5}, -0.5),
        (F.KILL_RANK, {Sig.KILL_RANK: 9}, 9.0),
    ],
)
def test_readings_are_put_over_their_base(
    world: World, feature: F, signals: dict[Sig, float], expected: float
) -> None:
    for signal, value in signals.items():
        world.now[signal] = value
    assert world.feature(feature) == math.floor(expected * ONE)


@pytest.mark.parametrize(
    ("feature", "now", "before", "expected"),
    [
        (F.HOST_UTIL, {HostSig.AVAILABLE_BYTES: 0.5 * GIB}, {}, 0.875),
        (F.HOST_FREE_SLOPE, {}, {HostSig.FREE_BYTES: 3 * GIB}, -0.25),
        (F.HOST_FAST_FREE, {HostSig.FAST_FREE_BYTES: GIB}, {}, 0.25),
        (F.HOST_PSI_MEM_SOME, {HostSig.PSI_MEM_SOME_US: 3e5}, {}, 0.3),
        (F.HOST_PSI_MEM_FULL, {HostSig.PSI_MEM_FULL_US: 2e5}, {HostSig.PSI_MEM_FULL_US: 1e5}, 0.1),
        (F.HOST_PSI_IO_SOME, {HostSig.PSI_IO_SOME_US: 4e5}, {}, 0.4),
        # One of four CPUs was idle for the second.
        (F.HOST_CPU_IDLE, {HostSig.CPU_IDLE_US: 1e6}, {}, 0.25),
        (F.FLUSHER_BACKLOG, {HostSig.FLUSHER_BACKLOG_BYTES: 0.5 * GIB}, {}, 0.125),
    ],
)
def test_host_features_are_over_the_host(
    world: World,
    feature: F,
    now: dict[HostSig, float],
    before: dict[HostSig, float],
    expected: float,
) -> None:
    for signal, value in now.items():
        world.host_now[signal] = value
    for signal, value in before.items():
        world.host_before[signal] = value
    assert world.feature(feature) == math.floor(expected * ONE)


def test_rates_are_per_second_whatever_the_length_of_the_tick(world: World) -> None:
    world.host_before[HostSig.UPTIME_US] = 46e6
    world.now[Sig.PSI_MEM_SOME_US] = 1e6
    assert world.feature(F.PSI_MEM_SOME) == ONE // 4


def test_a_tick_without_length_does_not_divide_by_zero(world: World) -> None:
    world.host_before[HostSig.UPTIME_US] = world.host_now[HostSig.UPTIME_US]
    assert seconds_between(world.host_now, world.host_before) == 1e-3
    world.now[Sig.PSI_MEM_SOME_US] = 10
    assert world.feature(F.PSI_MEM_SOME) == math.floor(0.01 * ONE)


@pytest.mark.parametrize(
    ("scanned", "stolen", "expected"), [(0, 0, 1.0), (100, 25, 0.25), (100, 0, 0.0)]
)
def test_efficiency_is_pages_stolen_over_scanned(
    world: World, scanned: float, stolen: float, expected: float
) -> None:
    world.now[[Sig.PGSCAN_DIRECT, Sig.PGSTEAL_DIRECT]] = scanned, stolen
    assert world.feature(F.EFFICIENCY_DIRECT) == int(expected * ONE)
    world.now[[Sig.PGSCAN_KSWAPD, Sig.PGSTEAL_KSWAPD]] = scanned / 2, stolen
    world.now[Sig.PGSCAN_PROACTIVE] = scanned / 2
    assert world.feature(F.EFFICIENCY_BACKGROUND) == int(expected * ONE)
    assert math.isnan(efficiency(math.nan, math.nan))


def test_critical_share_is_of_the_charge(world: World) -> None:
    assert world.feature(F.CRITICAL_SHARE) == 0
    world.now[[Sig.CHARGE_PAGES, Sig.CRITICAL_CHARGE_PAGES]] = 400, 100
    assert world.feature(F.CRITICAL_SHARE) == ONE // 4


def test_an_almost_empty_cgroup_does_not_look_like_thrashing(world: World) -> None:
    world.now[Sig.USAGE_BYTES] = world.before[Sig.USAGE_BYTES] = 4096.0
    world.now[Sig.REFAULT_FILE] = 64
    assert world.feature(F.REFAULT_FILE) == ONE // 4  # 64 of the 256 pages of 1 MiB


@pytest.mark.parametrize("feature", range(N_FEATURES))
def test_values_saturate_at_the_range(feature: int) -> None:
    vector = np.zeros(N_FEATURES, dtype=np.int32)
    for value, expected in (
        (1e9, FEATURES[feature].high_fixed),
        (-1e9, FEATURES[feature].low_fixed),
        (FEATURES[feature].high, FEATURES[feature].high_fixed),
        (FEATURES[feature].low, FEATURES[feature].low_fixed),
    ):
        put(vector, feature, value)
        assert vector[feature] == expected


@pytest.mark.parametrize(
    ("value", "fixed"),
    [
        (0.0, 0),
        (1.5 / ONE, 1),
        (-0.5 / ONE, -1),
        (-1.0 / ONE, -1),
        (-1.5 / ONE, -2),
        (-0.05, -3277),
    ],
)
def test_fixed_point_rounds_down_for_negatives_too(value: float, fixed: int) -> None:
    vector = np.zeros(N_FEATURES, dtype=np.int32)
    put(vector, F.GROWTH, value)
    assert vector[F.GROWTH] == fixed


@pytest.mark.parametrize("value", [1e300, math.inf])
def test_values_without_an_integer_saturate_too(value: float) -> None:
    vector = np.zeros(N_FEATURES, dtype=np.int32)
    put(vector, F.GROWTH, value)
    put(vector, F.SLACK, -value)
    assert vector[F.GROWTH] == FEATURES[F.GROWTH].high_fixed
    assert vector[F.SLACK] == FEATURES[F.SLACK].low_fixed


@pytest.mark.parametrize("feature", range(N_FEATURES))
def test_what_could_not_be_read_takes_the_fallback_or_is_missing(feature: int) -> None:
    vector = np.zeros(N_FEATURES, dtype=np.int32)
    put(vector, feature, math.nan)
    fallback = FEATURES[feature].fallback
    expected = MISSING_FIXED if fallback is None else fallback * ONE
    assert vector[feature] == expected


@pytest.mark.parametrize(
    "signal", [i for i, s in enumerate(MEMCG_SIGNALS) if s.required and i not in
               (Sig.ANON_BYTES, Sig.FILE_BYTES, Sig.HIGH_BYTES, Sig.PGMAJFAULT)],
    ids=lambda i: MEMCG_SIGNALS[i].name,
)  # fmt: skip
def test_a_required_signal_that_cannot_be_read_is_missing(world: World, signal: int) -> None:
    world.now[signal] = math.nan
    assert (world.vector() == MISSING_FIXED).any()


@pytest.mark.parametrize(
    "signal", [i for i, s in enumerate(HOST_SIGNALS) if s.required],
    ids=lambda i: HOST_SIGNALS[i].name,
)  # fmt: skip
def test_a_required_host_signal_that_cannot_be_read_is_missing(world: World, signal: int) -> None:
    world.host_now[signal] = math.nan
    assert (world.vector() == MISSING_FIXED).any()


@pytest.mark.parametrize(
    "signal",
    [i for i, s in enumerate(MEMCG_SIGNALS) if not s.required and not s.name.startswith("owner")],
    ids=lambda i: MEMCG_SIGNALS[i].name,
)
def test_an_optional_signal_that_cannot_be_read_is_never_missing(world: World, signal: int) -> None:
    world.now[signal] = world.before[signal] = math.nan
    assert (world.vector() != MISSING_FIXED).all()


def test_averages_move_by_their_share_of_the_difference(world: World) -> None:
    world.now[Sig.PSI_MEM_SOME_US] += 320_000
    world.now[Sig.REFAULT_ANON] += 131072
    world.now[Sig.REFAULT_FILE] += 131072
    world.before[Sig.USAGE_BYTES] = GIB / 2
    update_averages(world.now, world.before, 1.0, world.averages)
    assert world.averages.tolist() == [0.5 / 32, 0.32 / 4, 0.32 / 32, 1.0 / 32]
    update_averages(world.now, world.now, 1.0, world.averages)
    assert world.averages[Average.PSI_MEM_FAST] == pytest.approx(0.32 / 4 * 0.75, rel=1e-12)
    assert world.feature(F.PSI_MEM_FAST) == math.floor(0.06 * ONE)
    assert world.feature(F.REFAULT_SLOW) == math.floor(31 / 32 / 32 * ONE)


def test_an_average_reaches_what_stays(world: World) -> None:
    for _ in range(400):
        world.before[:] = world.now
        world.now[Sig.PSI_MEM_SOME_US] += 500_000
        update_averages(world.now, world.before, 1.0, world.averages)
    assert world.averages[Average.PSI_MEM_SLOW] == pytest.approx(0.5, abs=1e-5)


def test_averages_recover_from_a_reading_that_failed_once(world: World) -> None:
    broken = world.now.copy()
    broken[[Sig.USAGE_BYTES, Sig.PSI_MEM_SOME_US, Sig.REFAULT_FILE]] = math.nan
    update_averages(broken, world.before, 1.0, world.averages)
    update_averages(world.now, broken, 1.0, world.averages)
    update_averages(world.now, world.now, 1.0, world.averages)
    assert np.isfinite(world.averages).all()


def test_levels_dwell_lease_and_pending_are_seen(world: World) -> None:
    world.guard[Guard.IN_FORCE + Head.RECLAIM] = 3
    world.guard[Guard.IN_FORCE + Head.FLUSH] = 2
    world.guard[Guard.ACCEPTED + Head.RECLAIM] = 3
    world.guard[Guard.ACCEPTED + Head.THROTTLE] = 1
    world.guard[Guard.DWELL_LEFT + Head.SHED] = 4
    world.guard[Guard.DWELL_LEFT + Head.PROTECT] = 2
    world.guard[Guard.LEASE_LEFT] = 5
    vector = world.vector()
    assert (vector[F.LEVEL_THROTTLE : F.LEVEL_FLUSH + 1] / ONE).tolist() == [0, 3, 0, 0, 0, 2]
    assert vector[F.DWELL_LEFT] == 4 * ONE
    assert vector[F.LEASE_LEFT] == 5 * ONE
    assert vector[F.PENDING] == 2 * ONE  # throttle and flush


def test_a_counter_that_went_back_is_zero(world: World) -> None:
    world.before[Sig.REFAULT_FILE] = 1000
    assert world.feature(F.REFAULT_FILE) == 0


def test_each_function_is_listed_after_those_it_uses() -> None:
    names = [function.__name__ for function in FEATURE_FUNCTIONS]
    for i, function in enumerate(FEATURE_FUNCTIONS):
        used = set(function.__code__.co_names) & set(names)
        assert used <= set(names[:i]), function.__name__
