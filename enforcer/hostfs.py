"""What all cgroups of a host share: ``/proc``, pressure and the NUMA nodes, as signals.

Also where a host's files are (:class:`Roots`) and which of its nodes are fast.  An absent file
gives NaN; it knows nothing of cgroups or policies.

Units: bytes, microseconds, pages of 4 KiB (counters of hosts with larger pages are scaled).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from memcg_gym.enforcer.kernel_text import (
    malformed,
    parse_flat,
    parse_meminfo,
    parse_pressure,
    read_text,
)
from memcg_gym.envs.contract.errors import CgroupError
from memcg_gym.envs.contract.signals import (
    HOST_SIGNALS,
    N_HOST_SIGNALS,
    PAGE_BYTES,
    HostSig,
    Sig,
    Signal,
)

HOST_PRESSURE_KEYS: tuple[tuple[str, tuple[tuple[str, str, HostSig], ...]], ...] = (
    (
        "memory",
        (
            ("some", "total", HostSig.PSI_MEM_SOME_US),
            ("full", "total", HostSig.PSI_MEM_FULL_US),
            ("some", "avg10", HostSig.PSI_MEM_SOME_AVG10),
            ("full", "avg10", HostSig.PSI_MEM_FULL_AVG10),
        ),
    ),
    (
        "io",
        (
            ("some", "total", HostSig.PSI_IO_SOME_US),
            ("full", "total", HostSig.PSI_IO_FULL_US),
        ),
    ),
    ("cpu", (("some", "total", HostSig.PSI_CPU_SOME_US),)),
)

MEMINFO_KEYS = (
    ("MemTotal", HostSig.TOTAL_BYTES),
    ("MemFree", HostSig.FREE_BYTES),
    ("MemAvailable", HostSig.AVAILABLE_BYTES),
    ("SwapTotal", HostSig.SWAP_TOTAL_BYTES),
    ("SwapFree", HostSig.SWAP_FREE_BYTES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the host's files are; tests point them at a tree of their own.

    Attributes:
        cgroup: The cgroup v2 mount.
        proc: ``/proc``.
        sys: ``/sys``.
        tags: Folder of tag files, or None.
        page_bytes: The host's page size.
        clock_ticks_per_s: USER_HZ, the unit of ``/proc/stat``.
    """

    cgroup: Path = Path("/sys/fs/cgroup")
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    tags: Path | None = None
    page_bytes: int = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE"))
    clock_ticks_per_s: int = field(default_factory=lambda: os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True, slots=True)
class Nodes:
    """The NUMA nodes of a host by tier; both empty where the host does not say."""

    fast: tuple[int, ...] = ()
    slow: tuple[int, ...] = ()


def find_nodes(roots: Roots, fast: Iterable[int] | None = None) -> Nodes:
    """Nodes with CPUs are fast, nodes without are slow (CXL, persistent memory).

    Args:
        roots: Where ``/sys`` is.
        fast: The fast nodes where the host's own view is wrong, e.g. two sockets of which one
            is used as far memory.

    Raises:
        CgroupError: ``fast`` names a node that does not exist.
    """
    folder = roots.sys / "devices/system/node"
    known = sorted(
        int(path.name[4:]) for path in folder.glob("node[0-9]*") if path.name[4:].isdecimal()
    )
    if fast is not None:
        chosen = tuple(sorted(set(fast)))
        absent = [node for node in chosen if node not in known]
        if absent:
            raise CgroupError(f"{folder}: no node {absent[0]}; this host has {known}")
    else:
        chosen = tuple(n for n in known if (read_text(f"{folder}/node{n}/cpulist") or "").strip())
    return Nodes(chosen, tuple(node for node in known if node not in chosen))


class HostReader:
    """Reads what all cgroups of a host share.

    Args:
        roots: Where the files are.
        nodes: The host's tiers, from :func:`find_nodes`.
        clock_us: Monotonic time [us].
    """

    def __init__(
        self,
        roots: Roots,
        nodes: Nodes,
        clock_us: Callable[[], float] = lambda: time.monotonic_ns() * 1e-3,
    ) -> None:
        """Open nothing; every read opens what it reads."""
        self.roots = roots
        self.nodes = nodes
        self.clock_us = clock_us
        self._scale = page_scale(HOST_SIGNALS, roots.page_bytes)

    def read(self) -> np.ndarray:
        """The host's signals now, shape ``(N_HOST_SIGNALS,)``; NaN where a file is absent.

        Raises:
            CgroupError: A file holds what the kernel would never write.
        """
        signals = np.full(N_HOST_SIGNALS, np.nan)
        signals[HostSig.UPTIME_US] = self.clock_us()
        vmstat = self._vmstat(signals)
        self._meminfo(signals, vmstat)
        self._tiers(signals)
        self._cpus(signals)
        for name, keys in HOST_PRESSURE_KEYS:
            fill_pressure(signals, f"{self.roots.proc}/pressure/{name}", keys)
        signals *= self._scale
        return signals

    def _vmstat(self, signals: np.ndarray) -> dict[str, int]:
        path = f"{self.roots.proc}/vmstat"
        text = read_text(path)
        table = {} if text is None else parse_flat(text, path)
        if "pswpout" in table:
            signals[HostSig.SWAPOUT_PAGES] = table["pswpout"]
        return table

    def _meminfo(self, signals: np.ndarray, vmstat: dict[str, int]) -> None:
        path = f"{self.roots.proc}/meminfo"
        text = read_text(path)
        if text is None:
            return
        info = parse_meminfo(text, path)
        if info.get("MemTotal", 1.0) <= 0.0:
            raise malformed(path, 1, "MemTotal: 0 kB", "a host with memory")
        for key, sig in MEMINFO_KEYS:
            if key in info:
                signals[sig] = info[key]
        if "Dirty" in info and "Writeback" in info:
            signals[HostSig.DIRTY_BYTES] = info["Dirty"] + info["Writeback"]
        if "Dirty" in info and "nr_dirty_background_threshold" in vmstat:
            allowed = vmstat["nr_dirty_background_threshold"] * float(self.roots.page_bytes)
            signals[HostSig.FLUSHER_BACKLOG_BYTES] = max(0.0, info["Dirty"] - allowed)

    def _tiers(self, signals: np.ndarray) -> None:
        tiers = (
            (self.nodes.fast, HostSig.FAST_TOTAL_BYTES, HostSig.FAST_FREE_BYTES),
            (self.nodes.slow, HostSig.SLOW_TOTAL_BYTES, HostSig.SLOW_FREE_BYTES),
        )
        if not self.nodes.fast:
            return
        for nodes, total_sig, free_sig in tiers:
            total_bytes = free_bytes = 0.0
            for node in nodes:
                path = f"{self.roots.sys}/devices/system/node/node{node}/meminfo"
                info = parse_meminfo(read_text(path) or "", path, prefix_words=2)
                total_bytes += info.get("MemTotal", math.nan)
                free_bytes += info.get("MemFree", math.nan)
            signals[total_sig] = total_bytes
            signals[free_sig] = free_bytes

    def _cpus(self, signals: np.ndarray) -> None:
        path = f"{self.roots.proc}/stat"
        text = read_text(path)
        if text is None:
            return
        lines = text.splitlines()
        words = lines[0].split() if lines else []
        if len(words) < 6 or words[0] != "cpu" or not all(w.isdecimal() for w in words[1:]):
            raise malformed(path, 1, lines[0] if lines else "", "'cpu user nice system idle ..'")
        idle_ticks = int(words[4]) + int(words[5])
        signals[HostSig.CPU_IDLE_US] = idle_ticks * (1e6 / self.roots.clock_ticks_per_s)
        signals[HostSig.CPUS] = sum(line[:3] == "cpu" and line[3:4].isdecimal() for line in lines)


def fill_pressure(
    signals: np.ndarray,
    path: str,
    keys: tuple[tuple[str, str, Sig], ...] | tuple[tuple[str, str, HostSig], ...],
) -> None:
    """Store the wanted numbers of one PSI file; none where the file is absent."""
    text = read_text(path)
    if text is None:
        return
    lines = parse_pressure(text, path)
    for line, key, sig in keys:
        if line in lines and key in lines[line]:
            signals[sig] = lines[line][key]


def page_scale(signals: Iterable[Signal], page_bytes: int) -> np.ndarray:
    """What counters in the host's pages are multiplied with to count pages of 4 KiB."""
    return np.array([page_bytes / PAGE_BYTES if s.unit == "pages" else 1.0 for s in signals])
