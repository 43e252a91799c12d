"""One guest under a plan: set up, stepped a tick at a time, read by the enforcer's own code.

Knows no scenario, objective or policy: it takes kernel writes and demands, and gives signals.

Units: bytes, microseconds, as the signals say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from memcg_gym.enforcer.hostfs import HostReader, find_nodes
from memcg_gym.enforcer.managed import Managed
from memcg_gym.enforcer.tracefs import LockTracer
from memcg_gym.enforcer.writer import NONBLOCKING, WRITTEN, Write, errno_name
from memcg_gym.envs.contract.signals import HostSig, Sig
from memcg_gym.envs.lab.machine import CONSOLE_LINES, Machine
from memcg_gym.envs.lab.mirror import Mirror
from memcg_gym.envs.lab.plan import (
    CGROUPS,
    TRACE_INSTANCE,
    Demand,
    HostPlan,
    cgroup_commands,
    demand_command,
    device_commands,
    start_commands,
    trace_commands,
    trace_question,
)
from memcg_gym.envs.lab.protocol import GuestError, Report, parse_results, write_command
from memcg_gym.envs.lab.stats import SlotStats, parse_stats

LOG = logging.getLogger("memcg_gym.lab")

LockSource = Literal["tag", "trace"]

Teller = Callable[[Sequence[SlotStats]], Sequence[Mapping[Sig, float]]]
"""From what the workloads counted to what they tell: the tag files of each cgroup."""


@dataclass(slots=True)
class SlotOrder:
    """What is done to one cgroup at the start of a tick.

    Attributes:
        writes: Kernel files, in order; ``result`` is filled in.
        demand: What its workload wants; None leaves it.
        events: Agent commands before the demand: ``start``, ``stop``, ``free_burst``, ``remix``.
    """

    writes: list[Write] = field(default_factory=list)
    demand: Demand | None = None
    events: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Snapshot:
    """A guest at the end of a tick.

    Attributes:
        signals: Per cgroup, ``[N, S]``, the owner's values put in.
        host_signals: ``[SH]``.
        settings: Text of every limit and weight now, per cgroup.
        stats: What the generators counted.
        report: The agent's report.
    """

    signals: np.ndarray
    host_signals: np.ndarray
    settings: list[dict[str, str]]
    stats: list[SlotStats]
    report: Report


class Session:
    """A running guest.

    Args:
        machine: Not started yet; closed with the session.
        plan: What it is to be.
        teller: What its workloads tell through tag files.
        lock_source: ``tag``: of locks too; ``trace``: the guest's tracepoints say who holds them.

    Attributes:
        available_bytes: MemAvailable before any workload ran.
    """

    def __init__(
        self, machine: Machine, plan: HostPlan, teller: Teller, lock_source: LockSource = "tag"
    ) -> None:
        self.machine = machine
        self.lock_source: LockSource = lock_source
        self.locks: LockTracer | None = None
        self.plan = plan
        self.teller = teller
        self.mirror = Mirror(plan.devices.swap_mib << 20)
        self.managed: list[Managed] = []
        self.available_bytes = 0.0
        self.time_us = 0.0

    def start(self) -> Snapshot:
        """Boot, set everything up, load the workloads, limit them.

        Raises:
            GuestError: The guest did not do what the plan says; names the command.
        """
        self.machine.start()
        report = self._run(device_commands(self.plan) + b"pause\n", strict=True)
        self.mirror.update(report.files)
        nodes = find_nodes(self.mirror.roots)
        self.host_reader = HostReader(self.mirror.roots, nodes, lambda: self.time_us)
        self.available_bytes = float(self.host_reader.read()[HostSig.AVAILABLE_BYTES])
        for slot, cgroup in enumerate(self.plan.cgroups):
            self._run(cgroup_commands(slot, cgroup) + b"pause\n", strict=True)
        report = self._run(start_commands(self.plan.cgroups) + b"pause\n", strict=True)
        if self.lock_source == "trace":
            report = self._trace_locks()
        self.mirror.update(report.files)
        self.managed = [
            Managed(self.mirror.roots.cgroup / cgroup.name, 0, self.mirror.roots, nodes)
            for cgroup in self.plan.cgroups
        ]
        return self._read(report)

    def _trace_locks(self) -> Report:
        """Have the guest trace its locks, by the enforcer's own probes."""
        report = self._run(trace_question() + b"pause\n", strict=True)
        self._run(trace_commands(report, self.plan.cgroups) + b"pause\n", strict=True)
        self.locks = LockTracer(self.mirror.roots, self.mirror.folder / TRACE_INSTANCE.lstrip("/"))
        return self._run(b"pause\n", strict=True)

    def tick(self, orders: Sequence[SlotOrder], host_writes: Mapping[str, str]) -> Snapshot:
        """Carry out orders, let one second of guest time pass, read.

        Args:
            orders: One for each cgroup.
            host_writes: Other guest files by path, e.g. aging commands.
        """
        block, writes = self._block(orders, host_writes)
        report = self.machine.step(block + b"tick\n")
        results = parse_results(report.text("results"))
        for (write, at), managed in writes:
            code = results[at] if at < len(results) else 0
            write.result = WRITTEN if code == 0 else errno_name(OSError(code, ""))
            managed.note_writes([write])
        self.mirror.update(report.files)
        return self._read(report)

    def close(self) -> None:
        """End the guest and remove its files."""
        self.machine.close()
        self.mirror.close()

    def _block(
        self, orders: Sequence[SlotOrder], host_writes: Mapping[str, str]
    ) -> tuple[bytes, list[tuple[tuple[Write, int], Managed]]]:
        lines: list[bytes] = []
        writes: list[tuple[tuple[Write, int], Managed]] = []
        for slot, order in enumerate(orders):
            for event in order.events:
                lines.append(f"{event}\n".encode())
            if order.demand is not None:
                lines.append(demand_command(slot, order.demand))
            for write in order.writes:
                writes.append(((write, len(lines)), self.managed[slot]))
                if write.file == "memory.reclaim":
                    lines.append(f"reclaim {slot} {write.text}\n".encode())
                else:
                    path = f"{CGROUPS}/{self.plan.cgroups[slot].name}/{write.file}"
                    lines.append(
                        write_command(path, write.text, nonblocking=write.file in NONBLOCKING)
                    )
        lines += [write_command(path, text) for path, text in host_writes.items()]
        return b"".join(lines), writes

    def _run(self, block: bytes, *, strict: bool) -> Report:
        report = self.machine.step(block)
        results = parse_results(report.text("results"))
        failed = [(at, code) for at, code in enumerate(results) if code]
        if strict and failed:
            lines = command_heads(block)
            at, code = failed[0]
            raise GuestError(
                f"guest set-up: {lines[at] if at < len(lines) else f'command {at}'}: "
                f"{errno_name(OSError(code, ''))}{console_tail(self.machine)}"
            )
        return report

    def _read(self, report: Report) -> Snapshot:
        self.time_us = report.time_ns * 1e-3
        stats = [
            parse_stats(report.text(f"slot/{slot}/stats"), f"slot/{slot}/stats")
            for slot in range(len(self.plan.cgroups))
        ]
        for cgroup, tags in zip(self.plan.cgroups, self.teller(stats), strict=True):
            self.mirror.tell(cgroup.name, tags)
        if self.locks is not None:
            self.locks.update({m.name: m.path for m in self.managed}, self.time_us)
            if self.locks.note:
                LOG.warning("tick %d: %s", report.tick, self.locks.note)
        rows, settings = [], []
        for managed in self.managed:
            reading = managed.reader.read(locks=self.locks)
            managed.follow_owner(reading)
            rows.append(reading.signals)
            settings.append(reading.settings)
        return Snapshot(np.stack(rows), self.host_reader.read(), settings, stats, report)


def console_tail(machine: Machine) -> str:
    """The console's last lines, to stand below an error; empty where it said nothing."""
    lines = [line for line in machine.console.splitlines() if line.strip()][-CONSOLE_LINES:]
    return "".join(
        ["; its console's last lines:", *(f"\n  {line}" for line in lines)] if lines else []
    )


def command_heads(block: bytes) -> list[str]:
    """The first line of each command, without the data of writes."""
    heads: list[str] = []
    at = 0
    while at < len(block):
        end = block.index(b"\n", at)
        head = block[at:end].decode()
        heads.append(head)
        at = end + 1
        words = head.split()
        if words and words[0] == "write":
            at += int(words[2]) + 1
    return heads
