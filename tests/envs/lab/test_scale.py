from __future__ import annotations

import pytest

from memcg_gym.configs.loader import load_objective, load_scenario, names
from memcg_gym.configs.schema import ScenarioConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.lab.scale import scale_objective, scale_scenario

DIVISOR = 16.0


def touches_per_page(scenario: ScenarioConfig) -> list[float]:
    return [
        (r.touches_per_request * c.workload.requests_per_s.highest + r.touches_per_s)
        / r.size_mib.highest
        for c in scenario.cgroups
        for r in c.workload.regions
    ]


@pytest.mark.parametrize("name", names("scenarios"))
def test_every_page_is_touched_as_often_on_the_smaller_host(name: str) -> None:
    full = load_scenario(name)
    small = scale_scenario(full, DIVISOR)
    assert touches_per_page(small) == pytest.approx(touches_per_page(full))


@pytest.mark.parametrize("name", names("scenarios"))
def test_limits_keep_their_share_of_the_host(name: str) -> None:
    full = load_scenario(name)
    small = scale_scenario(full, DIVISOR)
    for a, b in zip(full.cgroups, small.cgroups, strict=True):
        for limit in ("low_mib", "high_mib", "max_mib"):
            share = getattr(a, limit).highest / full.host.dram_gib.highest
            assert getattr(b, limit).highest / small.host.dram_gib.highest == pytest.approx(share)


def test_latency_cpu_time_and_times_stay() -> None:
    full, small = load_scenario("host-mix"), scale_scenario(load_scenario("host-mix"), DIVISOR)
    assert small.host.disk.latency_us == full.host.disk.latency_us
    for a, b in zip(full.cgroups, small.cgroups, strict=True):
        assert b.workload.cpu_us_per_request == a.workload.cpu_us_per_request
        assert b.workload.slo_p99_ms == a.workload.slo_p99_ms
        assert b.workload.phase == a.workload.phase


def test_two_threads_stay_two_so_that_some_and_full_differ() -> None:
    small = scale_scenario(load_scenario("host-mix"), DIVISOR)
    assert {c.workload.threads_tolerant + c.workload.threads_critical for c in small.cgroups} == {2}


def test_the_swap_wear_budget_of_the_host_shrinks_with_it() -> None:
    full = load_objective()
    small = scale_objective(full, DIVISOR)
    assert small.swap_write_budget_mib_s == full.swap_write_budget_mib_s / DIVISOR
    assert small.slo_weight == full.slo_weight


@pytest.mark.parametrize("divisor", [0.5, 0.0, float("nan"), float("inf")])
def test_a_divisor_that_is_none_is_refused(divisor: float) -> None:
    with pytest.raises(ConfigError, match="needs a number of at least 1"):
        scale_scenario(load_scenario("burst"), divisor)
