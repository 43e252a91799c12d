"""A guest's files laid out as a tree on this machine, for the enforcer's own readers.

What runs in the lab is what runs on a host: ``CgroupReader`` and ``HostReader`` read the text the
guest's kernel wrote, byte for byte, but for three things.  The storage of the emulated swap device
is guest memory, which on a real machine would be a disk: it is taken out of ``MemTotal``.  The idle
time of a guest that must not halt is spent by a thread at nice 19 (guest/agent_idle.c), the only
one that is nice: in ``/proc/stat`` it is idle time again.  And the cgroup that all workloads lie
below is taken for the mount, so its path goes from the names in ``lru_gen``.

Units: bytes, KiB in meminfo.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from memcg_gym.enforcer.hostfs import Roots
from memcg_gym.envs.contract.signals import PAGE_BYTES, Sig

MEMINFO = re.compile(rb"(MemTotal:\s+)(\d+)( kB)")
CPU_LINE = re.compile(rb"^(cpu\d* +\d+) (\d+) (\d+) (\d+)", re.MULTILINE)  # user nice system idle
MEMCG_LINE = re.compile(rb"^(memcg +\d+ +)/work(?=/)", re.MULTILINE)
USER_HZ = 100
RAM_FOLDER = Path("/dev/shm")
"""A tree rewritten every tick belongs in memory."""


class Mirror:
    """The tree of one guest, removed with :meth:`close`.

    Args:
        device_bytes: Guest memory that stands for a disk.

    Attributes:
        roots: Where readers find it.
    """

    def __init__(self, device_bytes: int) -> None:
        parent = RAM_FOLDER if RAM_FOLDER.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="memcg-gym-mirror-", dir=parent))
        self.device_kib = device_bytes >> 10
        self.roots = Roots(
            cgroup=self.folder / "sys/fs/cgroup",
            proc=self.folder / "proc",
            sys=self.folder / "sys",
            tags=self.folder / "tags",
            page_bytes=PAGE_BYTES,
            clock_ticks_per_s=USER_HZ,
        )
        for folder in (self.roots.cgroup, self.roots.proc, self.roots.sys, self.folder / "tags"):
            folder.mkdir(parents=True, exist_ok=True)

    def update(self, files: Mapping[str, bytes]) -> None:
        """Write the kernel's files of a report; a file the guest no longer has goes."""
        for name, text in files.items():
            if not name.startswith(("sys/", "proc/")):
                continue
            path = self.folder / name
            if name.endswith("meminfo"):
                text = self._without_device(text, name)
            elif name == "proc/stat":
                text = CPU_LINE.sub(_idle_again, text)
            elif name == "sys/kernel/debug/lru_gen":
                text = MEMCG_LINE.sub(rb"\1", text)
            try:
                path.write_bytes(text)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text)

    def tell(self, cgroup: str, tags: Mapping[Sig, float]) -> None:
        """Write tag files, as a workload or a tracer on a host would."""
        folder = self.folder / "tags" / cgroup
        folder.mkdir(parents=True, exist_ok=True)
        for sig, value in tags.items():
            (folder / sig.name.lower()).write_text(f"{value!r}\n")

    def close(self) -> None:
        """Remove the tree."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _without_device(self, text: bytes, name: str) -> bytes:
        # Its pages come from node 0, where the kernel puts them.
        if name != "proc/meminfo" and "node0/" not in name:
            return text
        return MEMINFO.sub(
            lambda m: m[1] + str(max(int(m[2]) - self.device_kib, 0)).encode() + m[3], text, 1
        )


def _idle_again(line: re.Match[bytes]) -> bytes:
    nice, idle = int(line[2]), int(line[4])
    return b"%s 0 %s %d" % (line[1], line[3], idle + nice)
