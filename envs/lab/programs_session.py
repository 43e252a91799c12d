"""A guest whose cgroup holds a real program instead of the load generator.

The program works in a file system (ext4) on a null_blk device of its own that keeps what is written
in guest memory; that memory, taken before anything runs, stands for a disk and is counted as the
swap device's is.  The program is loaded without a limit, then limited, then measured: its command
is run again and again, each round timed by the guest's clock.

A program says nothing of its load, its locks or its slack: those signals stay as on a host on which
nobody tells them.

Units: nanoseconds and seconds of guest time; MiB.
"""

from __future__ import annotations

import os
import re
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from memcg_gym.configs.lab_programs import ProgramConfig, ProgramStep
from memcg_gym.envs.contract.signals import HostSig, Sig
from memcg_gym.envs.lab.machine import Machine
from memcg_gym.envs.lab.plan import CGROUPS, ROOT, HostPlan, null_block
from memcg_gym.envs.lab.protocol import GuestError, Report, write_command
from memcg_gym.envs.lab.session import Session, Snapshot, console_tail
from memcg_gym.envs.lab.stats import SlotStats

DATA_DEVICE, DATA_FOLDER, FILE_SYSTEM = "labdata", "/data", "ext4"
RANDOM = "/dev/urandom"
MKFS = "/usr/sbin/mke2fs"
MKFS_PACKAGE = "e2fsprogs"
MKFS_WORDS = "-t ext4 -F -q -m 0 -J size=8 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0"
"""Nothing is left to be made ready while somebody measures."""

SERVICE_START_S = 3
"""Seconds a service gets before it is spoken to."""

SERVICE, LOAD, MEASURE = "service", "load", "measure"
OUTPUT_LINES = 12
"""Of a program's last words, shown with its failure."""

ROUND = re.compile(r"^@round (\d+) (\d+) (\d+) (\d+)$")


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the measured command: begin and end [ns], and what it printed."""

    begin_ns: int
    end_ns: int
    lines: tuple[str, ...]


@dataclass(slots=True)
class Output:
    """What a program has said: its last lines, and the line that is not whole yet."""

    tail: deque[str] = field(default_factory=lambda: deque(maxlen=OUTPUT_LINES))
    rest: str = ""

    def take(self, text: str) -> list[str]:
        """New whole lines."""
        *lines, self.rest = (self.rest + text).split("\n")
        self.tail.extend(line for line in lines if line.strip() and not line.startswith("@round"))
        return lines

    def __str__(self) -> str:
        """As it stands below an error."""
        lines = [*self.tail, *([self.rest] if self.rest.strip() else [])]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing)"


class ProgramSession(Session):
    """A guest with one program in one cgroup.

    Args:
        machine: Not started yet; closed with the session.
        plan: Devices, kernel settings, and the cgroup; its limits hold once the program is loaded.
        program: What runs.
        seed: Of the guest's random numbers; 0 leaves them as the kernel begins.

    Attributes:
        rounds: Of the measured command that are over.
        measured_from_ns: Guest time at which measuring began.
        died: How the program ended, empty while it runs.
    """

    def __init__(
        self, machine: Machine, plan: HostPlan, program: ProgramConfig, seed: int = 0
    ) -> None:
        (cgroup,) = plan.cgroups
        bare = replace(cgroup, limits=(), regions=(), present=False)
        super().__init__(machine, replace(plan, cgroups=(bare,)), _tell_nothing)
        self.program = program
        self.seed = seed
        self.limits = cgroup.limits
        self.folder = f"{CGROUPS}/{cgroup.name}"
        self.mirror.device_kib += program.host.data_mib << 10
        self.rounds: list[Round] = []
        self.measured_from_ns = 0
        self.died = ""
        self._outputs = {name: Output() for name in (SERVICE, LOAD, MEASURE)}
        self._lines: list[str] = []
        self._noted: Report | None = None

    def start(self) -> Snapshot:
        """Boot, make the file system, load the program, limit it, start measuring.

        Raises:
            GuestError: The guest did not do what it should, or a program failed; with what it said.
        """
        super().start()
        self._make_file_system()
        report = self._run(b"pause\n", strict=True)
        self.mirror.update(report.files)
        self.available_bytes = float(self.host_reader.read()[HostSig.AVAILABLE_BYTES])
        if self.program.service:
            self._begin(SERVICE, self.program.service)
            for _ in range(SERVICE_START_S):
                self._tick_program()
        for step in self.program.load:
            self._begin(LOAD, step)
            self._await(LOAD, step.command, step.within_s)
        limits = [write_command(f"{self.folder}/{file}", text) for file, text in self.limits]
        measure = self.program.measure
        limits.append(run_line(MEASURE, self._cgroup(measure.place), 0, measure.command))
        report = self._run(b"".join(limits) + b"pause\n", strict=True)
        self.measured_from_ns = report.time_ns
        self.mirror.update(report.files)
        return self._read(report)

    def last_words(self) -> str:
        """What the program said last: the service's, where there is one, and the measure's."""
        names = (SERVICE, MEASURE) if self.program.service else (MEASURE,)
        return "\n".join(f"{name}:\n{self._outputs[name]}" for name in names)

    def _make_file_system(self) -> None:
        if self.seed:
            # Nothing else in this machine differs by chance; mixed in before the kernel's generator
            # is seeded, which the first program that asks waits for.
            mix = write_command(RANDOM, f"seed {self.seed}\n")
            self._run(mix + b"pause\n", strict=True)
        host, device = self.program.host, f"/dev/{DATA_DEVICE}"
        speed = self.plan.devices.file_mib_per_s
        make = null_block(DATA_DEVICE, host.data_mib, host.latency_us, speed, backed=True)
        # All its pages now: later they would be taken when the kernel wants to free some.
        make += f"fill {device} {host.data_mib}\n".encode()
        make += run_line(LOAD, ROOT, 1, f"{MKFS} {MKFS_WORDS} {device}")
        self._run(make + b"pause\n", strict=True)
        self._await(LOAD, MKFS, 60)
        mount = f"mount {FILE_SYSTEM} {device} {DATA_FOLDER} -\npause\n"
        self._run(mount.encode(), strict=True)

    def _cgroup(self, place: str) -> str:
        return self.folder if place == "managed" else ROOT

    def _run(self, block: bytes, *, strict: bool) -> Report:
        report = super()._run(block, strict=strict)
        self._note(report)
        return report

    def _begin(self, name: str, step: ProgramStep) -> None:
        self._outputs[name] = Output()
        line = run_line(name, self._cgroup(step.place), step.rounds, step.command)
        self._run(line + b"pause\n", strict=True)

    def _tick_program(self) -> Report:
        """A second of guest time before anybody measures."""
        report = self._run(b"tick\n", strict=True)
        if self.died:
            said = self._outputs[SERVICE]
            raise GuestError(f"{self.program.name}: {self.died}; it said last:\n{said}")
        return report

    def _await(self, name: str, command: str, within_s: int) -> None:
        for _ in range(within_s):
            alive, status = program_state(self._tick_program(), name)
            if alive:
                continue
            if status:
                said = self._outputs[name]
                raise GuestError(
                    f"{self.program.name}: {command}: {how_ended(status)}; it said last:\n{said}"
                    f"{console_tail(self.machine)}"
                )
            return
        raise GuestError(
            f"{self.program.name}: {command}: not done within {within_s} s of guest time; "
            f"it said last:\n{self._outputs[name]}"
        )

    def _note(self, report: Report) -> None:
        """Take what programs said and how they are; a report is taken once."""
        if report is self._noted:
            return
        self._noted = report
        for name, output in self._outputs.items():
            lines = output.take(report.files.get(f"out/{name}", b"").decode("utf-8", "replace"))
            if name == MEASURE:
                self._note_rounds(lines)
        for name in (SERVICE, MEASURE):
            alive, status = program_state(report, name)
            if not alive and status is not None and not self.died:
                self.died = f"the {name} {how_ended(status)}"

    def _note_rounds(self, lines: Sequence[str]) -> None:
        for line in lines:
            match = ROUND.match(line)
            if match is None:
                self._lines.append(line)
                continue
            if match[4] == "0":
                self.rounds.append(Round(int(match[2]), int(match[3]), tuple(self._lines)))
            self._lines = []

    def _read(self, report: Report) -> Snapshot:
        """As any guest's, with a workload that lives as long as the program does."""
        self._note(report)
        stats = report.files["slot/0/stats"].replace(b"alive 0", b"alive %d" % (not self.died), 1)
        return super()._read(replace(report, files={**report.files, "slot/0/stats": stats}))


def run_line(name: str, cgroup: str, rounds: int, command: str) -> bytes:
    """``run``: a program in a cgroup, in the folder of its file system; 0 rounds = without end."""
    return f"run {name} {cgroup} {DATA_FOLDER} {rounds} {command}\n".encode()


def program_state(report: Report, name: str) -> tuple[bool, int | None]:
    """Whether a program runs, and the status it ended with; None where it was never started."""
    text = report.files.get(f"program/{name}")
    if text is None:
        return False, None
    values = dict(line.split() for line in text.decode().splitlines())
    return values["alive"] == "1", int(values["last_status"])


def how_ended(status: int) -> str:
    """A wait status in words.

    Example:
        >>> how_ended(9), how_ended(256), how_ended(137 << 8)
        ('was killed by SIGKILL', 'ended with status 1', 'was killed by SIGKILL')
    """
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    # what repeats a command ends as a shell does where the command was killed
    if code > 128 and code - 128 in set(signal.Signals):
        return f"was killed by {signal.Signals(code - 128).name}"
    return f"ended with status {code}"


def _tell_nothing(stats: Sequence[SlotStats]) -> list[Mapping[Sig, float]]:
    return [{} for _ in stats]
