"""A host's contended locks as signals: an instance of tracefs of our own, read once a tick.

Sets up what :mod:`~memcg_gym.enforcer.lock_trace` asks for, reads ``trace_pipe`` without waiting,
finds out which thread belongs to which cgroup (``cgroup.threads`` of it and of all below it), and
fills the lock signals.  The lab hands in a guest's files at the same places, so what runs there is
what runs on a host; there the guest's agent has done the setting up.

Units: microseconds.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from memcg_gym.enforcer.btf import Btf
from memcg_gym.enforcer.hostfs import Roots
from memcg_gym.enforcer.kernel_text import failure, read_text
from memcg_gym.enforcer.lock_trace import (
    GROUP,
    INSTANCE,
    MIN_CONFIDENCE,
    OFFSETS,
    Groups,
    LockAccount,
    instance_settings,
    probes,
)
from memcg_gym.envs.contract.errors import CgroupError
from memcg_gym.envs.contract.signals import Sig

TRACEFS = ("kernel/tracing", "kernel/debug/tracing")
"""Below ``/sys``: where it is mounted, or comes along with debugfs."""

BTF = "kernel/btf/vmlinux"

MAX_TEXT_BYTES = 16 << 20
"""Most that is read at once; what a few CPUs' buffers hold as text (assumption)."""

LOCK_SIGNALS = (
    Sig.LOCK_KERNEL_HELD_US,
    Sig.LOCK_USER_HELD_US,
    Sig.LOCK_WAIT_US,
    Sig.LOCK_WAITERS,
)


class LockTracer:
    """The lock signals of the cgroups of a host.

    Args:
        roots: Where the files are.
        instance: Folder of the tracefs instance; its ``trace_pipe`` is read.

    Attributes:
        account: What was traced so far.
        note: What was wrong with the last tick, or ``""``.
    """

    def __init__(self, roots: Roots, instance: Path) -> None:
        """Read nothing yet."""
        self.roots = roots
        self.instance = instance
        self.account = LockAccount()
        self.note = ""
        self._known: dict[int, Groups] = {}
        self._numbers: dict[str, int] = {}
        self._next = 0
        self._before: dict[int, float] = {}
        self._waiters: dict[int, float] = {}
        self._at_us = 0

    def update(self, cgroups: Mapping[str, Path], now_us: float) -> None:
        """Read what was traced since the last time.

        Args:
            cgroups: Folder by name of those that count.
            now_us: CLOCK_MONOTONIC now.

        Raises:
            CgroupError: The instance is gone or cannot be read.
        """
        text = self.read_pipe()
        self._follow(cgroups)
        threads = self._threads(cgroups)
        now = math.floor(now_us)
        # Those that ended since the last tick are in what was traced as well.
        self.account.take(text, now, self._known | threads)
        self._known = threads
        waiting = self.account.waiting_tids() - threads.keys()
        self.account.forget(tid for tid in waiting if not (self.roots.proc / str(tid)).exists())
        tick_us = now - self._at_us if self._at_us else 0
        for number in self._numbers.values():
            total = self.account.counts[number].waiters_us if self._knows(number) else 0.0
            gain = total - self._before.get(number, 0.0)
            self._waiters[number] = gain / tick_us if tick_us > 0 else 0.0
            self._before[number] = total
        self._at_us = now
        lost = self.account.lost
        self.note = f"{lost} lock events were lost, {self.account.seen} seen" if lost else ""

    def fill(self, name: str, signals: np.ndarray) -> None:
        """Put a cgroup's lock signals in; NaN where too many events were lost to say."""
        number = self._numbers.get(name)
        if number is None or self.account.confidence < MIN_CONFIDENCE:
            signals[list(LOCK_SIGNALS)] = np.nan
            return
        if not self._knows(number):
            signals[list(LOCK_SIGNALS)] = 0.0
            return
        counts = self.account.counts[number]
        signals[Sig.LOCK_KERNEL_HELD_US] = counts.kernel_held_us
        signals[Sig.LOCK_USER_HELD_US] = counts.user_held_us
        signals[Sig.LOCK_WAIT_US] = counts.waiters_us
        signals[Sig.LOCK_WAITERS] = self._waiters.get(number, 0.0)

    def read_pipe(self) -> str:
        """All that is in the buffer now.

        Raises:
            CgroupError: It cannot be read.
        """
        path = f"{self.instance}/trace_pipe"
        parts: list[bytes] = []
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with contextlib.closing(os.fdopen(fd, "rb", buffering=0)) as pipe:
                size = 0
                # None: the pipe is empty now; b"": the end of a file
                while size < MAX_TEXT_BYTES and (part := pipe.read(1 << 16)):
                    parts.append(part)
                    size += len(part)
        except OSError as error:
            raise failure(path, error) from error
        return b"".join(parts).decode("ascii", errors="replace")

    def close(self) -> None:
        """Take our probes and our instance away again; what is gone already is no error."""
        with contextlib.suppress(OSError):
            write(self.instance / f"events/{GROUP}/enable", "0")
        with contextlib.suppress(OSError):
            self.instance.rmdir()
        with contextlib.suppress(OSError):
            remove_probes(self.instance.parent.parent)

    def _knows(self, number: int) -> bool:
        return number in self.account.counts

    def _follow(self, cgroups: Mapping[str, Path]) -> None:
        for name in self._numbers.keys() - cgroups.keys():
            self.account.drop(self._numbers.pop(name))
        for name in cgroups:
            if name not in self._numbers:
                self._numbers[name] = self._next
                self._next += 1

    def _threads(self, cgroups: Mapping[str, Path]) -> dict[int, Groups]:
        """The numbers of the cgroups of each thread."""
        threads: dict[int, Groups] = {}
        for name, path in cgroups.items():
            number = self._numbers[name]
            for folder in (path, *folders_below(path)):
                # None: it is gone, or it may hold no threads ("domain invalid")
                for tid in map(int, (read_text(f"{folder}/cgroup.threads") or "").split()):
                    threads[tid] = (*threads.get(tid, ()), number)
        return threads


def folders_below(path: Path) -> list[Path]:
    """All cgroups below one; one that goes away meanwhile is left out."""
    out: list[Path] = []
    for folder, names, _ in os.walk(path):
        out += [Path(folder, name) for name in names]
    return out


def find_tracing(roots: Roots) -> Path | None:
    """Where tracefs is, if it is mounted."""
    folders = (roots.sys / below for below in TRACEFS)
    return next((folder for folder in folders if (folder / "instances").is_dir()), None)


def open_tracer(
    roots: Roots, notrace: Sequence[int] = (), *, take_over: bool = False
) -> LockTracer:
    """Set this host's instance up.

    Args:
        roots: Where the files are.
        notrace: Threads whose own locks are not to be seen.
        take_over: An instance that is there was left by a run that is no more: begin anew.

    Raises:
        CgroupError: The host cannot trace locks; says why.
    """
    tracing = find_tracing(roots)
    if tracing is None:
        raise CgroupError(f"{roots.sys / TRACEFS[0]}: no tracefs with instances is mounted")
    events = (read_text(f"{tracing}/available_events") or "").split()
    text = probes(kernel_offsets(roots), events)
    tracer = LockTracer(roots, tracing / INSTANCE)
    if take_over:
        tracer.close()
    if tracer.instance.is_dir():
        raise CgroupError(
            f"{tracer.instance}: is there already: another run traces locks, or one ended badly"
            " (enforce --restore)"
        )
    try:
        append(tracing / "dynamic_events", text)
        tracer.instance.mkdir()
        for file, value in instance_settings(notrace):
            write(tracer.instance / file, value)
    except OSError as error:
        tracer.close()
        why = error_log(read_text(f"{tracing}/error_log") or "")
        if not why and error.errno == errno.EINVAL:
            why = "; has the kernel event probes (CONFIG_EPROBE_EVENTS)?"
        raise CgroupError(f"{error.filename or tracing}: {error.strerror}{why}") from error
    return tracer


def remove_left(roots: Roots) -> str:
    """Take away the instance of a run that ended badly; says so, ``""`` if there is none."""
    tracing = find_tracing(roots)
    if tracing is None or not (tracing / INSTANCE).is_dir():
        return ""
    LockTracer(roots, tracing / INSTANCE).close()
    return f"{tracing / INSTANCE}: removed"


def kernel_offsets(roots: Roots) -> dict[tuple[str, str], int]:
    """Where the kernel keeps a lock's owner; nothing where it does not describe its types."""
    path = roots.sys / BTF
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    return Btf(data, f"{path}").offsets(OFFSETS)


def remove_probes(tracing: Path) -> None:
    """Remove every event probe of our group.

    Raises:
        OSError: One is in use.
    """
    text = read_text(f"{tracing}/dynamic_events") or ""
    ours = [line.split()[0] for line in text.splitlines() if f":{GROUP}/" in line]
    for name in ours:
        append(tracing / "dynamic_events", f"-:{name.partition(':')[2]}\n")


def error_log(text: str) -> str:
    """The last thing tracefs complained of, to stand behind an error."""
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    return f" ({lines[-1]})" if lines else ""


def write(path: Path, text: str) -> None:
    """One write of all of it.

    Raises:
        OSError: As the kernel said.
    """
    _put(path, text, os.O_WRONLY | os.O_TRUNC)


def append(path: Path, text: str) -> None:
    """One write that leaves what others put there.

    Raises:
        OSError: As the kernel said.
    """
    _put(path, text, os.O_WRONLY | os.O_APPEND)


def _put(path: Path, text: str, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{path}") from error
    finally:
        os.close(fd)
