"""What is recorded comes back, and what is not a whole recording is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS
from memcg_gym.envs.contract.knobs import N_KNOBS
from memcg_gym.envs.contract.signals import (
    HOST_SIGNALS,
    MEMCG_SIGNALS,
    N_HOST_SIGNALS,
    N_MEMCG_SIGNALS,
    UNLIMITED_BYTES,
    HostSig,
    Sig,
)
from memcg_gym.envs.recording import (
    ARRAYS,
    Provenance,
    Recording,
    read_recording,
    write_recording,
)
from memcg_gym.envs.recording_file import (
    HEAD,
    RecordingError,
    decode,
    encode,
    pack,
    seal,
    unpack,
    unseal,
)

TICKS, SLOTS, BINS = 12, 3, 16
METRICS = ("p99_us", "slowdown", "requests")
DEMANDS = ("load_ratio", "shed_ratio", "burst_pages_per_s", "remixed")


def provenance(**changes: Any) -> Provenance:
    values: dict[str, Any] = {
        "world": "kernel",
        "kernel": "7.3.4",
        "machine": "1 CPU, 512 MiB, emulated",
        "accel": "tcg",
        "scenario": 'name = "burst"\n',
        "scale": {"memory": 0.01},
        "policy": "tmo",
        "policy_version": "1",
        "seed": 7,
        "split": "test",
        "settle_ticks": 600,
        "tick_s": 1.0,
        "code_digest": "0" * 64,
    }
    return Provenance(**{**values, **changes})


def counters(rng: np.random.Generator, signals: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Signals as a host has them: growing counters, sizes in pages, a limit of ``max``."""
    values = rng.integers(0, 1 << 22, shape).astype(float) * 4096.0
    grown = rng.integers(0, 1 << 40, shape[1:]) + rng.integers(0, 5000, shape).cumsum(axis=0)
    return np.where([s.cumulative for s in signals], grown, values)


def make(ticks: int = TICKS, slots: int = SLOTS, **changes: Any) -> Recording:
    """A recording in which every array has something in it."""
    rng = np.random.default_rng(3)
    memcg = counters(rng, MEMCG_SIGNALS, (ticks + 1, slots, N_MEMCG_SIGNALS))
    memcg[..., Sig.OWNER_HIGH_BYTES] = UNLIMITED_BYTES
    memcg[..., Sig.WSS_CONFIDENCE] = rng.random((ticks + 1, slots))
    memcg[: ticks // 2, 1, Sig.SHARERS] = np.nan
    host = counters(rng, HOST_SIGNALS, (ticks + 1, N_HOST_SIGNALS))
    host[:, HostSig.SLOW_TOTAL_BYTES] = np.nan
    knobs = rng.integers(0, 1 << 40, (ticks, slots, N_KNOBS)).astype(float)
    knobs[..., 0] = np.nan
    values: dict[str, Any] = {
        "provenance": provenance(),
        "cgroups": tuple(f"slot{i}" for i in range(slots)),
        "memcg_signals": memcg,
        "host_signals": host,
        "knobs": knobs,
        "levels": rng.integers(0, LEVEL_COUNTS, (ticks, slots, N_HEADS)),
        "metrics": rng.random((ticks, slots, len(METRICS))).astype(np.float32).astype(float),
        "metric_names": METRICS,
        "demands": rng.integers(0, 3, (ticks, slots, len(DEMANDS))).astype(float),
        "demand_names": DEMANDS,
        "active": np.ones((ticks, slots), dtype=bool),
        "born": np.zeros((ticks, slots), dtype=bool),
        "latency_counts": rng.integers(0, 50, (ticks, slots, BINS)),
    }
    return Recording(**{**values, **changes})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound file."""
    path = tmp_path_factory.mktemp("good") / "r.npz"
    write_recording(path, make())
    return path.read_bytes()


def same(a: Recording, b: Recording) -> None:
    for name in ARRAYS:
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(left, right, err_msg=name)
            assert left.dtype.kind == right.dtype.kind, name
    assert a.provenance == b.provenance
    assert (a.cgroups, a.columns) == (b.cgroups, b.columns)


# --- what is recorded comes back -----------------------------------------------------------------


@pytest.mark.parametrize("latency", [True, False])
def test_what_was_written_is_read(tmp_path: Path, latency: bool) -> None:
    recording = make()
    rounded = recording.memcg_signals.copy()
    confidence = rounded[..., Sig.WSS_CONFIDENCE]
    rounded[..., Sig.WSS_CONFIDENCE] = confidence.astype(np.float32)
    if not latency:
        recording = dataclasses.replace(recording, latency_counts=None)
    write_recording(tmp_path / "r.npz", recording)

    found = read_recording(tmp_path / "r.npz")

    same(found, dataclasses.replace(recording, memcg_signals=rounded))
    assert found.n_ticks == TICKS


def test_a_recording_of_what_was_read_is_the_same_file(tmp_path: Path, good: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(good)
    write_recording(tmp_path / "b.npz", read_recording(tmp_path / "a.npz"))
    write_recording(tmp_path / "c.npz", make())

    assert (tmp_path / "b.npz").read_bytes() == good
    assert (tmp_path / "c.npz").read_bytes() == good


WHOLE = st.integers(1 - (1 << 53), (1 << 53) - 1).map(float)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, max_side=5)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float64, SHAPES, elements=st.one_of(WHOLE, st.just(np.nan))))
def test_whole_numbers_come_back_exactly(values: np.ndarray) -> None:
    parts = pack(values)

    assert "real" not in parts
    np.testing.assert_array_equal(unpack(parts, values.shape, "x"), values)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float64, SHAPES, elements=st.floats(-9e15, 9e15) | st.just(np.nan)))
def test_other_numbers_come_back_as_the_nearest_float32(values: np.ndarray) -> None:
    found = unpack(pack(values), values.shape, "x")

    nearest = values.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(found, np.where(found == values, values, nearest))


def test_of_a_counter_the_whole_part_is_kept(tmp_path: Path) -> None:
    recording = make()
    exact = recording.host("uptime_us").copy()
    recording.host("uptime_us")[:] += 0.25
    write_recording(tmp_path / "r.npz", recording)

    np.testing.assert_array_equal(read_recording(tmp_path / "r.npz").host("uptime_us"), exact)


def test_columns_are_found_by_name() -> None:
    recording = make()

    np.testing.assert_array_equal(
        recording.memcg("usage_bytes"), recording.memcg_signals[..., Sig.USAGE_BYTES]
    )
    assert recording.column("levels", "kill").shape == (TICKS, SLOTS)
    assert recording.column("demands", "remixed").shape == (TICKS, SLOTS)
    assert recording.host("free_bytes").shape == (TICKS + 1,)
    with pytest.raises(RecordingError, match="did you mean 'usage_bytes'"):
        recording.memcg("usage_byte")
    with pytest.raises(RecordingError, match="did you mean 'metrics'"):
        recording.column("metric", "p99_us")


def test_two_minutes_of_eight_cgroups_are_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    counts = np.zeros((120, 8, 256), dtype=np.int64)
    counts[..., 80:110] = rng.poisson(3.0, (120, 8, 30))
    recording = make(120, 8, latency_counts=counts)
    # what a kernel's files hold: steps of pages, not noise over the whole range
    steps = rng.integers(-200, 200, recording.memcg_signals.shape).cumsum(axis=0) * 4096.0
    gauges = np.array([not s.cumulative for s in MEMCG_SIGNALS])
    recording.memcg_signals[..., gauges] = (steps + (1 << 30))[..., gauges]
    recording.host_signals[...] = np.floor(recording.host_signals)
    recording.knobs[...] = recording.memcg_signals[1:, :, : recording.knobs.shape[-1]]
    write_recording(tmp_path / "r.npz", recording)

    # every signal moves every tick here; forty of these are 8 MB, real ones half of that
    assert (tmp_path / "r.npz").stat().st_size < 200_000


# --- what a recording must not say ---------------------------------------------------------------


def with_value(name: str, at: tuple[int, ...], value: float) -> Recording:
    recording = make()
    getattr(recording, name)[at] = value
    return recording


@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("memcg_signals", (3, 1, Sig.USAGE_BYTES), np.inf, "usage_bytes: is infinite"),
        ("memcg_signals", (3, 1, Sig.USAGE_BYTES), 2.0**53, "too large to be exact"),
        ("memcg_signals", (3, 1, Sig.USAGE_BYTES), np.nan, "usage_bytes: is not told at tick 3"),
        ("memcg_signals", (3, 1, Sig.PGSTEAL_DIRECT), 0.0, "pgsteal_direct: runs backwards at tick "
         "2, slot1"),
        ("host_signals", (5, HostSig.TOTAL_BYTES), np.nan, "total_bytes: is not told at tick 5"),
        ("host_signals", (5, HostSig.UPTIME_US), 0.0, "uptime_us: runs backwards at tick 4"),
        ("levels", (0, 2, 6), 2, "levels.kill: is not a level"),
        ("levels", (0, 2, 6), -1, "levels.kill: is not a level"),
        ("metrics", (0, 2, 1), np.nan, "metrics.slowdown: is not told at tick 0, slot2"),
        ("demands", (0, 2, 1), np.nan, "demands.shed_ratio: is not told"),
        ("knobs", (0, 2, 1), -np.inf, "knobs.low_bytes: is infinite"),
        ("latency_counts", (4, 0, 3), -1, "latency_counts: is negative at tick 4, slot0"),
    ],
)  # fmt: skip
def test_a_value_no_run_can_have_is_refused_by_place(
    tmp_path: Path, name: str, at: tuple[int, ...], value: float, message: str
) -> None:
    with pytest.raises(RecordingError, match=r"r\.npz: ") as caught:
        write_recording(tmp_path / "r.npz", with_value(name, at, value))

    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_slot_that_changes_hands_or_is_empty_may_begin_anew(tmp_path: Path) -> None:
    recording = make()
    recording.memcg_signals[5:, 0, Sig.PGFAULT] = 0.0
    with pytest.raises(RecordingError, match="runs backwards at tick 4"):
        write_recording(tmp_path / "r.npz", recording)
    recording.born[4, 0] = True
    write_recording(tmp_path / "r.npz", recording)
    recording.born[4, 0] = False
    recording.active[3, 0] = False
    recording.metrics[3, 0] = np.nan
    recording.memcg_signals[4, 0] = np.nan
    write_recording(tmp_path / "r.npz", recording)


@pytest.mark.parametrize(
    "changes",
    [
        {"world": "dream"},
        {"seed": -1},
        {"seed": 1.5},
        {"seed": True},
        {"tick_s": 0.0},
        {"tick_s": np.nan},
        {"scale": {"memory": np.inf}},
        {"scale": [1.0]},
        {"policy": None},
    ],
)
def test_a_provenance_that_is_none_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(RecordingError, match=f": {next(iter(changes))}: got "):
        write_recording(tmp_path / "r.npz", make(provenance=provenance(**changes)))


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "active"])
def test_an_array_of_another_shape_is_refused_by_name(tmp_path: Path, name: str) -> None:
    recording = make(**{name: getattr(make(), name)[1:]})

    with pytest.raises(RecordingError, match=f"{name}: shape "):
        write_recording(tmp_path / "r.npz", recording)


def test_a_recording_of_no_tick_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="active: got"):
        write_recording(tmp_path / "r.npz", make(active=np.ones((0, SLOTS), dtype=bool)))


# --- files that are not whole --------------------------------------------------------------------


def read_bytes(tmp_path: Path, data: bytes, **more: Any) -> Recording:
    path = tmp_path / "r.npz"
    path.write_bytes(data)
    return read_recording(path, **more)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, good: bytes) -> None:
    lengths = {*range(0, len(good), 97), *range(len(good) - 150, len(good))}
    for length in sorted(lengths):
        with pytest.raises(RecordingError, match=r"r\.npz: .*record it again"):
            read_bytes(tmp_path, good[:length])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_file_with_one_bit_flipped_is_refused(good: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(good) - 1))
    bit = data.draw(st.integers(0, 7))
    spoiled = bytearray(good)
    spoiled[at] ^= 1 << bit

    with pytest.raises(RecordingError):
        decode(bytes(spoiled), "r")


Change = Callable[[dict[str, bytes]], Any]


def head_with(**changes: Any) -> Change:
    def change(members: dict[str, bytes]) -> None:
        head = json.loads(members[HEAD])
        for key, value in changes.items():
            if value is ...:
                del head[key]
            else:
                head[key] = value
        members[HEAD] = json.dumps(head).encode()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop(HEAD), "no head.json"),
        (lambda m: m.update({HEAD: b"{"}), "head.json: "),
        (lambda m: m.update({HEAD: b"[]"}), "expected an object"),
        (lambda m: m.update({HEAD: m[HEAD].replace(b"0.01", b"NaN")}), "NaN is not JSON"),
        (lambda m: m.update({"x.npy": b""}), "x.npy: a member that no array has"),
        (lambda m: m.pop("levels.whole.npy"), "levels: byte planes none"),
        (lambda m: m.pop("levels.kind.npy"), "kinds of 0 columns, expected 7"),
        (lambda m: m.update({"levels.whole.npy": b"abc"}), "not an array"),
        (lambda m: m.update({"levels.whole.npy": m["knobs.untold.npy"]}), "byte planes"),
        (head_with(format=2), "format 2; this version reads format 1"),
        (head_with(format=...), "format None"),
        (head_with(seed=...), "seed: missing, or not of a recording"),
        (head_with(note="x"), "note: missing, or not of a recording"),
        (head_with(seed="7"), "seed: got '7'"),
        (head_with(cgroups=["a", "a", "b"]), "a name is given twice"),
        (head_with(cgroups="abc"), "expected a list of names"),
        (head_with(columns={}), "columns.metrics: got None"),
        (head_with(contract="0" * 64), "made under contract 000000000000"),
        (head_with(shapes={}), "a member that no array has"),
        (head_with(shapes=[]), "shapes: got"),
        (head_with(shapes={"levels": [1 << 19, 1 << 19, 7]}), "shapes.levels: got"),
        (head_with(shapes={"levels": [12, 3, "7"]}), "shapes.levels: got"),
    ],
)
def test_a_sound_file_with_unsound_content_is_refused(
    tmp_path: Path, good: bytes, change: Change, message: str
) -> None:
    members = unseal(good, "r")
    change(members)

    with pytest.raises(RecordingError, match=r"r\.npz: ") as caught:
        read_bytes(tmp_path, seal(members))

    assert message in str(caught.value)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_content_under_a_sound_digest_is_read_or_refused(
    good: bytes, data: st.DataObject
) -> None:
    members = unseal(good, "r")
    name = data.draw(st.sampled_from(sorted(members)))
    members[name] = spoil(members[name], data)

    try:
        decode(seal(members), "r")
    except RecordingError as error:
        assert str(error).startswith("r: ")


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_archive_under_a_sound_digest_is_read_or_refused(
    good: bytes, data: st.DataObject
) -> None:
    mark = b"sha256:"
    body = spoil(good[: -64 - len(mark)], data) + mark

    try:
        decode(body + hashlib.sha256(body).hexdigest().encode(), "r")
    except RecordingError as error:
        assert str(error).startswith("r: ")


def spoil(content: bytes, data: st.DataObject) -> bytes:
    """Some bytes replaced."""
    spoiled = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    return bytes(spoiled)


def test_another_contract_is_read_where_that_is_asked_for(tmp_path: Path, good: bytes) -> None:
    members = unseal(good, "r")
    head_with(contract="0" * 64)(members)
    found = read_bytes(tmp_path, seal(members), any_contract=True)

    assert found.provenance.contract == "0" * 64


def test_columns_that_are_not_ours_are_refused_whatever_is_asked_for(
    tmp_path: Path, good: bytes
) -> None:
    members = unseal(good, "r")
    columns = json.loads(members[HEAD])["columns"]
    columns["knobs"][0] = "min_pages"
    head_with(columns=columns)(members)

    with pytest.raises(RecordingError, match="the columns of knobs are not those"):
        read_bytes(tmp_path, seal(members), any_contract=True)


@pytest.mark.parametrize("data", [b"", b"PK", b"sha256:", b"\x00" * 5000])
def test_what_was_never_a_recording_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RecordingError, match="not a recording"):
        read_bytes(tmp_path, data)


def test_a_plain_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", levels=np.zeros(3))

    with pytest.raises(RecordingError, match="not a recording"):
        read_recording(tmp_path / "r.npz")


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
def test_members_packed_another_way_are_refused(good: bytes, kind: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in unseal(good, "r").items():
            archive.writestr(name, content)
        archive.comment = b"sha256:" + b"0" * 64
    body = out.getvalue()[:-64]

    with pytest.raises(RecordingError, match="not deflated"):
        decode(body + hashlib.sha256(body).hexdigest().encode(), "r")


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"r\.npz: cannot be read: No such file"):
        read_recording(tmp_path / "r.npz")
    with pytest.raises(RecordingError, match=r"r\.npz: cannot be written: No such file"):
        write_recording(tmp_path / "absent/r.npz", make())


def test_a_failed_write_leaves_the_file_that_was_there(
    tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.npz"
    path.write_bytes(good)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("memcg_gym.enforcer.files.os.fsync", full)
    with pytest.raises(RecordingError, match="cannot be written: No space left"):
        write_recording(path, make(2))
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["r.npz"]


def test_numpy_and_unzip_open_it(tmp_path: Path, good: bytes) -> None:
    with np.load(io.BytesIO(good), allow_pickle=False) as archive:
        assert archive["levels.kind"].shape == (N_HEADS,)
        assert json.loads(archive[HEAD])["policy"] == "tmo"
    with zipfile.ZipFile(io.BytesIO(good)) as plain:
        assert plain.testzip() is None


def test_the_file_is_what_its_specification_says(good: bytes) -> None:
    """Decodes one column by hand, as docs/recordings.md tells to."""
    with np.load(io.BytesIO(good), allow_pickle=False) as archive:
        head = json.loads(archive[HEAD])
        kind, planes = archive["memcg_signals.kind"], archive["memcg_signals.whole"]
    n_time, n_slots, _ = head["shapes"]["memcg_signals"]
    at = head["columns"]["memcg_signals"].index("usage_bytes")
    first = int((kind[:at] == 0).sum()) * n_slots * n_time
    words = sum(
        planes[byte, first : first + n_time].astype(object) << 8 * byte
        for byte in range(planes.shape[0])
    )
    steps = [(word >> 1) if word % 2 == 0 else -(word + 1) // 2 for word in words]

    np.testing.assert_array_equal(np.cumsum(steps), make().memcg("usage_bytes")[:, 0])


def test_encoding_is_undone_by_decoding() -> None:
    arrays = {"a": np.array([[1.0, 0.5], [np.nan, 0.25]]), "b": np.full((2, 1, 1), np.nan)}
    head, found = decode(encode({"k": 1}, arrays), "r")

    assert head["k"] == 1
    for name in arrays:
        np.testing.assert_array_equal(found[name], arrays[name])
