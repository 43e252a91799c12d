from __future__ import annotations

from typing import Any

import pytest

from memcg_gym.agents.tmo import Tmo, TmoConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import Sig
from tests.agents.views import ALL_HEADS, GIB, MIB, view


def probes(ticks: int = 6, **now: Any) -> list[float]:
    """Bytes written to memory.reclaim each second."""
    policy = Tmo()
    policy.reset((1, 1), ALL_HEADS, 0)
    looked_at = view(1, now={Sig[name.upper()]: value for name, value in now.items()})
    return [float(policy.act(looked_at)[0, 0, Knob.RECLAIM_BYTES]) for _ in range(ticks)]


def test_a_calm_cgroup_gives_a_percent_above_the_floor_every_six_seconds() -> None:
    share = 0.01 * (GIB - 100 * MIB)
    assert probes(13) == pytest.approx([0, 0, 0, 0, 0, share] * 2 + [0])


@pytest.mark.parametrize(
    "signal",
    ["psi_mem_some_avg10", "psi_mem_some_avg60", "psi_io_some_avg10", "psi_io_some_avg60"],
)
def test_any_average_of_memory_or_io_pressure_at_its_threshold_stops_the_probe(
    signal: str,
) -> None:
    at: dict[str, Any] = {signal: 0.1}
    below: dict[str, Any] = {signal: 0.09}
    assert probes(**at)[-1] == 0.0
    assert probes(**below)[-1] > 0.0


@pytest.mark.parametrize(
    ("now", "floor"),
    [
        ({"unreclaimable_bytes": 200 * MIB}, 300 * MIB),
        ({"owner_min_bytes": 512 * MIB}, 512 * MIB),
        ({"owner_min_bytes": 64 * MIB}, 100 * MIB),
    ],
)
def test_the_floor_is_the_larger_of_a_fixed_part_and_memory_min(
    now: dict[str, Any], floor: float
) -> None:
    assert probes(**now)[-1] == pytest.approx(0.01 * (GIB - floor))


def test_below_the_floor_nothing_is_reclaimed() -> None:
    assert probes(usage_bytes=90 * MIB) == [0.0] * 6


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="interval_s"):
        TmoConfig(interval_s=0)
