from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcg_gym.enforcer.evaluator import evaluate_batch
from memcg_gym.enforcer.table import (
    MAX_BYTES,
    FeatureRef,
    Table,
    decode,
    encode,
    key_id,
    pack,
    read_table,
    sign,
    table_from_tree,
    write_table,
)
from memcg_gym.enforcer.table_layout import LEAF_BIT, leaf_boxes
from memcg_gym.envs.contract.errors import ConfigError, MissingExtraError, TableError
from memcg_gym.envs.contract.features import FEATURES, MISSING_FIXED, F
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS
from tests.enforcer.sample_tables import boundary_vectors, random_table, reseal, small_table

SMALL = small_table()
DATA = encode(SMALL)
NODES_AT = 128 + 16 * 4
LEAVES_AT = NODES_AT + 12 * 5


def refused(data: bytes, **asked: object) -> str:
    with pytest.raises(TableError) as caught:
        decode(data, **asked)  # type: ignore[arg-type]
    return caught.value.code


def changed(at: int, layout: str, value: int, data: bytes = DATA) -> bytes:
    copy = bytearray(data)
    struct.pack_into("<" + layout, copy, at, value)
    return reseal(copy)


def test_a_table_survives_the_round_trip() -> None:
    again = decode(DATA)
    assert encode(again) == DATA
    assert again.features == SMALL.features
    assert (again.nodes == SMALL.nodes).all() and (again.leaves == SMALL.leaves).all()
    assert (again.version, again.policy_id, again.signed, again.verified) == (
        7, bytes(16), False, False,
    )  # fmt: skip


def test_the_file_has_the_size_the_format_says() -> None:
    assert len(DATA) == 128 + 4 * 16 + 5 * 12 + 7 * 12 + 96


def test_the_largest_table_fits_the_cap() -> None:
    table = random_table(np.random.default_rng(5), 255)
    listed = {ref.column for ref in table.features}
    others = (FeatureRef.of(column) for column in range(len(FEATURES)) if column not in listed)
    table = dataclasses.replace(table, features=(*table.features, *others))
    assert (table.n_rules, len(table.features)) == (256, 64)
    assert len(encode(table)) == 128 + 64 * 16 + 255 * 12 + 257 * 12 + 96 <= MAX_BYTES


@pytest.mark.parametrize("seed", range(8))
def test_random_trees_survive_the_round_trip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = random_table(rng, int(rng.integers(1, 200)))
    assert encode(decode(encode(table))) == encode(table)


def test_every_single_bit_flip_is_refused() -> None:
    for position in range(len(DATA) * 8):
        flipped = bytearray(DATA)
        flipped[position // 8] ^= 1 << position % 8
        refused(bytes(flipped))


def test_every_truncation_is_refused() -> None:
    for length in range(len(DATA)):
        assert refused(DATA[:length]) in {"E_SIZE", "E_LENGTH"}


def test_bytes_after_the_end_are_refused() -> None:
    assert refused(DATA + b"\0") == "E_LENGTH"


@given(st.binary(max_size=2 * MAX_BYTES))
@settings(deadline=None, max_examples=50)
def test_any_bytes_are_refused_with_a_code(data: bytes) -> None:
    assert refused(data).startswith("E_")


@given(
    st.lists(
        st.tuples(st.integers(8, len(DATA) - 97), st.integers(0, 255)), min_size=1, max_size=6
    ),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=400)
def test_a_resealed_mutant_is_refused_or_usable(writes: list[tuple[int, int]], seed: int) -> None:
    mutant = bytearray(DATA)
    for at, value in writes:
        mutant[at] = value
    data = reseal(mutant)
    try:
        table = decode(data)
    except TableError:
        return
    assert encode(table) == data
    assert (table.levels < np.array(LEVEL_COUNTS)).all()
    leaf = evaluate_batch(table, boundary_vectors(table, np.random.default_rng(seed), 20))
    assert ((leaf >= 0) & (leaf <= table.default_leaf)).all()


MUTANTS: list[tuple[str, Callable[[], bytes]]] = [
    ("E_SIZE", lambda: DATA[:247]),
    ("E_SIZE", lambda: DATA + bytes(MAX_BYTES)),
    ("E_MAGIC", lambda: b"MRT2" + DATA[4:]),
    ("E_MAGIC", lambda: DATA.replace(b"\r\n", b"\n\n")),
    ("E_MAJOR", lambda: changed(8, "H", 2)),
    ("E_MAJOR", lambda: changed(10, "H", 1)),
    ("E_LENGTH", lambda: changed(12, "I", len(DATA) + 1)),
    ("E_RESERVED", lambda: changed(69, "B", 1)),
    ("E_RESERVED", lambda: changed(70, "H", 2)),
    ("E_RESERVED", lambda: changed(112, "B", 1)),
    ("E_LIMITS", lambda: changed(56, "H", 65)),
    ("E_LIMITS", lambda: changed(60, "H", 258)),
    ("E_LIMITS", lambda: changed(62, "H", 25)),
    ("E_COUNT", lambda: changed(58, "H", 6)),
    ("E_DEFAULT", lambda: changed(66, "H", 0)),
    ("E_OFFSETS", lambda: changed(88, "I", 129)),
    ("E_OFFSETS", lambda: changed(92, "I", NODES_AT + 12)),
    ("E_OFFSETS", lambda: changed(56, "H", 3)),
    ("E_SHA256", lambda: DATA[:200] + bytes([DATA[200] ^ 1]) + DATA[201:]),
    ("E_SIGNATURE", lambda: DATA[:-1] + b"\1"),
    ("E_SIGNATURE", lambda: changed(70, "H", 1)),
    ("E_SIGNATURE", lambda: changed(104, "B", 1)),
    ("E_SCHEMA", lambda: changed(24, "B", DATA[24] ^ 1)),
    ("E_SCHEMA", lambda: changed(68, "B", N_HEADS - 1)),
    ("E_VALIDITY", lambda: changed(80, "Q", 1, changed(72, "Q", 2))),
    ("E_FEATURE", lambda: changed(128, "I", 64)),
    ("E_FEATURE", lambda: changed(128 + 4, "B", 15)),
    ("E_FEATURE", lambda: changed(128 + 5, "B", DATA[128 + 5] ^ 1)),
    ("E_FEATURE", lambda: changed(128 + 5, "B", DATA[128 + 5] ^ 4)),
    ("E_FEATURE", lambda: changed(128 + 6, "H", 0)),
    ("E_FEATURE", lambda: changed(128 + 8, "i", MISSING_FIXED)),
    ("E_FEATURE", lambda: changed(128 + 12, "i", 2**31 - 1)),
    ("E_FEATURE", lambda: changed(128 + 8, "i", 1, changed(128 + 12, "i", 0))),
    ("E_FEATDUP", lambda: reseal(DATA[:144] + DATA[128:144] + DATA[160:])),
    ("E_RESERVED", lambda: changed(NODES_AT + 10, "H", 1)),
    ("E_RESERVED", lambda: changed(LEAVES_AT + 7, "B", 1)),
    ("E_FEATIDX", lambda: changed(NODES_AT + 4, "H", 4)),
    ("E_THRESHOLD", lambda: changed(NODES_AT, "i", -1)),
    ("E_THRESHOLD", lambda: changed(NODES_AT, "i", 65537)),
    ("E_NODEREF", lambda: changed(64, "H", LEAF_BIT)),
    ("E_NODEREF", lambda: changed(64, "H", 1)),
    ("E_NODEREF", lambda: changed(NODES_AT + 6, "H", 0)),
    ("E_NODEREF", lambda: changed(NODES_AT + 6, "H", 5)),
    ("E_NODEREF", lambda: changed(NODES_AT + 12 + 6, "H", 1)),
    ("E_NODESHARED", lambda: changed(NODES_AT + 6, "H", 3)),
    ("E_LEAFREF", lambda: changed(NODES_AT + 12 + 6, "H", LEAF_BIT | 7)),
    ("E_LEAFSHARED", lambda: changed(NODES_AT + 12 + 6, "H", LEAF_BIT | 3)),
    ("E_UNREACHABLE", lambda: changed(NODES_AT + 12 + 6, "H", LEAF_BIT | 6)),
    ("E_EMPTYLEAF", lambda: changed(NODES_AT, "i", 65536)),
    ("E_EMPTYLEAF", lambda: changed(NODES_AT + 4 * 12, "i", 6881)),
    ("E_DEPTH", lambda: changed(62, "H", 4)),
    ("E_LEVEL", lambda: changed(LEAVES_AT, "B", 5)),
    ("E_LEVEL", lambda: changed(LEAVES_AT + 6, "B", 2)),
    ("E_LEVEL", lambda: changed(LEAVES_AT + 6 * 12, "B", 255)),
    ("E_RULEID", lambda: changed(LEAVES_AT + 8, "H", 0)),
    ("E_RULEID", lambda: changed(LEAVES_AT + 8, "H", 2)),
    ("E_TTL", lambda: changed(LEAVES_AT + 10, "H", 0)),
    ("E_TTL", lambda: changed(LEAVES_AT + 10, "H", 65)),
    ("E_DEFAULT_UNSAFE", lambda: changed(LEAVES_AT + 6 * 12, "B", 1)),
    ("E_DEFAULT_UNSAFE", lambda: changed(LEAVES_AT + 6 * 12 + 8, "H", 99)),
    ("E_DEFAULT_UNSAFE", lambda: changed(LEAVES_AT + 6 * 12 + 10, "H", 5)),
]


@pytest.mark.parametrize(("code", "mutant"), MUTANTS, ids=[code for code, _ in MUTANTS])
def test_each_broken_rule_has_its_code(code: str, mutant: Callable[[], bytes]) -> None:
    assert refused(mutant()) == code


def test_a_wrong_checksum_under_a_right_hash_is_refused() -> None:
    covered = bytearray(DATA[:-96])
    covered[124] ^= 1
    assert refused(bytes(covered) + hashlib.sha256(covered).digest() + bytes(64)) == "E_CRC"


def test_a_tree_deeper_than_the_cap_is_refused() -> None:
    n = 25
    left = [*range(1, n + 1), -1] + [-1] * n
    right = [*range(n + 1, 2 * n + 1), -1] + [-1] * n
    feature = [F.PSI_MEM_SOME] * (2 * n + 1)
    threshold = [60000 - i for i in range(2 * n + 1)]
    levels = np.zeros((2 * n + 1, N_HEADS), dtype=int)
    levels[::2, 1] = 1
    with pytest.raises(TableError, match="E_DEPTH"):
        table_from_tree(left, right, feature, threshold, levels)


def test_another_contract_is_refused_with_the_first_difference() -> None:
    other = changed(24, "B", DATA[24] ^ 1, changed(128 + 4, "B", 12))
    with pytest.raises(TableError, match=r"features\[0\]: usage_ratio has shift 12, here 16"):
        decode(other)
    with pytest.raises(TableError, match="outside the features that the table reads"):
        decode(changed(24, "B", DATA[24] ^ 1))


def test_an_older_version_than_asked_for_is_refused() -> None:
    assert decode(DATA, min_version=7).version == 7
    assert refused(DATA, min_version=8) == "E_ROLLBACK"


@pytest.mark.parametrize(
    ("now_s", "code"),
    [(999.0, "E_VALIDITY"), (1000.0, ""), (2000.0, ""), (2001.0, "E_VALIDITY"),
     (math.nan, "E_VALIDITY"), (None, "")],
)  # fmt: skip
def test_a_table_is_refused_outside_its_validity(now_s: float | None, code: str) -> None:
    data = encode(dataclasses.replace(SMALL, not_before_s=1000, not_after_s=2000))
    if code:
        assert refused(data, now_s=now_s) == code
    else:
        assert decode(data, now_s=now_s).not_after_s == 2000


def test_no_end_means_valid_for_ever() -> None:
    data = encode(dataclasses.replace(SMALL, not_before_s=1000))
    assert decode(data, now_s=1e12).not_before_s == 1000


def test_a_narrower_range_than_the_contracts_is_allowed() -> None:
    narrow = dataclasses.replace(SMALL.features[0], high=2 << 16)
    table = dataclasses.replace(SMALL, features=(narrow, *SMALL.features[1:]))
    assert decode(encode(table)).features[0].high == 2 << 16


@pytest.mark.parametrize(
    "field",
    [{"version": 2**64}, {"version": -1}, {"policy_id": b"short"}, {"key_id": bytes(9)},
     {"not_before_s": -1}, {"signature": b""}],
)  # fmt: skip
def test_what_does_not_fit_its_field_is_refused(field: dict[str, object]) -> None:
    with pytest.raises(TableError, match="E_LIMITS"):
        encode(dataclasses.replace(SMALL, **field))  # type: ignore[arg-type]


def test_nothing_a_host_would_refuse_is_encoded() -> None:
    leaves = SMALL.leaves.copy()
    leaves["levels"][-1, 0] = 1
    with pytest.raises(TableError, match="E_DEFAULT_UNSAFE"):
        encode(dataclasses.replace(SMALL, leaves=leaves))
    with pytest.raises(TableError, match="E_VALIDITY"):
        encode(dataclasses.replace(SMALL, not_before_s=9, not_after_s=8))


def test_a_constant_table_needs_no_nodes() -> None:
    table = table_from_tree([-1], [-1], [0], [0], [[0] * N_HEADS])
    again = decode(encode(table))
    assert (again.n_rules, len(again.nodes), again.root, len(encode(table))) == (
        1, 0, LEAF_BIT, 248,
    )  # fmt: skip


def test_sibling_leaves_that_decide_alike_become_one() -> None:
    levels = np.zeros((5, N_HEADS), dtype=int)
    levels[[1, 3, 4]] = [0, 2, 0, 0, 0, 0, 0]
    table = table_from_tree(
        [1, -1, 3, -1, -1], [2, -1, 4, -1, -1], [6, 0, 0, 0, 0], [5, 0, 9, 0, 0], levels,
        support=[0, 3, 0, 4, 5],
    )  # fmt: skip
    assert (table.n_rules, len(table.nodes), table.support) == (1, 0, (12,))
    assert table.levels[0].tolist() == [0, 2, 0, 0, 0, 0, 0]


def test_branches_that_no_vector_can_take_are_left_out() -> None:
    levels = np.zeros((7, N_HEADS), dtype=int)
    levels[:, 1] = [0, 0, 0, 1, 2, 3, 4]
    table = table_from_tree(
        [1, 3, 5, -1, -1, -1, -1], [2, 4, 6, -1, -1, -1, -1],
        [6, 6, 6, 0, 0, 0, 0], [100, 200, 65536, 0, 0, 0, 0], levels,
    )  # fmt: skip
    assert table.levels[:-1, 1].tolist() == [1, 3]
    low, high = leaf_boxes(table)
    assert low.ravel().tolist() == [0, 101] and high.ravel().tolist() == [100, 65536]


def test_fractional_thresholds_are_rounded_down() -> None:
    levels = np.zeros((3, N_HEADS), dtype=int)
    levels[2, 1] = 1
    for given_threshold, kept in ((7.5, 7), (-7.5, -8), (7.0, 7)):
        table = table_from_tree(
            [1, -1, -1], [2, -1, -1], [F.GROWTH, -2, -2], [given_threshold, -2.0, -2.0], levels
        )
        assert table.nodes["threshold"].tolist() == [kept]


def test_columns_of_the_tree_are_mapped_to_the_contracts() -> None:
    levels = np.zeros((3, N_HEADS), dtype=int)
    levels[2, 1] = 1
    table = table_from_tree(
        [1, -1, -1], [2, -1, -1], [1, 0, 0], [5, 0, 0], levels, columns=[F.GROWTH, F.HOST_UTIL]
    )
    assert [ref.column for ref in table.features] == [F.HOST_UTIL]
    assert table.features == (FeatureRef.of(F.HOST_UTIL),)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("E_COUNT", {"feature": [6]}),
        ("E_COUNT", {"leaf_levels": [[0] * 6] * 3}),
        ("E_COUNT", {"children_left": []}),
        ("E_LEVEL", {"leaf_levels": [[0] * 7, [300] + [0] * 6, [0] * 7]}),
        ("E_LEVEL", {"leaf_levels": [[0] * 7, [-1] + [0] * 6, [0] * 7]}),
        ("E_FEATIDX", {"feature": [64, 0, 0]}),
        ("E_FEATURE", {"columns": [99] * 64}),
        ("E_THRESHOLD", {"threshold_fixed": [math.nan, 0, 0]}),
        ("E_NODEREF", {"children_left": [0, -1, -1]}),
        ("E_NODEREF", {"children_right": [3, -1, -1]}),
        ("E_NODEREF", {"children_right": [1, -1, -1]}),
        ("E_TTL", {"lease_ticks": 0}),
        ("E_FEATURE", {"max_age_ms": 0}),
    ],
)
def test_a_malformed_tree_is_refused(code: str, changes: dict[str, object]) -> None:
    levels = np.zeros((3, N_HEADS), dtype=int)
    levels[2, 1] = 1
    tree: dict[str, object] = {
        "children_left": [1, -1, -1], "children_right": [2, -1, -1], "feature": [6, 0, 0],
        "threshold_fixed": [5, 0, 0], "leaf_levels": levels,
    }  # fmt: skip
    table_from_tree(**tree)  # type: ignore[arg-type]
    with pytest.raises(TableError) as caught:
        table_from_tree(**{**tree, **changes})  # type: ignore[arg-type]
    assert caught.value.code == code


def test_a_tree_with_too_many_rules_is_refused() -> None:
    with pytest.raises(TableError, match="E_LIMITS"):
        random_table(np.random.default_rng(3), 400)


def test_a_written_table_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "policy.mrt"
    write_table(path, SMALL)
    assert path.read_bytes() == DATA
    assert encode(read_table(path)) == DATA
    assert os.listdir(tmp_path) == ["policy.mrt"]


def test_a_failed_write_leaves_the_old_table_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.mrt"
    write_table(path, SMALL)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TableError, match=r"E_WRITE: .*policy\.mrt: No space left on device"):
        write_table(path, dataclasses.replace(SMALL, version=8))
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["policy.mrt"]


def test_refusals_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.mrt"
    with pytest.raises(TableError, match=r"^E_READ: .*policy\.mrt: No such file"):
        read_table(path)
    path.write_bytes(DATA[:-1])
    with pytest.raises(TableError, match=r"^E_LENGTH: .*policy\.mrt: 431 bytes, the header says"):
        read_table(path)
    with pytest.raises(TableError, match="E_READ"):
        read_table(tmp_path)


def test_an_endless_file_is_refused_after_its_first_bytes() -> None:
    with pytest.raises(TableError, match="E_SIZE"):
        read_table("/dev/zero")


def test_an_unsigned_table_is_refused_where_a_key_is_given() -> None:
    assert refused(DATA, public_key=bytes(32)) == "E_SIGNATURE"


def test_a_missing_signature_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for name in [n for n in sys.modules if n.startswith("cryptography.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"memcg-gym\[host\]"):
        sign(SMALL, bytes(32))


class TestSignatures:
    @pytest.fixture
    def keys(self) -> tuple[bytes, bytes]:
        ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
        private = bytes(range(32))
        public = ed25519.Ed25519PrivateKey.from_private_bytes(private).public_key()
        return private, public.public_bytes_raw()

    def test_a_signed_table_is_verified_by_its_key(self, keys: tuple[bytes, bytes]) -> None:
        private, public = keys
        data = encode(sign(SMALL, private))
        table = decode(data, public_key=public)
        assert table.signed and table.verified and table.key_id == key_id(public)
        assert not decode(data).verified
        assert encode(table) == data

    def test_every_bit_flip_of_a_signed_table_is_refused(self, keys: tuple[bytes, bytes]) -> None:
        private, public = keys
        data = encode(sign(SMALL, private))
        for position in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[position // 8] ^= 1 << position % 8
            refused(bytes(flipped), public_key=public)

    def test_a_resealed_signed_table_is_refused(self, keys: tuple[bytes, bytes]) -> None:
        private, public = keys
        forged = changed(LEAVES_AT, "B", 4, encode(sign(SMALL, private)))
        assert refused(forged, public_key=public) == "E_SIGNATURE"
        assert decode(forged).signed

    def test_another_key_is_refused(self, keys: tuple[bytes, bytes]) -> None:
        data = encode(sign(SMALL, keys[0]))
        assert refused(data, public_key=bytes(32)) == "E_SIGNATURE"
        renamed = changed(104, "Q", int.from_bytes(key_id(b"?" * 31), "little"), data)
        with pytest.raises(ConfigError, match="32 bytes are needed, got 31"):
            decode(renamed, public_key=b"?" * 31)

    def test_a_signature_stays_with_the_table_it_was_made_for(
        self, keys: tuple[bytes, bytes]
    ) -> None:
        private, public = keys
        moved = dataclasses.replace(sign(SMALL, private), version=8)
        assert refused(pack(moved), public_key=public) == "E_SIGNATURE"


def test_nodes_and_leaves_are_packed_little_endian() -> None:
    assert struct.unpack_from("<iHHHH", DATA, NODES_AT) == tuple(SMALL.nodes[0].tolist())
    last_rule = struct.unpack_from("<7BBHH", DATA, LEAVES_AT + 5 * 12)
    assert last_rule == (*SMALL.levels[5].tolist(), 0, 6, 5)


def test_a_decoded_table_cannot_be_changed() -> None:
    table: Table = decode(DATA)
    with pytest.raises(ValueError, match="read-only"):
        table.leaves["levels"][0, 0] = 1


def test_the_sample_exercises_what_it_should() -> None:
    names = [FEATURES[ref.column].name for ref in SMALL.features]
    assert names == ["usage_ratio", "growth", "psi_mem_some", "host_util"]
    assert SMALL.n_rules == 6 and SMALL.support == (103, 109, 110, 105, 107, 108)
