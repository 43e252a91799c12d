"""Where a member lies in a structure of the running kernel, from ``/sys/kernel/btf/vmlinux``.

BTF (Documentation/bpf/btf.rst) is the kernel's own description of its types, made for BPF and
readable without it.  This reads just enough of it: named structures, the offsets of their members,
and of those of unnamed structures within.  It knows nothing of what the members are for.

Units: bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from memcg_gym.envs.contract.errors import CgroupError

MAGIC = 0xEB9F
HEADER = struct.Struct("HBBIIIII")  # magic, version, flags, header bytes, (at, bytes) twice
WORDS = struct.Struct("III")  # of a type: name, info, size or type; of a member: name, type, bits

# Kinds, and how many bytes follow a type: once, or for each of its vlen entries.
STRUCT, UNION = 4, 5
QUALIFIERS = frozenset((8, 9, 10, 11, 18))  # typedef, volatile, const, restrict, type tag
EXTRA_BYTES = MappingProxyType({1: 4, 3: 12, 14: 4, 17: 4})  # int, array, var, decl tag
ENTRY_BYTES = MappingProxyType({STRUCT: 12, UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12})
KNOWN_KINDS = 20
"""With a kind beyond these the length of what follows it is not known either."""

MAX_DEPTH = 8


class Btf:
    """The types of one kernel.

    Args:
        data: What the file holds.
        origin: Its name, for messages.

    Raises:
        CgroupError: It is no BTF of this byte order, of another version, or cut short.
    """

    def __init__(self, data: bytes, origin: str) -> None:
        self.data = data
        self.origin = origin
        if len(data) < HEADER.size:
            raise CgroupError(f"{origin}: got {len(data)} bytes, expected BTF")
        magic, version, _, head, types, n_types, strings, n_strings = HEADER.unpack_from(data)
        if magic != MAGIC or version != 1:
            raise CgroupError(f"{origin}: got magic {magic:#x} version {version}, expected BTF 1")
        self._types = head + types, head + types + n_types
        self._strings = head + strings
        if max(self._types[1], self._strings + n_strings) > len(data):
            raise CgroupError(f"{origin}: got {len(data)} bytes, cut short")

    def offsets(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Byte offset of members of structures.

        Args:
            wanted: ``(structure, member)``; what does not exist is left out.

        Raises:
            CgroupError: A type of a kind that is not known.
        """
        pairs = tuple(wanted)
        places = list(self._walk())
        found: dict[tuple[str, str], int] = {}
        for at in places:
            _, info, _ = WORDS.unpack_from(self.data, at)
            if kind_of(info) != STRUCT:
                continue
            for pair in pairs:
                if pair not in found and self._is_named(at, pair[0]):
                    offset = self._members(at, places).get(pair[1])
                    if offset is not None:
                        found[pair] = offset
        return found

    def _walk(self) -> Iterator[int]:
        """Where each type begins, from number 1 on."""
        at, end = self._types
        while at < end:
            yield at
            _, info, _ = WORDS.unpack_from(self.data, at)
            kind = kind_of(info)
            if not 0 < kind < KNOWN_KINDS:
                raise CgroupError(f"{self.origin}: a type of kind {kind}, which is not known")
            at += WORDS.size + EXTRA_BYTES.get(kind, 0)
            at += ENTRY_BYTES.get(kind, 0) * (info & 0xFFFF)

    def _members(self, at: int, places: list[int], depth: int = 0) -> Mapping[str, int]:
        """Offset by name, those of unnamed structures within included."""
        _, info, _ = WORDS.unpack_from(self.data, at)
        packed = info >> 31  # the upper 8 bits are then a bit field's size
        out: dict[str, int] = {}
        for member in range(info & 0xFFFF):
            name, of, bits = WORDS.unpack_from(self.data, at + WORDS.size * (member + 1))
            offset = (bits & 0xFFFFFF if packed else bits) // 8
            if self.data[self._strings + name]:
                out.setdefault(self._text(name), offset)
            elif depth < MAX_DEPTH:
                inner = self._unqualified(of, places)
                if inner is not None:
                    within = self._members(inner, places, depth + 1)
                    out |= {key: offset + more for key, more in within.items() if key not in out}
        return out

    def _unqualified(self, number: int, places: list[int]) -> int | None:
        """Where the structure or union begins that a type is, if it is one."""
        for _ in range(MAX_DEPTH):
            if not 0 < number <= len(places):
                return None
            at = places[number - 1]
            _, info, of = WORDS.unpack_from(self.data, at)
            if kind_of(info) in (STRUCT, UNION):
                return at
            if kind_of(info) not in QUALIFIERS:
                return None
            number = of
        return None

    def _is_named(self, at: int, name: str) -> bool:
        begin = self._strings + WORDS.unpack_from(self.data, at)[0]
        return self.data.startswith(name.encode() + b"\0", begin)

    def _text(self, name: int) -> str:
        begin = self._strings + name
        return self.data[begin : self.data.index(b"\0", begin)].decode("utf-8", "replace")


def kind_of(info: int) -> int:
    """What a type is, from its second word."""
    return info >> 24 & 0x1F
