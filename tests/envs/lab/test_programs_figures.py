from __future__ import annotations

import math

import pytest

from memcg_gym.configs.lab_programs import ProgramMeasure
from memcg_gym.envs.lab.programs_figures import benchmark_rows, figures_of
from memcg_gym.envs.lab.programs_session import Round
from memcg_gym.envs.lab.protocol import GuestError

JOB = ProgramMeasure(command="/usr/bin/job", operations=500, unit="transactions")
BENCHMARK = ProgramMeasure(
    command="/usr/bin/bench", operations=8000, unit="operations", figures="redis-benchmark"
)
# As redis-benchmark 8.0.2 prints it.
TABLE = (
    "WARNING: Could not fetch server CONFIG",
    '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms",'
    '"p99_latency_ms","max_latency_ms"',
    '"SET","10000.00","0.202","0.112","0.207","0.247","0.311","2.167"',
    '"GET","20000.00","0.196","0.104","0.199","0.247","0.511","2.087"',
)


def test_a_rate_is_of_the_time_the_rounds_took_and_not_of_that_between_them() -> None:
    rounds = [Round(0, 10**9, ()), Round(5 * 10**9, 6 * 10**9, ())]
    figures = figures_of(rounds, JOB)
    assert (figures.rounds, figures.operations_per_s) == (2, 500.0)
    assert math.isnan(figures.p99_ms)


def test_without_a_completed_round_there_are_no_figures() -> None:
    for measure in (JOB, BENCHMARK):
        figures = figures_of([], measure)
        assert figures.rounds == 0
        assert math.isnan(figures.operations_per_s)


def test_the_benchmarks_rate_is_that_of_all_its_requests() -> None:
    figures = figures_of([Round(0, 1, TABLE)], BENCHMARK)
    # as many at 10000/s as at 20000/s: 2 requests in 1/10000 s + 1/20000 s
    assert figures.operations_per_s == pytest.approx(2 / (1 / 10_000 + 1 / 20_000))
    assert figures.p99_ms == pytest.approx((0.311 + 0.511) / 2)


@pytest.mark.parametrize("lines", [(), ("Could not connect",), ('"test","rps"', '"GET","fast"')])
def test_a_benchmark_that_prints_no_table_is_an_error_with_its_words(lines) -> None:
    with pytest.raises(GuestError, match="--csv table"):
        benchmark_rows(lines)
