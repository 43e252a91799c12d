from __future__ import annotations

import itertools

import numpy as np
import pytest

from memcg_gym.enforcer.adapter import ADAPTER_FUNCTIONS, levels_to_knobs, owner_knobs
from memcg_gym.envs.contract.heads import HEADS, LIFT_LEVEL, N_HEADS, Head, HostKind
from memcg_gym.envs.contract.knobs import N_KNOBS, Knob
from memcg_gym.envs.contract.signals import N_MEMCG_SIGNALS, UNLIMITED_BYTES, Sig

GIB = float(1 << 30)


def signals() -> np.ndarray:
    now = np.zeros(N_MEMCG_SIGNALS)
    now[Sig.USAGE_BYTES] = 2 * GIB
    now[Sig.FAST_BYTES] = 1.5 * GIB
    now[Sig.WSS_BYTES] = GIB
    now[Sig.OWNER_MIN_BYTES] = 0.25 * GIB
    now[Sig.OWNER_LOW_BYTES] = 0.5 * GIB
    now[Sig.OWNER_HIGH_BYTES] = 3 * GIB
    now[Sig.OWNER_MAX_BYTES] = 4 * GIB
    now[Sig.OWNER_SWAP_MAX_BYTES] = 5 * GIB
    return now


def knobs(
    now: np.ndarray, kind: HostKind = HostKind.STOCK, tick_s: float = 1.0, /, **levels: int
) -> np.ndarray:
    asked = np.zeros(N_HEADS, dtype=np.int64)
    for name, level in levels.items():
        asked[Head[name.upper()]] = level
    filled = np.full(N_KNOBS, np.nan)
    levels_to_knobs(asked, now, kind, tick_s, filled)
    assert not np.isnan(filled).any()
    return filled


def test_the_all_zero_action_is_the_owners_configuration() -> None:
    owner = np.full(N_KNOBS, np.nan)
    owner_knobs(signals(), owner)
    assert (knobs(signals()) == owner).all()
    assert owner[[Knob.MIN_BYTES, Knob.LOW_BYTES, Knob.HIGH_BYTES, Knob.MAX_BYTES]].tolist() == [
        0.25 * GIB, 0.5 * GIB, 3 * GIB, 4 * GIB,
    ]  # fmt: skip
    assert owner[[Knob.RECLAIM_BYTES, Knob.DEMOTE_BYTES, Knob.SHED_RATIO, Knob.KILL]].sum() == 0
    assert owner[Knob.FLUSH_WEIGHT] == 1.0


@pytest.mark.parametrize(("level", "share"), [(2, 1.0), (3, 0.97), (4, 0.92)])
def test_throttle_is_a_position_of_memory_high_on_a_stock_host(level: int, share: float) -> None:
    found = knobs(signals(), throttle=level)
    assert found[Knob.HIGH_BYTES] == share * 2 * GIB
    assert found[Knob.STALL_CEILING_US] == 0


@pytest.mark.parametrize(("level", "ceiling_us"), [(2, 10e3), (3, 100e3), (4, 2e6)])
def test_throttle_is_a_ceiling_of_the_stall_on_a_bpf_host(level: int, ceiling_us: float) -> None:
    found = knobs(signals(), HostKind.BPF, throttle=level)
    assert found[Knob.STALL_CEILING_US] == ceiling_us
    assert found[Knob.HIGH_BYTES] == 3 * GIB
    assert found[Knob.TAGGED] == 1


@pytest.mark.parametrize("kind", HostKind)
def test_lift_takes_memory_high_away(kind: HostKind) -> None:
    assert knobs(signals(), kind, throttle=LIFT_LEVEL)[Knob.HIGH_BYTES] == UNLIMITED_BYTES


def test_throttling_never_raises_the_owners_high() -> None:
    now = signals()
    now[Sig.OWNER_HIGH_BYTES] = GIB
    assert knobs(now, throttle=2)[Knob.HIGH_BYTES] == GIB


def test_throttling_never_goes_below_memory_min() -> None:
    now = signals()
    now[Sig.OWNER_MIN_BYTES] = 1.95 * GIB
    assert knobs(now, throttle=4)[Knob.HIGH_BYTES] == 1.95 * GIB


@pytest.mark.parametrize("tick_s", [0.5, 1.0, 2.0])
def test_reclaim_and_demotion_are_rates(tick_s: float) -> None:
    found = knobs(signals(), HostKind.STOCK, tick_s, reclaim=2, demote=2)
    assert found[Knob.RECLAIM_BYTES] == pytest.approx(0.01 * 2 * GIB * tick_s, rel=1e-12)
    assert found[Knob.DEMOTE_BYTES] == pytest.approx(0.05 * 1.5 * GIB * tick_s, rel=1e-12)
    assert found[Knob.PROMOTE_PREFERRED] == 0


def test_the_last_demote_level_prefers_promotion() -> None:
    found = knobs(signals(), demote=4)
    assert (found[Knob.PROMOTE_PREFERRED], found[Knob.DEMOTE_BYTES]) == (1, 0)


@pytest.mark.parametrize(("level", "low"), [(0, 0.5), (1, 0.0), (2, 0.6), (3, 1.0), (4, 1.5)])
def test_protection_is_a_share_of_the_working_set(level: int, low: float) -> None:
    assert knobs(signals(), protect=level)[Knob.LOW_BYTES] == low * GIB


@pytest.mark.parametrize(("head", "knob"), [("shed", Knob.SHED_RATIO), ("flush", Knob.FLUSH_WEIGHT),
                                            ("kill", Knob.KILL)])  # fmt: skip
def test_other_levels_are_passed_on_as_their_numbers(head: str, knob: Knob) -> None:
    for level, value in enumerate(HEADS[Head[head.upper()]].levels):
        assert knobs(signals(), HostKind.STOCK, 1.0, **{head: level})[knob] == value


@pytest.mark.parametrize(
    ("ceiling", "swap_max"), [(0.0, 5.0), (3.0, 1.0), (2.0, 0.0), (1.0, 0.0), (16.0, 5.0)]
)
def test_a_combined_ceiling_bounds_swap(ceiling: float, swap_max: float) -> None:
    now = signals()
    now[Sig.MEMSW_CEILING_BYTES] = ceiling * GIB
    assert knobs(now)[Knob.SWAP_MAX_BYTES] == swap_max * GIB


def test_every_level_of_every_head_moves_some_knob_on_both_kinds() -> None:
    for kind, head in itertools.product(HostKind, Head):
        seen = {
            tuple(knobs(signals(), kind, 1.0, **{head.name: level}))
            for level in range(HEADS[head].n_levels)
        }
        assert len(seen) == HEADS[head].n_levels


@pytest.mark.parametrize("signal", [Sig.WSS_BYTES, Sig.FAST_BYTES])
def test_an_estimate_that_is_missing_leaves_the_owners_value(signal: Sig) -> None:
    now = signals()
    now[signal] = np.nan
    found = knobs(now, protect=3, demote=2)
    if signal is Sig.WSS_BYTES:
        assert found[Knob.LOW_BYTES] == 0.5 * GIB
    else:
        assert found[Knob.DEMOTE_BYTES] == 0


def test_each_function_is_listed_after_those_it_uses() -> None:
    names = [function.__name__ for function in ADAPTER_FUNCTIONS]
    for i, function in enumerate(ADAPTER_FUNCTIONS):
        assert set(function.__code__.co_names) & set(names) <= set(names[:i])
