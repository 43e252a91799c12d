"""A machine without QEMU: it keeps a block's commands and answers with a model host's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memcg_gym.envs.cgroup_tree import write_tree
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.lab.protocol import Report, State
from memcg_gym.envs.lab.session import command_heads


class FakeMachine:
    """Steps a model host of the same scenario whenever the guest would let a tick pass.

    Attributes:
        blocks: Every command block it was given.
        errors: errno by the beginning of a command that shall fail.
        stats: Text of the slots' stats files by slot; a running generator's where none is given.
    """

    def __init__(self, batch: HostBatch, folder: Path, extra_total_bytes: int = 0) -> None:
        self.batch = batch
        self.folder = folder
        self.extra_kib = extra_total_bytes >> 10
        self.blocks: list[bytes] = []
        self.errors: dict[str, int] = {}
        self.stats: dict[int, str] = {}
        self.closed = False
        self.tick = 0

    @property
    def console(self) -> str:
        """What a dying program would have said."""
        return "agent: slot 0 is no more\n" if self.errors else ""

    def start(self) -> Report:
        """Booted."""
        return self._report([])

    def step(self, commands: bytes) -> Report:
        """Obey, and let a second pass where the block ends with ``tick``."""
        self.blocks.append(commands)
        heads = command_heads(commands)
        if heads[-1] == "tick":
            self.tick += 1
            self.batch.step_levels(np.zeros_like(self.batch.levels))
        return self._report(
            [
                next((e for start, e in self.errors.items() if head.startswith(start)), 0)
                for head in heads
                if head not in ("tick", "pause", "poweroff")
            ]
        )

    def close(self) -> None:
        """Ended."""
        self.closed = True

    def _report(self, codes: list[int]) -> Report:
        write_tree(self.batch, 0, self.folder)
        files = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name.startswith(("cgroup/", "proc/", "sys/")):
                name = name.replace("cgroup/", "sys/fs/cgroup/", 1)
                files[name] = path.read_bytes()
        info = files["proc/meminfo"].decode().splitlines()
        kib = int(info[0].split()[1]) + self.extra_kib
        files["proc/meminfo"] = "\n".join([f"MemTotal: {kib} kB", *info[1:], ""]).encode()
        for slot in range(self.batch.n_cgroups):
            text = self.stats.get(slot, f"alive 1\ndone {100 * self.tick}\n")
            files[f"slot/{slot}/stats"] = text.encode()
        files["results"] = "\n".join(map(str, codes)).encode()
        return Report(State.PAUSED, self.tick, self.tick * 10**9, 0, files)
