"""A model host written out as the files of a real one: cgroup v2, /proc, /sys and tag files.

The enforcer's own readers then read it, so a demonstration or a test of the whole path from
kernel text to decision needs no cgroup v2 host.  Numbers are as coarse as the kernel prints them.

``python -m memcg_gym.envs.cgroup_tree DIR --scenario host-mix --seconds 10`` keeps a tree moving
in real time.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.enforcer.cgroupfs import LIMIT_FILES, TAG_SIGNALS
from memcg_gym.envs.contract.signals import PAGE_BYTES, UNLIMITED_BYTES, HostSig, Sig
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.model.records import Array

USER_HZ = 100
STAT_KEYS = {
    "anon": Sig.ANON_BYTES,
    "file": Sig.FILE_BYTES,
    "shmem": Sig.SHMEM_BYTES,
    "file_dirty": Sig.DIRTY_BYTES,
    "file_writeback": Sig.WRITEBACK_BYTES,
    "pgfault": Sig.CHARGE_PAGES,
    "pgmajfault": Sig.PGMAJFAULT,
    "workingset_refault_anon": Sig.REFAULT_ANON,
    "workingset_refault_file": Sig.REFAULT_FILE,
    "workingset_activate_file": Sig.ACTIVATE,
    "workingset_restore_file": Sig.RESTORE,
    "pgscan_direct": Sig.PGSCAN_DIRECT,
    "pgsteal_direct": Sig.PGSTEAL_DIRECT,
    "pgscan_kswapd": Sig.PGSCAN_KSWAPD,
    "pgsteal_kswapd": Sig.PGSTEAL_KSWAPD,
    "pgscan_proactive": Sig.PGSCAN_PROACTIVE,
    "pgsteal_proactive": Sig.PGSTEAL_PROACTIVE,
    "pgdemote_kswapd": Sig.PGDEMOTE,
    "pgpromote_success": Sig.PGPROMOTE,
    "pswpout": Sig.SWAPOUT_PAGES,
}


def write_tree(batch: HostBatch, at: int, root: Path) -> None:
    """Write host ``at`` of a batch below ``root``: ``cgroup/``, ``proc/``, ``sys/``, ``tags/``.

    Every file is replaced by renaming, as a reader may be at work.  Limits are written once: from
    then on they belong to whoever manages the tree.
    """
    _write_host(batch.host_signals[at], root)
    for name, signals in zip(batch.layout.names, batch.signals[at], strict=True):
        _write_cgroup(signals, root, root / "cgroup" / name, name)
    facts = root / "facts.toml"
    if not facts.exists():
        _replace(facts, _facts(batch, at, root))


def _write_cgroup(signals: Array, root: Path, folder: Path, name: str) -> None:
    numa = "anon N0={fast} N1={slow}\nfile N0=0 N1=0\n"
    files = {
        "memory.current": _whole(signals[Sig.USAGE_BYTES]),
        "memory.swap.current": _whole(signals[Sig.SWAP_BYTES]),
        "memory.zswap.current": _whole(signals[Sig.ZSWAP_BYTES]),
        "memory.stat": "".join(f"{key} {int(signals[sig])}\n" for key, sig in STAT_KEYS.items()),
        "memory.numa_stat": numa.format(
            fast=int(signals[Sig.FAST_BYTES]), slow=int(signals[Sig.SLOW_BYTES])
        ),
        "memory.events": f"low {int(signals[Sig.EVENTS_LOW])}\n"
        f"high {int(signals[Sig.EVENTS_HIGH])}\nmax {int(signals[Sig.EVENTS_MAX])}\n"
        f"oom 0\noom_kill {int(signals[Sig.EVENTS_OOM_KILL])}\n",
        "memory.pressure": _pressure(
            signals[Sig.PSI_MEM_SOME_US],
            signals[Sig.PSI_MEM_FULL_US],
            signals[Sig.PSI_MEM_SOME_AVG10],
            signals[Sig.PSI_MEM_SOME_AVG60],
        ),
        "io.pressure": _pressure(
            signals[Sig.PSI_IO_SOME_US],
            signals[Sig.PSI_IO_FULL_US],
            signals[Sig.PSI_IO_SOME_AVG10],
            signals[Sig.PSI_IO_SOME_AVG60],
        ),
        "cpu.pressure": _pressure(signals[Sig.PSI_CPU_SOME_US], 0.0),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        _replace(folder / file, text)
    once = {file: _limit(signals[sig]) for file, sig in LIMIT_FILES.items()}
    once |= {
        "memory.reclaim": "",
        "memory.oom.group": "0\n",
        "cgroup.kill": "",
        "cpu.weight": "100\n",
        "io.weight": "default 100\n",
    }
    for file, text in once.items():
        if not (folder / file).exists():
            _replace(folder / file, text)
    for sig in TAG_SIGNALS:
        _replace(root / "tags" / name / sig.name.lower(), f"{float(signals[sig])!r}\n")


def _write_host(signals: Array, root: Path) -> None:
    def kib(sig: HostSig) -> int:
        return int(signals[sig]) >> 10

    idle_ticks = int(signals[HostSig.CPU_IDLE_US] * 1e-6 * USER_HZ)
    cpus = int(signals[HostSig.CPUS])
    backlog_pages = int(signals[HostSig.FLUSHER_BACKLOG_BYTES]) // PAGE_BYTES
    dirty_pages = int(signals[HostSig.DIRTY_BYTES]) // PAGE_BYTES
    files = {
        "proc/meminfo": f"MemTotal: {kib(HostSig.TOTAL_BYTES)} kB\n"
        f"MemFree: {kib(HostSig.FREE_BYTES)} kB\n"
        f"MemAvailable: {kib(HostSig.AVAILABLE_BYTES)} kB\n"
        f"Dirty: {kib(HostSig.DIRTY_BYTES)} kB\nWriteback: 0 kB\n"
        f"SwapTotal: {kib(HostSig.SWAP_TOTAL_BYTES)} kB\n"
        f"SwapFree: {kib(HostSig.SWAP_FREE_BYTES)} kB\n",
        "proc/stat": f"cpu  0 0 0 {idle_ticks} 0 0 0 0 0 0\n"
        + "".join(f"cpu{k} 0 0 0 0 0 0 0 0 0 0\n" for k in range(cpus)),
        "proc/vmstat": f"nr_dirty_background_threshold {max(0, dirty_pages - backlog_pages)}\n"
        f"pswpout {int(signals[HostSig.SWAPOUT_PAGES])}\n",
        "proc/pressure/memory": _pressure(
            signals[HostSig.PSI_MEM_SOME_US],
            signals[HostSig.PSI_MEM_FULL_US],
            signals[HostSig.PSI_MEM_SOME_AVG10],
        ),
        "proc/pressure/io": _pressure(
            signals[HostSig.PSI_IO_SOME_US], signals[HostSig.PSI_IO_FULL_US]
        ),
        "proc/pressure/cpu": _pressure(signals[HostSig.PSI_CPU_SOME_US], 0.0),
        "proc/self/cgroup": "0::/\n",
        "proc/sys/kernel/random/boot_id": "00000000-0000-0000-0000-000000000000\n",
    }
    tiers = [(HostSig.FAST_TOTAL_BYTES, HostSig.FAST_FREE_BYTES, f"0-{cpus - 1}\n")]
    if signals[HostSig.SLOW_TOTAL_BYTES] > 0:
        tiers.append((HostSig.SLOW_TOTAL_BYTES, HostSig.SLOW_FREE_BYTES, "\n"))
    for node, (total, free, cpulist) in enumerate(tiers):
        folder = f"sys/devices/system/node/node{node}"
        files[f"{folder}/cpulist"] = cpulist
        files[f"{folder}/meminfo"] = (
            f"Node {node} MemTotal: {kib(total)} kB\nNode {node} MemFree: {kib(free)} kB\n"
        )
    for name, text in files.items():
        _replace(root / name, text)


def _facts(batch: HostBatch, at: int, root: Path) -> str:
    lines = [f'tags = "{root / "tags"}"']
    for name, signals, memcg in zip(
        batch.layout.names, batch.signals[at], batch.memcgs[at], strict=True
    ):
        lines += [
            f'[cgroup."{name}"]',
            f"priority = {int(signals[Sig.PRIORITY])}",
            f"value = {float(memcg.value)!r}",
            f"kill_rank = {int(signals[Sig.KILL_RANK])}",
            f"memsw_ceiling_bytes = {int(signals[Sig.MEMSW_CEILING_BYTES])}",
        ]
    return "\n".join(lines) + "\n"


def _pressure(some_us: float, full_us: float, avg10: float = 0.0, avg60: float = 0.0) -> str:
    tail = f"avg10={avg10:.2f} avg60={avg60:.2f} avg300=0.00 total="
    return f"some {tail}{int(some_us)}\nfull {tail}{int(full_us)}\n"


def _whole(value: float) -> str:
    return f"{int(value)}\n"


def _limit(value: float) -> str:
    return "max\n" if value >= UNLIMITED_BYTES else _whole(value)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    os.replace(fresh, path)


def main(argv: list[str] | None = None) -> int:
    """Keep a tree moving in real time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenario", default="host-mix")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    batch = HostBatch(load_scenario(args.scenario), load_objective())
    batch.reset(args.seed, "test")
    batch.settle(300)
    write_tree(batch, 0, args.folder.resolve())
    for _ in range(args.seconds):
        time.sleep(1.0)
        batch.settle(1)
        write_tree(batch, 0, args.folder.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
