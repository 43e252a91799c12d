from __future__ import annotations

import numpy as np
import pytest

from memcg_gym.agents.static_high import StaticHigh, StaticHighConfig, kubernetes_high_bytes
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import PAGE_BYTES, UNLIMITED_BYTES, Sig
from tests.agents.views import ALL_HEADS, GIB, MIB, view


def high_of(config: StaticHighConfig, **now: float) -> float:
    policy = StaticHigh(config)
    policy.reset((1, 1), ALL_HEADS, 0)
    looked_at = view(1, now={Sig[name.upper()]: value for name, value in now.items()})
    return float(policy.act(looked_at)[0, 0, Knob.HIGH_BYTES])


@pytest.mark.parametrize(
    ("request_pages", "limit_pages", "high_pages"),
    [
        (100, 200, 190),
        (100, 201, 190),  # 100 + 90.9 rounded down to whole pages
        (0, 1000, 900),
        (512, 512, 512),
    ],
)
def test_kubernetes_formula_rounds_down_to_pages(
    request_pages: int, limit_pages: int, high_pages: int
) -> None:
    request, limit = np.array(request_pages * 4096.0), np.array(limit_pages * 4096.0)
    assert kubernetes_high_bytes(request, limit, 0.9) == high_pages * PAGE_BYTES


def test_the_request_is_memory_min_or_else_memory_low() -> None:
    limit = 1000 * PAGE_BYTES
    both = high_of(
        StaticHighConfig(),
        owner_min_bytes=100 * PAGE_BYTES,
        owner_low_bytes=500 * PAGE_BYTES,
        owner_max_bytes=limit,
    )
    low = high_of(StaticHighConfig(), owner_low_bytes=500 * PAGE_BYTES, owner_max_bytes=limit)
    assert (both, low) == (910 * PAGE_BYTES, 950 * PAGE_BYTES)


def test_without_a_limit_the_node_is_the_limit() -> None:
    expected = 0.9 * 16 * GIB // PAGE_BYTES * PAGE_BYTES
    assert high_of(StaticHighConfig()) == expected


def test_katalyst_takes_a_share_of_memory_max_and_nothing_where_there_is_none() -> None:
    katalyst = StaticHighConfig(formula="katalyst")
    assert high_of(katalyst, owner_max_bytes=1000 * MIB) == pytest.approx(950 * MIB)
    assert high_of(katalyst) == UNLIMITED_BYTES


def test_an_owners_memory_high_is_not_exceeded() -> None:
    assert high_of(StaticHighConfig(), owner_high_bytes=GIB, owner_max_bytes=4 * GIB) == GIB


@pytest.mark.parametrize("bad", [{"formula": "gke"}, {"factor_ratio": 1.5}])
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="static-high"):
        StaticHighConfig(**bad)  # type: ignore[arg-type]
