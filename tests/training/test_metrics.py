from __future__ import annotations

import numpy as np
import pytest

from memcg_gym.agents import rollout
from memcg_gym.envs.reward import N_METRICS, Metric
from memcg_gym.training.metrics import (
    HOST_METRICS,
    REASONS,
    Sums,
    host_metrics,
    intervention_rates,
)

TICKS = 36


def sums(**metrics: list[float]) -> Sums:
    """One host of two cgroups, the second there half of the time and worth three times as much."""
    table = np.zeros((1, 2, N_METRICS))
    for name, values in metrics.items():
        table[0, :, Metric[name]] = values
    return Sums(
        TICKS,
        np.array([[36.0, 18.0]]),
        table,
        np.zeros((1, 2, len(REASONS)), dtype=np.int64),
        np.array([[1.0, 3.0]]),
        np.array([1.0]),
    )


def value(name: str, given: Sums) -> float:
    column = [m.name for m in HOST_METRICS].index(name)
    return float(host_metrics(given)[0, column])


@pytest.mark.parametrize(
    ("name", "metrics", "expected"),
    [
        ("slo_violated", {"SLO_VIOLATED_S": [9.0, 18.0]}, 27 / 54),
        ("slowdown_mean", {"SLOWDOWN": [36.0, 54.0]}, (36 * 1 + 54 * 3) / (36 * 1 + 18 * 3)),
        ("slowdown_worst", {"SLOWDOWN": [36.0, 54.0]}, 3.0),
        ("served", {"REQUESTS": [30.0, 15.0], "ARRIVED": [40.0, 20.0]}, 0.75),
        ("requests", {"REQUESTS": [36.0, 72.0]}, 3.0),
        ("dram", {"DRAM_PAGES": [36 * 2.0**18, 36 * 2.0**18]}, 2.0),
        ("memory", {"MEMORY_PAGES": [36 * 2.0**18, 0.0]}, 1.0),
        ("swap", {"SWAP_PAGES": [36 * 2.0**17, 0.0]}, 0.5),
        ("inversion", {"INVERSION_S": [0.02, 0.01]}, 3.0),
        ("critical_stall", {"CRITICAL_STALL_S": [0.1, 0.0]}, 10.0),
        ("refaults", {"REFAULT_PAGES": [36.0, 72.0]}, 3.0),
        ("oom_kills", {"KILLS": [1.0, 2.0]}, 100.0),
        ("policy_kills", {"KILLS": [1.0, 2.0]}, 200.0),
        ("over_util", {"OVER_UTIL_S": [18.0, 9.0]}, 0.5),
        ("swap_writes", {"SWAP_WRITE_PAGES": [36 * 2.0**8, 0.0]}, 1.0),
        ("shed", {"SHED": [5.4, 0.0]}, 0.1),
    ],
)
def test_metric_by_hand(name: str, metrics: dict[str, list[float]], expected: float) -> None:
    assert value(name, sums(**metrics)) == pytest.approx(expected)


def test_interventions_are_per_cgroup_hour() -> None:
    given = sums()
    given.interventions[0, :, 1] = [2, 1]
    rates = intervention_rates(given)
    assert rates[0, 1] == pytest.approx(3 / (54 / 3600))
    assert rates.sum() == rates[0, 1]
    assert value("interventions", given) == pytest.approx(200.0)


def test_a_host_without_cgroups_has_numbers() -> None:
    given = sums()._replace(cgroup_ticks=np.zeros((1, 2)))
    assert np.isfinite(host_metrics(given)).all()


def test_reasons_are_named_in_the_order_in_which_rollouts_count_them() -> None:
    assert [str(r.name).lower() for r in rollout.REASONS] == list(REASONS)
