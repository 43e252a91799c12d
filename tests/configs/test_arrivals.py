"""Arrivals: the trace that ships, looping, and what a user's trace is refused for."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.configs.arrivals import (
    ArrivalTrace,
    azure_arrivals,
    azure_trace,
    read_arrivals,
)
from memcg_gym.envs.contract.errors import ConfigError, TraceError

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
GOOD = (
    "2023-11-16 18:17:03.9799600,4808,10",
    "2023-11-16 18:17:04.0319600,3180,8",
    "2023-11-16 18:17:07.9,110,27",
)


def write_trace(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "arrivals.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_the_trace_that_ships_is_whole() -> None:
    """Totals counted in the published file, AzureLLMInferenceTrace_code.csv."""
    trace = azure_trace()
    assert trace.length_s == 3436
    assert trace.requests.sum() == 8819
    assert trace.context_tokens.sum() == 18_059_974
    assert trace.generated_tokens.sum() == 245_896


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_mean_load_over_the_trace_is_one(unit: str) -> None:
    load = azure_arrivals(0, azure_trace().length_s, unit=unit)  # type: ignore[arg-type]
    assert load.mean() == pytest.approx(1.0)
    assert load.dtype == np.float64
    assert load.min() == 0.0


def test_requests_and_tokens_tell_the_same_story() -> None:
    trace = azure_trace()
    tokens = trace.context_tokens + trace.generated_tokens
    assert np.corrcoef(trace.requests, tokens)[0, 1] == pytest.approx(0.96, abs=0.01)


def test_load_starts_at_the_offset_and_loops() -> None:
    length_s = azure_trace().length_s
    once = azure_arrivals(0, length_s)
    np.testing.assert_array_equal(azure_arrivals(100, 50), once[100:150])
    np.testing.assert_array_equal(azure_arrivals(length_s - 2, 5), [*once[-2:], *once[:3]])
    np.testing.assert_array_equal(azure_arrivals(7 * length_s + 3, 10), once[3:13])
    np.testing.assert_array_equal(azure_arrivals(0, 2 * length_s + 1)[length_s:-1], once)


def test_load_belongs_to_the_caller() -> None:
    load = azure_arrivals(0, 10)
    load[:] = -1.0
    assert azure_arrivals(0, 10).min() >= 0.0
    with pytest.raises(ValueError, match="read-only"):
        azure_trace().requests[0] = 0.0


@pytest.mark.parametrize(
    ("offset_s", "length_s", "message"),
    [
        (-1, 10, "offset_s must be at least 0, got -1"),
        (0, 0, "length_s must be at least 1, got 0"),
        (0.5, 10, "offset_s must be a whole number of seconds, got 0.5"),
        (0, float("nan"), "length_s must be a whole number of seconds"),
    ],
)
def test_impossible_windows_are_refused(offset_s: int, length_s: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        azure_arrivals(offset_s, length_s)


def test_numpy_whole_numbers_are_whole_numbers() -> None:
    assert azure_arrivals(np.int64(3), np.int32(4)).shape == (4,)  # type: ignore[arg-type]


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="unit must be 'requests' or 'tokens', got 'bytes'"):
        azure_arrivals(0, 1, unit="bytes")  # type: ignore[arg-type]


def test_a_trace_without_tokens_has_no_mean() -> None:
    trace = ArrivalTrace(np.ones(3), np.zeros(3), np.zeros(3))
    with pytest.raises(ConfigError, match="without tokens has no mean"):
        trace.load(0, 3, unit="tokens")
    np.testing.assert_array_equal(trace.load(0, 3, normalise=False, unit="tokens"), np.zeros(3))


def test_a_users_trace_is_counted_by_second(tmp_path: Path) -> None:
    trace = read_arrivals(write_trace(tmp_path, *GOOD))
    np.testing.assert_array_equal(trace.requests, [2, 0, 0, 1])
    np.testing.assert_array_equal(trace.context_tokens, [7988, 0, 0, 110])
    np.testing.assert_array_equal(trace.generated_tokens, [18, 0, 0, 27])


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    path = write_trace(
        tmp_path,
        "10,x,2024-01-01T00:00:00+00:00,5",
        "20,y,2024-01-01T01:00:01+01:00,6",
        header="GeneratedTokens,Model,TIMESTAMP,ContextTokens",
    )
    trace = read_arrivals(path)
    np.testing.assert_array_equal(trace.requests, [1, 1])
    np.testing.assert_array_equal(trace.generated_tokens, [10, 20])


def test_a_compressed_trace_reads_the_same(tmp_path: Path) -> None:
    plain = write_trace(tmp_path, *GOOD)
    packed = tmp_path / "packed.whatever"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(read_arrivals(packed).requests, read_arrivals(plain).requests)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2023-11-16 18:17:08,nan,1", "ContextTokens must be a whole number from 0, got 'nan'"),
        ("2023-11-16 18:17:08,inf,1", "ContextTokens must be a whole number from 0, got 'inf'"),
        ("2023-11-16 18:17:08,,1", "ContextTokens must be a whole number from 0, got ''"),
        ("2023-11-16 18:17:08,5,-3", "GeneratedTokens must be a whole number from 0, got '-3'"),
        ("2023-11-16 18:17:08,5,2.5", "GeneratedTokens must be a whole number from 0, got '2.5'"),
        ("2023-11-16 18:17:08,5", "GeneratedTokens must be a whole number from 0, got ''"),
        (",5,5", "TIMESTAMP must be a date and time in ISO 8601, got ''"),
        ("yesterday,5,5", "TIMESTAMP must be a date and time in ISO 8601, got 'yesterday'"),
        ("2023-11-16 18:17:07.5,5,5", r"time goes back by 0\.4 s .* sort the rows"),
        ("2023-11-16 18:22:08,5,5", r"nothing arrives for 300\.1 s .* the limit is 300 s; cut"),
        ("2023-11-16 18:17:08+00:00,5,5", "differ in having an offset from UTC"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    path = write_trace(tmp_path, *GOOD, row)
    with pytest.raises(TraceError, match=message) as caught:
        read_arrivals(path)
    assert str(caught.value).startswith(f"{path}:5: ")


def test_a_longer_silence_passes_if_the_user_says_so(tmp_path: Path) -> None:
    path = write_trace(tmp_path, *GOOD, "2023-11-16 18:27:08,5,5")
    assert read_arrivals(path, max_gap_s=3600.0).length_s == 605


def test_a_trace_longer_than_a_week_is_refused(tmp_path: Path) -> None:
    path = write_trace(tmp_path, *GOOD, "2023-12-16 18:27:08,5,5")
    with pytest.raises(TraceError, match="longer than 604800 s"):
        read_arrivals(path, max_gap_s=1e9)


def test_a_missing_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = write_trace(tmp_path, *GOOD, header="TIMESTAMP,ContextToken,GeneratedTokens")
    with pytest.raises(
        TraceError, match=r":1: no column 'ContextTokens'; did you mean 'ContextToken'\?"
    ):
        read_arrivals(path)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.csv"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="no column 'TIMESTAMP'"):
        read_arrivals(path)


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no request below the header"):
        read_arrivals(write_trace(tmp_path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv: cannot be read \(No such file"):
        read_arrivals(tmp_path / "none.csv")


@pytest.mark.parametrize("damage", ["cut", "flipped", "binary"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(write_trace(tmp_path, *GOOD).read_bytes())
    content = {
        "cut": whole[:-12],
        "flipped": whole[:14] + bytes(byte ^ 0xFF for byte in whole[14:]),
        "binary": HEADER.encode() + b"\n2023-11-16 18:17:03,\xff\xfe,3\n",
    }[damage]
    path = tmp_path / "damaged.csv"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="give a whole CSV file, plain or gzip"):
        read_arrivals(path)
