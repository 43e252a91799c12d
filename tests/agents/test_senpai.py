from __future__ import annotations

import numpy as np
import pytest

from memcg_gym.agents.senpai import Senpai, SenpaiConfig, backoff, probe
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import Sig
from tests.agents.views import ALL_HEADS, GIB, MIB, view

CONFIG = SenpaiConfig()


def begun(usage_bytes: float = GIB, config: SenpaiConfig = CONFIG) -> Senpai:
    """A Senpai that has seen its cgroup for one calm second."""
    policy = Senpai(config)
    policy.reset((1, 1), ALL_HEADS, 0)
    tick(policy, 0.0, usage_bytes)
    return policy


def tick(policy: Senpai, stall_us: float, usage_bytes: float = GIB, **now: float) -> float:
    """memory.high after a second with this much stall."""
    signals = {Sig[name.upper()]: value for name, value in now.items()}
    looked_at = view(
        1, now={Sig.USAGE_BYTES: usage_bytes} | signals, delta={Sig.PSI_MEM_SOME_US: stall_us}
    )
    return float(policy.act(looked_at)[0, 0, Knob.HIGH_BYTES])


@pytest.mark.parametrize(
    ("integral_us", "raise_ratio"),
    [
        (20_000.0, 0.01),  # (20000 / 10000 / 20)^2
        (40_000.0, 0.04),
        (100_000.0, 0.25),
        (200_000.0, 1.0),
        (900_000.0, 1.0),  # never more than doubled
    ],
)
def test_backoff_is_squared_in_the_pressure_and_capped(
    integral_us: float, raise_ratio: float
) -> None:
    assert backoff(np.array(integral_us), CONFIG) == pytest.approx(raise_ratio)


@pytest.mark.parametrize(
    ("integral_us", "cut_ratio"),
    [
        (0.0, 0.01),
        (1_000.0, 0.01),  # 0.01 * (10000 / 1000 / 10)^2
        (2_000.0, 0.0025),
        (5_000.0, 0.0004),
        (10_000.0, 0.0001),
    ],
)
def test_the_probe_shrinks_as_pressure_nears_its_target(
    integral_us: float, cut_ratio: float
) -> None:
    assert probe(np.array(integral_us), CONFIG) == pytest.approx(cut_ratio)


def test_the_limit_starts_at_usage_and_falls_a_percent_every_six_seconds() -> None:
    policy = begun()
    limits = [tick(policy, 0.0) / GIB for _ in range(17)]
    assert limits[:4] == [1.0] * 4
    assert limits[4:10] == pytest.approx([0.99] * 6)
    assert limits[10:16] == pytest.approx([0.99**2] * 6)
    assert limits[16] == pytest.approx(0.99**3)


def test_senpai_backs_off_at_once_when_pressure_passes_its_target() -> None:
    policy = begun()
    assert tick(policy, 6_000.0) == GIB  # below the target: the grace period goes on
    assert tick(policy, 14_000.0) == pytest.approx(1.01 * GIB)  # 20000 us: I / p = 2
    assert tick(policy, 6_000.0) == pytest.approx(1.01 * GIB)  # counts from zero again


def test_senpai_backs_off_four_times_as_far_when_pressure_doubles() -> None:
    raises = [tick(begun(), stall_us) / GIB - 1.0 for stall_us in (30_000.0, 60_000.0)]
    assert raises[1] == pytest.approx(4.0 * raises[0])
    assert raises[0] > 0.0


def test_the_limit_stays_between_its_ends() -> None:
    low = begun(50 * MIB)
    assert tick(low, 0.0, 50 * MIB) == 100 * MIB
    high = begun(90 * GIB)
    assert tick(high, 500_000.0, 90 * GIB) == 100 * GIB


def test_an_owners_memory_high_is_not_exceeded() -> None:
    policy = begun(2 * GIB)
    assert tick(policy, 500_000.0, 2 * GIB, owner_high_bytes=3 * GIB) == 3 * GIB


def test_a_killed_cgroup_starts_anew() -> None:
    policy = begun()
    looked_at = view(1, now={Sig.USAGE_BYTES: 0.25 * GIB}, delta={Sig.EVENTS_OOM_KILL: 1})
    assert policy.act(looked_at)[0, 0, Knob.HIGH_BYTES] == 0.25 * GIB


@pytest.mark.parametrize("bad", [{"interval_s": 0}, {"max_probe": 1.0}, {"min_mib": -1.0}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="senpai"):
        SenpaiConfig(**bad)  # type: ignore[arg-type]
