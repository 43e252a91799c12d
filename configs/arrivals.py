"""Request arrivals of a workload: a recorded trace that ships, and a reader for the user's own.

A trace becomes a load multiplier per second (mean 1 over the whole trace), which a scenario
multiplies with a workload's mean rate.  The trace loops.  Within a second nothing is known of the
order of requests, and a request counts in the second in which it arrives, however long it runs.

Load counts requests by default, not tokens: what a request costs in memory is the workload's own
business here, while tokens measure the work of a language model, most of it on an accelerator
whose memory no cgroup is charged for.  The choice matters little: per second the two correlate
at 0.96 in the trace that ships (standard deviation over mean: 2.27 and 2.35).

Units: whole seconds from the first request; requests and tokens per second.
"""

from __future__ import annotations

import csv
import gzip
import math
import operator
import zlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from memcg_gym.envs.contract.errors import ConfigError, TraceError, did_you_mean

FloatArray = NDArray[np.float64]
LoadUnit = Literal["requests", "tokens"]

#: Columns that an arrival trace must have; those of the Azure LLM inference traces.
ARRIVAL_COLUMNS: Final[tuple[str, ...]] = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

#: Longest silence accepted by default.  The published trace itself is silent for 217 s once; a
#: longer hole is more likely a recorder that was down, and would be played back as no load.
MAX_GAP_S: Final = 300.0

#: Longest trace accepted: a week, 605 k seconds of load, 14 MB.
MAX_LENGTH_S: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True, eq=False)
class ArrivalTrace:
    """What arrived in each second of a trace; the arrays cannot be written.

    Attributes:
        requests: Requests per second, shape ``(length_s,)``.
        context_tokens: Input tokens of those requests, the same shape.
        generated_tokens: Output tokens of those requests, the same shape.
    """

    requests: FloatArray
    context_tokens: FloatArray
    generated_tokens: FloatArray

    def __post_init__(self) -> None:
        """Copies the arrays and freezes the copies."""
        for field in self.__slots__:
            values = np.array(getattr(self, field), dtype=np.float64)
            values.setflags(write=False)
            object.__setattr__(self, field, values)

    @property
    def length_s(self) -> int:
        """Seconds until the trace starts again [s]."""
        return int(self.requests.size)

    def load(
        self,
        offset_s: int,
        length_s: int,
        *,
        normalise: bool = True,
        unit: LoadUnit = "requests",
    ) -> FloatArray:
        """Load of each second from ``offset_s`` on, looping.

        Args:
            offset_s: Second of the trace to start at, any whole number from 0 [s].
            length_s: Seconds wanted, at least 1 [s].
            normalise: Divide by the mean of the whole trace, so that 1 is the mean load.
            unit: What counts: requests, or tokens in and out.

        Returns:
            A new array, shape ``(length_s,)``.

        Raises:
            ConfigError: If a number is out of range or the unit is not known.

        Example:
            >>> trace = ArrivalTrace(np.array([3.0, 1.0]), np.zeros(2), np.zeros(2))
            >>> trace.load(1, 3)
            array([0.5, 1.5, 0.5])
        """
        start_s, wanted_s = _whole("offset_s", offset_s, 0), _whole("length_s", length_s, 1)
        if unit == "requests":
            per_second = self.requests
        elif unit == "tokens":
            per_second = self.context_tokens + self.generated_tokens
        else:
            raise ConfigError(f"arrivals: unit must be 'requests' or 'tokens', got {unit!r}")
        scale = 1.0
        if normalise:
            mean = float(per_second.mean())
            if mean <= 0.0:
                raise ConfigError(f"arrivals: a trace without {unit} has no mean to normalise by")
            scale = 1.0 / mean
        seconds = (start_s % self.length_s + np.arange(wanted_s)) % self.length_s
        return np.asarray(per_second[seconds] * scale)


def azure_arrivals(
    offset_s: int, length_s: int, *, normalise: bool = True, unit: LoadUnit = "requests"
) -> FloatArray:
    """Load per second of the Azure LLM inference trace for coding, from ``offset_s`` on.

    Arguments, result and errors are those of ``ArrivalTrace.load``.

    Source:
        Azure Public Dataset, ``AzureLLMInferenceTrace_code`` (CC-BY-4.0): 8819 requests in 3436 s.

    Example:
        >>> azure_arrivals(0, 3, normalise=False)
        array([7., 5., 0.])
    """
    return azure_trace().load(offset_s, length_s, normalise=normalise, unit=unit)


@lru_cache(maxsize=1)
def azure_trace() -> ArrivalTrace:
    """The trace that ships, per second."""
    data = files("memcg_gym.configs").joinpath("data", "azure", "llm_code_per_second.csv")
    rows = np.array(
        [line.split(",") for line in data.read_text(encoding="ascii").splitlines()[1:]],
        dtype=np.int64,
    )
    # Seconds in which nothing arrived are left out of the file.
    per_second = np.zeros((3, int(rows[-1, 0]) + 1))
    per_second[:, rows[:, 0]] = rows[:, 1:].T
    return ArrivalTrace(*per_second)


def read_arrivals(path: str | Path, *, max_gap_s: float = MAX_GAP_S) -> ArrivalTrace:
    """Reads an arrival trace of the user: one row a request, in the order of time.

    Args:
        path: A CSV file, or one compressed with gzip, with the columns ``ARRIVAL_COLUMNS`` (others
            are ignored); TIMESTAMP in ISO 8601, with or without an offset from UTC.
        max_gap_s: Longest silence between two requests that is believed [s].

    Returns:
        The trace per second; second 0 starts with the first request.

    Raises:
        TraceError: If the file cannot be read, a column is missing, a value is empty, not a
            number, negative or not whole, time goes backwards, or a silence is too long.
    """
    per_second: dict[int, list[float]] = {}
    first: datetime | None = None
    last_s = 0.0
    for line, row in trace_rows(path, ARRIVAL_COLUMNS):
        when = _timestamp(row["TIMESTAMP"], path, line)
        first = first or when
        last_s = _seconds_in(first, when, last_s, max_gap_s, f"{path}:{line}")
        counts = per_second.setdefault(int(last_s), [0.0, 0.0, 0.0])
        counts[0] += 1.0
        for i, column in enumerate(ARRIVAL_COLUMNS[1:], start=1):
            counts[i] += _count(row[column], column, path, line)
    if first is None:
        raise TraceError(f"{path}: no request below the header; give a trace with at least one")
    dense = np.zeros((3, int(last_s) + 1))
    for second, counts in per_second.items():
        dense[:, second] = counts
    return ArrivalTrace(*dense)


def trace_rows(
    path: str | Path, columns: Sequence[str]
) -> Generator[tuple[int, dict[str, str]], None, None]:
    """Yields line number and cells of each row of a trace, plain or compressed with gzip.

    A cell that a row lacks is empty.

    Args:
        path: The CSV file.
        columns: Columns that its header must hold; others are ignored.

    Yields:
        Line number (the header is line 1) and the cells by column.

    Raises:
        TraceError: If the file cannot be read or unpacked, or a column is missing.
    """
    line = 1
    try:
        with _open_text(Path(path)) as stream:
            reader = csv.DictReader(stream, restval="")
            header = reader.fieldnames or []
            for column in columns:
                if column not in header:
                    raise TraceError(
                        f"{path}:1: no column {column!r}{did_you_mean(column, header)}; "
                        f"the header must hold {','.join(columns)}"
                    )
            for row in reader:
                line = reader.line_num
                yield line, row
    except OSError as error:
        raise TraceError(
            f"{path}: cannot be read ({error.strerror or error}); give a CSV file, plain or gzip"
        ) from error
    except (EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(
            f"{path}:{line}: after this line it is no CSV in UTF-8 ({error}); "
            "give a whole CSV file, plain or gzip"
        ) from error


def _open_text(path: Path) -> TextIO:
    """Opens a text file, unpacking it if its first bytes are those of gzip."""
    with path.open("rb") as head:
        packed = head.read(2) == b"\x1f\x8b"
    if packed:
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open("rt", encoding="utf-8-sig", newline="")


def _timestamp(cell: str, path: str | Path, line: int) -> datetime:
    try:
        return datetime.fromisoformat(cell.strip())
    except ValueError as error:
        raise TraceError(
            f"{path}:{line}: TIMESTAMP must be a date and time in ISO 8601, got {cell!r}; "
            "write it like 2023-11-16 18:17:03.979"
        ) from error


def _seconds_in(
    first: datetime, when: datetime, last_s: float, max_gap_s: float, origin: str
) -> float:
    """Seconds from the first request to this one, if that is possible after the last."""
    try:
        now_s = (when - first).total_seconds()
    except TypeError as error:
        raise TraceError(
            f"{origin}: TIMESTAMP {when.isoformat()} and the first, {first.isoformat()}, differ "
            "in having an offset from UTC; give all of them one, or none"
        ) from error
    if now_s < last_s:
        raise TraceError(
            f"{origin}: time goes back by {last_s - now_s:g} s at {when.isoformat()}; "
            "sort the rows by TIMESTAMP"
        )
    if now_s - last_s > max_gap_s:
        raise TraceError(
            f"{origin}: nothing arrives for {now_s - last_s:g} s before {when.isoformat()}, the "
            f"limit is {max_gap_s:g} s; cut the trace there, or raise max_gap_s if it was so quiet"
        )
    if now_s >= MAX_LENGTH_S:
        raise TraceError(
            f"{origin}: the trace is longer than {MAX_LENGTH_S:g} s; cut it to a week or less"
        )
    return now_s


def _count(cell: str, column: str, path: str | Path, line: int) -> float:
    """A number of tokens: whole, finite and not negative."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0.0 and value == math.floor(value)):
        raise TraceError(
            f"{path}:{line}: {column} must be a whole number from 0, got {cell!r}; "
            "mend the row or leave it out"
        )
    return value


def _whole(name: str, value: int, least: int) -> int:
    """A whole number from the user, numpy's integers included."""
    try:
        whole = operator.index(value)
    except TypeError as error:
        raise ConfigError(
            f"arrivals: {name} must be a whole number of seconds, got {value!r}"
        ) from error
    if whole < least:
        raise ConfigError(f"arrivals: {name} must be at least {least}, got {value!r}")
    return whole
