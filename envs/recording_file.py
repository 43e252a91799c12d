"""Named arrays and a JSON head as one small file that is refused when it was cut or damaged.

The file is a zip archive in numpy's ``.npz`` form; ``docs/recordings.md`` is the specification.
Columns of whole numbers are kept as differences in time and come back exactly; others are kept as
float32.  It does not know what a column means.

Units: none.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from memcg_gym.envs.contract.errors import MemcgGymError

MAX_BYTES = 64 << 20
"""Largest file that is opened (assumption: a thousand times what a run of two minutes takes)."""

MAX_VALUES = 1 << 26
"""Most numbers that a file may hold: 512 MiB of them."""

EXACT = float(1 << 53)
"""Whole numbers from here on are not exact in a float64, and are refused."""

HEAD = "head.json"
DIGEST_MARK = b"sha256:"
DIGEST_BYTES = 64

MOMENT = (1980, 1, 1, 0, 0, 0)
"""The time every member carries: the same content is the same file."""

WHOLE, REAL = 0, 1
"""Kinds of column: differences of whole numbers, or float32."""

PARTS = ("kind", "whole", "real", "untold")

UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)
"""What zipfile raises for an archive that was made to be unreadable."""

NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \((\d{1,9}),(?: (\d{1,9}))?\), \} *\n",
    re.DOTALL,
)
"""As numpy writes it for an array of bytes, version 1.0."""

Array = np.ndarray


class RecordingError(MemcgGymError):
    """A recording that cannot be written or read; names the file, what was got, what would do."""


# --- the archive ---------------------------------------------------------------------------------


def encode(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a file.

    Args:
        head: Plain data; ``shapes`` is added to it.
        arrays: Float64, time first, columns last; every value below ``EXACT``, or NaN.
    """
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    text = json.dumps({**head, "shapes": shapes}, indent=1, sort_keys=True, allow_nan=False)
    members = {HEAD: (text + "\n").encode()}
    for name, values in arrays.items():
        for part, stored in pack(values).items():
            members[f"{name}.{part}.npy"] = npy_bytes(stored)
    return seal(members)


def decode(data: bytes, origin: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """The head and the arrays that :func:`encode` made bytes of.

    Raises:
        RecordingError: The bytes are not whole, or do not hold what the head says.
    """
    members = unseal(data, origin)
    if HEAD not in members:
        raise RecordingError(f"{origin}: no {HEAD} in it: not a recording")
    head = parse_head(members.pop(HEAD), origin)
    arrays = {}
    for name, shape in shapes_of(head, origin).items():
        parts = {
            part: npy_array(members.pop(member), f"{origin}: {member}")
            for part in PARTS
            if (member := f"{name}.{part}.npy") in members
        }
        arrays[name] = unpack(parts, shape, f"{origin}: {name}")
    if members:
        raise RecordingError(f"{origin}: {sorted(members)[0]}: a member that no array has")
    return head, arrays


def seal(members: Mapping[str, bytes]) -> bytes:
    """A zip archive whose comment is the digest of all before it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, MOMENT)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content, compresslevel=9)
        archive.comment = DIGEST_MARK + b"0" * DIGEST_BYTES
    body = out.getvalue()[:-DIGEST_BYTES]
    return body + hashlib.sha256(body).hexdigest().encode()


def unseal(data: bytes, origin: str) -> dict[str, bytes]:
    """The members of a sealed archive.

    Raises:
        RecordingError: It is cut, damaged or no such archive.
    """
    body = data[:-DIGEST_BYTES]
    if not body.endswith(DIGEST_MARK):
        raise RecordingError(
            f"{origin}: {len(data)} bytes that do not end in a digest: cut short, or not a "
            "recording; record it again"
        )
    if hashlib.sha256(body).hexdigest().encode() != data[-DIGEST_BYTES:]:
        raise RecordingError(f"{origin}: damaged: the digest is another's; record it again")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > 8 * MAX_VALUES:
                raise RecordingError(f"{origin}: holds more than {8 * MAX_VALUES} bytes")
            if any(info.compress_type != zipfile.ZIP_DEFLATED for info in infos):
                raise RecordingError(f"{origin}: a member that is not deflated: not a recording")
            return {info.filename: archive.read(info) for info in infos}
    except UNREADABLE as error:
        raise RecordingError(f"{origin}: not a recording: {error}") from error


def parse_head(data: bytes, origin: str) -> dict[str, Any]:
    """The head's text as plain data."""

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is not JSON")

    try:
        found = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{origin}: {HEAD}: {error}") from error
    if not isinstance(found, dict):
        raise RecordingError(f"{origin}: {HEAD}: got {type(found).__name__}, expected an object")
    return found


def shapes_of(head: Mapping[str, Any], origin: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays, none of them too large."""
    shapes = head.get("shapes")
    if not isinstance(shapes, dict):
        raise RecordingError(f"{origin}: {HEAD}: shapes: got {shapes!r}, expected an object")
    for name, shape in shapes.items():
        good = isinstance(shape, list) and all(type(n) is int and 0 < n < 1 << 20 for n in shape)
        if not good or len(shape) not in (2, 3) or math.prod(shape) > MAX_VALUES:
            raise RecordingError(
                f"{origin}: {HEAD}: shapes.{name}: got {str(shape)[:60]}, expected two or three "
                f"lengths, at most {MAX_VALUES} values"
            )
    return {name: tuple(shape) for name, shape in shapes.items()}


def npy_bytes(values: Array) -> bytes:
    """An array in numpy's own format."""
    out = io.BytesIO()
    np.lib.format.write_array(out, values, version=(1, 0), allow_pickle=False)
    return out.getvalue()


def npy_array(data: bytes, origin: str) -> Array:
    """An array of bytes in numpy's own format, not a byte more or less.

    The header is matched, not evaluated as numpy does: a file may come from anywhere.
    """
    header = NPY_HEADER.match(data)
    shape = [] if header is None else [int(n) for n in header.groups() if n is not None]
    if header is None or math.prod(shape) != len(data) - header.end():
        raise RecordingError(f"{origin}: not an array of bytes in numpy's format")
    return np.frombuffer(data, dtype=np.uint8, offset=header.end()).reshape(shape)


# --- arrays --------------------------------------------------------------------------------------


def pack(values: Array) -> dict[str, Array]:
    """An array as bytes that compress well.

    Each column (index of the last axis) is a kind of its own.  Whole numbers: differences in time,
    signs folded in, byte planes.  Others: float32, XOR with the tick before, byte planes.  NaN is
    kept as a bit, and the value before stands in for it.
    """
    columns = np.moveaxis(values.reshape(values.shape[0], -1, values.shape[-1]), 0, -1)
    columns = np.ascontiguousarray(np.swapaxes(columns, 0, 1))  # [columns, rows, time]
    untold = np.isnan(columns)
    filled = fill_forward(columns, untold)
    kinds = np.where((filled == np.floor(filled)).all(axis=(1, 2)), WHOLE, REAL).astype(np.uint8)
    parts = {"kind": kinds}
    whole, real = filled[kinds == WHOLE], filled[kinds == REAL]
    if whole.size:
        steps = np.diff(whole.astype(np.int64), axis=-1, prepend=0)
        parts["whole"] = to_planes(((steps << 1) ^ (steps >> 63)).view(np.uint64))
    if real.size:
        bits = real.astype(np.float32).view(np.uint32)
        bits[..., 1:] ^= bits[..., :-1].copy()
        parts["real"] = to_planes(bits)
    if untold.any():
        parts["untold"] = np.packbits(untold.reshape(-1))
    return parts


def unpack(parts: Mapping[str, Array], shape: tuple[int, ...], origin: str) -> Array:
    """The array that :func:`pack` took apart, float64.

    Raises:
        RecordingError: The parts do not make an array of this shape.
    """
    n_time, n_columns = shape[0], shape[-1]
    n_rows = math.prod(shape[1:-1])
    kinds = parts.get("kind", np.zeros(0, dtype=np.uint8))
    if kinds.shape != (n_columns,) or not np.isin(kinds, (WHOLE, REAL)).all():
        raise RecordingError(f"{origin}: kinds of {kinds.size} columns, expected {n_columns}")
    columns = np.zeros((n_columns, n_rows, n_time))
    n_whole, n_real = (int((kinds == kind).sum()) * n_rows * n_time for kind in (WHOLE, REAL))
    if n_whole:
        folded = from_planes(parts.get("whole"), n_whole, np.dtype(np.uint64), origin)
        steps = (folded >> np.uint64(1)).view(np.int64) ^ -(folded & np.uint64(1)).view(np.int64)
        whole = steps.reshape(-1, n_rows, n_time).cumsum(axis=-1)
        columns[kinds == WHOLE] = whole
    if n_real:
        bits = from_planes(parts.get("real"), n_real, np.dtype(np.uint32), origin)
        bits = np.bitwise_xor.accumulate(bits.reshape(-1, n_rows, n_time), axis=-1)
        columns[kinds == REAL] = bits.view(np.float32)
    if "untold" in parts:
        if parts["untold"].shape != ((columns.size + 7) // 8,):
            raise RecordingError(f"{origin}: {parts['untold'].size} bytes of untold values")
        columns[np.unpackbits(parts["untold"], count=columns.size).reshape(columns.shape) > 0] = (
            np.nan
        )
    back = np.moveaxis(np.swapaxes(columns, 0, 1), -1, 0)
    return np.ascontiguousarray(back).reshape(shape)


def fill_forward(columns: Array, untold: Array) -> Array:
    """Values with each NaN replaced by the last one told before it, or 0."""
    at = np.where(untold, 0, np.arange(columns.shape[-1]))
    filled = np.take_along_axis(columns, np.maximum.accumulate(at, axis=-1), axis=-1)
    return np.where(np.isnan(filled), 0.0, filled)


def to_planes(words: Array) -> Array:
    """Integers byte by byte, lowest first, without planes that are zero throughout."""
    little = words.astype(words.dtype.newbyteorder("<"))
    planes = little.reshape(-1).view(np.uint8).reshape(-1, words.itemsize).T
    used = np.flatnonzero(planes.any(axis=1))
    return np.ascontiguousarray(planes[: 1 if used.size == 0 else int(used[-1]) + 1])


def from_planes(planes: Array | None, count: int, dtype: np.dtype[Any], origin: str) -> Array:
    """The integers that :func:`to_planes` took apart."""
    if planes is None or planes.ndim != 2 or planes.shape[1] != count:
        got = "none" if planes is None else planes.shape
        raise RecordingError(f"{origin}: byte planes {got}, expected {count} values each")
    if not 1 <= planes.shape[0] <= dtype.itemsize:
        raise RecordingError(f"{origin}: {planes.shape[0]} byte planes of {dtype}")
    words = np.zeros((count, dtype.itemsize), dtype=np.uint8)
    words[:, : planes.shape[0]] = planes.T
    return words.reshape(-1).view(dtype.newbyteorder("<")).astype(dtype)
