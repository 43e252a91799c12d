"""Who holds a lock that others wait for: kernel locks and futexes, from tracefs alone.

Linux tells of contended locks through the tracepoints ``lock:contention_begin`` and
``contention_end`` (5.19), and of waits for user mutexes through the futex system calls.  Neither
says who holds the lock.  Event probes (5.15) on them read it at the moment the wait begins: the
owner word of a kernel mutex or rwsem and the pid of the task it points to, and the word of a futex.
This module writes those probes, keeps the account of what they say, and gives it as signals.

* A *mutex* and a *rwsem* held by a writer name their owner; a rwsem held by readers names the last
  one that came, which is a guess.  Spinlocks, per-CPU rwsems and rt-mutexes name nobody: their
  waits are counted and no more.
* A *futex* of a robust or priority-inheriting mutex holds its owner's thread id; an ordinary mutex
  of glibc is 2 where somebody waits and has the owner two words further.  Other futexes (condition
  variables, joins, mutexes of Rust and Go) do not tell an owner and are left out, as is
  ``futex_waitv`` and what 32-bit programs wait for.
* A holder's time is that in which somebody waited for one of its locks: several waiters, or
  several locks, do not count twice.  Waiters' time does add up.

What is not known: an owner that gave the lock on while others waited is seen when the next waiter
gets it or begins, not before; thread ids of shared futexes are those of the reader's pid namespace.

Units: microseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from memcg_gym.envs.contract.errors import CgroupError

GROUP = "memcg_gym"
"""Of the event probes; all of them begin and end with us."""

INSTANCE = "instances/memcg-gym"
"""Our own buffer below tracefs: what others trace is not disturbed and not read."""

BUFFER_KIB = 1024
"""Of each CPU; about ten thousand events (assumption: more than a CPU has in a tick)."""

OFFSETS = (("task_struct", "pid"), ("mutex", "owner"), ("rw_semaphore", "owner"))
"""What of the kernel's types must be known."""

OWNER_FLAGS = 7
"""Low bits of an owner word that are no part of the pointer (kernel/locking/mutex.c, rwsem.c)."""
READER_OWNED = 1

# Flags of contention_begin (include/trace/events/lock.h): SPIN 1, READ 2, WRITE 4, MUTEX 32.
MUTEX_FILTER = "flags & 32"
RWSEM_FILTER = "(flags & 6) && !(flags & 25)"

FUTEX_WAITERS = 1 << 31
FUTEX_TID = (1 << 30) - 1
FUTEX_PRIVATE = 128  # FUTEX2_PRIVATE as well
CONTENDED = 2
"""Word of an ordinary glibc mutex that somebody waits for (nptl/lowlevellock.h)."""
# FUTEX_WAIT and FUTEX_WAIT_BITSET, private or not, by either clock; then FUTEX_LOCK_PI and _PI2.
WAIT_OPS = (0, 128, 9, 137, 265, 393)
PI_OPS = (6, 134, 13, 141)
# FUTEX_WAKE of one, which is how a mutex is given on; FUTEX_UNLOCK_PI.
WAKE_OPS = (1, 129)
UNLOCK_OPS = (7, 135)

MIN_CONFIDENCE = 0.9
"""Below this share of events seen a tick tells nothing (assumption)."""

LINE = re.compile(r"-(\d+) .{0,40}?\s(\d+)\.(\d{6}): (\w+): \([\w.]+\) (.*)$")
LOST = re.compile(r"^CPU:\d+ \[LOST(?: (\d+))? EVENTS\]")

Kind = Literal["kernel", "user"]
Groups = tuple[int, ...]
"""Numbers of the cgroups that a thread counts for; several where one lies in another."""

NOBODY: Groups = ()


def probes(offsets: Mapping[tuple[str, str], int], events: Iterable[str]) -> str:
    """The text of ``dynamic_events``: one line an event probe.

    Args:
        offsets: Of :data:`OFFSETS`; where one is missing its locks have waits and no owners.
        events: What the host has, as ``available_events`` names them.

    Raises:
        CgroupError: The host has neither contention nor futex events.
    """
    have = set(events)
    lines = []
    pid = offsets.get(("task_struct", "pid"))
    if "lock:contention_begin" in have:
        for name, of, only in (
            ("k_mutex", "mutex", MUTEX_FILTER),
            ("k_rwsem", "rw_semaphore", RWSEM_FILTER),
        ):
            lines.append(
                f"e:{GROUP}/{name} lock.contention_begin lock=$lock_addr:x64"
                f"{_owner(offsets.get((of, 'owner')), pid)} if {only}"
            )
        lines.append(f"e:{GROUP}/k_end lock.contention_end lock=$lock_addr:x64 ret=$ret:s32")
    if "lock:contended_release" in have:
        lines.append(f"e:{GROUP}/k_release lock.contended_release lock=$lock_addr:x64")
    told = f"(val == {CONTENDED} || val & {FUTEX_WAITERS})"
    word = "at=$uaddr:x64 val=$val:x32 word=+u0($uaddr):x32 owner=+u8($uaddr):x32"
    if "syscalls:sys_enter_futex" in have:
        waits, pi = (" || ".join(f"op == {op}" for op in ops) for ops in (WAIT_OPS, PI_OPS))
        lines.append(
            f"e:{GROUP}/u_wait syscalls.sys_enter_futex op=$op:x32 {word}"
            f" if {told} && ({waits}) || {pi}"
        )
        wakes = " || ".join(f"op == {op}" for op in WAKE_OPS)
        unlocks = " || ".join(f"op == {op}" for op in UNLOCK_OPS)
        lines.append(
            f"e:{GROUP}/u_wake syscalls.sys_enter_futex op=$op:x32 at=$uaddr:x64"
            f" if val == 1 && ({wakes}) || {unlocks}"
        )
        lines.append(f"e:{GROUP}/u_end syscalls.sys_exit_futex ret=$ret:s64 if ret <= 0")
    if "syscalls:sys_enter_futex_wait" in have:
        lines.append(
            f"e:{GROUP}/u_wait2 syscalls.sys_enter_futex_wait op=$flags:x32 {word} if {told}"
        )
        lines.append(f"e:{GROUP}/u_end2 syscalls.sys_exit_futex_wait ret=$ret:s64")
    if not lines:
        raise CgroupError("tracefs: neither lock:contention_begin nor sys_enter_futex is there")
    return "".join(f"{line}\n" for line in lines)


def _owner(owner: int | None, pid: int | None) -> str:
    """Fetches of an owner word, and of 16 bytes that hold the task's pid whatever its flags are.

    A probe cannot mask the flags off the pointer.  They move what is read by up to 7 bytes, so the
    pid lies at byte ``7 - flags`` of what is read from 7 bytes before it.
    """
    if owner is None or pid is None:
        return ""
    word = f"+{owner}($lock_addr)"
    near = OWNER_FLAGS
    return f" owner={word}:x64 a=+{pid - near}({word}):x64 b=+{pid - near + 8}({word}):x64"


def owner_pid(word: int, low: int, high: int) -> int:
    """The pid in what :func:`probes` fetches; 0 where there is no owner.

    Example:
        >>> owner_pid(0xffff0002, 4711 << 40, 0)
        4711
    """
    if not word & ~OWNER_FLAGS:
        return 0
    return (low | high << 64) >> 8 * (OWNER_FLAGS - (word & OWNER_FLAGS)) & 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Event:
    """One line of ``trace_pipe``; a line about lost events has the name ``lost``."""

    name: str
    tid: int
    at_us: int
    values: Mapping[str, int]


def parse_events(text: str) -> list[Event]:
    """Lines of ``trace_pipe``, in order of time; what is not ours is passed over."""
    out = []
    for line in text.splitlines():
        match = LINE.search(line)
        if match is not None:
            tid, s, us, name, rest = match.groups()
            pairs = (word.partition("=") for word in rest.split())
            values = {key: int(value, 0) for key, _, value in pairs if is_number(value)}
            out.append(Event(name, int(tid), int(s) * 1_000_000 + int(us), values))
        elif lost := LOST.match(line):
            at_us = out[-1].at_us if out else 0
            out.append(Event("lost", 0, at_us, {"events": int(lost[1] or 1)}))
    return sorted(out, key=lambda event: event.at_us)


def is_number(text: str) -> bool:
    """A decimal or hexadecimal number; the kernel writes ``(fault)`` where it could not read."""
    return text.removeprefix("-").removeprefix("0x").isalnum() and text != "(fault)"


@dataclass(slots=True)
class Counts:
    """Of one cgroup, cumulative.

    Attributes:
        kernel_held_us, user_held_us: Time one of its threads held a lock that others waited for.
        waiters_us: Waiting of all threads for its locks, added up.
        own_wait_us: Waiting of its own threads, for whomever.
        spin_waits: Waits of its threads for locks that have no owner.
    """

    kernel_held_us: float = 0.0
    user_held_us: float = 0.0
    waiters_us: float = 0.0
    own_wait_us: float = 0.0
    spin_waits: int = 0


@dataclass(slots=True)
class Wait:
    """A thread that waits now."""

    kind: Kind
    lock: object
    own: Groups
    owner: Groups = NOBODY


@dataclass(slots=True)
class LockAccount:
    """The account of a host's contended locks.

    Attributes:
        counts: By number of the cgroup.
        seen, lost: Events of the last :meth:`take`.
        unowned: Futex waits so far that told no owner; they count nowhere.
    """

    counts: dict[int, Counts] = field(default_factory=dict)
    seen: int = 0
    lost: int = 0
    unowned: int = 0
    _at_us: int = 0
    _waits: dict[tuple[int, Kind], Wait] = field(default_factory=dict)
    _holding: dict[tuple[int, Kind], int] = field(default_factory=dict)  # waits for its locks
    _waiting: dict[int, int] = field(default_factory=dict)  # of its own threads

    def take(self, text: str, now_us: int, threads: Mapping[int, Groups]) -> None:
        """Add what was traced since the last time.

        Args:
            text: Of ``trace_pipe``.
            now_us: When it was read; waits that go on count until then.
            threads: The cgroups of each thread that counts for any.
        """
        self.seen = self.lost = 0
        for event in parse_events(text):
            if self._at_us:
                self._pass(event.at_us)
            self._at_us = max(self._at_us, event.at_us)
            if event.name == "lost":
                # The end of any wait may be among them.
                self.lost += event.values["events"]
                self._forget(self._waits)
            elif (handle := HANDLERS.get(event.name)) is not None:
                self.seen += 1
                handle(self, event, threads)
        self._pass(now_us)
        self._at_us = max(self._at_us, now_us)

    @property
    def confidence(self) -> float:
        """Share of the last events that were seen."""
        return self.seen / (self.seen + self.lost) if self.lost else 1.0

    def drop(self, group: int) -> None:
        """A cgroup is gone: its account ends."""
        self.counts.pop(group, None)

    def waiting_tids(self) -> set[int]:
        """Threads that wait now."""
        return {tid for tid, _ in self._waits}

    def forget(self, tids: Iterable[int]) -> None:
        """Threads that are no more wait no more."""
        gone = set(tids)
        self._forget([key for key in self._waits if key[0] in gone])

    def _of(self, group: int) -> Counts:
        return self.counts.setdefault(group, Counts())

    def _pass(self, at_us: int) -> None:
        """Time goes on until then; clocks of two CPUs may differ by a little."""
        passed_us = at_us - self._at_us
        if passed_us <= 0:
            return
        for (group, kind), waits in self._holding.items():
            if waits > 0:
                counts = self._of(group)
                counts.waiters_us += waits * passed_us
                if kind == "kernel":
                    counts.kernel_held_us += passed_us
                else:
                    counts.user_held_us += passed_us
        for group, waits in self._waiting.items():
            self._of(group).own_wait_us += waits * passed_us

    def _begin(self, tid: int, wait: Wait) -> None:
        """A thread waits; what it says of the owner is the latest of all who wait for the lock."""
        self._end((tid, wait.kind))
        for other in self._waits.values():
            if other.kind == wait.kind and other.lock == wait.lock and wait.owner:
                self._own(other, wait.owner)
        self._waits[tid, wait.kind] = wait
        for group in wait.own:
            self._waiting[group] = self._waiting.get(group, 0) + 1
        owner, wait.owner = wait.owner, NOBODY
        self._own(wait, owner)

    def _end(self, key: tuple[int, Kind]) -> Wait | None:
        wait = self._waits.pop(key, None)
        if wait is not None:
            self._own(wait, NOBODY)
            for group in wait.own:
                self._waiting[group] -= 1
        return wait

    def _own(self, wait: Wait, owner: Groups) -> None:
        """From now on it waits for these."""
        for group in wait.owner:
            self._holding[group, wait.kind] -= 1
        for group in owner:
            key = group, wait.kind
            self._holding[key] = self._holding.get(key, 0) + 1
        wait.owner = owner

    def _pass_on(self, kind: Kind, lock: object, owner: Groups) -> None:
        """The lock changed hands while these go on waiting."""
        for wait in self._waits.values():
            if wait.kind == kind and wait.lock == lock:
                self._own(wait, owner)

    def _forget(self, keys: Iterable[tuple[int, Kind]]) -> None:
        for key in list(keys):
            self._end(key)

    def kernel_begin(self, event: Event, threads: Mapping[int, Groups]) -> None:
        """A thread begins to wait for a kernel lock, or goes from spinning to sleeping."""
        values = event.values
        pid = owner_pid(values.get("owner", 0), values.get("a", 0), values.get("b", 0))
        owner = threads.get(pid, NOBODY) if pid != event.tid else NOBODY
        own = threads.get(event.tid, NOBODY)
        self._begin(event.tid, Wait("kernel", values.get("lock", 0), own, owner))

    def kernel_end(self, event: Event, threads: Mapping[int, Groups]) -> None:
        """It has the lock, or gave up; without a beginning it was one that names no owner."""
        own = threads.get(event.tid, NOBODY)
        wait = self._waits.get((event.tid, "kernel"))
        if wait is None or wait.lock != event.values.get("lock"):
            for group in own:
                self._of(group).spin_waits += 1
            return
        self._end((event.tid, "kernel"))
        if event.values.get("ret", 0) == 0:
            self._pass_on("kernel", wait.lock, own)

    def kernel_release(self, event: Event, threads: Mapping[int, Groups]) -> None:
        """The holder gives it on; who gets it says so."""
        self._pass_on("kernel", event.values.get("lock", 0), NOBODY)

    def user_begin(self, event: Event, threads: Mapping[int, Groups]) -> None:
        """A thread begins to wait at a futex, if it is a mutex that tells its owner."""
        own = threads.get(event.tid, NOBODY)
        owner = futex_owner(event, own, threads)
        if owner is None:
            self.unowned += 1
            return
        self._begin(event.tid, Wait("user", futex_identity(event, own), own, owner))

    def user_wake(self, event: Event, threads: Mapping[int, Groups]) -> None:
        """The holder gives it on; who gets it says so when it is woken, or the next who waits."""
        own = threads.get(event.tid, NOBODY)
        self._pass_on("user", futex_identity(event, own), NOBODY)

    def user_end(self, event: Event, threads: Mapping[int, Groups]) -> None:
        """It was woken, or gave up."""
        wait = self._end((event.tid, "user"))
        if wait is not None and event.values.get("ret", 0) == 0:
            self._pass_on("user", wait.lock, wait.own)


def is_private(event: Event) -> bool:
    """The futex is of one process."""
    return bool(event.values.get("op", 0) & FUTEX_PRIVATE)


def futex_identity(event: Event, own: Groups) -> object:
    """What is the same for all who use a futex.

    A shared one lies at another address in each process, but at the same place of its page.
    """
    at = event.values.get("at", 0)
    return (at, own) if is_private(event) else (at & 0xFFF, None)


def futex_owner(event: Event, own: Groups, threads: Mapping[int, Groups]) -> Groups | None:
    """The cgroups of who holds a futex; None where it is no mutex that tells.

    A private one is shared by threads of one process, and a process has one memory cgroup.
    """
    values, private = event.values, is_private(event)
    if values.get("op", 0) in PI_OPS:
        tid = values.get("word", 0) & FUTEX_TID
    elif values.get("val", 0) & FUTEX_WAITERS:
        word = values.get("word", 0)  # it may have changed hands since the program looked
        tid = (word if word & FUTEX_WAITERS else values["val"]) & FUTEX_TID
    else:
        tid = values.get("owner", 0) if values.get("word") == CONTENDED else 0
        if threads.get(tid) != own and (private or tid not in threads):
            return None  # whatever it is that holds a 2, it is no mutex of glibc
    if not tid or tid == event.tid:
        return None
    return own if private else threads.get(tid, NOBODY)


HANDLERS = MappingProxyType(
    {
        "k_mutex": LockAccount.kernel_begin,
        "k_rwsem": LockAccount.kernel_begin,
        "k_end": LockAccount.kernel_end,
        "k_release": LockAccount.kernel_release,
        "u_wait": LockAccount.user_begin,
        "u_wait2": LockAccount.user_begin,
        "u_wake": LockAccount.user_wake,
        "u_end": LockAccount.user_end,
        "u_end2": LockAccount.user_end,
    }
)


def instance_settings(notrace: Sequence[int]) -> list[tuple[str, str]]:
    """What is written below the instance, in order, after the probes are there.

    Args:
        notrace: Threads whose own locks are not to be seen.
    """
    settings = [
        ("trace_clock", "mono"),
        ("buffer_size_kb", str(BUFFER_KIB)),
        ("options/overwrite", "1"),
    ]
    if notrace:
        settings.append(("set_event_notrace_pid", " ".join(str(pid) for pid in notrace)))
    return [*settings, (f"events/{GROUP}/enable", "1")]
