from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.signals import N_MEMCG_SIGNALS, Sig
from memcg_gym.training.fidelity import (
    Errors,
    Series,
    compare_runs,
    factor_between,
    limits_in_force,
    rank,
    refault_rates,
    stall_shares,
    summarise,
)

MIB = float(1 << 20)
TICKS = 10


def column(values: float | np.ndarray, cgroups: int = 1) -> np.ndarray:
    return np.broadcast_to(np.asarray(values, dtype=float).reshape(-1, 1), (TICKS, cgroups)).copy()


def make_series(
    *,
    usage_mib: float | np.ndarray = 100.0,
    wss_mib: float | np.ndarray = 80.0,
    limit_mib: float = 200.0,
    refaults: float | np.ndarray = 0.0,
    psi: float = 0.0,
    served: float = 50.0,
    p99_us: float = 1000.0,
) -> Series:
    return Series(
        names=("service",),
        usage_bytes=column(usage_mib) * MIB,
        wss_bytes=column(wss_mib) * MIB,
        limit_bytes=column(limit_mib) * MIB,
        refaults_per_s=column(refaults),
        psi_some=column(psi),
        served_per_s=column(served),
        p99_us=np.array([p99_us]),
        active=np.ones((TICKS, 1), dtype=bool),
        score=0.0,
    )


def only(kernel: Series, model: Series) -> Errors:
    (errors,) = compare_runs(kernel, model)
    return errors


def test_a_run_compared_with_itself_has_no_errors() -> None:
    series = make_series(refaults=np.arange(TICKS))
    errors = only(series, series)
    assert (errors.resident, errors.refaults, errors.psi_some, errors.throughput) == (0, 0, 0, 0)
    assert errors.p99 == 1.0
    assert errors.correlation == pytest.approx(1.0)


def test_resident_error_is_over_the_working_set_of_the_kernel() -> None:
    errors = only(make_series(usage_mib=100, wss_mib=80), make_series(usage_mib=96, wss_mib=10))
    assert errors.resident == pytest.approx(4 / 80)


def test_without_an_estimate_the_working_set_is_what_is_used() -> None:
    errors = only(make_series(usage_mib=100, wss_mib=math.nan), make_series(usage_mib=90))
    assert errors.resident == pytest.approx(0.1)


@pytest.mark.parametrize("bound", ["kernel", "model"])
def test_ticks_at_a_limit_in_either_world_say_nothing_of_resident_size(bound: str) -> None:
    half = np.where(np.arange(TICKS) < 5, 100.0, 199.0)
    kernel, model = make_series(usage_mib=100), make_series(usage_mib=100)
    if bound == "kernel":
        kernel = make_series(usage_mib=half)
    else:
        model = make_series(usage_mib=half)
    assert only(kernel, model).resident == 0.0
    always = make_series(usage_mib=199)
    assert math.isnan(only(always, always).resident)


@pytest.mark.parametrize(
    ("kernel", "model", "error"), [(1000, 800, 0.2), (10, 20, 10 / 50), (0, 0, 0.0)]
)
def test_few_refaults_count_against_fifty_a_second(
    kernel: float, model: float, error: float
) -> None:
    errors = only(make_series(refaults=kernel), make_series(refaults=model))
    assert errors.refaults == pytest.approx(error)


def test_correlation_of_a_series_that_does_not_move_is_unknown() -> None:
    moving = make_series(refaults=np.arange(TICKS))
    assert math.isnan(only(make_series(refaults=5), moving).correlation)
    backwards = make_series(refaults=np.arange(TICKS)[::-1])
    assert only(moving, backwards).correlation == pytest.approx(-1.0)


def test_psi_throughput_and_tail_latency_errors() -> None:
    kernel = make_series(psi=0.10, served=50, p99_us=3000)
    model = make_series(psi=0.04, served=40, p99_us=1000)
    errors = only(kernel, model)
    assert errors.psi_some == pytest.approx(0.06)
    assert errors.throughput == pytest.approx(0.2)
    assert errors.p99 == pytest.approx(3.0)
    assert only(model, kernel).p99 == pytest.approx(3.0)


def test_what_was_not_served_has_no_tail_latency() -> None:
    assert math.isnan(factor_between(math.nan, 1.0))
    errors = only(make_series(served=0, p99_us=math.nan), make_series())
    assert math.isnan(errors.p99)
    assert math.isnan(errors.throughput)


def test_cgroups_that_were_never_there_are_left_out() -> None:
    kernel = replace(make_series(), active=np.zeros((TICKS, 1), dtype=bool))
    assert compare_runs(kernel, make_series()) == []


def test_runs_of_other_cgroups_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be compared"):
        compare_runs(make_series(), replace(make_series(), names=("other",)))


def test_a_family_is_told_by_median_worst_and_share_within_target() -> None:
    errors = [
        only(make_series(psi=0.0, refaults=np.arange(TICKS)), make_series(psi=p))
        for p in (0.01, 0.02, 0.30)
    ]
    psi = summarise(errors)["psi_some"]
    assert (psi.median, psi.worst, psi.cases) == (pytest.approx(0.02), pytest.approx(0.30), 3)
    assert psi.within == pytest.approx(2 / 3)
    assert summarise(errors)["correlation"].cases == 0


def test_a_model_that_ranks_as_the_kernel_has_tau_one() -> None:
    kernel = {"a": [-1.0, -1.1], "b": [-2.0, -2.1], "c": [-3.0, -3.1]}
    found = rank(kernel, {name: [2 * s for s in scores] for name, scores in kernel.items()})
    assert found.tau == 1.0
    assert len(found.pairs) == 3
    assert found.discordant == ()


def test_a_model_that_ranks_backwards_has_tau_minus_one_and_lists_every_pair() -> None:
    kernel = {"a": [-1.0, -1.1], "b": [-2.0, -2.1]}
    found = rank(kernel, {"a": [-2.0, -2.0], "b": [-1.0, -1.0]})
    assert found.tau == -1.0
    (pair,) = found.discordant
    assert (pair.kernel, pair.model) == (pytest.approx(1.0), pytest.approx(-1.0))


def test_pairs_within_repeat_noise_are_not_asked_about() -> None:
    noisy = {"a": [0.0, 1.0], "b": [0.4, 0.5], "c": [9.0, 9.1]}
    found = rank(noisy, noisy)
    assert {(p.one, p.other) for p in found.pairs} == {("a", "c"), ("b", "c")}
    assert found.undecided == 1


def test_a_tie_in_the_model_is_no_agreement() -> None:
    kernel = {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    found = rank(kernel, {"a": [5.0, 5.0], "b": [5.0, 5.0]})
    assert found.tau == 0.0
    assert len(found.discordant) == 1


@pytest.mark.parametrize(
    ("kernel", "model"),
    [
        ({"a": [1.0], "b": [2.0]}, {"a": [1.0], "b": [2.0]}),
        ({"a": [1.0, 1.0]}, {"a": [1.0, 1.0]}),
        ({"a": [1.0, 1.0], "b": [1.0, 2.0]}, {"a": [1.0, 1.0], "c": [1.0, 2.0]}),
        ({"a": [1.0, 1.0], "b": [1.0, 2.0]}, {"a": [1.0, 1.0], "b": [1.0]}),
    ],
)
def test_rankings_without_enough_to_go_by_are_refused(
    kernel: dict[str, list[float]], model: dict[str, list[float]]
) -> None:
    with pytest.raises(ConfigError, match="fidelity"):
        rank(kernel, model)


def test_rates_come_from_counters_and_survive_one_that_begins_anew() -> None:
    signals = np.zeros((4, 1, N_MEMCG_SIGNALS))
    signals[:, 0, Sig.REFAULT_ANON] = [0, 10, 30, 5]
    signals[:, 0, Sig.REFAULT_FILE] = [0, 1, 1, 1]
    assert refault_rates(signals)[:, 0].tolist() == [11, 20, 0]
    signals[:, 0, Sig.PSI_MEM_SOME_US] = [0, 2.5e5, 2.5e5, 3e6]
    assert stall_shares(signals)[:, 0].tolist() == [0.25, 0.0, 1.0]


def test_the_limit_in_force_is_the_lower_of_high_and_max() -> None:
    signals = np.zeros((2, 1, N_MEMCG_SIGNALS))
    signals[1, 0, Sig.HIGH_BYTES], signals[1, 0, Sig.OWNER_MAX_BYTES] = 5.0, 7.0
    assert limits_in_force(signals).tolist() == [[5.0]]
