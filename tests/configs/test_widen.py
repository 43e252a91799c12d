from __future__ import annotations

import pytest

from memcg_gym.configs.loader import load_scenario, names
from memcg_gym.configs.widen import widened
from memcg_gym.envs.contract.errors import ConfigError


@pytest.mark.parametrize("name", names("scenarios"))
def test_every_shipped_scenario_can_be_widened_and_keeps_its_test_ranges(name: str) -> None:
    plain, wide = load_scenario(name), widened(load_scenario(name), 0.2)
    low, high = plain.host.dram_gib.train
    assert wide.host.dram_gib.train == pytest.approx((0.8 * low, 1.2 * high))
    assert wide.host.dram_gib.test == plain.host.dram_gib.test
    for before, after in zip(plain.cgroups, wide.cgroups, strict=True):
        for region, widened_region in zip(
            before.workload.regions, after.workload.regions, strict=True
        ):
            low, high = region.size_mib.train
            assert widened_region.size_mib.train == pytest.approx((0.8 * low, 1.2 * high))
            assert widened_region.size_mib.test == region.size_mib.test


def test_plain_numbers_stay_as_they_are() -> None:
    plain, wide = load_scenario("burst"), widened(load_scenario("burst"), 0.2)
    assert wide.host.swap_gib == plain.host.swap_gib
    assert wide.host.cpus == plain.host.cpus


def test_widening_by_nothing_is_the_same_scenario() -> None:
    plain = load_scenario("burst")
    assert widened(plain, 0.0) is plain


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="widen_ratio"):
        widened(load_scenario("burst"), ratio)
