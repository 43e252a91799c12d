from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcg_gym.agents.policy import Array
from memcg_gym.agents.tpp import Tpp, TppConfig
from memcg_gym.agents.trim_tpp import TrimTpp, TrimTppConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import HostSig, Sig
from tests.agents.views import ALL_HEADS, GIB, view

TIERED = {HostSig.SLOW_TOTAL_BYTES: 16 * GIB, HostSig.FAST_TOTAL_BYTES: 10 * GIB}
COLD = {Sig.COLD_FAST_BYTES: np.array([3, 1, 0]) * GIB, Sig.SLOW_BYTES: [GIB, 0, GIB]}


def knobs_of(free_gib: float, host: dict[HostSig, float] | None = None, **rest: Any) -> Array:
    policy = Tpp(TppConfig())
    policy.reset((1, 3), ALL_HEADS, 0)
    host = (TIERED if host is None else host) | {HostSig.FAST_FREE_BYTES: free_gib * GIB}
    knobs: Array = policy.act(view(3, now=COLD, host=host, **rest))[0]
    return knobs


def test_tpp_demotes_what_is_missing_to_two_percent_by_share_of_cold() -> None:
    demoted = knobs_of(0.12)[:, Knob.DEMOTE_BYTES] / GIB
    assert demoted == pytest.approx([0.06, 0.02, 0.0])


def test_tpp_leaves_a_tier_with_room_alone() -> None:
    assert not knobs_of(0.2)[:, Knob.DEMOTE_BYTES].any()


def test_tpp_never_demotes_more_than_a_cgroup_has_cold() -> None:
    demoted = knobs_of(0.0, active=[False, True, True])[:, Knob.DEMOTE_BYTES] / GIB
    assert demoted == pytest.approx([0.0, 0.2, 0.0])
    hot = COLD | {Sig.COLD_FAST_BYTES: np.array([0, 0.05, 0]) * GIB}
    policy = Tpp()
    policy.reset((1, 3), ALL_HEADS, 0)
    knobs = policy.act(view(3, now=hot, host=TIERED | {HostSig.FAST_FREE_BYTES: 0.0}))
    assert knobs[0, 1, Knob.DEMOTE_BYTES] == pytest.approx(0.05 * GIB)


def test_tpp_promotes_for_those_with_pages_on_the_slow_tier() -> None:
    assert knobs_of(5.0)[:, Knob.PROMOTE_PREFERRED].tolist() == [1.0, 0.0, 1.0]


def test_tpp_does_nothing_without_a_slow_tier() -> None:
    knobs = knobs_of(0.0, host={HostSig.FAST_TOTAL_BYTES: 10 * GIB})
    assert not knobs[:, [Knob.DEMOTE_BYTES, Knob.PROMOTE_PREFERRED]].any()


@pytest.mark.parametrize(
    ("avg60_percent", "share"), [(0.0, 0.01), (0.05, 0.005), (0.1, 0.0), (3.0, 0.0)]
)
def test_the_trim_shrinks_with_pressure_and_comes_every_thirty_seconds(
    avg60_percent: float, share: float
) -> None:
    policy = TrimTpp(TrimTppConfig())
    policy.reset((1, 1), ALL_HEADS, 0)
    looked_at = view(1, now={Sig.PSI_MEM_SOME_AVG60: avg60_percent})
    trims = [float(policy.act(looked_at)[0, 0, Knob.RECLAIM_BYTES]) for _ in range(60)]
    assert trims == pytest.approx(([0.0] * 29 + [share * GIB]) * 2)


def test_the_trim_runs_beside_tpp() -> None:
    host = TIERED | {HostSig.FAST_FREE_BYTES: 0.12 * GIB}
    policy = TrimTpp()
    policy.reset((1, 3), ALL_HEADS, 0)
    knobs = policy.act(view(3, now=COLD, host=host))[0]
    assert np.array_equal(knobs[:, Tpp.owns], knobs_of(0.12)[:, Tpp.owns])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="demote_scale_ratio"):
        TppConfig(demote_scale_ratio=2.0)
    with pytest.raises(ConfigError, match="pressure_percent"):
        TrimTppConfig(pressure_percent=0.0)
