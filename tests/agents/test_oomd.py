from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcg_gym.agents.oomd import Oomd, OomdConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import HostSig, Sig
from tests.agents.views import ALL_HEADS, GIB, view

SCANNED = {Sig.PGSCAN_DIRECT: 100.0}
SWAP = {HostSig.SWAP_TOTAL_BYTES: 10 * GIB, HostSig.SWAP_FREE_BYTES: 5 * GIB}


def begun(preset: str = "desktop", n: int = 4) -> Oomd:
    policy = Oomd(OomdConfig(preset=preset))
    policy.reset((1, n), ALL_HEADS, 0)
    return policy


def killed(
    policy: Oomd,
    ticks: int,
    avg10: float = 90.0,
    host: dict[HostSig, float] | None = None,
    n: int = 4,
    **rest: Any,
) -> list[tuple[int, int]]:
    """(second, victim) of every kill under a steady view."""
    rest.setdefault("delta", SCANNED)
    looked_at = view(n, host={HostSig.PSI_MEM_SOME_AVG10: avg10} | SWAP | (host or {}), **rest)
    kills = []
    for second in range(ticks):
        victims = np.flatnonzero(policy.act(looked_at)[0, :, Knob.KILL])
        kills += [(second, int(victim)) for victim in victims]
    return kills


@pytest.mark.parametrize(
    ("preset", "threshold", "duration_s"), [("desktop", 60.0, 30), ("system", 80.0, 60)]
)
def test_pressure_must_be_above_the_threshold_for_the_whole_duration(
    preset: str, threshold: float, duration_s: int
) -> None:
    assert killed(begun(preset), 3 * duration_s, avg10=threshold) == []
    first = killed(begun(preset), duration_s + 10, avg10=threshold + 0.1)
    assert [second for second, _ in first] == [duration_s - 1]


def test_a_dip_of_the_pressure_starts_the_duration_anew() -> None:
    policy = begun()
    assert killed(policy, 29) == []
    assert killed(policy, 1, avg10=10.0) == []
    assert [second for second, _ in killed(policy, 31)] == [29]


def test_without_reclaim_in_the_last_ten_seconds_nobody_is_killed() -> None:
    assert killed(begun(), 60, delta={}) == []
    policy = begun()
    assert killed(policy, 25) == []
    assert [second for second, _ in killed(policy, 10, delta={})] == [4]


def test_under_lasting_pressure_kills_come_fifteen_seconds_apart() -> None:
    seconds = [second for second, _ in killed(begun(), 70)]
    assert seconds == [29, 44, 59]


@pytest.mark.parametrize(
    ("effective_gib", "growth", "victim"),
    [
        ([1, 6, 1, 1], [1, 1, 1, 1], 1),  # over half of all
        ([4, 3, 2, 1], [1, 9, 9, 9], 0),  # nobody over half, only the largest may be a grower
        ([4, 3, 2, 1], [2, 9, 9, 9], 0),
        ([2, 2, 2, 2], [1, 1.2, 1.6, 1.3], 2),  # equals: the fastest grower above 1.25
        ([2, 2, 2, 2], [1, 1.2, 1.25, 1.1], 0),  # nobody grew enough: size regardless
    ],
)
def test_the_victim_is_the_largest_or_the_fastest_grower(
    effective_gib: list[float], growth: list[float], victim: int
) -> None:
    usage = np.array(effective_gib) * GIB
    alive = np.ones(4, dtype=np.bool_)
    assert begun().by_size_or_growth(usage, usage, usage / growth, alive) == victim


def test_the_top_fifth_of_eight_is_two() -> None:
    usage = np.array([1, 2, 3, 4, 5, 6, 7, 8]) * GIB
    growth = np.array([9, 9, 9, 9, 9, 9, 2, 1.5])
    alive = np.ones(8, dtype=np.bool_)
    assert begun(n=8).by_size_or_growth(usage, usage, usage / growth, alive) == 6


def test_memory_under_protection_does_not_count() -> None:
    now = {Sig.USAGE_BYTES: np.array([8, 3, 1, 1]) * GIB, Sig.LOW_BYTES: [7 * GIB, 0, 0, 0]}
    assert killed(begun(), 30, now=now) == [(29, 1)]


def test_empty_slots_and_cgroups_without_processes_are_spared() -> None:
    now = {
        Sig.USAGE_BYTES: np.array([8, 6, 2, 1]) * GIB,
        Sig.ANON_BYTES: np.array([8, 0, 1, 1]) * GIB,
    }
    assert killed(begun(), 30, now=now, active=[False, True, True, True]) == [(29, 2)]


def test_when_swap_runs_out_the_largest_swap_user_goes() -> None:
    now = {Sig.SWAP_BYTES: np.array([1, 4, 3, 0]) * GIB}
    just_enough = {HostSig.SWAP_FREE_BYTES: 1.0 * GIB}
    short = {HostSig.SWAP_FREE_BYTES: 0.9 * GIB}
    assert killed(begun(), 5, avg10=0.0, now=now, host=just_enough) == []
    assert killed(begun(), 5, avg10=0.0, now=now, host=short) == [(0, 1)]


def test_systemd_kills_who_reclaims_most() -> None:
    scanned = {Sig.PGSCAN_DIRECT: [10, 30, 20, 0], Sig.PGSCAN_KSWAPD: [0, 0, 50, 0]}
    assert killed(begun("systemd"), 30, delta=scanned) == [(29, 2)]


def test_systemd_spares_those_with_little_swap() -> None:
    now = {Sig.SWAP_BYTES: np.full(4, 0.4 * GIB)}
    assert killed(begun("systemd"), 3, 0.0, {HostSig.SWAP_FREE_BYTES: 0.5 * GIB}, now=now) == []


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="preset"):
        OomdConfig(preset="laptop")
