"""One cgroup under management: what is ours in its files, what is its owner's, and what was done.

Whoever sets a file while we manage it is its owner from then on: his text becomes the value that
level 0 means and that is given back.  Nothing here decides anything.

Units: bytes, ticks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memcg_gym.enforcer.cgroupfs import LIMIT_FILES, CgroupReader, Reading, cgroup_name
from memcg_gym.enforcer.features import N_AVERAGES, Guard
from memcg_gym.enforcer.hostfs import Nodes, Roots
from memcg_gym.enforcer.journal import Owned
from memcg_gym.enforcer.kernel_text import parse_bytes, read_text
from memcg_gym.enforcer.shield import reset_guard
from memcg_gym.enforcer.writer import WRITTEN, CgroupWriter, Write, high_step, limit_text
from memcg_gym.envs.contract.errors import CgroupError
from memcg_gym.envs.contract.heads import HEADS, N_HEADS
from memcg_gym.envs.contract.shield_rules import Shielded

LOG = logging.getLogger("memcg_gym.enforcer")


@dataclass(slots=True)
class Record:
    """What one tick did about one cgroup.

    Attributes:
        tick: Number of the tick, from 1.
        cgroup: Path below the mount.
        state: ``managed``; ``warming`` (no tick to compare with yet), ``skipped`` (unusable
            reading) and ``gone``: nothing was decided; ``undecided``: the decision failed.
        rule_id: Of the table; 0 = the default leaf.
        lease_ticks: Ticks until the levels end unless renewed.
        requested: Levels asked for.
        accepted: Levels the shield let through.
        shield: Why they differ.
        writes: What was, or in dry-run would be, written.
        note: What went wrong, or ``""``.
        reclaim: Outcome of the last background reclaim request.
    """

    tick: int
    cgroup: str
    state: str
    rule_id: int = 0
    lease_ticks: int = 0
    requested: tuple[int, ...] = (0,) * N_HEADS
    accepted: tuple[int, ...] = (0,) * N_HEADS
    shield: Shielded = Shielded(0)  # noqa: RUF009 (an immutable flag)
    writes: list[Write] = field(default_factory=list)
    note: str = ""
    reclaim: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as one line of ``--json`` holds it."""
        names = [head.name for head in HEADS]
        return {
            "tick": self.tick,
            "cgroup": self.cgroup,
            "state": self.state,
            "rule_id": self.rule_id,
            "lease_ticks": self.lease_ticks,
            "requested": dict(zip(names, self.requested, strict=True)),
            "accepted": dict(zip(names, self.accepted, strict=True)),
            "shield": shield_names(self.shield),
            "writes": [{"file": w.file, "text": w.text, "result": w.result} for w in self.writes],
            "reclaim": self.reclaim,
            "note": self.note,
        }


def shield_names(mask: Shielded) -> list[str]:
    """The reasons in a mask, lower case."""
    return [str(flag.name).lower() for flag in Shielded if flag in mask]


class Managed:
    """One cgroup under management: its reader, its owner's values, the shield's state of it.

    Attributes:
        owner: Text by file of what its owner had configured.
        wrote: Text by file of what is ours now.
        before: Signals of the last tick.
        unsupported: Reason by head, as last reported; None = nothing was reported yet.
    """

    def __init__(self, path: Path, inode: int, roots: Roots, nodes: Nodes) -> None:
        """Nothing read yet, nothing in force."""
        self.path = path
        self.inode = inode
        self.name = cgroup_name(roots, path)
        self.reader = CgroupReader(roots, path, nodes)
        self.writer = CgroupWriter(path, roots.page_bytes)
        self.owner: dict[str, str] = {}
        self.wrote: dict[str, str] = {}
        self.before: np.ndarray | None = None
        self.averages = np.zeros(N_AVERAGES)
        self.guard = np.zeros(Guard.SIZE, dtype=np.int64)
        self.unsupported: dict[str, str] | None = None
        reset_guard(self.guard)

    def follow_owner(self, reading: Reading) -> None:
        """Take what we did not write as the owner's will, and put his values into the signals."""
        for file, text in reading.settings.items():
            if file in self.wrote and self.wrote[file] == text:
                continue
            if file in self.wrote:
                LOG.info("%s: %s was set to %s by its owner", self.name, file, text)
                del self.wrote[file]
            self.owner[file] = text
        for file, sig in LIMIT_FILES.items():
            if file in self.owner:
                reading.signals[sig] = parse_bytes(self.owner[file], file)

    def note_writes(self, writes: Iterable[Write]) -> None:
        """Remember what is ours; a file that holds the owner's text again is not."""
        for write in writes:
            if write.result != WRITTEN or write.file not in self.owner:
                continue
            if write.text == self.owner[write.file]:
                self.wrote.pop(write.file, None)
            else:
                self.wrote[write.file] = write.text

    def owned(self, writes: Iterable[Write]) -> Owned:
        """What the journal must hold before these writes."""
        files = {*self.wrote, *(w.file for w in writes if w.file in self.owner)}
        return Owned(self.inode, {file: self.owner[file] for file in sorted(files)})

    def give_back(self, page_bytes: int) -> list[Write]:
        """Writes that end enforcement where the reading was unusable."""
        writes = []
        for file in self.wrote:
            text = self.owner[file]
            if file == "memory.high":
                text = self._high_back(text, page_bytes)
            if text != self.wrote[file]:
                writes.append(Write(file, text))
        return writes

    def keep_levels(self, record: Record) -> None:
        """Report the levels in force, where nothing new was decided."""
        levels = self.guard[Guard.IN_FORCE : Guard.IN_FORCE + N_HEADS]
        record.accepted = tuple(int(level) for level in levels)
        record.lease_ticks = int(self.guard[Guard.LEASE_LEFT])

    def _high_back(self, text: str, page_bytes: int) -> str:
        """The owner's memory.high, or a step towards it where usage is known."""
        try:
            now = read_text(f"{self.path}/memory.current") or ""
            usage_bytes = parse_bytes(now, "memory.current")
        except CgroupError:
            return text
        before_bytes = parse_bytes(self.wrote["memory.high"], "memory.high")
        after_bytes = high_step(parse_bytes(text, "memory.high"), before_bytes, usage_bytes)
        return limit_text(after_bytes, text, "memory.high", page_bytes)
