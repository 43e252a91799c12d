"""BTF as the kernel writes it, made here: structures, nested ones, bit fields, other kinds."""

from __future__ import annotations

import struct

import pytest

from memcg_gym.enforcer.btf import HEADER, MAGIC, Btf
from memcg_gym.envs.contract.errors import CgroupError

INT, POINTER, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, FUNC_PROTO = 1, 2, 3, 4, 5, 6, 8, 10, 13
VAR, DATASEC, DECL_TAG, ENUM64 = 14, 15, 17, 19


class Blob:
    """A BTF file in the making; type numbers count from 1."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"

    def text(self, name: str) -> int:
        at = len(self.strings) if name else 0
        self.strings += name.encode() + b"\0" if name else b""
        return at

    def add(
        self, kind: int, name: str, vlen: int, extra: bytes, *, of: int = 0, flag: int = 0
    ) -> None:
        self.types += struct.pack("III", self.text(name), flag << 31 | kind << 24 | vlen, of)
        self.types += extra

    def struct(
        self, name: str, *members: tuple[str, int, int], kind: int = STRUCT, flag: int = 0
    ) -> None:
        extra = b"".join(struct.pack("III", self.text(n), of, bits) for n, of, bits in members)
        self.add(kind, name, len(members), extra, of=8, flag=flag)

    def data(self, *, magic: int = MAGIC) -> bytes:
        sizes = 0, len(self.types), len(self.types), len(self.strings)
        return HEADER.pack(magic, 1, 0, HEADER.size, *sizes) + self.types + self.strings


def kernel() -> Blob:
    blob = Blob()
    blob.add(INT, "int", 0, b"\0" * 4)  # 1
    blob.add(ARRAY, "", 0, b"\0" * 12)  # 2
    blob.add(ENUM, "colour", 2, b"\0" * 16)  # 3
    blob.add(FUNC_PROTO, "", 3, b"\0" * 24)  # 4
    blob.add(VAR, "jiffies", 0, b"\0" * 4)  # 5
    blob.add(DATASEC, ".data", 1, b"\0" * 12)  # 6
    blob.add(DECL_TAG, "tag", 0, b"\0" * 4)  # 7
    blob.add(ENUM64, "wide", 1, b"\0" * 12)  # 8
    blob.struct("mutex", ("owner", 1, 0), ("wait_lock", 1, 64))  # 9
    blob.struct("", ("inner", 1, 32), ("pid", 1, 64), kind=UNION)  # 10
    blob.add(CONST, "", 0, b"", of=10)  # 11
    blob.struct("task_struct", ("state", 1, 0), ("", 11, 320), ("tgid", 1, 448))  # 12
    blob.struct("flags", ("low", 1, 3 << 24 | 5), ("high", 1, 8 << 24 | 16), flag=1)  # 13
    blob.struct("mutex_waiter", ("owner", 1, 512))  # 14
    return blob


def test_members_lie_where_the_file_says() -> None:
    found = Btf(kernel().data(), "btf").offsets([("mutex", "owner"), ("mutex", "wait_lock")])
    assert found == {("mutex", "owner"): 0, ("mutex", "wait_lock"): 8}


def test_members_of_an_unnamed_structure_within_count_from_the_outer_one() -> None:
    found = Btf(kernel().data(), "btf").offsets([("task_struct", "pid"), ("task_struct", "tgid")])
    assert found == {("task_struct", "pid"): 40 + 8, ("task_struct", "tgid"): 56}


def test_a_bit_field_s_size_is_no_part_of_its_place() -> None:
    assert Btf(kernel().data(), "btf").offsets([("flags", "high")]) == {("flags", "high"): 2}


def test_a_name_that_only_begins_alike_is_another_structure() -> None:
    assert Btf(kernel().data(), "btf").offsets([("mutex_waiter", "owner")]) == {
        ("mutex_waiter", "owner"): 64
    }


def test_what_does_not_exist_is_left_out() -> None:
    assert Btf(kernel().data(), "btf").offsets([("mutex", "pid"), ("spinlock", "owner")]) == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "got 0 bytes, expected BTF"),
        (kernel().data(magic=0x9FEB), "magic 0x9feb"),
        (kernel().data()[:-40], "cut short"),
    ],
)
def test_what_is_no_btf_is_refused_with_its_name(data: bytes, said: str) -> None:
    with pytest.raises(CgroupError, match=f"vmlinux: .*{said}"):
        Btf(data, "vmlinux")


def test_a_kind_that_is_not_known_is_refused_for_what_follows_it_cannot_be_found() -> None:
    blob = kernel()
    blob.add(25, "new", 0, b"")
    with pytest.raises(CgroupError, match="kind 25"):
        Btf(blob.data(), "btf").offsets([("mutex", "owner")])
