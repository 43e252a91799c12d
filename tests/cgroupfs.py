"""A host made of plain files: cgroups, /proc and /sys below one folder, from data.

The readers and writers under test are the production ones; only the roots differ.  Text is in the
kernel's own form, so a test can also be read as "this is what the file looks like".
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from memcg_gym.enforcer.hostfs import Roots

MIB = 1 << 20

STAT = {
    "anon": 40 * MIB,
    "file": 20 * MIB,
    "shmem": 1 * MIB,
    "file_dirty": 8192,
    "file_writeback": 4096,
    "slab_unreclaimable": 65536,
    "unevictable": 4096,
    "pgfault": 5000,
    "pgmajfault": 7,
    "workingset_refault_anon": 100,
    "workingset_refault_file": 200,
    "workingset_activate_anon": 10,
    "workingset_activate_file": 20,
    "workingset_restore_anon": 1,
    "workingset_restore_file": 2,
    "pgscan_kswapd": 300,
    "pgscan_direct": 400,
    "pgscan_proactive": 500,
    "pgsteal_kswapd": 30,
    "pgsteal_direct": 40,
    "pgsteal_proactive": 50,
    "pgdemote_kswapd": 3,
    "pgdemote_direct": 4,
    "pgpromote_success": 6,
    "pswpout": 9,
}


def pressure(some_us: int = 0, full_us: int = 0, avg10: float = 0.0, avg60: float = 0.0) -> str:
    """Text of a pressure file."""
    tail = f"avg10={avg10:.2f} avg60={avg60:.2f} avg300=0.00 total="
    return f"some {tail}{some_us}\nfull {tail}{full_us}\n"


def flat(table: dict[str, int]) -> str:
    """Text of a flat-keyed file."""
    return "".join(f"{key} {value}\n" for key, value in table.items())


class FakeHost:
    """A host below ``path`` with 1 GiB of memory on node 0 (with CPUs) and 1 GiB on node 1."""

    def __init__(self, path: Path, page_bytes: int = 4096) -> None:
        self.path = path
        self.cgroup = path / "cgroup"
        self.roots = Roots(
            cgroup=self.cgroup,
            proc=path / "proc",
            sys=path / "sys",
            tags=path / "tags",
            page_bytes=page_bytes,
            clock_ticks_per_s=100,
        )
        self.file("proc/meminfo", self.meminfo(available_kb=1048576))
        self.file(
            "proc/stat", "cpu  10 0 20 300 40 0 0 0 0 0\ncpu0 5 0 10 150 20\ncpu1 5 0 10 150\n"
        )
        self.file("proc/vmstat", "nr_free_pages 7\nnr_dirty_background_threshold 10\npswpout 77\n")
        for name in ("memory", "io", "cpu"):
            self.file(f"proc/pressure/{name}", pressure(1000, 500, 1.5))
        for node, cpus in ((0, "0-1\n"), (1, "\n")):
            self.file(f"sys/devices/system/node/node{node}/cpulist", cpus)
            self.file(
                f"sys/devices/system/node/node{node}/meminfo",
                f"Node {node} MemTotal: 1048576 kB\n"
                f"Node {node} MemFree: {262144 * (node + 1)} kB\n",
            )
        self.file("proc/self/cgroup", "0::/me\n")
        self.file("proc/sys/kernel/random/boot_id", "boot-1\n")
        self.cgroup.mkdir()
        (path / "tags").mkdir()

    @staticmethod
    def meminfo(available_kb: int) -> str:
        """Text of /proc/meminfo."""
        return (
            f"MemTotal:       2097152 kB\nMemFree:         524288 kB\n"
            f"MemAvailable:   {available_kb} kB\nDirty:              64 kB\n"
            "Writeback:           8 kB\nSwapTotal:       524288 kB\nSwapFree:        262144 kB\n"
            "HugePages_Total:       0\n"
        )

    def file(self, name: str, text: str) -> Path:
        """Make or replace a file below the host's folder."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def make_cgroup(self, name: str, usage_bytes: int = 64 * MIB) -> Path:
        """A cgroup with every file of a recent kernel."""
        files = {
            "memory.current": f"{usage_bytes}\n",
            "memory.swap.current": f"{4 * MIB}\n",
            "memory.zswap.current": "4096\n",
            "memory.stat": flat(STAT),
            "memory.events": "low 1\nhigh 2\nmax 3\noom 0\noom_kill 4\noom_group_kill 0\n",
            "memory.numa_stat": "anon N0=30 N1=10\nfile N0=5 N1=2\nshmem N0=1 N1=1\n",
            "memory.pressure": pressure(11, 7, 1.25, 0.75),
            "io.pressure": pressure(22, 17, 2.25, 1.75),
            "cpu.pressure": pressure(33),
            "memory.min": "0\n",
            "memory.low": "0\n",
            "memory.high": "max\n",
            "memory.max": f"{128 * MIB}\n",
            "memory.swap.max": "max\n",
            "memory.oom.group": "0\n",
            "memory.reclaim": "",
            "cpu.weight": "100\n",
            "io.weight": "default 200\n8:0 50\n",
            "cgroup.kill": "",
        }
        for file, text in files.items():
            self.file(f"cgroup/{name}/{file}", text)
        return self.cgroup / name

    def text(self, name: str) -> str:
        """Text of a file below the cgroup mount, without the newline."""
        return (self.cgroup / name).read_text().strip()

    def digest(self) -> str:
        """Hash of every name, content and modification time below the host's folder."""
        state = hashlib.sha256()
        for path in sorted(self.path.rglob("*")):
            state.update(f"{path} {os.stat(path).st_mtime_ns}".encode())
            if path.is_file():
                state.update(path.read_bytes())
        return state.hexdigest()
