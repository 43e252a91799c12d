"""Setting up, reading and taking away a tracefs instance, on a tree that stands for a host."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.enforcer import tracefs
from memcg_gym.enforcer.cgroupfs import CgroupReader
from memcg_gym.enforcer.daemon import Daemon, Policy
from memcg_gym.enforcer.hostfs import Nodes, Roots
from memcg_gym.enforcer.lock_trace import INSTANCE
from memcg_gym.enforcer.tracefs import LockTracer, open_tracer, remove_left
from memcg_gym.envs.contract.errors import CgroupError
from memcg_gym.envs.contract.heads import N_HEADS
from memcg_gym.envs.contract.signals import N_MEMCG_SIGNALS, Sig
from tests.cgroupfs import FakeHost
from tests.enforcer.test_lock_trace import KERNEL, end, mutex

EVENTS = "lock:contention_begin\nlock:contention_end\nsyscalls:sys_enter_futex\n"
FILES = ("trace_clock", "buffer_size_kb", "options/overwrite", "set_event_notrace_pid")


class Host:
    """Cgroups with threads, and a tracefs that takes what is written."""

    def __init__(self, folder: Path) -> None:
        self.roots = Roots(
            cgroup=folder / "cgroup", proc=folder / "proc", sys=folder / "sys", tags=folder / "tags"
        )
        self.tracing = folder / "sys/kernel/tracing"
        self.instance = self.tracing / INSTANCE
        self.instance.parent.mkdir(parents=True)
        (self.tracing / "available_events").write_text(EVENTS)
        (self.tracing / "dynamic_events").touch()
        self.roots.proc.mkdir()

    def cgroup(self, name: str, *tids: int) -> Path:
        path = self.roots.cgroup / name
        path.mkdir(parents=True)
        (path / "cgroup.threads").write_text("".join(f"{tid}\n" for tid in tids))
        return path

    def make_instance(self) -> None:
        """What the kernel does at mkdir."""
        for file in (*FILES, "events/memcg_gym/enable", "trace_pipe"):
            (self.instance / file).parent.mkdir(parents=True, exist_ok=True)
            (self.instance / file).touch()

    def says(self, text: str) -> None:
        (self.instance / "trace_pipe").write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def traced(host: Host) -> Host:
    host.make_instance()
    return host


def signals_of(tracer: LockTracer, name: str) -> np.ndarray:
    signals = np.full(N_MEMCG_SIGNALS, -1.0)
    tracer.fill(name, signals)
    return signals


def test_an_instance_is_set_up_and_taken_away(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def made(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if path == host.instance:
            monkeypatch.setattr(Path, "mkdir", mkdir)
            host.make_instance()

    (host.tracing / "dynamic_events").write_text("p:others/probe do_exit\n")
    monkeypatch.setattr(Path, "mkdir", made)
    tracer = open_tracer(host.roots, [77])
    lines = (host.tracing / "dynamic_events").read_text().splitlines()
    assert lines[0] == "p:others/probe do_exit"
    assert [line.split()[0] for line in lines[1:]] == [
        f"e:memcg_gym/{name}"
        for name in ("k_mutex", "k_rwsem", "k_end", "u_wait", "u_wake", "u_end")
    ]
    assert (host.instance / "trace_clock").read_text() == "mono"
    assert (host.instance / "set_event_notrace_pid").read_text() == "77"
    assert (host.instance / "events/memcg_gym/enable").read_text() == "1"
    tracer.close()
    assert (host.instance / "events/memcg_gym/enable").read_text() == "0"
    removed = (host.tracing / "dynamic_events").read_text().splitlines()[len(lines) :]
    assert removed == [f"-:{line.split()[0][2:]}" for line in lines[1:]]


def test_a_host_without_tracefs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CgroupError, match="no tracefs"):
        open_tracer(Roots(sys=tmp_path))


def test_what_the_kernel_refuses_is_told_with_its_own_words(host: Host) -> None:
    (host.tracing / "error_log").write_text(
        "[ 1.5] event_probe: error: Argument is not specified\n  Command: e:x\n"
    )
    (host.tracing / "dynamic_events").unlink()
    with pytest.raises(CgroupError, match=r"dynamic_events: No such file.*Argument is not"):
        open_tracer(host.roots)
    assert not host.instance.exists()


def test_another_run_s_instance_is_left_alone(traced: Host) -> None:
    with pytest.raises(CgroupError, match="is there already"):
        open_tracer(traced.roots)
    assert (traced.instance / "events/memcg_gym/enable").read_text() == ""


def test_what_a_dead_run_left_is_switched_off(traced: Host) -> None:
    assert remove_left(traced.roots) == f"{traced.instance}: removed"
    assert (traced.instance / "events/memcg_gym/enable").read_text() == "0"


def test_nothing_is_removed_where_nothing_was_left(host: Host) -> None:
    assert remove_left(host.roots) == ""


def test_traced_locks_become_the_signals_of_who_holds_and_who_waits(traced: Host) -> None:
    cgroups = {"a": traced.cgroup("a", 105), "b": traced.cgroup("b", 108)}
    tracer = LockTracer(traced.roots, traced.instance)
    traced.says("")
    tracer.update(cgroups, 3_000_000.0)
    traced.says(KERNEL)
    tracer.update(cgroups, 4_000_000.5)
    holder, waiter = (signals_of(tracer, name) for name in "ab")
    assert holder[Sig.LOCK_KERNEL_HELD_US] == 809
    assert holder[Sig.LOCK_USER_HELD_US] == 0
    assert holder[Sig.LOCK_WAIT_US] == 809
    assert holder[Sig.LOCK_WAITERS] == pytest.approx(809e-6)
    assert not waiter[[Sig.LOCK_KERNEL_HELD_US, Sig.LOCK_WAIT_US, Sig.LOCK_WAITERS]].any()
    assert holder[Sig.USAGE_BYTES] == -1.0


def test_threads_of_cgroups_below_count_for_the_managed_one(traced: Host) -> None:
    path = traced.cgroup("a")
    traced.cgroup("a/inner/most", 105)
    traced.says(KERNEL)
    tracer = LockTracer(traced.roots, traced.instance)
    tracer.update({"a": path}, 4e6)
    assert signals_of(tracer, "a")[Sig.LOCK_KERNEL_HELD_US] == 809


def test_a_tick_of_which_much_was_lost_says_nothing(traced: Host) -> None:
    cgroups = {"a": traced.cgroup("a", 105)}
    tracer = LockTracer(traced.roots, traced.instance)
    traced.says(KERNEL + "CPU:0 [LOST 90 EVENTS]\n")
    tracer.update(cgroups, 4e6)
    assert tracer.note == "90 lock events were lost, 4 seen"
    assert math.isnan(signals_of(tracer, "a")[Sig.LOCK_KERNEL_HELD_US])
    traced.says("")
    tracer.update(cgroups, 5e6)
    assert tracer.note == ""
    assert signals_of(tracer, "a")[Sig.LOCK_KERNEL_HELD_US] == 809


def test_a_cgroup_nobody_asked_about_has_no_lock_signals(traced: Host) -> None:
    tracer = LockTracer(traced.roots, traced.instance)
    traced.says("")
    tracer.update({}, 4e6)
    assert math.isnan(signals_of(tracer, "a")[Sig.LOCK_WAITERS])


def test_a_waiter_that_died_waits_no_more_one_that_nobody_manages_goes_on(traced: Host) -> None:
    cgroups = {"a": traced.cgroup("a", 105)}
    tracer = LockTracer(traced.roots, traced.instance)
    (traced.roots.proc / "300").mkdir()
    traced.says(mutex(300, 1_000_000, 0xA, 105) + mutex(301, 1_000_000, 0xB, 105))
    tracer.update(cgroups, 2e6)
    traced.says("")
    tracer.update(cgroups, 3e6)
    assert signals_of(tracer, "a")[Sig.LOCK_WAITERS] == 1.0
    traced.says(end(300, 3_500_000, 0xA))
    tracer.update(cgroups, 4e6)
    assert signals_of(tracer, "a")[Sig.LOCK_KERNEL_HELD_US] == 2_500_000


def test_a_thread_that_ended_within_the_tick_is_still_known(traced: Host) -> None:
    path = traced.cgroup("a", 105)
    tracer = LockTracer(traced.roots, traced.instance)
    traced.says("")
    tracer.update({"a": path}, 3e6)
    (path / "cgroup.threads").write_text("")
    traced.says(KERNEL)
    tracer.update({"a": path}, 4e6)
    assert signals_of(tracer, "a")[Sig.LOCK_KERNEL_HELD_US] == 809


def test_an_instance_that_is_gone_is_an_error(host: Host) -> None:
    with pytest.raises(CgroupError, match="trace_pipe: cannot be read"):
        LockTracer(host.roots, host.instance).update({}, 1e6)


def test_traced_locks_win_over_tags(traced: Host) -> None:
    path = traced.cgroup("a", 105)
    assert traced.roots.tags is not None
    tags = traced.roots.tags / "a"
    tags.mkdir(parents=True)
    (tags / "lock_kernel_held_us").write_text("5\n")
    (tags / "critical_charge_pages").write_text("6\n")
    tracer = LockTracer(traced.roots, traced.instance)
    traced.says(KERNEL)
    tracer.update({"a": path}, 4e6)
    reader = CgroupReader(traced.roots, path, Nodes((), ()))
    signals = reader.read(locks=tracer).signals
    assert signals[Sig.LOCK_KERNEL_HELD_US] == 809
    assert signals[Sig.CRITICAL_CHARGE_PAGES] == 6
    assert reader.read().signals[Sig.LOCK_KERNEL_HELD_US] == 5


def test_kernel_types_are_read_where_the_host_has_them(host: Host) -> None:
    assert tracefs.kernel_offsets(host.roots) == {}
    path = host.roots.sys / tracefs.BTF
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no BTF at all, but long enough")
    with pytest.raises(CgroupError, match="expected BTF"):
        tracefs.kernel_offsets(host.roots)


class Deciding:
    """A policy that lets everything be."""

    def __call__(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = len(vectors)
        return np.zeros((n, N_HEADS), dtype=np.int64), np.zeros(n), np.zeros(n)


def daemon_of(host: FakeHost, tracer: LockTracer) -> Daemon:
    return Daemon(
        policy=Policy(decide=Deciding()),
        roots=host.roots,
        nodes=Nodes((), ()),
        cgroups=[Path("a")],
        locks=tracer,
    )


def test_the_loop_reads_the_trace_once_a_tick_and_takes_it_away_at_the_end(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    (host.make_cgroup("a") / "cgroup.threads").write_text("105\n")
    tracer = LockTracer(host.roots, tmp_path / INSTANCE)
    pipe = tracer.instance / "trace_pipe"
    (tracer.instance / "events/memcg_gym").mkdir(parents=True)
    (tracer.instance / "events/memcg_gym/enable").write_text("1")
    pipe.write_text("")
    daemon = daemon_of(host, tracer)
    now_us = [3e6]
    daemon.host_reader.clock_us = lambda: now_us[0]
    daemon.start()
    now_us[0] = 4e6
    pipe.write_text(KERNEL)
    daemon.tick()
    (managed,) = daemon.managed.values()
    assert managed.before is not None
    assert managed.before[Sig.LOCK_KERNEL_HELD_US] == 809
    daemon.close()
    assert (tracer.instance / "events/memcg_gym/enable").read_text() == "0"


def test_the_loop_goes_on_without_the_trace_when_it_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = FakeHost(tmp_path)
    host.make_cgroup("a")
    daemon = daemon_of(host, LockTracer(host.roots, tmp_path / INSTANCE))
    daemon.start()
    assert "locks are no longer traced" in caplog.text
    (record,) = daemon.tick()
    assert record.state in ("managed", "warming")
    daemon.close()
