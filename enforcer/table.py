"""The rule table as bytes: one small file, little endian, that a host reads whole or refuses.

``docs/table.md`` is the specification.  A table that decodes obeys every rule of
``enforcer/table_layout.py``, so an evaluator may trust its indices.  Decoding cannot tell whether
the decisions are good; a signature says where a table comes from, not that it is safe.

Units: bytes; seconds since 1970.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memcg_gym.enforcer.files import replace_file
from memcg_gym.enforcer.table_layout import (
    FEATURE_DTYPE,
    LEAF_DTYPE,
    MAX_DEPTH,
    MAX_FEATURES,
    MAX_RULES,
    NODE_DTYPE,
    FeatureRef,
    Table,
    check_body,
    feature_problem,
    our_schema_hash,
    refuse,
    tree_depth,
)
from memcg_gym.enforcer.table_tree import table_from_tree
from memcg_gym.envs.contract.errors import ConfigError, MissingExtraError, TableError
from memcg_gym.envs.contract.heads import N_HEADS

MAGIC = b"MRT1\r\n\x1a\n"
"""Name, and the bytes that a transfer in text mode would damage."""
FORMAT = (1, 0)
MAX_BYTES = 8192
SIGNED_FLAG = 1

HEADER = struct.Struct("<8sHHIQ16s16sHHHHHHBBHQQIIII8s12sI")
CRC_BYTES = 4
SHA256_BYTES = 32
SIGNATURE_BYTES = 64
TRAILER_BYTES = SHA256_BYTES + SIGNATURE_BYTES
MIN_BYTES = HEADER.size + 2 * LEAF_DTYPE.itemsize + TRAILER_BYTES


class Header(NamedTuple):
    """The 128 bytes at the start, in file order."""

    magic: bytes
    major: int
    minor: int
    total_bytes: int
    version: int
    schema_hash: bytes
    policy_id: bytes
    n_features: int
    n_nodes: int
    n_leaves: int
    depth: int
    root: int
    default_leaf: int
    n_heads: int
    reserved_byte: int
    flags: int
    not_before_s: int
    not_after_s: int
    features_at: int
    nodes_at: int
    leaves_at: int
    trailer_at: int
    key_id: bytes
    reserved: bytes
    crc: int


def encode(table: Table) -> bytes:
    """The table's bytes.

    Returns:
        At most ``MAX_BYTES`` bytes that :func:`decode` gives back as the same table.

    Raises:
        TableError: The table breaks a rule; nothing that a host would refuse is ever made.
    """
    check_body(table)
    data = pack(table)
    decode(data)
    return data


def decode(
    data: bytes,
    *,
    now_s: float | None = None,
    public_key: bytes | None = None,
    min_version: int | None = None,
) -> Table:
    """Read a table, or refuse it.

    Args:
        data: The whole file.
        now_s: Time to hold the validity against [s since 1970]; None = do not.
        public_key: Ed25519, 32 bytes: the table must carry a good signature by it.  None = the
            signature is not checked and ``verified`` is False.
        min_version: Oldest version to accept; None = any.

    Returns:
        The table.

    Raises:
        TableError: With the stable code of the first rule that fails, whatever the bytes.
        ConfigError: The public key is not one.
        MissingExtraError: A signature is to be checked and ``cryptography`` is not installed.
    """
    data = bytes(data)
    header = _read_header(data)
    _check_limits(header)
    verified = _check_integrity(data, header, public_key)
    features = _read_features(data, header)
    _check_admission(header, features, now_s, min_version)
    table = Table(
        features,
        np.frombuffer(data, NODE_DTYPE, header.n_nodes, header.nodes_at),
        np.frombuffer(data, LEAF_DTYPE, header.n_leaves, header.leaves_at),
        header.version,
        header.policy_id,
        header.not_before_s,
        header.not_after_s,
        header.key_id,
        data[-SIGNATURE_BYTES:],
        header.schema_hash,
        verified,
    )
    if header.root != table.root:
        refuse("E_NODEREF", f"header: root {header.root:#06x}, must be {table.root:#06x}")
    check_body(table, header.depth)
    return table


def read_table(
    path: str | os.PathLike[str],
    *,
    now_s: float | None = None,
    public_key: bytes | None = None,
    min_version: int | None = None,
) -> Table:
    """Read a table from a file, once and whole; arguments and refusals as in :func:`decode`.

    Raises:
        TableError: ``E_READ`` where the file cannot be read, else as :func:`decode`, with the
            file named.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TableError("E_READ", f"{os.fspath(path)}: {error.strerror}") from error
    try:
        return decode(data, now_s=now_s, public_key=public_key, min_version=min_version)
    except TableError as error:
        message = str(error).removeprefix(f"{error.code}: ")
        raise TableError(error.code, f"{os.fspath(path)}: {message}") from error


def write_table(path: str | os.PathLike[str], table: Table) -> None:
    """Write a table so that a reader sees the old file or the new one, never a part.

    Raises:
        TableError: The table breaks a rule, or ``E_WRITE`` where the file cannot be written.
    """
    write_atomically(path, encode(table))


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that a reader sees whole or not at all.

    Raises:
        TableError: ``E_WRITE``.
    """
    target = Path(path)
    try:
        replace_file(target, data)
    except OSError as error:
        raise TableError("E_WRITE", f"{target}: {error.strerror}") from error


def sign(table: Table, private_key: bytes) -> Table:
    """The same table with an Ed25519 signature.

    Args:
        table: Any usable table.
        private_key: 32 bytes.

    Raises:
        TableError: The table breaks a rule.
        ConfigError: The key is not one.
        MissingExtraError: ``cryptography`` is not installed.
    """
    key = _key("Ed25519PrivateKey", "from_private_bytes", private_key)
    unsigned = dataclasses.replace(
        table, key_id=key_id(key.public_key().public_bytes_raw()), signature=bytes(SIGNATURE_BYTES)
    )
    check_body(unsigned)
    covered = pack(unsigned, signed=True)[:-SIGNATURE_BYTES]
    return dataclasses.replace(unsigned, signature=key.sign(covered))


def key_id(public_key: bytes) -> bytes:
    """First 8 bytes of the SHA-256 of a public key: which key to look for."""
    return hashlib.sha256(public_key).digest()[:8]


def pack(table: Table, *, signed: bool | None = None) -> bytes:
    """The bytes as they would stand in a file, without asking whether they make sense.

    Args:
        table: Counts and fields must fit their widths.
        signed: Overrules whether the header announces a signature.

    Raises:
        TableError: ``E_LIMITS`` where a value does not fit its field.
    """
    features = np.array(
        [(f.id, f.shift, f.flags, f.max_age_ms, f.low, f.high) for f in table.features],
        dtype=FEATURE_DTYPE,
    )
    body = features.tobytes() + table.nodes.tobytes() + table.leaves.tobytes()
    nodes_at = HEADER.size + features.nbytes
    leaves_at = nodes_at + table.nodes.nbytes
    trailer_at = leaves_at + table.leaves.nbytes
    header = Header(
        MAGIC, *FORMAT, trailer_at + TRAILER_BYTES, table.version, table.schema_hash,
        table.policy_id, len(table.features), len(table.nodes), len(table.leaves),
        tree_depth(table.nodes), table.root, table.default_leaf, N_HEADS, 0,
        SIGNED_FLAG if (table.signed if signed is None else signed) else 0,
        table.not_before_s, table.not_after_s, HEADER.size, nodes_at, leaves_at, trailer_at,
        table.key_id, bytes(12), 0,
    )  # fmt: skip
    for name, value, width in (
        ("schema_hash", table.schema_hash, 16),
        ("policy_id", table.policy_id, 16),
        ("key_id", table.key_id, 8),
        ("signature", table.signature, SIGNATURE_BYTES),
    ):
        if len(value) != width:  # struct would pad or cut it in silence
            refuse("E_LIMITS", f"{name} must be {width} bytes, got {len(value)}")
    try:
        head = HEADER.pack(*header)[:-CRC_BYTES]
    except struct.error as error:
        raise TableError("E_LIMITS", f"a header field does not fit: {error}") from error
    covered = head + struct.pack("<I", zlib.crc32(head + body)) + body
    return covered + hashlib.sha256(covered).digest() + table.signature


def _read_header(data: bytes) -> Header:
    """E_SIZE, E_MAGIC, E_MAJOR, E_LENGTH, E_RESERVED."""
    if not MIN_BYTES <= len(data) <= MAX_BYTES:
        refuse("E_SIZE", f"{len(data)} bytes, must be {MIN_BYTES}..{MAX_BYTES}")
    header = Header(*HEADER.unpack_from(data))
    if header.magic != MAGIC:
        refuse("E_MAGIC", f"starts with {header.magic!r}, not a rule table")
    if (header.major, header.minor) != FORMAT:
        refuse("E_MAJOR", f"format {header.major}.{header.minor}, this reader knows 1.0")
    if header.total_bytes != len(data):
        refuse("E_LENGTH", f"{len(data)} bytes, the header says {header.total_bytes}")
    if header.reserved_byte or any(header.reserved) or header.flags & ~SIGNED_FLAG:
        refuse("E_RESERVED", "header: reserved bits are not zero")
    return header


def _check_limits(header: Header) -> None:
    """E_LIMITS, E_COUNT, E_OFFSETS."""
    for name, value, most in (
        ("features", header.n_features, MAX_FEATURES),
        ("leaves", header.n_leaves, MAX_RULES + 1),
        ("conditions in a rule", header.depth, MAX_DEPTH),
    ):
        if value > most:
            refuse("E_LIMITS", f"{value} {name}, at most {most}")
    if header.n_leaves != header.n_nodes + 2:
        refuse("E_COUNT", f"{header.n_nodes} nodes need {header.n_nodes + 2} leaves with the "
               f"default, got {header.n_leaves}")  # fmt: skip
    if header.default_leaf != header.n_leaves - 1:
        refuse("E_DEFAULT", f"the default is leaf {header.default_leaf}, must be the last")
    nodes_at = HEADER.size + header.n_features * FEATURE_DTYPE.itemsize
    leaves_at = nodes_at + header.n_nodes * NODE_DTYPE.itemsize
    trailer_at = leaves_at + header.n_leaves * LEAF_DTYPE.itemsize
    wanted = (HEADER.size, nodes_at, leaves_at, trailer_at)
    got = (header.features_at, header.nodes_at, header.leaves_at, header.trailer_at)
    if got != wanted or trailer_at + TRAILER_BYTES != header.total_bytes:
        refuse("E_OFFSETS", f"parts at {got}, end {header.total_bytes}; the counts give {wanted}, "
               f"end {trailer_at + TRAILER_BYTES}")  # fmt: skip


def _check_integrity(data: bytes, header: Header, public_key: bytes | None) -> bool:
    """E_SHA256, E_SIGNATURE, E_CRC; True when the signature was checked."""
    covered, trailer = data[:-TRAILER_BYTES], data[-TRAILER_BYTES:]
    if hashlib.sha256(covered).digest() != trailer[:SHA256_BYTES]:
        refuse("E_SHA256", "the contents are not what was written")
    signature = trailer[SHA256_BYTES:]
    signed = bool(header.flags & SIGNED_FLAG)
    if signed != any(signature) or (any(header.key_id) and not signed):
        refuse("E_SIGNATURE", "the header and the trailer disagree on whether it is signed")
    if public_key is not None:
        _check_signature(data[:-SIGNATURE_BYTES], signature, header.key_id, public_key)
    crc_at = HEADER.size - CRC_BYTES
    if zlib.crc32(covered[HEADER.size :], zlib.crc32(covered[:crc_at])) != header.crc:
        refuse("E_CRC", "the checksum in the header is wrong")
    return public_key is not None


def _check_signature(covered: bytes, signature: bytes, named: bytes, public_key: bytes) -> None:
    if not any(signature):
        refuse("E_SIGNATURE", "it is not signed, and a key was given")
    if named != key_id(public_key):
        refuse("E_SIGNATURE", f"signed by key {named.hex()}, not by {key_id(public_key).hex()}")
    key = _key("Ed25519PublicKey", "from_public_bytes", public_key)
    invalid = importlib.import_module("cryptography.exceptions").InvalidSignature
    try:
        key.verify(signature, covered)
    except invalid as error:
        raise TableError("E_SIGNATURE", "the signature is wrong") from error


def _key(kind: str, maker: str, raw: bytes) -> Any:
    try:
        module = importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as error:
        raise MissingExtraError("cryptography", "host") from error
    try:
        return getattr(getattr(module, kind), maker)(raw)
    except ValueError as error:
        raise ConfigError(f"{kind}: 32 bytes are needed, got {len(raw)}") from error


def _read_features(data: bytes, header: Header) -> tuple[FeatureRef, ...]:
    rows = np.frombuffer(data, FEATURE_DTYPE, header.n_features, header.features_at)
    return tuple(
        FeatureRef(feature_id, low, high, max_age_ms, shift, flags)
        for feature_id, shift, flags, max_age_ms, low, high in rows.tolist()
    )


def _check_admission(
    header: Header,
    features: tuple[FeatureRef, ...],
    now_s: float | None,
    min_version: int | None,
) -> None:
    """E_SCHEMA, E_ROLLBACK, E_VALIDITY."""
    if header.schema_hash != our_schema_hash():
        differing = (f"features[{i}]: {feature_problem(f)}" for i, f in enumerate(features)
                     if feature_problem(f))  # fmt: skip
        refuse("E_SCHEMA", f"made under contract {header.schema_hash.hex()}, this is "
               f"{our_schema_hash().hex()}; first difference: "
               + next(differing, "outside the features that the table reads"))  # fmt: skip
    if header.n_heads != N_HEADS:
        refuse("E_SCHEMA", f"{header.n_heads} heads, the contract has {N_HEADS}")
    if min_version is not None and header.version < min_version:
        refuse("E_ROLLBACK", f"version {header.version}, at least {min_version} is wanted")
    begin, end = header.not_before_s, header.not_after_s
    if end and end <= begin:
        refuse("E_VALIDITY", f"valid from {begin} s to {end} s, which is never")
    if now_s is not None and not (begin <= now_s and (not end or now_s <= end)):
        refuse("E_VALIDITY", f"valid from {begin} s to {end or 'ever'}, it is {now_s} s")


__all__ = [
    "MAX_BYTES",
    "FeatureRef",
    "Table",
    "decode",
    "encode",
    "key_id",
    "pack",
    "read_table",
    "sign",
    "table_from_tree",
    "write_atomically",
    "write_table",
]
