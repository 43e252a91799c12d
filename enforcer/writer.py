"""From knobs to cgroup files: what is written, in which order, and who pays for it.

A plan names only what differs from what is in force.  What loosens is written before what
tightens; memory.high never falls in one step below the deepest throttle level's share of usage;
memory.reclaim is written by a thread of its own, because the kernel reclaims in the writer.  A
write that fails is reported and the others go on.  Nothing here decides anything.

Units: bytes; weights as in cpu.weight and io.weight (1..10000).
"""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memcg_gym.enforcer.adapter import THROTTLE_POSITION
from memcg_gym.enforcer.kernel_text import parse_bytes, parse_weight
from memcg_gym.envs.contract.heads import LIFT_LEVEL
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import UNLIMITED_BYTES

LOG = logging.getLogger("memcg_gym.enforcer")

DEEPEST_RATIO = float(THROTTLE_POSITION[LIFT_LEVEL + 1 :].min())
"""Lowest share of usage that one write of memory.high may set."""

CHUNK_BYTES = 64 << 20
"""Most that one write to memory.reclaim asks for (assumption: about 0.1 s of reclaim, so that the
deadline is kept to a tenth of a tick)."""

MIN_WEIGHT, MAX_WEIGHT = 1, 10_000
"""Range of cpu.weight and io.weight (Documentation/admin-guide/cgroup-v2.rst)."""

NONBLOCKING = frozenset(("memory.high", "memory.max"))
"""Files whose writer reclaims down to the new limit unless it opened them with O_NONBLOCK; kernels
that do not know that ignore the flag."""

LIMIT_KNOBS: tuple[tuple[str, Knob], ...] = (
    ("memory.min", Knob.MIN_BYTES),
    ("memory.low", Knob.LOW_BYTES),
    ("memory.high", Knob.HIGH_BYTES),
    ("memory.max", Knob.MAX_BYTES),
    ("memory.swap.max", Knob.SWAP_MAX_BYTES),
)

CEILINGS = frozenset(("memory.high", "memory.max", "memory.swap.max"))

PLANNED, WRITTEN, QUEUED, BUSY, PARTIAL = "planned", "written", "queued", "busy", "EAGAIN"
"""What became of a write; anything else is the name of the errno it failed with."""


@dataclass(slots=True)
class Write:
    """One file and the text it gets.

    Attributes:
        file: Name in the cgroup's folder.
        text: What is written.
        result: ``planned``, ``written``, ``queued``, ``busy``, ``EAGAIN`` or another errno's name.
    """

    file: str
    text: str
    result: str = PLANNED


def plan_writes(
    knobs: np.ndarray,
    settings: Mapping[str, str],
    owner: Mapping[str, str],
    usage_bytes: float,
    page_bytes: int,
) -> list[Write]:
    """What to write so that the knobs hold, in the order to write it.

    Args:
        knobs: From the adapter, shape ``(N_KNOBS,)``; NaN = leave alone.
        settings: Text of the files now.
        owner: Text of the files as the owner left them.
        usage_bytes: memory.current.
        page_bytes: The host's page size; limits are whole pages.

    Returns:
        Writes; only files that exist and differ.
    """
    if knobs[Knob.KILL] > 0.0:
        group = [Write("memory.oom.group", "1")] if settings.get("memory.oom.group") == "0" else []
        return [*group, Write("cgroup.kill", "1")]
    first: list[Write] = []
    middle: list[Write] = []
    last: list[Write] = []
    for file, knob in LIMIT_KNOBS:
        if file not in settings or math.isnan(knobs[knob]):
            continue
        before = parse_bytes(settings[file], file)
        after = float(knobs[knob])
        if file == "memory.high":
            after = high_step(after, before, usage_bytes)
        text = limit_text(after, owner.get(file, ""), file, page_bytes)
        if text == settings[file]:
            continue
        if file not in CEILINGS:
            middle.append(Write(file, text))
        elif after > before:
            first.append(Write(file, text))
        else:
            last.append(Write(file, text))
    middle += plan_weights(float(knobs[Knob.FLUSH_WEIGHT]), settings, owner)
    if knobs[Knob.RECLAIM_BYTES] >= page_bytes:
        amount_bytes = align(float(knobs[Knob.RECLAIM_BYTES]), page_bytes)
        last.append(Write("memory.reclaim", str(amount_bytes)))
    return first + middle + last


def plan_weights(
    factor: float, settings: Mapping[str, str], owner: Mapping[str, str]
) -> list[Write]:
    """cpu.weight and io.weight at ``factor`` times the owner's, kept in their range."""
    writes = []
    for file, form in (("cpu.weight", "{}"), ("io.weight", "default {}")):
        if file not in settings or file not in owner or math.isnan(factor):
            continue
        weight = parse_weight(owner[file], file)
        # cpu.weight reads 0 for a group in the idle class, which takes no weight.
        if weight == 0:
            continue
        text = form.format(min(max(round(weight * factor), MIN_WEIGHT), MAX_WEIGHT))
        if text != settings[file]:
            writes.append(Write(file, text))
    return writes


def high_step(target_bytes: float, before_bytes: float, usage_bytes: float) -> float:
    """memory.high one step towards its target.

    Raising is free.  Lowering stops at the deepest throttle level's share of usage, and waits
    there until reclaim has caught up: the stall of an allocator grows with the square of the
    overage, to two seconds at 18 % (mm/memcontrol.c, calculate_high_delay).

    Example:
        >>> high_step(50.0, 1000.0, 100.0)
        92.0
    """
    if target_bytes >= before_bytes or math.isnan(usage_bytes):
        return target_bytes
    return min(max(target_bytes, DEEPEST_RATIO * usage_bytes), before_bytes)


def limit_text(value_bytes: float, owner_text: str, file: str, page_bytes: int) -> str:
    """A limit as text: whole pages, ``max`` for no limit, the owner's own text for his value."""
    if owner_text and value_bytes == parse_bytes(owner_text, file):
        return owner_text
    if value_bytes >= UNLIMITED_BYTES:
        return "max"
    return str(align(value_bytes, page_bytes))


def align(value_bytes: float, page_bytes: int) -> int:
    """Whole pages, rounded down, in bytes."""
    return max(int(value_bytes), 0) // page_bytes * page_bytes


def write_text(path: str, text: str, nonblocking: bool) -> None:
    """Write a kernel file that exists.

    Raises:
        OSError: As the kernel said.
    """
    flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | (os.O_NONBLOCK if nonblocking else 0)
    fd = os.open(path, flags)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


class CgroupWriter:
    """Carries out plans for one cgroup.

    Args:
        path: The cgroup's folder.
        page_bytes: The host's page size.
    """

    def __init__(self, path: Path, page_bytes: int) -> None:
        """Write nothing yet."""
        self.path = path
        self.worker = ReclaimWorker(path, page_bytes)

    def apply(self, writes: list[Write], time_s: float) -> None:
        """Write them in order and note what became of each.

        Args:
            writes: From :func:`plan_writes`; ``result`` is filled in.
            time_s: How long background reclaim may go on [s].
        """
        for write in writes:
            if write.file == "memory.reclaim":
                write.result = QUEUED if self.worker.submit(int(write.text), time_s) else BUSY
                continue
            try:
                write_text(f"{self.path}/{write.file}", write.text, write.file in NONBLOCKING)
                write.result = WRITTEN
            except OSError as error:
                write.result = errno_name(error)


class Worker:
    """One background thread at a time for writes that keep their writer.

    Attributes:
        outcome: What became of the last request; ``""`` before any.
    """

    def __init__(self) -> None:
        """Start no thread before the first request."""
        self.outcome = ""
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def busy(self) -> bool:
        """True while a request is going on."""
        return self._thread is not None and self._thread.is_alive()

    def close(self, time_s: float) -> None:
        """Ask for no more, and wait at most so long for the request under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(time_s)

    def _start(self, target: Callable[..., None], *args: object) -> bool:
        if self.busy:
            return False
        self._thread = threading.Thread(target=target, args=args, daemon=True)
        self._thread.start()
        return True


class ReclaimWorker(Worker):
    """Writes memory.reclaim of one cgroup without holding up the loop.

    Its outcome is ``written``, ``EAGAIN`` (the kernel found less than was asked for: normal),
    ``late`` (time was up) or an errno's name.
    """

    def __init__(self, path: Path, page_bytes: int) -> None:
        """Start no thread before the first request."""
        super().__init__()
        self.file = f"{path}/memory.reclaim"
        self.page_bytes = page_bytes

    def submit(self, amount_bytes: int, time_s: float) -> bool:
        """Begin a request; False while the last one is still going on."""
        return self._start(self._reclaim, amount_bytes, time.monotonic() + time_s)

    def _reclaim(self, amount_bytes: int, deadline_s: float) -> None:
        left_bytes = amount_bytes
        while left_bytes >= self.page_bytes:
            if self._stop.is_set() or time.monotonic() > deadline_s:
                self.outcome = "late"
                return
            chunk_bytes = min(left_bytes, CHUNK_BYTES)
            try:
                write_text(self.file, str(chunk_bytes), nonblocking=False)
            except OSError as error:
                self.outcome = errno_name(error)
                return
            left_bytes -= chunk_bytes
        self.outcome = WRITTEN


class CommandWorker(Worker):
    """Writes commands to one kernel file without holding up the loop, each by itself.

    Its outcome is ``written``, or the errno's name of the last command that failed.
    """

    def __init__(self, file: str) -> None:
        """Start no thread before the first request."""
        super().__init__()
        self.file = file

    def submit(self, commands: Sequence[str]) -> bool:
        """Begin a request; False while the last one is still going on."""
        return self._start(self._write, tuple(commands))

    def _write(self, commands: Sequence[str]) -> None:
        outcome = WRITTEN
        for command in commands:
            if self._stop.is_set():
                return
            try:
                write_text(self.file, command, nonblocking=False)
            except OSError as error:
                outcome = errno_name(error)
        self.outcome = outcome


def errno_name(error: OSError) -> str:
    """``EAGAIN`` for error number 11, and so on."""
    return errno.errorcode.get(error.errno or 0, "EUNKNOWN")
