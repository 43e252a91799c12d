"""Recordings: what a host was asked for, was given and answered, tick by tick, in one small file.

A recording holds a run of one host, on a real kernel or in the model: every signal the contract
names, the knobs and levels in force, the raw metrics, the demand that came, and where all of it is
from.  Nothing in it is computed from the policy or the objective, and nothing says what is good.

Units: as the contract's signals and knobs; metrics and demands carry theirs in their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from memcg_gym.enforcer.files import replace_file
from memcg_gym.envs.contract.errors import did_you_mean
from memcg_gym.envs.contract.heads import HEADS, LEVEL_COUNTS
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.schema import contract_hash
from memcg_gym.envs.contract.signals import HOST_SIGNALS, MEMCG_SIGNALS
from memcg_gym.envs.recording_file import EXACT, MAX_BYTES, RecordingError, decode, encode

FORMAT = 1

MEMCG_NAMES = tuple(s.name for s in MEMCG_SIGNALS)
HOST_NAMES = tuple(s.name for s in HOST_SIGNALS)
KNOB_NAMES = tuple(k.name.lower() for k in Knob)
LEVEL_NAMES = tuple(h.name for h in HEADS)

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a recording is from: enough to make it again.

    Attributes:
        world: ``"kernel"`` or ``"model"``.
        kernel: The kernel's version; ``""`` for the model.
        machine: What it ran on: CPUs, memory, emulator and its version.
        accel: ``"kvm"``, ``"tcg"`` or ``""``.
        scenario: The scenario's TOML text as it was run, after scaling.
        scale: Factors it was scaled with, by name; empty = as it is.
        policy: Name of what decided.
        policy_version: Of its code, table or parameters.
        seed: What the host was drawn from.
        split: ``"train"`` or ``"test"``: which ranges it was drawn from.
        settle_ticks: Ticks that went by under the policy before the first recorded one.
        tick_s: Length of a tick [s].
        code_digest: Of the code that made the recording.
        contract: Hash of the contract that names the columns.
    """

    world: Literal["kernel", "model"]
    kernel: str
    machine: str
    accel: str
    scenario: str
    scale: Mapping[str, float]
    policy: str
    policy_version: str
    seed: int
    split: str
    settle_ticks: int
    tick_s: float
    code_digest: str
    contract: str = field(default_factory=contract_hash)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """A run of one host: T ticks of N cgroups.

    Attributes:
        provenance: Where it is from.
        cgroups: Names of the N slots.
        memcg_signals: At the start of the first tick and the end of each, float64 ``[T+1, N, S]``;
            NaN = not told.
        host_signals: The same of the host, ``[T+1, SH]``.
        knobs: Written at the start of each tick, ``[T, N, K]``; NaN = left alone.
        levels: Accepted for it, int64 ``[T, N, heads]``; 0 where a policy writes knobs itself.
        metrics: Raw metrics of the tick, ``[T, N, M]``; NaN only where no cgroup is active.
        metric_names: Of the M columns.
        demands: What workloads wanted in it, ``[T, N, D]``: load, shed, burst rate, phase flags.
        demand_names: Of the D columns.
        active: True where the slot held a cgroup at the end of the tick, ``[T, N]``.
        born: True where a new cgroup took the slot over in the tick, ``[T, N]``.
        latency_counts: Requests that ended in the tick by bin, int64 ``[T, N, B]``, or None; bin k
            begins at ``2 ** (k / 8)`` us.
    """

    provenance: Provenance
    cgroups: tuple[str, ...]
    memcg_signals: Array
    host_signals: Array
    knobs: Array
    levels: Array
    metrics: Array
    metric_names: tuple[str, ...]
    demands: Array
    demand_names: tuple[str, ...]
    active: Array
    born: Array
    latency_counts: Array | None = None

    @property
    def n_ticks(self) -> int:
        """How many ticks it holds."""
        return int(self.active.shape[0])

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Names of the last axis of each array that has some."""
        return {
            "memcg_signals": MEMCG_NAMES,
            "host_signals": HOST_NAMES,
            "knobs": KNOB_NAMES,
            "levels": LEVEL_NAMES,
            "metrics": self.metric_names,
            "demands": self.demand_names,
        }

    def column(self, array: str, name: str) -> Array:
        """One column of an array by its name, a view.

        Args:
            array: ``memcg_signals``, ``host_signals``, ``knobs``, ``levels``, ``metrics`` or
                ``demands``.
            name: Of the column.

        Raises:
            RecordingError: There is no such array or column.

        Example:
            >>> read_recording(path).column("memcg_signals", "usage_bytes")[-1]
        """
        if array not in self.columns:
            raise RecordingError(f"recording: no {array!r}{did_you_mean(array, self.columns)}")
        names = self.columns[array]
        if name not in names:
            raise RecordingError(f"recording: {array}: no {name!r}{did_you_mean(name, names)}")
        values: Array = getattr(self, array)
        return values[..., names.index(name)]

    def memcg(self, name: str) -> Array:
        """A signal of every cgroup, ``[T+1, N]``."""
        return self.column("memcg_signals", name)

    def host(self, name: str) -> Array:
        """A signal of the host, ``[T+1]``."""
        return self.column("host_signals", name)


def write_recording(path: Path, recording: Recording) -> None:
    """Write a recording whole or not at all; the folder must be there.

    Whole numbers are kept exactly; of counters the whole part is kept; a column that holds other
    numbers is rounded to float32.

    Raises:
        RecordingError: It breaks a rule of :func:`check_recording`, or cannot be written.
    """
    check_recording(recording, str(path))
    head = {
        **dataclasses.asdict(recording.provenance),
        "format": FORMAT,
        "scale": dict(recording.provenance.scale),
        "cgroups": list(recording.cgroups),
        "columns": {name: list(names) for name, names in recording.columns.items()},
    }
    try:
        replace_file(path, encode(head, arrays_of(recording)))
    except OSError as error:
        raise RecordingError(f"{path}: cannot be written: {error.strerror}") from error


def read_recording(path: Path, *, any_contract: bool = False) -> Recording:
    """Read a recording and check all of it.

    Args:
        path: The file.
        any_contract: Also take one made under another contract, where its columns are ours.

    Raises:
        RecordingError: It is missing, cut, damaged, of another format or contract, or breaks a
            rule; names the file, what was got and what would do.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RecordingError(f"{path}: {size} bytes; a recording has at most {MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}") from error
    head, arrays = decode(data, str(path))
    recording = build(head, arrays, str(path))
    contract = recording.provenance.contract
    if contract != contract_hash() and not any_contract:
        raise RecordingError(
            f"{path}: made under contract {contract[:12]}, ours is {contract_hash()[:12]}; "
            "record it again"
        )
    check_recording(recording, str(path))
    return recording


# --- from and to arrays and plain data -----------------------------------------------------------

WHOLE_ARRAYS = ("levels", "latency_counts")
FLAG_ARRAYS = ("active", "born")
ARRAYS = (
    "memcg_signals",
    "host_signals",
    "knobs",
    "metrics",
    "demands",
    *WHOLE_ARRAYS,
    *FLAG_ARRAYS,
)


def arrays_of(recording: Recording) -> dict[str, Array]:
    """The arrays that a file holds, as float64; of counters the whole part."""
    found = {name: getattr(recording, name) for name in ARRAYS}
    arrays = {n: np.asarray(v, dtype=np.float64) for n, v in found.items() if v is not None}
    for name, signals in (("memcg_signals", MEMCG_SIGNALS), ("host_signals", HOST_SIGNALS)):
        counters = np.array([signal.cumulative for signal in signals])
        arrays[name] = np.where(counters, np.floor(arrays[name]), arrays[name])
    return arrays


def build(head: Mapping[str, Any], arrays: Mapping[str, Array], origin: str) -> Recording:
    """A recording from what a file holds; its rules are not checked yet.

    Raises:
        RecordingError: A value of the head or an array is missing, too much or of a wrong type.
    """
    if head.get("format") != FORMAT:
        raise RecordingError(
            f"{origin}: format {head.get('format')!r}; this version reads format {FORMAT}"
        )
    fields = dataclasses.fields(Provenance)
    known = {f.name for f in fields} | {"format", "cgroups", "columns", "shapes"}
    odd = sorted(known ^ head.keys()) or sorted(
        (set(ARRAYS) - {"latency_counts"}) - arrays.keys() | arrays.keys() - set(ARRAYS)
    )
    if odd:
        raise RecordingError(f"{origin}: {odd[0]}: missing, or not of a recording")
    columns = head["columns"] if isinstance(head["columns"], dict) else {}
    ints = {n: np.nan_to_num(arrays[n]).astype(np.int64) for n in WHOLE_ARRAYS if n in arrays}
    recording = Recording(
        provenance=Provenance(**{f.name: head[f.name] for f in fields}),
        cgroups=words(head["cgroups"], f"{origin}: cgroups"),
        metric_names=words(columns.get("metrics"), f"{origin}: columns.metrics"),
        demand_names=words(columns.get("demands"), f"{origin}: columns.demands"),
        **{**arrays, **ints, **{name: arrays[name] != 0.0 for name in FLAG_ARRAYS}},
    )
    for name, names in recording.columns.items():
        if columns.get(name) != list(names):
            raise RecordingError(
                f"{origin}: the columns of {name} are not those of our contract; record it again"
            )
    return recording


def words(value: object, origin: str) -> tuple[str, ...]:
    """A list of different names."""
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise RecordingError(f"{origin}: got {str(value)[:60]}, expected a list of names")
    if len(set(value)) != len(value):
        raise RecordingError(f"{origin}: a name is given twice in {str(value)[:60]}")
    return tuple(value)


# --- the rules -----------------------------------------------------------------------------------


def check_recording(recording: Recording, origin: str) -> None:
    """Refuse what no run of a host can have produced.

    Raises:
        RecordingError: A provenance value, a shape, a level, a value that is missing, infinite or
            too large to be exact, or a counter that runs backwards; names ``origin`` and the place.
    """
    check_provenance(recording.provenance, origin)
    check_shapes(recording, origin)
    check_values(recording, origin)
    check_counters(recording, origin)


def check_provenance(provenance: Provenance, origin: str) -> None:
    """Types and ranges of where it is from."""
    for item in dataclasses.fields(Provenance):
        value = getattr(provenance, item.name)
        if item.name in ("seed", "settle_ticks"):
            good, wanted = type(value) is int and 0 <= value < EXACT, "a whole number from 0"
        elif item.name == "tick_s":
            good, wanted = is_number(value) and value > 0, "seconds above 0"
        elif item.name == "scale":
            good, wanted = is_numbers(value), "numbers by name"
        elif item.name == "world":
            good, wanted = value in ("kernel", "model"), "'kernel' or 'model'"
        else:
            good, wanted = isinstance(value, str), "text"
        if not good:
            raise RecordingError(f"{origin}: {item.name}: got {str(value)[:60]!r}, want {wanted}")


def is_number(value: object) -> bool:
    """A finite number."""
    return type(value) in (int, float) and abs(value) < EXACT  # type: ignore[arg-type]


def is_numbers(value: object) -> bool:
    """Finite numbers by name."""
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and is_number(number) for key, number in value.items()
    )


def check_shapes(recording: Recording, origin: str) -> None:
    """Every array has the ticks, slots and columns of the others."""
    if np.ndim(recording.active) != 2 or recording.n_ticks < 1 or not recording.cgroups:
        raise RecordingError(f"{origin}: active: got {np.shape(recording.active)}, want [T, N]")
    ticks, slots = recording.n_ticks, len(recording.cgroups)
    bins = () if recording.latency_counts is None else np.shape(recording.latency_counts)[2:]
    wanted: dict[str, tuple[int, ...]] = {
        "active": (ticks, slots),
        "born": (ticks, slots),
        "latency_counts": (ticks, slots, *(bins or (1,))),
    }
    for name, names in recording.columns.items():
        rows = (slots,) if name != "host_signals" else ()
        wanted[name] = (ticks + name.endswith("signals"), *rows, len(names))
    for name, shape in wanted.items():
        values = getattr(recording, name)
        if values is not None and np.shape(values) != shape:
            raise RecordingError(f"{origin}: {name}: shape {np.shape(values)}, want {shape}")


def check_values(recording: Recording, origin: str) -> None:
    """Nothing infinite, nothing missing that must be told, no level that nobody defined."""
    for name, values in arrays_of(recording).items():
        untold = np.isnan(values)
        may_miss = np.broadcast_to(missing_allowed(recording, name), values.shape)
        refuse_first(untold & ~may_miss, recording, name, "is not told", origin)
        big = np.abs(values, where=~untold, out=np.zeros(values.shape)) >= EXACT
        refuse_first(big, recording, name, "is infinite, or too large to be exact", origin)
    levels = np.asarray(recording.levels)
    beyond = (levels < 0) | (levels >= np.array(LEVEL_COUNTS))
    refuse_first(beyond, recording, "levels", "is not a level of this head", origin)
    if recording.latency_counts is not None:
        negative = np.asarray(recording.latency_counts) < 0
        refuse_first(negative, recording, "latency_counts", "is negative", origin)


def missing_allowed(recording: Recording, name: str) -> Array:
    """Where an array may hold NaN, in a shape that broadcasts to it."""
    allowed = np.array(name == "knobs")
    if name == "metrics":
        allowed = np.logical_not(recording.active)[..., None]
    if name == "host_signals":
        allowed = np.array([not s.required for s in HOST_SIGNALS])
    if name == "memcg_signals":
        # A cgroup that was there at the end of a tick was read at its end.
        there = np.zeros((recording.n_ticks + 1, len(recording.cgroups), 1), dtype=bool)
        there[1:, :, 0] = recording.active
        allowed = ~there | np.array([not s.required for s in MEMCG_SIGNALS])
    return allowed


def check_counters(recording: Recording, origin: str) -> None:
    """Cumulative signals never fall while a slot holds the same cgroup."""
    host = np.array([s.cumulative for s in HOST_SIGNALS])
    memcg = np.array([s.cumulative for s in MEMCG_SIGNALS])
    active = np.asarray(recording.active, dtype=bool)
    same = active & ~np.asarray(recording.born, dtype=bool)
    same[1:] &= active[:-1]
    with np.errstate(invalid="ignore"):
        falls = np.diff(recording.host_signals, axis=0) < 0.0
        refuse_first(falls & host, recording, "host_signals", "runs backwards", origin)
        falls = np.diff(recording.memcg_signals, axis=0) < 0.0
    falls &= memcg & same[..., None]
    refuse_first(falls, recording, "memcg_signals", "runs backwards", origin)


def refuse_first(wrong: Array, recording: Recording, name: str, what: str, origin: str) -> None:
    """Name the first place where something is wrong."""
    if not wrong.any():
        return
    at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    tick, *slot = (int(index) for index in at)
    where = f"tick {tick}"
    if name != "host_signals":
        where += f", {recording.cgroups[slot[0]]}"
    names = recording.columns.get(name)
    place = f"{name}.{names[int(at[-1])]}" if names else name
    raise RecordingError(f"{origin}: {place}: {what} at {where}")
