"""The text of kernel files, taken apart: flat-keyed, limits, PSI, per-node and meminfo formats.

Strict on purpose: text the kernel would never write is a :class:`CgroupError` that names the file,
the line and what was got, because a number read from the wrong place is worse than none.  It does
not know which number means what.

Units: bytes, percent and microseconds, as the kernel writes them.
"""

from __future__ import annotations

import errno
import math
import os

from memcg_gym.envs.contract.errors import CgroupError
from memcg_gym.envs.contract.signals import UNLIMITED_BYTES

READ_BYTES = 1 << 16
"""One read holds every file named here; a longer one is read on."""

ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP))
"""What stands for "this host does not offer it": EOPNOTSUPP is PSI compiled in and switched off,
EACCES and EPERM a file that a delegated host hides."""


class CgroupGoneError(CgroupError):
    """The cgroup was removed while it was being read or written."""


def read_text(path: str) -> str | None:
    """Text of a kernel file, or None where the kernel does not offer it.

    Raises:
        CgroupGoneError: The cgroup was removed while the file was open.
        CgroupError: Any other failure to read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise failure(path, error) from error
    try:
        parts = [os.read(fd, READ_BYTES)]
        while len(parts[-1]) > 0:
            parts.append(os.read(fd, READ_BYTES))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return None
        raise failure(path, error) from error
    finally:
        os.close(fd)
    return b"".join(parts).decode("ascii", errors="replace")


def parse_bytes(text: str, path: str) -> float:
    r"""A byte count, or ``UNLIMITED_BYTES`` for ``max``.

    Example:
        >>> parse_bytes("4096\n", "memory.high")
        4096.0
    """
    word = text.strip()
    if word == "max":
        return UNLIMITED_BYTES
    if not word.isdecimal():
        raise malformed(path, 1, text, "a number of bytes or 'max'")
    return min(float(word), UNLIMITED_BYTES)


def parse_flat(text: str, path: str) -> dict[str, int]:
    r"""A flat-keyed file such as memory.stat: ``key value`` lines.

    Example:
        >>> parse_flat("anon 8192\nfile 0\n", "memory.stat")
        {'anon': 8192, 'file': 0}
    """
    try:
        return {key: int(value) for key, value in map(str.split, text.splitlines())}
    except ValueError:
        raise first_bad_line(text, path) from None


def first_bad_line(text: str, path: str) -> CgroupError:
    """The error for the first line of a flat-keyed file that is not ``key number``."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) != 2 or not words[1].removeprefix("-").isdecimal():
            return malformed(path, number, line, "'key number'")
    return malformed(path, 1, text, "'key number'")


def parse_pressure(text: str, path: str) -> dict[str, dict[str, float]]:
    r"""A PSI file: averages in percent and ``total`` in microseconds, by line.

    Example:
        >>> parse_pressure("some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n", "memory.pressure")
        {'some': {'avg10': 1.5, 'avg60': 0.0, 'avg300': 0.0, 'total': 7.0}}
    """
    lines: dict[str, dict[str, float]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        kind, _, rest = line.partition(" ")
        try:
            pairs = {key: float(value) for key, value in (w.split("=") for w in rest.split())}
        except ValueError:
            pairs = {}
        good = kind in ("some", "full") and "total" in pairs
        if not good or not all(math.isfinite(v) and v >= 0.0 for v in pairs.values()):
            raise malformed(path, number, line, "'some|full avg10=.. avg60=.. avg300=.. total=..'")
        lines[kind] = pairs
    return lines


def parse_numa_stat(text: str, path: str) -> dict[str, dict[int, int]]:
    r"""memory.numa_stat: bytes by key and node.

    Example:
        >>> parse_numa_stat("anon N0=4096 N1=0\n", "memory.numa_stat")
        {'anon': {0: 4096, 1: 0}}
    """
    table: dict[str, dict[int, int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        # Only these two are used; the other forty keys would cost most of a tick to take apart.
        if not line.startswith(("anon ", "file ")):
            continue
        key, *words = line.split()
        try:
            nodes = {int(n[1:]): int(v) for n, v in (w.split("=") for w in words) if n[0] == "N"}
        except (ValueError, IndexError):
            nodes = {}
        if len(nodes) != len(words) or not nodes:
            raise malformed(path, number, line, "'key N0=bytes N1=bytes ..'")
        table[key] = nodes
    return table


def parse_meminfo(text: str, path: str, prefix_words: int = 0) -> dict[str, float]:
    r"""/proc/meminfo, or with ``prefix_words=2`` a node's: bytes by key.

    Example:
        >>> parse_meminfo("MemTotal:  8 kB\nHugePages_Total:  0\n", "meminfo")
        {'MemTotal': 8192.0, 'HugePages_Total': 0.0}
    """
    table: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()[prefix_words:]
        if len(words) not in (2, 3) or not words[1].isdecimal() or words[2:] not in ([], ["kB"]):
            raise malformed(path, number, line, "'Key: number kB'")
        table[words[0].removesuffix(":")] = float(words[1]) * (1024.0 if words[2:] else 1.0)
    return table


def parse_weight(text: str, path: str) -> int:
    """cpu.weight (``100``) or the default line of io.weight (``default 100``)."""
    words = text.split()
    word = words[1] if words[:1] == ["default"] and len(words) > 1 else "".join(words[:1])
    if not word.isdecimal():
        raise malformed(path, 1, text.splitlines()[0] if words else "", "a weight of 1..10000")
    return int(word)


def failure(path: str, error: OSError) -> CgroupError:
    """The error for a file that exists and cannot be read."""
    if error.errno == errno.ENODEV:
        return CgroupGoneError(f"{path}: the cgroup was removed")
    return CgroupError(f"{path}: cannot be read: {error.strerror}")


def malformed(path: str, line: int, got: str, wanted: str) -> CgroupError:
    """The error for text the kernel would never write."""
    return CgroupError(f"{path}:{line}: got {got.strip()[:80]!r}, expected {wanted}")
