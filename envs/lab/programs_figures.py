"""What a program says of itself: operations per second and tail latency, from its rounds.

Units: operations as the program's description names them, milliseconds, nanoseconds of guest time.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memcg_gym.configs.lab_programs import ProgramMeasure
from memcg_gym.envs.lab.programs_session import Round
from memcg_gym.envs.lab.protocol import GuestError

NS_PER_S = 1e9
RATE, P99 = "rps", "p99_latency_ms"
"""Columns of ``redis-benchmark --csv``."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A program's own figures.

    Attributes:
        rounds: How many they are of.
        operations_per_s: Over the rounds' own time; NaN where none was completed.
        p99_ms: Median over the program's own reports; NaN where it reports none.
    """

    rounds: int
    operations_per_s: float
    p99_ms: float


def figures_of(rounds: Sequence[Round], measure: ProgramMeasure) -> Figures:
    """The figures of some completed rounds.

    Raises:
        GuestError: What the program printed is not what its description says.
    """
    if not rounds:
        return Figures(0, math.nan, math.nan)
    if measure.figures == "redis-benchmark":
        rows = [row for done in rounds for row in benchmark_rows(done.lines)]
        # tests of equally many requests, one after the other: the mean of their times
        rate = len(rows) / sum(1.0 / rate for rate, _ in rows)
        return Figures(len(rounds), rate, statistics.median(p99 for _, p99 in rows))
    took_ns = sum(done.end_ns - done.begin_ns for done in rounds)
    return Figures(len(rounds), measure.operations * len(rounds) * NS_PER_S / took_ns, math.nan)


def benchmark_rows(lines: Iterable[str]) -> list[tuple[float, float]]:
    """Requests per second and 99th percentile [ms] of each test ``redis-benchmark --csv`` tells.

    Raises:
        GuestError: There is no such table.

    Example:
        >>> benchmark_rows(['"test","rps","p99_latency_ms"', '"GET","14652.01","0.311"'])
        [(14652.01, 0.311)]
    """
    text = list(lines)
    first = next((at for at, line in enumerate(text) if line.startswith('"test"')), len(text))
    try:
        rows = [(float(r[RATE]), float(r[P99])) for r in csv.DictReader(text[first:])]
    except (KeyError, TypeError, ValueError):
        rows = []
    if not rows or not all(rate > 0.0 for rate, _ in rows):
        said = "\n".join(f"  {line}" for line in text[-4:])
        raise GuestError(f"redis-benchmark: expected its --csv table, got:\n{said}")
    return rows
