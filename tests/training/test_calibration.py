from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from memcg_gym.configs.loader import load_params
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.recording import Recording
from memcg_gym.training.calibration import (
    Case,
    Free,
    all_residuals,
    fit,
    loss_of,
    residuals,
    windows,
)
from memcg_gym.training.fidelity import series_of
from memcg_gym.training.lab_runs import RunSpec, replay, run_in_model

SKIP = 5
TRUE = dict(load_params()) | {"zswap_store_us": 60.0, "zswap_load_us": 40.0}
FREE = (
    Free("zswap_store_us", 1.0, 600.0),
    Free("zswap_load_us", 1.0, 300.0),
)


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    """The model with other parameters in the kernel's place."""
    return [
        run_in_model(
            RunSpec(scenario=family, policy=policy, seed=1, ticks=35, world="kernel"), params=TRUE
        )
        for family in ("heap-zipf", "heap-phase")
        for policy in ("kernel-default", "constant:reclaim=3")
    ]


@pytest.fixture(scope="module")
def cases(recordings: list[Recording]) -> list[Case]:
    return [Case(recording, SKIP) for recording in recordings]


def test_a_case_replays_as_a_replay_does(recordings: list[Recording], cases: list[Case]) -> None:
    for recording, case in zip(recordings, cases, strict=True):
        slow, fast = series_of(replay(recording, TRUE), SKIP), case.replay(TRUE)
        for name in ("usage_bytes", "refaults_per_s", "psi_some", "served_per_s", "active"):
            assert np.array_equal(getattr(fast, name), getattr(slow, name)), name
        assert fast.p99_us == pytest.approx(slow.p99_us, rel=0.1)


def test_a_case_can_be_replayed_again_and_again(cases: list[Case]) -> None:
    first = all_residuals(cases, TRUE)
    all_residuals(cases, load_params())
    assert np.array_equal(all_residuals(cases, TRUE), first)


def test_calibration_recovers_the_parameters_that_made_the_recordings(cases: list[Case]) -> None:
    found = fit(cases, load_params(), free=FREE, max_rounds=12)
    assert found.before > 0.1
    assert found.after < 0.1 * found.before
    for parameter in FREE:
        assert found.params[parameter.name] == pytest.approx(TRUE[parameter.name], rel=0.25)
    assert found.params["scan_us"] == load_params()["scan_us"]
    assert found.at_bounds == ()


def test_a_parameter_that_runs_into_its_bound_is_named(cases: list[Case]) -> None:
    found = fit(cases, load_params(), free=(Free("zswap_store_us", 1.0, 20.0),), max_rounds=6)
    assert found.at_bounds == ("zswap_store_us",)


def test_nothing_to_fit_is_refused(cases: list[Case]) -> None:
    with pytest.raises(ConfigError, match="lab record"):
        fit([], load_params())
    with pytest.raises(ConfigError, match="no_such"):
        fit(cases, load_params(), free=(Free("no_such", 1.0, 2.0),))


def test_one_allowed_error_in_one_measure_costs_about_one(recordings: list[Recording]) -> None:
    kernel = series_of(recordings[0], SKIP)
    served = replace(kernel, served_per_s=kernel.served_per_s * 1.15)
    assert loss_of(residuals(kernel, served), 1) == pytest.approx(1.0, abs=0.1)
    slower = replace(kernel, p99_us=kernel.p99_us * 1.5)
    assert loss_of(residuals(kernel, slower), 1) == pytest.approx(2 * (math.sqrt(2) - 1))
    assert loss_of(residuals(kernel, kernel), 1) == 0.0


def test_what_the_kernel_does_not_say_costs_nothing(recordings: list[Recording]) -> None:
    kernel = series_of(recordings[0], SKIP)
    silent = replace(kernel, p99_us=np.full_like(kernel.p99_us, np.nan))
    assert loss_of(residuals(silent, kernel), 1) == 0.0


def test_windows_are_means_and_the_rest_counts_as_one() -> None:
    assert windows(np.arange(25.0)).tolist() == [4.5, 14.5, 22.0]
