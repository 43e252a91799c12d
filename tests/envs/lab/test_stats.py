from __future__ import annotations

import math

import numpy as np
import pytest

from memcg_gym.envs.lab.protocol import GuestError
from memcg_gym.envs.lab.stats import N_LATENCY_BINS, parse_stats, quantile_us


def test_counters_and_latency_bins_are_read() -> None:
    stats = parse_stats("alive 1\ndone 42\nlatency 3:10 255:1\n", "slot/0/stats")
    assert stats.alive
    assert stats["done"] == 42
    assert stats.latency[3] == 10
    assert stats.latency[255] == 1


def test_a_counter_the_agent_does_not_know_is_zero() -> None:
    assert parse_stats("", "slot/0/stats")["done"] == 0


@pytest.mark.parametrize("line", ["done many", "latency 3:", "latency 256:1", "latency x:1"])
def test_a_line_that_is_not_a_counter_is_refused_by_name(line: str) -> None:
    with pytest.raises(GuestError, match=r"slot/7/stats: got"):
        parse_stats(line + "\n", "slot/7/stats")


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_a_quantile_lies_within_a_bin_of_the_samples_own(quantile: float) -> None:
    samples = np.random.default_rng(1).lognormal(7, 1, 5000)
    bins = np.clip(np.floor(8 * np.log2(samples)), 0, N_LATENCY_BINS - 1).astype(int)
    latency = np.bincount(bins, minlength=N_LATENCY_BINS)
    assert quantile_us(latency, quantile) == pytest.approx(
        np.quantile(samples, quantile), rel=2 ** (1 / 8) - 1
    )


def test_no_request_has_no_latency() -> None:
    assert math.isnan(quantile_us(np.zeros(N_LATENCY_BINS), 0.99))
