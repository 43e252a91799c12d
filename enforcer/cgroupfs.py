"""From a cgroup v2 tree to signals: what a host's files say, once a tick.

Reads ``memory.*`` and ``{cpu,io,memory}.pressure`` of one cgroup into the contract's signal
vector.  It knows nothing of features or policies.  An absent file gives NaN; a file whose text the
kernel would never write is a :class:`CgroupError`; a cgroup that went away is a
:class:`CgroupGoneError`.

Working sets come from the multi-gen LRU (``enforcer/lru_gen.py``), and who holds locks from tracefs
where that is traced (``enforcer/tracefs.py``).  Sharing and load signals have no kernel file.
Whoever can measure them, or one of those better, tells them through *tag files*:
``TAGS/<cgroup>/<signal>`` holds one number and is rewritten every ten seconds or less.

Units: bytes, microseconds, pages of 4 KiB (counters of hosts with larger pages are scaled).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from memcg_gym.enforcer.hostfs import Nodes, Roots, fill_pressure, page_scale
from memcg_gym.enforcer.kernel_text import (
    CgroupGoneError,
    malformed,
    parse_bytes,
    parse_flat,
    parse_numa_stat,
    parse_weight,
    read_text,
)
from memcg_gym.enforcer.lru_gen import LruGenFile, LruTable, subtree, working_set
from memcg_gym.enforcer.tracefs import LockTracer
from memcg_gym.envs.contract.errors import CgroupError, did_you_mean
from memcg_gym.envs.contract.signals import (
    MEMCG_SIGNALS,
    N_MEMCG_SIGNALS,
    Sig,
)

TAG_MAX_AGE_S = 10.0
"""A tag file older than this says nothing (assumption: ten ticks; a teller that hangs must not
keep a working set or a lock alive)."""

LIMIT_FILES = MappingProxyType(
    {
        "memory.min": Sig.OWNER_MIN_BYTES,
        "memory.low": Sig.OWNER_LOW_BYTES,
        "memory.high": Sig.OWNER_HIGH_BYTES,
        "memory.max": Sig.OWNER_MAX_BYTES,
        "memory.swap.max": Sig.OWNER_SWAP_MAX_BYTES,
    }
)
"""Files that hold a byte count or ``max``, with the signal of the owner's value."""

SETTING_FILES = (*LIMIT_FILES, "cpu.weight", "io.weight", "memory.oom.group")
"""Every file the enforcer may change and must be able to give back."""

SIZE_FILES = (
    ("memory.current", Sig.USAGE_BYTES),
    ("memory.swap.current", Sig.SWAP_BYTES),
    ("memory.zswap.current", Sig.ZSWAP_BYTES),
)

# The keys of memory.stat a signal is the sum of.  A kernel that has some of them gives their sum.
# Kernels before 5.9 have workingset_refault without _anon and _file: that counts as missing,
# because the two cannot be told apart.
STAT_KEYS: tuple[tuple[Sig, tuple[str, ...]], ...] = (
    (Sig.ANON_BYTES, ("anon",)),
    (Sig.FILE_BYTES, ("file",)),
    (Sig.SHMEM_BYTES, ("shmem",)),
    (Sig.DIRTY_BYTES, ("file_dirty",)),
    (Sig.WRITEBACK_BYTES, ("file_writeback",)),
    (Sig.UNRECLAIMABLE_BYTES, ("unevictable", "slab_unreclaimable")),
    (Sig.REFAULT_ANON, ("workingset_refault_anon",)),
    (Sig.REFAULT_FILE, ("workingset_refault_file",)),
    (Sig.ACTIVATE, ("workingset_activate_anon", "workingset_activate_file")),
    (Sig.RESTORE, ("workingset_restore_anon", "workingset_restore_file")),
    (Sig.PGSCAN_DIRECT, ("pgscan_direct",)),
    (Sig.PGSTEAL_DIRECT, ("pgsteal_direct",)),
    (Sig.PGSCAN_KSWAPD, ("pgscan_kswapd",)),
    (Sig.PGSTEAL_KSWAPD, ("pgsteal_kswapd",)),
    (Sig.PGSCAN_PROACTIVE, ("pgscan_proactive",)),
    (Sig.PGSTEAL_PROACTIVE, ("pgsteal_proactive",)),
    (
        Sig.PGDEMOTE,
        ("pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged", "pgdemote_proactive"),
    ),
    (Sig.PGPROMOTE, ("pgpromote_success",)),
    (Sig.PGMAJFAULT, ("pgmajfault",)),
    (Sig.PGFAULT, ("pgfault",)),
    (Sig.CHARGE_PAGES, ("pgfault",)),
    (Sig.SWAPOUT_PAGES, ("pswpout",)),
)

EVENT_KEYS = (
    (Sig.EVENTS_LOW, "low"),
    (Sig.EVENTS_HIGH, "high"),
    (Sig.EVENTS_MAX, "max"),
    (Sig.EVENTS_OOM_KILL, "oom_kill"),
)

# file -> (line, key, signal)
PRESSURE_KEYS: tuple[tuple[str, tuple[tuple[str, str, Sig], ...]], ...] = (
    (
        "memory.pressure",
        (
            ("some", "total", Sig.PSI_MEM_SOME_US),
            ("full", "total", Sig.PSI_MEM_FULL_US),
            ("some", "avg10", Sig.PSI_MEM_SOME_AVG10),
            ("some", "avg60", Sig.PSI_MEM_SOME_AVG60),
        ),
    ),
    (
        "io.pressure",
        (
            ("some", "total", Sig.PSI_IO_SOME_US),
            ("full", "total", Sig.PSI_IO_FULL_US),
            ("some", "avg10", Sig.PSI_IO_SOME_AVG10),
            ("some", "avg60", Sig.PSI_IO_SOME_AVG60),
        ),
    ),
    ("cpu.pressure", (("some", "total", Sig.PSI_CPU_SOME_US),)),
)

TAG_SIGNALS: tuple[Sig, ...] = (
    Sig.COLD_FAST_BYTES,
    Sig.HOT_SLOW_BYTES,
    Sig.WSS_BYTES,
    Sig.WSS_CONFIDENCE,
    Sig.LOCK_KERNEL_HELD_US,
    Sig.LOCK_USER_HELD_US,
    Sig.LOCK_WAITERS,
    Sig.LOCK_WAIT_US,
    Sig.CRITICAL_CHARGE_PAGES,
    Sig.SHARED_BYTES,
    Sig.SHARERS,
    Sig.LOAD_RATIO,
    Sig.SLACK_RATIO,
    Sig.SLACK_VALID,
    Sig.SHED_HONOURED_RATIO,
)
"""Signals that a tag file may tell; all others are read from the kernel or from configuration."""

WORKING_SET_SIGNALS = (
    Sig.WSS_BYTES,
    Sig.WSS_CONFIDENCE,
    Sig.COLD_FAST_BYTES,
    Sig.HOT_SLOW_BYTES,
)
"""Those that generations tell, in the order of ``WorkingSet``; a tag wins over them."""

TAG_NAMES = MappingProxyType({sig.name.lower(): sig for sig in TAG_SIGNALS})


@dataclass(slots=True)
class Reading:
    """One cgroup at one moment.

    Attributes:
        signals: Shape ``(N_MEMCG_SIGNALS,)``; NaN where the host does not say.  The owner's values
            are those in the files now; who manages the cgroup puts the true ones in.
        settings: Text of every file in ``SETTING_FILES`` that exists, without the newline.
        working_set: Who says ``WSS_BYTES``: ``tag``, ``lru_gen``, or ``""`` where nobody does.
    """

    signals: np.ndarray
    settings: dict[str, str]
    working_set: str = ""


class CgroupReader:
    """Reads one cgroup.

    Args:
        roots: Where the files are.
        path: The cgroup's folder.
        nodes: The host's tiers.
        wall_s: Wall clock that file times are compared with [s].
    """

    def __init__(
        self, roots: Roots, path: Path, nodes: Nodes, wall_s: Callable[[], float] = time.time
    ) -> None:
        """Open nothing; every read opens what it reads."""
        self.path = path
        self.name = cgroup_name(roots, path)
        self.nodes = nodes
        self.wall_s = wall_s
        self.tags = None if roots.tags is None else roots.tags / self.name
        self.page_bytes = roots.page_bytes
        self._lru_file = LruGenFile(roots)
        self._scale = page_scale(MEMCG_SIGNALS, roots.page_bytes)

    def read(self, generations: LruTable | None = None, locks: LockTracer | None = None) -> Reading:
        """The cgroup's signals and settings now.

        Args:
            generations: Of all cgroups of the host, read once for all that are read now; None =
                read them here.
            locks: What was traced of this tick's locks; it wins over tags.  None = not traced.

        Raises:
            CgroupGoneError: It was removed.
            CgroupError: A file holds what the kernel would never write.
        """
        if not self.path.is_dir():
            raise CgroupGoneError(f"{self.path}: the cgroup was removed")
        signals = np.full(N_MEMCG_SIGNALS, np.nan)
        for file, sig in SIZE_FILES:
            path = f"{self.path}/{file}"
            text = read_text(path)
            if text is not None:
                signals[sig] = parse_bytes(text, path)
        self._stat(signals)
        self._events(signals)
        self._numa(signals)
        for file, keys in PRESSURE_KEYS:
            fill_pressure(signals, f"{self.path}/{file}", keys)
        settings = self._settings(signals)
        signals *= self._scale
        self._generations(signals, self._lru_file.read() if generations is None else generations)
        # Tags are told in the contract's own units, so they are not scaled; they win.
        told = self._tags(signals)
        if Sig.WSS_BYTES in told and Sig.WSS_CONFIDENCE not in told:
            signals[Sig.WSS_CONFIDENCE] = math.nan  # that of another estimate
        if locks is not None:
            locks.fill(self.name, signals)
        if not self.path.is_dir():
            raise CgroupGoneError(f"{self.path}: the cgroup was removed")
        silent = math.isnan(signals[Sig.WSS_BYTES])
        source = "tag" if Sig.WSS_BYTES in told else "" if silent else "lru_gen"
        return Reading(signals, settings, source)

    def _generations(self, signals: np.ndarray, table: LruTable) -> None:
        signals[list(WORKING_SET_SIGNALS)] = working_set(
            subtree(table, self.name), self.nodes, self.page_bytes
        )

    def _stat(self, signals: np.ndarray) -> None:
        path = f"{self.path}/memory.stat"
        text = read_text(path)
        if text is None:
            return
        stat = parse_flat(text, path)
        for sig, keys in STAT_KEYS:
            found = [stat[key] for key in keys if key in stat]
            if found:
                signals[sig] = sum(found)

    def _events(self, signals: np.ndarray) -> None:
        path = f"{self.path}/memory.events"
        text = read_text(path)
        if text is None:
            return
        events = parse_flat(text, path)
        for sig, key in EVENT_KEYS:
            if key in events:
                signals[sig] = events[key]

    def _numa(self, signals: np.ndarray) -> None:
        path = f"{self.path}/memory.numa_stat"
        text = read_text(path) if self.nodes.fast else None
        if text is None:
            return
        table = parse_numa_stat(text, path)
        if {"anon", "file"} <= table.keys():
            rows = (table["anon"], table["file"])
            signals[Sig.FAST_BYTES] = sum(r.get(n, 0) for r in rows for n in self.nodes.fast)
            signals[Sig.SLOW_BYTES] = sum(r.get(n, 0) for r in rows for n in self.nodes.slow)

    def read_setting(self, file: str) -> str | None:
        """Text of one of ``SETTING_FILES`` as a write would put it; None where it is absent.

        Raises:
            CgroupError: It holds what the kernel would never write.
        """
        path = f"{self.path}/{file}"
        text = read_text(path)
        if text is None:
            return None
        if file in LIMIT_FILES:
            parse_bytes(text, path)
            return text.strip()
        weight = parse_weight(text, path)
        # In io.weight lines per device follow the default; only the default is ever written.
        return f"default {weight}" if file == "io.weight" else str(weight)

    def _settings(self, signals: np.ndarray) -> dict[str, str]:
        settings: dict[str, str] = {}
        for file in SETTING_FILES:
            text = self.read_setting(file)
            if text is None:
                continue
            settings[file] = text
            if file in LIMIT_FILES:
                signals[LIMIT_FILES[file]] = parse_bytes(text, file)
        signals[Sig.LOW_BYTES] = signals[Sig.OWNER_LOW_BYTES]
        signals[Sig.HIGH_BYTES] = signals[Sig.OWNER_HIGH_BYTES]
        return settings

    def _tags(self, signals: np.ndarray) -> set[Sig]:
        """Put in what the tag files tell; gives whose they were."""
        told: set[Sig] = set()
        if self.tags is None:
            return told
        try:
            entries = [entry for entry in os.scandir(self.tags) if entry.is_file()]
        except FileNotFoundError:
            return told
        oldest_s = self.wall_s() - TAG_MAX_AGE_S
        for entry in entries:
            sig = TAG_NAMES.get(entry.name)
            # A name with a dot is a temporary file on its way to being renamed.
            if sig is None and "." not in entry.name:
                raise CgroupError(
                    f"{entry.path}: no tag is called {entry.name!r}"
                    f"{did_you_mean(entry.name, TAG_NAMES)}"
                )
            if sig is not None and _mtime_s(entry) >= oldest_s:
                text = read_text(entry.path)
                if text is not None:
                    signals[sig] = parse_tag(text, entry.path, sig)
                    told.add(sig)
        return told


def parse_tag(text: str, path: str, sig: Sig) -> float:
    """The number a tag file tells; finite, and negative only for a slack that is missed."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (value < 0.0 and sig is not Sig.SLACK_RATIO):
        raise malformed(path, 1, text, "one finite number, not below 0")
    return value


def cgroup_name(roots: Roots, path: Path) -> str:
    """A cgroup's path below the mount, ``"."`` for the root cgroup."""
    return path.relative_to(roots.cgroup).as_posix()


def _mtime_s(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return -math.inf
