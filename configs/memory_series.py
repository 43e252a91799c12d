"""Recorded memory of a container as the demand of a workload: an importer, no data.

Reads the format of the AgentCgroup recordings (columns ``MEMORY_COLUMNS``; arXiv 2602.09345), in
which a container's memory was sampled about once a second.  Those recordings are under the GPL and
do not ship: the path is the user's.  A recording says how much memory was charged, not which of
it was touched, whether it was cache, or what the run would have done with less: ``SeriesDemand``
is an assumption about that, stated at ``series_to_demand``.

Units: bytes; seconds from the first sample kept; CPU as a ratio, 1 = one CPU busy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memcg_gym.configs.arrivals import trace_rows
from memcg_gym.envs.contract.errors import TraceError, did_you_mean

FloatArray = NDArray[np.float64]

#: Columns that a recording must have.
MEMORY_COLUMNS: Final[tuple[str, ...]] = (
    "run_id",
    "dataset",
    "task",
    "t_s",
    "mem_bytes",
    "mem_limit_bytes",
    "cpu_percent",
)

#: Data sets left out: the replays of recorded tool calls, without the agent that made them; most
#: of their samples are under ``STARTED_BYTES``.
EXCLUDED_DATASETS: Final = frozenset({"replays"})

#: Samples below this at the start of a run are the container starting, not the workload [bytes].
STARTED_BYTES: Final = 10e6

#: Longest pause between samples that is filled in.  The recordings sample every 0.5 to 3 s, most
#: of them at 1.04 s.
MAX_GAP_S: Final = 10.0

#: Longest run accepted: a day.
MAX_LENGTH_S: Final = 86_400.0

#: Percentile of a series that counts as the long-lived heap (assumption).
BASE_PERCENTILE: Final = 10.0


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run of a recording.

    Attributes:
        run_id: The run's name in the file.
        dataset: The data set it belongs to.
        task: What the run worked at.
        n_samples: Samples in the file.
    """

    run_id: str
    dataset: str
    task: str
    n_samples: int


@dataclass(frozen=True, slots=True, eq=False)
class MemorySeries:
    """Memory and CPU of one run, once a second.

    Attributes:
        t_s: Whole seconds from the first sample kept, shape ``(length_s,)`` [s].
        mem_bytes: Most memory seen in each second, shape ``(length_s,)`` [bytes].
        limit_bytes: The container's limit; infinite where the recording says 0 [bytes].
        cpu_ratio: Mean CPU use in each second, 1 = one CPU, shape ``(length_s,)`` [1].
    """

    t_s: FloatArray
    mem_bytes: FloatArray
    limit_bytes: float
    cpu_ratio: FloatArray

    @property
    def length_s(self) -> int:
        """Length of the series [s]."""
        return int(self.t_s.size)


@dataclass(frozen=True, slots=True, eq=False)
class SeriesDemand:
    """A series as two regions.

    Attributes:
        base_bytes: Size of the long-lived region [bytes].
        burst_bytes_per_s: Target size of the burst region in each second, shape ``(length_s,)``
            [bytes].
        cpu_ratio: CPU use in each second, 1 = one CPU, shape ``(length_s,)`` [1].
    """

    base_bytes: float
    burst_bytes_per_s: FloatArray
    cpu_ratio: FloatArray


@dataclass(frozen=True, slots=True)
class _Sample:
    line: int
    run_id: str
    dataset: str
    task: str
    t_s: float
    mem_bytes: float
    limit_bytes: float
    cpu_percent: float


def list_runs(path: str | Path) -> tuple[RunInfo, ...]:
    """Runs that ``read_memory_series`` can read, in the order of the file.

    Raises:
        TraceError: If the file cannot be read, a column is missing, or a value is no number.
    """
    found: dict[str, RunInfo] = {}
    for sample in _samples(Path(path)):
        if sample.dataset in EXCLUDED_DATASETS:
            continue
        known = found.get(sample.run_id)
        count = 1 if known is None else known.n_samples + 1
        found[sample.run_id] = RunInfo(sample.run_id, sample.dataset, sample.task, count)
    return tuple(found.values())


def read_memory_series(path: str | Path, run_id: str) -> MemorySeries:
    """Reads one run once a second, from when its container has started until it is gone.

    Samples under ``STARTED_BYTES`` at the start and samples of 0 bytes at the end are left out.
    A second's memory is the largest of its samples, because bursts are often one sample wide and
    interpolating between samples would cut their peaks; its CPU is their mean.  Seconds without a
    sample lie on the line between their neighbours.

    Args:
        path: A CSV file, or one compressed with gzip, with the columns ``MEMORY_COLUMNS``.
        run_id: One of ``list_runs``.

    Returns:
        The series.

    Raises:
        TraceError: If the file cannot be read, a column is missing, there is no such run (the
            nearest is named), it belongs to a data set left out, a value is not a number or is
            negative, time does not go forward, samples pause for over ``MAX_GAP_S``, the limit
            changes, or the container never started.
    """
    file = Path(path)
    names: dict[str, None] = {}
    samples: list[_Sample] = []
    for sample in _samples(file):
        if sample.dataset not in EXCLUDED_DATASETS:
            names[sample.run_id] = None
        if sample.run_id == run_id:
            samples.append(sample)
    if not samples:
        raise TraceError(f"{path}: no run {run_id!r}{did_you_mean(run_id, names)}")
    if samples[0].dataset in EXCLUDED_DATASETS:
        raise TraceError(
            f"{path}: run {run_id!r} belongs to {samples[0].dataset!r}, which is left out "
            "because it replays tool calls without an agent; choose one that list_runs gives"
        )
    samples = _alive(file, samples)
    _check_order(file, samples)
    return _per_second(samples)


def series_to_demand(series: MemorySeries) -> SeriesDemand:
    """Splits a series into a base that stays and a burst that comes and goes.

    The base is the heap that lives as long as the run: the ``BASE_PERCENTILE``-th percentile of
    the series, touched by a zipf law.  What exceeds it is the burst: pages allocated young when
    the series rises, touched while they are there, and freed when it falls.  The split is an
    assumption, as a recording does not say which pages were touched.  Base and burst together are
    the recorded memory wherever that is above the base, and more than it in the few seconds below
    (most of them before the heap has grown).

    Example:
        >>> t_s = np.arange(4.0)
        >>> series = MemorySeries(t_s, np.array([2e8, 2e8, 9e8, 2e8]), 1e9, np.ones(4))
        >>> series_to_demand(series).burst_bytes_per_s
        array([0.e+00, 0.e+00, 7.e+08, 0.e+00])
    """
    base_bytes = float(np.percentile(series.mem_bytes, BASE_PERCENTILE))
    burst_bytes = np.maximum(series.mem_bytes - base_bytes, 0.0)
    return SeriesDemand(base_bytes, burst_bytes, series.cpu_ratio)


def _per_second(samples: list[_Sample]) -> MemorySeries:
    """Seconds from samples: the most memory, the mean CPU, lines across seconds without any."""
    start_s = samples[0].t_s
    second = np.array([math.floor(sample.t_s - start_s) for sample in samples], dtype=np.intp)
    length_s = int(second[-1]) + 1
    counts = np.bincount(second, minlength=length_s)
    mem_bytes = np.zeros(length_s)
    np.maximum.at(mem_bytes, second, [sample.mem_bytes for sample in samples])
    cpu_ratio = np.bincount(second, [sample.cpu_percent / 100.0 for sample in samples], length_s)
    t_s = np.arange(length_s, dtype=np.float64)
    seen = counts > 0
    return MemorySeries(
        t_s=t_s,
        mem_bytes=np.interp(t_s, t_s[seen], mem_bytes[seen]),
        limit_bytes=samples[0].limit_bytes or math.inf,
        cpu_ratio=np.interp(t_s, t_s[seen], cpu_ratio[seen] / counts[seen]),
    )


def _alive(path: Path, samples: list[_Sample]) -> list[_Sample]:
    """Samples from the first of a started container to the last before it is gone."""
    last = len(samples)
    while last > 0 and samples[last - 1].mem_bytes == 0.0:
        last -= 1
    for i, sample in enumerate(samples[:last]):
        if sample.mem_bytes >= STARTED_BYTES:
            return samples[i:last]
    raise TraceError(
        f"{path}:{samples[0].line}: run {samples[0].run_id!r} never reaches {STARTED_BYTES:g} "
        "bytes, so its container never started; choose another run"
    )


def _check_order(path: Path, samples: list[_Sample]) -> None:
    """Refuses time that stands still or goes back, long pauses, and limits that change."""
    for before, sample in pairwise(samples):
        step_s = sample.t_s - before.t_s
        origin = f"{path}:{sample.line}: run {sample.run_id!r}"
        if step_s <= 0.0:
            raise TraceError(
                f"{origin}: t_s goes from {before.t_s:g} to {sample.t_s:g}; "
                "sort the rows of the run by t_s and keep one for each time"
            )
        if step_s > MAX_GAP_S:
            raise TraceError(
                f"{origin}: no sample for {step_s:g} s before t_s {sample.t_s:g}, the limit is "
                f"{MAX_GAP_S:g} s; cut the run there and give the parts run_ids of their own"
            )
        if sample.limit_bytes != before.limit_bytes:
            raise TraceError(
                f"{origin}: mem_limit_bytes goes from {before.limit_bytes:g} to "
                f"{sample.limit_bytes:g}; cut the run there and give the parts run_ids of their own"
            )
    if samples[-1].t_s - samples[0].t_s >= MAX_LENGTH_S:
        raise TraceError(
            f"{path}:{samples[-1].line}: run {samples[-1].run_id!r} is longer than "
            f"{MAX_LENGTH_S:g} s; cut it"
        )


def _samples(path: Path) -> Iterator[_Sample]:
    """Yields every row of the file, checked."""
    for line, row in trace_rows(path, MEMORY_COLUMNS):
        yield _sample(path, line, row)


def _sample(path: Path, line: int, row: dict[str, str]) -> _Sample:
    """One row, its numbers finite and not negative."""
    numbers = {}
    for column in MEMORY_COLUMNS[3:]:
        try:
            numbers[column] = float(row[column])
        except ValueError:
            numbers[column] = math.nan
        if not (math.isfinite(numbers[column]) and numbers[column] >= 0.0):
            raise TraceError(
                f"{path}:{line}: {column} must be a number from 0, got {row[column]!r}; "
                "mend the row or leave it out"
            )
    return _Sample(
        line=line,
        run_id=row["run_id"],
        dataset=row["dataset"],
        task=row["task"],
        t_s=numbers["t_s"],
        mem_bytes=numbers["mem_bytes"],
        limit_bytes=numbers["mem_limit_bytes"],
        cpu_percent=numbers["cpu_percent"],
    )
