"""The account of contended locks, from lines that a Linux 7.3 guest wrote."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from memcg_gym.enforcer.lock_trace import (
    LockAccount,
    instance_settings,
    owner_pid,
    parse_events,
    probes,
)
from memcg_gym.envs.contract.errors import CgroupError

OFFSETS = {("task_struct", "pid"): 2872, ("mutex", "owner"): 0, ("rw_semaphore", "owner"): 8}
EVENTS = (
    "lock:contention_begin",
    "lock:contention_end",
    "lock:contended_release",
    "syscalls:sys_enter_futex",
    "syscalls:sys_enter_futex_wait",
)

# A robust mutex shared by processes: 99 waits for 100.
USER = """\
         loadgen-99      [000] ...1.    17.924391: u_wait: (syscalls.sys_enter_futex) op=0x0 \
at=0x7ffff7f5d098 val=0x80000064 word=0x80000064 owner=0x64
         loadgen-100     [000] ...1.    17.924580: u_wake: (syscalls.sys_enter_futex) op=0x1 \
at=0x7ffff7f5d098
         loadgen-99      [000] ...1.    17.924606: u_end: (syscalls.sys_exit_futex) ret=0
         loadgen-99      [000] ...1.    17.925463: u_wake: (syscalls.sys_enter_futex) op=0x1 \
at=0x7ffff7f5d098
         loadgen-99      [000] ...1.    17.925468: u_end: (syscalls.sys_exit_futex) ret=0
"""

# The mutex of a pipe: 108 spins, then sleeps until 105 gives it on.
KERNEL = """\
         loadgen-108     [000] ...2.     3.379924: k_mutex: (lock.contention_begin) \
lock=0xff11000004611800 owner=0xff11000005afc680 a=0x6900000000000000 b=0x62000000
         loadgen-108     [000] d..4.     3.379929: k_mutex: (lock.contention_begin) \
lock=0xff11000004611800 owner=0xff11000005afc681 a=0x69000000000000 b=0xf100000000620000
         loadgen-105     [000] d..4.     3.380733: k_release: (lock.contended_release) \
lock=0xff11000004611800
         loadgen-108     [000] d..3.     3.380756: k_end: (lock.contention_end) \
lock=0xff11000004611800 ret=0
"""

THREADS = {99: (1,), 100: (0,), 105: (0,), 108: (1,)}
ROBUST = 0x80000000


def line(tid: int, at_us: int, what: str, **values: int) -> str:
    words = " ".join(f"{key}={value:#x}" for key, value in values.items())
    at = f"{at_us // 1_000_000}.{at_us % 1_000_000:06d}"
    return f" a b-c (d)-{tid}   [001] d..2.  {at}: {what}: (group.event) {words}\n"


def mutex(tid: int, at_us: int, lock: int, owner: int) -> str:
    return line(tid, at_us, "k_mutex", lock=lock, owner=0xFF00 if owner else 0, a=owner << 56, b=0)


def end(tid: int, at_us: int, lock: int) -> str:
    return line(tid, at_us, "k_end", lock=lock, ret=0)


def wait(tid: int, at_us: int, *, op: int = 0, at: int = 0x7098, **values: int) -> str:
    return line(tid, at_us, "u_wait", op=op, at=at, **values)


def robust(tid: int, at_us: int, owner: int, *, op: int = 0, at: int = 0x7098) -> str:
    word = ROBUST | owner
    return wait(tid, at_us, op=op, at=at, val=word, word=word, owner=0)


def account(
    *texts: str, now_us: int, threads: Mapping[int, tuple[int, ...]] = THREADS
) -> LockAccount:
    made = LockAccount()
    for text in texts:
        made.take(text, now_us, threads)
    return made


def test_a_holder_is_charged_until_it_wakes_the_waiter_and_the_waiter_until_it_runs() -> None:
    made = account(USER, now_us=18_000_000)
    holder, waiter = made.counts[0], made.counts[1]
    assert (holder.user_held_us, holder.waiters_us) == (189, 189)
    assert waiter.own_wait_us == 215
    assert (holder.kernel_held_us, holder.own_wait_us, waiter.user_held_us) == (0, 0, 0)
    assert made.seen == 5


def test_a_kernel_mutex_s_owner_is_found_behind_its_flags_and_spinning_is_waiting() -> None:
    made = account(KERNEL, now_us=4_000_000)
    assert made.counts[0].kernel_held_us == 3_380_733 - 3_379_924
    assert made.counts[1].own_wait_us == 3_380_756 - 3_379_924
    assert made.counts[1].spin_waits == 0


@pytest.mark.parametrize("flags", range(8))
def test_a_pid_is_found_whatever_flags_the_owner_word_has(flags: int) -> None:
    # what lies around task_struct.pid, read from 7 bytes before it and `flags` further
    memory = bytes(range(1, 8)) + (70_001).to_bytes(4, "little") + bytes(range(20, 40))
    low, high = (int.from_bytes(memory[flags + at : flags + at + 8], "little") for at in (0, 8))
    assert owner_pid(0xFF11000005AFC680 | flags, low, high) == 70_001


def test_a_lock_that_was_given_on_meanwhile_has_no_owner() -> None:
    assert owner_pid(0x1, 0, 0) == 0


def test_several_waiters_and_locks_do_not_count_twice_for_the_holder() -> None:
    threads = {1: (0,), 2: (1,), 3: (2,)}
    text = (
        mutex(2, 1_000_000, 0xA, 1)
        + mutex(3, 1_000_100, 0xA, 1)
        + robust(2, 1_000_150, 1)
        + end(2, 1_000_300, 0xA)
    )
    made = account(text, now_us=1_000_400, threads=threads)
    held, given = made.counts[0], made.counts[1]
    assert held.kernel_held_us == 300  # to 2, who then keeps 3 waiting
    assert given.kernel_held_us == 100
    assert held.user_held_us == 250
    assert held.waiters_us == 300 + 200 + 250


def test_a_wait_that_goes_on_counts_to_the_end_of_the_tick_and_beyond() -> None:
    made = LockAccount()
    made.take(mutex(108, 1_400_000, 0xA, 105), 2_000_000, THREADS)
    assert made.counts[0].kernel_held_us == 600_000
    made.take("", 3_000_000, THREADS)
    assert made.counts[0].kernel_held_us == 1_600_000
    made.take(end(108, 3_250_000, 0xA), 4_000_000, THREADS)
    assert made.counts[0].kernel_held_us == 1_850_000
    assert made.waiting_tids() == set()


def test_who_comes_last_knows_the_owner_for_all_who_wait() -> None:
    threads = {1: (0,), 2: (1,), 3: (2,), 4: (3,)}
    text = mutex(3, 1_000_000, 0xA, 1) + mutex(4, 1_000_100, 0xA, 2)
    made = account(text, now_us=1_000_200, threads=threads)
    assert made.counts[0].kernel_held_us == 100
    assert made.counts[1].kernel_held_us == 100
    assert made.counts[1].waiters_us == 200


@pytest.mark.parametrize("marker", ["CPU:3 [LOST 40 EVENTS]\n", "CPU:3 [LOST EVENTS]\n"])
def test_lost_events_end_all_waits_and_are_told(marker: str) -> None:
    made = account(mutex(108, 1_000_000, 0xA, 105) + marker, now_us=2_000_000)
    assert made.waiting_tids() == set()
    assert made.lost == (40 if "40" in marker else 1)
    assert made.confidence == 1 / (1 + made.lost)
    made.take("", 3_000_000, THREADS)
    assert made.lost == 0
    assert made.confidence == 1.0


def test_a_thread_that_is_no_more_waits_no_more() -> None:
    made = account(mutex(108, 1_000_000, 0xA, 105), now_us=1_000_500)
    made.forget([108])
    made.take("", 2_000_000, THREADS)
    assert made.counts[0].kernel_held_us == 500
    assert made.counts[1].own_wait_us == 500


def test_locks_that_name_no_owner_are_counted_as_waits_alone() -> None:
    made = account(end(108, 1_000_000, 0xB), now_us=1_000_100)
    assert made.counts[1].spin_waits == 1
    assert made.counts[1].own_wait_us == 0


@pytest.mark.parametrize(
    ("values", "held_us"),
    [
        ({"op": 128, "val": 2, "word": 2, "owner": 109}, 100),  # an ordinary mutex of glibc
        ({"op": 128, "val": 2, "word": 2, "owner": 0}, None),  # one that says nobody
        ({"op": 128, "val": 2, "word": 2, "owner": 100}, None),  # of another process: no mutex
        ({"op": 137, "val": 2, "word": 3, "owner": 109}, None),  # a count that was 2
        ({"op": 0, "val": 2, "word": 2, "owner": 109}, 100),
        ({"op": 134, "val": 0, "word": 109, "owner": 0}, 100),  # FUTEX_LOCK_PI
        ({"op": 128, "val": ROBUST | 7, "word": ROBUST | 7, "owner": 0}, 100),  # own namespace
        ({"op": 128, "val": ROBUST | 108, "word": ROBUST | 108, "owner": 0}, None),  # itself
        ({"op": 128, "val": ROBUST, "word": ROBUST, "owner": 0}, None),  # nobody
    ],
)
def test_only_futexes_that_tell_their_owner_count(
    values: dict[str, int], held_us: int | None
) -> None:
    threads = {100: (0,), 108: (1,), 109: (1,)}
    made = account(wait(108, 1_000_000, **values), now_us=1_000_100, threads=threads)
    if held_us is None:
        assert made.unowned == 1
        assert not made.counts
    else:
        assert made.counts[1].user_held_us == held_us


def test_a_word_that_changed_hands_since_the_program_looked_says_who_has_it_now() -> None:
    text = wait(108, 1_000_000, val=ROBUST | 99, word=ROBUST | 100, owner=0)
    assert account(text, now_us=1_000_100).counts[0].user_held_us == 100


def test_an_unknown_owner_is_nobody_s_burden_but_the_wait_is_seen() -> None:
    made = account(robust(108, 1_000_000, 4242), now_us=1_000_100)
    assert made.counts.keys() == {1}
    assert made.counts[1].own_wait_us == 100


def test_a_cgroup_within_another_counts_for_both() -> None:
    threads = {105: (0, 2), 108: (1,)}
    made = account(mutex(108, 1_000_000, 0xA, 105), now_us=1_000_100, threads=threads)
    assert made.counts[0].kernel_held_us == made.counts[2].kernel_held_us == 100


def test_clocks_of_two_cpus_that_differ_take_no_time_back() -> None:
    made = account(mutex(108, 1_000_050, 0xA, 105), end(108, 1_000_020, 0xA), now_us=1_000_100)
    assert made.counts[0].kernel_held_us == 50


def test_what_others_trace_and_commands_with_odd_names_do_no_harm() -> None:
    text = "# tracer: nop\n bash-7 [000] d..2. 1.5: sched_switch: prev_comm=x\n\n" + line(
        9, 1_000_000, "other", lock=1
    )
    made = account(text + end(108, 1_000_001, 0xB), now_us=1_100_000)
    assert made.seen == 1
    (event,) = parse_events(" we: (k.x) 3-77  [000] d..2.  2.000001: u_end: (s.f) ret=-110\n")
    assert (event.tid, event.at_us, event.values) == (77, 2_000_001, {"ret": -110})


def test_a_value_the_kernel_could_not_read_is_left_out() -> None:
    (event,) = parse_events(" x-7 [000] d..2. 2.000001: u_wait: (s.f) op=0x0 word=(fault)\n")
    assert event.values == {"op": 0}


def test_probes_read_the_owner_where_the_kernel_keeps_it() -> None:
    text = probes(OFFSETS, EVENTS)
    mutex_line, rwsem_line = text.splitlines()[:2]
    assert "owner=+0($lock_addr):x64 a=+2865(+0($lock_addr)):x64" in mutex_line
    assert "owner=+8($lock_addr):x64" in rwsem_line
    assert "b=+2873(+8($lock_addr)):x64" in rwsem_line
    assert text.count("\n") == len(text.splitlines()) == 9


def test_without_types_kernel_locks_have_waits_and_no_owners() -> None:
    first = probes({}, EVENTS).splitlines()[0]
    assert first == "e:memcg_gym/k_mutex lock.contention_begin lock=$lock_addr:x64 if flags & 32"


def test_a_host_without_the_tracepoints_is_refused() -> None:
    with pytest.raises(CgroupError, match="neither lock:contention_begin"):
        probes(OFFSETS, ["sched:sched_switch"])


def test_events_come_on_last_and_our_own_threads_are_left_out() -> None:
    settings = instance_settings([1, 77])
    assert settings[-1] == ("events/memcg_gym/enable", "1")
    assert ("set_event_notrace_pid", "1 77") in settings
    assert "set_event_notrace_pid" not in dict(instance_settings([]))
