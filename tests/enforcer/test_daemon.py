from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcg_gym.enforcer.daemon import Daemon, Policy
from memcg_gym.enforcer.facts import CgroupFacts, Site, read_site
from memcg_gym.enforcer.features import Guard
from memcg_gym.enforcer.hostfs import find_nodes
from memcg_gym.enforcer.journal import Journal, Owned
from memcg_gym.enforcer.loop import StopSignal, run_loop
from memcg_gym.enforcer.managed import Record
from memcg_gym.enforcer.writer import CgroupWriter
from memcg_gym.envs.contract.errors import CgroupError, ConfigError
from memcg_gym.envs.contract.features import MISSING_FIXED, N_FEATURES, SHIFT, F
from memcg_gym.envs.contract.heads import N_HEADS, Head
from memcg_gym.envs.contract.shield_rules import LEASE_TICKS, Shielded, ShieldLines
from memcg_gym.envs.contract.signals import N_HOST_SIGNALS, HostSig, Sig
from tests.cgroupfs import MIB, STAT, FakeHost, flat, pressure

USAGE = 64 * MIB

BLIND = Site(throttle_without_lock_signals=True)
"""Most tests throttle a cgroup of which nobody tells the locks."""


class Always:
    """A policy that asks for the same levels whatever it sees, and keeps what it saw."""

    def __init__(self, rule_id: int = 5, lease: int = 0, **levels: int) -> None:
        self.levels = np.zeros(N_HEADS, dtype=np.int64)
        for name, level in levels.items():
            self.levels[Head[name.upper()]] = level
        self.rule_id = rule_id
        self.lease = lease
        self.failure: Exception | None = None
        self.vectors = np.zeros((0, N_FEATURES), dtype=np.int32)

    def __call__(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.failure is not None:
            raise self.failure
        self.vectors = vectors.copy()
        n = len(vectors)
        return np.tile(self.levels, (n, 1)), np.full(n, self.rule_id), np.full(n, self.lease)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    fake = FakeHost(tmp_path)
    fake.make_cgroup("a")
    return fake


Make = Callable[..., Daemon]


@pytest.fixture
def make(host: FakeHost) -> Iterator[Make]:
    """Makes started daemons whose clock ticks by itself, one second a reading."""
    made: list[Daemon] = []

    def build(
        policy: Any, *names: str, active: bool = True, site: Site = BLIND, **more: Any
    ) -> Daemon:
        journal = Journal(host.path / "run/journal.json", host.roots) if active else None
        daemon = Daemon(
            policy=Policy(decide=policy),
            roots=host.roots,
            nodes=find_nodes(host.roots),
            cgroups=[Path(name) for name in names or ("a",)],
            journal=journal,
            site=site,
            **more,
        )
        clock = Clock()
        daemon.host_reader.clock_us = clock
        daemon.host_reader.read = clock.ticking(daemon.host_reader.read)  # type: ignore[method-assign]
        daemon.start()
        made.append(daemon)
        return daemon

    yield build
    for daemon in made:
        daemon.close()


class Clock:
    """Monotonic microseconds that move when the host is read."""

    def __init__(self) -> None:
        self.now_us = 0.0
        self.step_us = 1e6

    def __call__(self) -> float:
        return self.now_us

    def ticking(self, read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        def then_read() -> np.ndarray:
            self.now_us += self.step_us
            return read()

        return then_read


def only(records: list[Record]) -> Record:
    assert len(records) == 1
    return records[0]


def settings(host: FakeHost, name: str = "a") -> dict[str, str]:
    return {p.name: p.read_text().strip() for p in (host.cgroup / name).iterdir() if p.is_file()}


# --- one tick ------------------------------------------------------------------------------------


def test_a_level_becomes_a_page_aligned_limit_and_the_rule_is_named(
    host: FakeHost, make: Make
) -> None:
    record = only(make(Always(throttle=3, rule_id=7)).tick())
    assert record.rule_id == 7 and record.accepted[Head.THROTTLE] == 3
    assert host.text("a/memory.high") == str(int(0.97 * USAGE) // 4096 * 4096)
    assert [w.result for w in record.writes] == ["written"]


def test_the_default_action_writes_nothing(host: FakeHost, make: Make) -> None:
    before = settings(host)
    daemon = make(Always())
    for _ in range(3):
        assert only(daemon.tick()).writes == []
    assert settings(host) == before


def test_only_what_changed_is_written_again(host: FakeHost, make: Make) -> None:
    daemon = make(Always(throttle=2))
    assert [w.file for w in only(daemon.tick()).writes] == ["memory.high"]
    assert only(daemon.tick()).writes == []
    host.file("cgroup/a/memory.current", str(USAGE + 8192))
    assert [w.text for w in only(daemon.tick()).writes] == [str(USAGE + 8192)]


def test_every_head_with_a_knob_reaches_its_file(host: FakeHost, make: Make) -> None:
    host.file("tags/a/wss_bytes", str(32 * MIB))
    policy = Always(throttle=1, reclaim=2, protect=2, flush=1, demote=1, shed=1)
    record = only(make(policy).tick())
    written = {w.file: w.text for w in record.writes}
    assert written == {
        "memory.low": str(int(0.6 * 32 * MIB) // 4096 * 4096),
        "memory.reclaim": str(int(0.01 * USAGE) // 4096 * 4096),
        "cpu.weight": "300",
        "io.weight": "default 600",
    }
    assert record.accepted[Head.DEMOTE] == record.accepted[Head.SHED] == 0
    assert record.shield == Shielded.UNSUPPORTED


def test_lifting_raises_the_owner_s_memory_high(host: FakeHost, make: Make) -> None:
    host.file("cgroup/a/memory.high", str(48 * MIB))
    only(make(Always(throttle=1)).tick())
    assert host.text("a/memory.high") == "max"


def test_after_lifting_the_owner_s_limit_comes_back_in_steps(host: FakeHost, make: Make) -> None:
    host.file("cgroup/a/memory.high", str(40 * MIB))
    policy = Always(throttle=1)
    daemon = make(policy)
    daemon.tick()
    policy.levels[:] = 0
    daemon.tick()
    assert int(host.text("a/memory.high")) == int(0.92 * USAGE) // 4096 * 4096
    host.file("cgroup/a/memory.current", str(41 * MIB))
    daemon.tick()
    assert host.text("a/memory.high") == str(40 * MIB)


def test_the_combined_ceiling_is_kept_at_the_default_action(host: FakeHost, make: Make) -> None:
    site = Site(cgroups={"a": CgroupFacts(memsw_ceiling_bytes=100 * MIB)})
    only(make(Always(), site=site).tick())
    assert host.text("a/memory.swap.max") == str(36 * MIB)


def test_an_unknown_usage_writes_no_ceiling(host: FakeHost, make: Make) -> None:
    site = dataclasses.replace(BLIND, cgroups={"a": CgroupFacts(memsw_ceiling_bytes=100 * MIB)})
    daemon = make(Always(throttle=3), site=site)
    (host.cgroup / "a/memory.current").unlink()
    record = only(daemon.tick())
    assert record.writes == [] and Shielded.STALE in record.shield


def test_rates_are_per_second_of_the_tick(host: FakeHost, make: Make) -> None:
    policy = Always()
    daemon = make(policy)
    host.file("cgroup/a/memory.pressure", pressure(11 + 250_000, 7))
    daemon.tick()
    assert policy.vectors[0, F.PSI_MEM_SOME] == (1 << SHIFT) // 4
    daemon.tick()
    assert policy.vectors[0, F.PSI_MEM_SOME] == 0


def test_levels_in_force_are_seen_by_the_next_decision(make: Make) -> None:
    policy = Always(throttle=3)
    daemon = make(policy)
    daemon.tick()
    assert policy.vectors[0, F.LEVEL_THROTTLE] == 0
    daemon.tick()
    assert policy.vectors[0, F.LEVEL_THROTTLE] == 3 << SHIFT


def test_a_missing_required_signal_takes_the_default_until_it_is_back(
    host: FakeHost, make: Make
) -> None:
    policy = Always(throttle=3)
    daemon = make(policy)
    (host.cgroup / "a/memory.pressure").unlink()
    record = only(daemon.tick())
    assert policy.vectors[0, F.PSI_MEM_SOME] == MISSING_FIXED
    assert record.accepted == (0,) * N_HEADS and Shielded.STALE in record.shield
    host.file("cgroup/a/memory.pressure", pressure(11, 7))
    daemon.tick()
    assert only(daemon.tick()).accepted[Head.THROTTLE] == 3
    assert np.isfinite(daemon.managed[host.cgroup / "a"].averages).all()


def test_a_lock_holder_is_not_throttled(host: FakeHost, make: Make) -> None:
    host.file("tags/a/lock_user_held_us", "0")
    daemon = make(Always(throttle=3))
    host.file("tags/a/lock_user_held_us", "900")
    record = only(daemon.tick())
    assert record.accepted[Head.THROTTLE] == 0 and record.shield == Shielded.HOLDER
    assert host.text("a/memory.high") == "max"


def tell_locks(host: FakeHost, held_us: int = 0, name: str = "a") -> None:
    for tag in ("lock_kernel_held_us", "lock_user_held_us", "critical_charge_pages"):
        host.file(f"tags/{name}/{tag}", str(held_us))


def test_a_cgroup_whose_locks_nobody_tells_is_not_throttled(
    host: FakeHost, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        daemon = make(Always(throttle=3, reclaim=1), site=Site())
        record = only(daemon.tick())
    assert record.accepted[Head.THROTTLE] == 0 and record.shield == Shielded.UNSUPPORTED
    assert record.accepted[Head.RECLAIM] == 1
    assert host.text("a/memory.high") == "max"
    assert "a: throttle unsupported: lock holders and critical threads are not known" in caplog.text


def test_throttling_begins_when_a_source_tells_and_ends_when_it_falls_silent(
    host: FakeHost, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = make(Always(throttle=3), site=Site())
    levels = []
    with caplog.at_level(logging.INFO):
        for held_us in (None, 500, 500, None, 500):
            shutil.rmtree(host.path / "tags/a", ignore_errors=True)
            if held_us is not None:
                tell_locks(host, held_us)
            levels.append(only(daemon.tick()).accepted[Head.THROTTLE])
    # Not in the first tick that tells: what was held in it is known from the second reading on.
    assert levels == [0, 0, 3, 0, 0]
    assert host.text("a/memory.high") == "max"
    changes = [r.message for r in caplog.records if "throttle" in r.message]
    assert [m.split(":")[1].split(" from")[0] for m in changes] == [
        " throttle unsupported", " throttle supported", " throttle unsupported",
    ]  # fmt: skip


def test_one_cgroup_s_lock_source_does_not_speak_for_another(host: FakeHost, make: Make) -> None:
    host.make_cgroup("b")
    tell_locks(host)
    a, b = make(Always(throttle=3), "a", "b", site=Site()).tick()
    assert a.accepted[Head.THROTTLE] == 3 and b.accepted[Head.THROTTLE] == 0


def test_an_observation_that_is_too_old_takes_the_default(make: Make) -> None:
    daemon = make(Always(throttle=3))
    daemon.policy = Policy(decide=daemon.policy.decide, max_age_s=0.5)
    assert only(daemon.tick()).accepted[Head.THROTTLE] == 3
    clock = daemon.host_reader.clock_us
    # A second goes by between the reading of the host and the decision.
    daemon.host_reader.clock_us = lambda: clock() + 1e6
    host_now = daemon.host_reader.read
    daemon.host_reader.read = lambda: host_now() - late  # type: ignore[method-assign]
    late = np.zeros(N_HOST_SIGNALS)
    late[HostSig.UPTIME_US] = 1e6
    record = only(daemon.tick())
    assert record.accepted == (0,) * N_HEADS and Shielded.STALE in record.shield


# --- killing -------------------------------------------------------------------------------------


def extreme(host: FakeHost, tick: int) -> None:
    """A host with no memory left that stalls completely."""
    host.file("proc/meminfo", host.meminfo(available_kb=1024))
    host.file("proc/pressure/memory", pressure(tick * 900_000, tick * 900_000))


def test_only_the_lowest_value_is_killed_and_only_under_lasting_pressure(
    host: FakeHost, make: Make
) -> None:
    host.make_cgroup("b")
    site = Site(
        cgroups={"a": CgroupFacts(value=2.0), "b": CgroupFacts(value=1.0)},
        lines=ShieldLines(kill_hold_ticks=3),
    )
    daemon = make(Always(kill=1), "a", "b", site=site)
    extreme(host, 1)
    a, b = daemon.tick()
    assert a.shield == Shielded.KILL_PRESSURE | Shielded.KILL_RANK
    assert b.shield == Shielded.KILL_PRESSURE
    for tick in (2, 3):
        extreme(host, tick)
        a, b = daemon.tick()
    assert b.accepted[Head.KILL] == 1 and a.accepted[Head.KILL] == 0
    assert host.text("b/cgroup.kill") == "1" and host.text("b/memory.oom.group") == "1"
    assert host.text("a/cgroup.kill") == ""


def test_without_a_value_nothing_is_ever_killed(host: FakeHost, make: Make) -> None:
    daemon = make(Always(kill=1), site=Site(lines=ShieldLines(kill_hold_ticks=1)))
    for tick in (1, 2, 3):
        extreme(host, tick)
        record = only(daemon.tick())
    assert Shielded.KILL_RANK in record.shield
    assert host.text("a/cgroup.kill") == ""


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_malformed_cgroup_is_skipped_logged_once_and_given_back(
    host: FakeHost, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    host.make_cgroup("b")
    daemon = make(Always(throttle=3), "a", "b")
    daemon.tick()
    host.file("cgroup/a/memory.stat", "anon lots\n")
    with caplog.at_level(logging.WARNING):
        a, b = daemon.tick()
        daemon.tick()
    assert a.state == "skipped" and "memory.stat:1: got 'anon lots'" in a.note
    assert host.text("a/memory.high") == "max"
    assert b.state == "managed" and host.text("b/memory.high") != "max"
    assert sum("memory.stat" in r.message for r in caplog.records) == 1
    host.file("cgroup/a/memory.stat", flat(STAT))
    assert daemon.tick()[0].state == "warming"
    assert daemon.tick()[0].accepted[Head.THROTTLE] == 3


def test_an_unreadable_host_gives_everything_back_and_the_loop_goes_on(
    host: FakeHost, make: Make
) -> None:
    daemon = make(Always(throttle=3))
    daemon.tick()
    good = (host.path / "proc/meminfo").read_text()
    host.file("proc/meminfo", "MemTotal: lots\n")
    assert only(daemon.tick()).state == "skipped"
    assert host.text("a/memory.high") == "max"
    host.file("proc/meminfo", good)
    assert [only(daemon.tick()).state for _ in range(2)] == ["warming", "managed"]


def test_a_cgroup_that_vanishes_is_dropped_and_the_others_go_on(host: FakeHost, make: Make) -> None:
    host.make_cgroup("b")
    daemon = make(Always(throttle=3), "a", "b")
    daemon.tick()
    shutil.rmtree(host.cgroup / "a")
    states = {r.cgroup: r.state for r in daemon.tick()}
    assert states == {"a": "gone", "b": "managed"}
    assert [r.cgroup for r in daemon.tick()] == ["b"]
    assert daemon.close() == []


def test_a_cgroup_that_vanishes_while_it_is_read_is_dropped(
    host: FakeHost, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = make(Always(throttle=3))
    reader = daemon.managed[host.cgroup / "a"].reader
    real = reader.read_setting

    def vanish(file: str) -> str | None:
        shutil.rmtree(host.cgroup / "a", ignore_errors=True)
        return real(file)

    monkeypatch.setattr(reader, "read_setting", vanish)
    assert only(daemon.tick()).state == "gone"
    assert daemon.tick() == []


def test_a_cgroup_made_anew_under_the_same_name_starts_afresh(host: FakeHost, make: Make) -> None:
    daemon = make(Always(throttle=3))
    daemon.tick()
    os.rename(host.cgroup / "a", host.path / "old")
    host.make_cgroup("a")
    host.file("cgroup/a/memory.high", str(1000 * MIB))
    assert only(daemon.tick()).state == "gone"
    assert only(daemon.tick()).state == "warming"
    assert only(daemon.tick()).state == "managed"
    daemon.close()
    assert host.text("a/memory.high") == str(1000 * MIB)


def test_a_failed_write_is_logged_once_and_the_others_go_on(
    host: FakeHost, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = make(Always(throttle=3, flush=1))
    real = CgroupWriter.apply

    def failing(self: Any, writes: list[Any], time_s: float) -> None:
        for write in writes:
            write.file = write.file.replace("cpu.weight", "absent/cpu.weight")
        real(self, writes, time_s)

    daemon.managed[host.cgroup / "a"].writer.apply = failing.__get__(  # type: ignore[method-assign]
        daemon.managed[host.cgroup / "a"].writer
    )
    with caplog.at_level(logging.WARNING):
        record = only(daemon.tick())
        daemon.tick()
    assert {w.file: w.result for w in record.writes}["absent/cpu.weight"] == "ENOENT"
    assert host.text("a/memory.high") != "max" and host.text("a/io.weight") == "default 600"
    assert sum("was not written: ENOENT" in r.message for r in caplog.records) == 1


def test_a_decision_that_fails_lets_the_lease_run_out(host: FakeHost, make: Make) -> None:
    policy = Always(throttle=3, lease=3)
    daemon = make(policy)
    assert only(daemon.tick()).lease_ticks == 3
    policy.failure = RuntimeError("no decision")
    highs = []
    for _ in range(3):
        record = only(daemon.tick())
        highs.append(host.text("a/memory.high"))
    assert record.state == "undecided" and "no decision" in record.note
    assert highs[0] == highs[1] != "max" and highs[2] == "max"


def test_a_failed_decision_repeats_neither_reclaim_nor_kill(host: FakeHost, make: Make) -> None:
    policy = Always(reclaim=4)
    daemon = make(policy)
    assert [w.file for w in only(daemon.tick()).writes] == ["memory.reclaim"]
    policy.failure = RuntimeError("no decision")
    assert only(daemon.tick()).writes == []


def test_leases_run_while_the_loop_is_held_up(host: FakeHost, make: Make) -> None:
    policy = Always(throttle=3)
    daemon = make(policy)
    daemon.tick()
    clock = daemon.host_reader.clock_us
    assert isinstance(clock, Clock)
    clock.step_us = (LEASE_TICKS + 1) * 1e6
    daemon.tick()
    assert policy.vectors[0, F.LEVEL_THROTTLE] == 0
    daemon.tick()


def test_what_the_owner_sets_meanwhile_is_his(host: FakeHost, make: Make) -> None:
    policy = Always(throttle=3)
    daemon = make(policy)
    daemon.tick()
    host.file("cgroup/a/memory.high", str(50 * MIB))
    daemon.tick()
    assert daemon.managed[host.cgroup / "a"].owner["memory.high"] == str(50 * MIB)
    daemon.close()
    assert host.text("a/memory.high") == str(50 * MIB)


# --- generations ---------------------------------------------------------------------------------

GENERATIONS = "memcg 1 /\n node 0\n 3 90000 9 0\nmemcg {id} /a\n node 0\n {rows}\n"


def age(host: FakeHost, *rows: str) -> None:
    """What the kernel says of cgroup ``a``."""
    host.file("sys/kernel/debug/lru_gen", GENERATIONS.format(id=7, rows="\n ".join(rows)))


WALKED = ("6 62000 3000 0", "7 2000 1000 0")


def aged(daemon: Daemon) -> str:
    """The last aging command, and the file as it was."""
    while daemon.aging_worker.busy:
        time.sleep(0.001)
    return Path(daemon.aging_worker.file).read_text()


def test_the_working_set_of_generations_is_protected(host: FakeHost, make: Make) -> None:
    age(host, "6 62000 3000 0", "7 61500 1000 0", "8 1000 24 0")
    record = only(make(Always(protect=3)).tick())
    assert {w.file: w.text for w in record.writes} == {"memory.low": str(1024 * 4096)}


def test_the_kernel_is_asked_to_walk_what_was_not_walked(host: FakeHost, make: Make) -> None:
    age(host, "3 90000 3000 0")
    daemon = make(Always())
    assert aged(daemon) == "+ 7 0 3 1 1"
    age(host, *WALKED)
    before = aged(daemon)
    daemon.tick()
    assert aged(daemon) == before


def test_the_root_and_unmanaged_cgroups_are_not_walked(host: FakeHost, make: Make) -> None:
    host.make_cgroup("b")
    age(host, "3 90000 3000 0")
    before = (host.path / "sys/kernel/debug/lru_gen").read_text()
    daemon = make(Always(), "b")
    daemon.tick()
    assert aged(daemon) == before


@pytest.mark.parametrize(("active", "site"), [(False, BLIND), (True, Site(lru_gen_aging=False))])
def test_nothing_is_walked_in_dry_run_or_where_the_operator_forbids_it(
    host: FakeHost, make: Make, active: bool, site: Site
) -> None:
    age(host, "3 90000 3000 0")
    before = (host.path / "sys/kernel/debug/lru_gen").read_text()
    daemon = make(Always(protect=3), active=active, site=site)
    record = only(daemon.tick())
    assert aged(daemon) == before
    assert record.accepted[Head.PROTECT] == 0 and record.shield == Shielded.UNSUPPORTED


def test_a_refused_walk_is_logged_once_and_the_loop_goes_on(
    host: FakeHost, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    age(host, "3 90000 3000 0")
    daemon = make(Always(throttle=3))
    aged(daemon)
    daemon.aging_worker.outcome = "EACCES"
    with caplog.at_level(logging.WARNING):
        assert [only(daemon.tick()).state for _ in range(3)] == ["managed"] * 3
    assert sum("aging was refused: EACCES" in r.message for r in caplog.records) == 1


def test_malformed_generations_cost_the_working_set_only(
    host: FakeHost, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = make(Always(throttle=3, protect=3))
    age(host, "three")
    with caplog.at_level(logging.WARNING):
        record = only(daemon.tick())
        daemon.tick()
    assert record.state == "managed" and record.accepted[Head.THROTTLE] == 3
    assert record.accepted[Head.PROTECT] == 0
    assert sum("lru_gen:6: got 'three'" in r.message for r in caplog.records) == 1


# --- dry run -------------------------------------------------------------------------------------


def test_dry_run_changes_not_a_byte_and_says_what_it_would_write(
    host: FakeHost, make: Make
) -> None:
    host.file("tags/a/wss_bytes", str(32 * MIB))
    site = dataclasses.replace(
        BLIND, cgroups={"a": CgroupFacts(memsw_ceiling_bytes=100 * MIB, kill_rank=0)}
    )
    before = host.digest()
    policy = Always(throttle=3, reclaim=3, protect=3, flush=2)
    daemon = make(policy, active=False, site=site)
    for _ in range(3):
        record = only(daemon.tick())
    daemon.close()
    assert host.digest() == before
    assert {w.file for w in record.writes} == {
        "memory.high", "memory.low", "memory.swap.max", "cpu.weight", "io.weight", "memory.reclaim",
    }  # fmt: skip
    assert {w.result for w in record.writes} == {"planned"}


# --- giving back ---------------------------------------------------------------------------------


def test_the_end_gives_every_file_back_and_removes_the_journal(host: FakeHost, make: Make) -> None:
    host.file("tags/a/wss_bytes", str(32 * MIB))
    before = settings(host)
    daemon = make(Always(throttle=3, protect=2, flush=2))
    daemon.tick()
    changed = settings(host)
    assert {f for f in before if before[f] != changed[f]} == {
        "memory.high", "memory.low", "cpu.weight", "io.weight"
    }  # fmt: skip
    journal = host.path / "run/journal.json"
    files = json.loads(journal.read_text())["cgroups"]["a"]["files"]
    assert files == {"memory.high": "max", "memory.low": "0", "cpu.weight": "100",
                     "io.weight": "default 200"}  # fmt: skip
    assert daemon.close() == []
    after = settings(host)
    # A fake io.weight holds what was written; the kernel keeps its lines per device.
    assert after.pop("io.weight") == "default 200"
    assert after == {k: v for k, v in before.items() if k != "io.weight"}
    assert not journal.exists()


def test_a_level_given_up_leaves_the_journal(host: FakeHost, make: Make) -> None:
    policy = Always(throttle=3)
    daemon = make(policy)
    daemon.tick()
    policy.levels[:] = 0
    daemon.tick()
    assert host.text("a/memory.high") == "max"
    daemon.tick()
    assert json.loads((host.path / "run/journal.json").read_text())["cgroups"] == {}


def test_the_journal_is_on_disk_before_the_first_write(
    host: FakeHost, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = CgroupWriter.apply

    def spy(self: Any, writes: list[Any], time_s: float) -> None:
        data = json.loads((host.path / "run/journal.json").read_text())
        seen.extend(data["cgroups"]["a"]["files"])
        real(self, writes, time_s)

    monkeypatch.setattr(CgroupWriter, "apply", spy)
    make(Always(throttle=3)).tick()
    assert seen == ["memory.high"]


def die_badly(host: FakeHost, make: Make) -> None:
    """Leave the tree and the journal as a killed process would."""
    daemon = make(Always(throttle=3))
    daemon.tick()
    assert host.text("a/memory.high") != "max"
    assert daemon.journal is not None
    daemon.journal.close()
    daemon._closed = True


def test_the_next_start_gives_back_what_a_dead_run_left(
    host: FakeHost, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    die_badly(host, make)
    with caplog.at_level(logging.WARNING):
        daemon = make(Always())
    assert host.text("a/memory.high") == "max"
    assert "a: restored memory.high" in caplog.text
    assert daemon.managed[host.cgroup / "a"].owner["memory.high"] == "max"


def test_a_journal_of_another_boot_or_of_another_cgroup_is_dropped(
    host: FakeHost, make: Make
) -> None:
    die_badly(host, make)
    left = host.text("a/memory.high")
    host.file("proc/sys/kernel/random/boot_id", "boot-2\n")
    make(Always())
    assert host.text("a/memory.high") == left
    assert not (host.path / "run/journal.json").exists()


def test_a_dead_run_s_values_do_not_reach_a_cgroup_made_anew(host: FakeHost, make: Make) -> None:
    die_badly(host, make)
    os.rename(host.cgroup / "a", host.path / "old")
    host.make_cgroup("a")
    host.file("cgroup/a/memory.high", str(7 * MIB))
    make(Always())
    assert host.text("a/memory.high") == str(7 * MIB)


def test_one_enforcer_a_journal(host: FakeHost, make: Make) -> None:
    make(Always())
    with pytest.raises(CgroupError, match="another enforcer holds"):
        Journal(host.path / "run/journal.json", host.roots)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 2}',
        '{"version": 1, "boot_id": "boot-1", "cgroups": {"../x": {"inode": 1, "files": {}}}}',
        '{"version": 1, "boot_id": "boot-1", "cgroups": {"a": {"inode": 1, "files": {"x": "1"}}}}',
    ],
)
def test_what_is_not_a_journal_is_refused_and_kept(host: FakeHost, text: str) -> None:
    path = host.file("run/journal.json", text)
    journal = Journal(path, host.roots)
    with pytest.raises(CgroupError, match="not a journal"):
        journal.recover()
    journal.close()
    assert path.read_text() == text


def test_a_value_that_cannot_be_given_back_keeps_the_journal(host: FakeHost, make: Make) -> None:
    daemon = make(Always(throttle=3))
    daemon.tick()
    high = host.cgroup / "a/memory.high"
    high.unlink()
    high.mkdir()  # neither readable nor writable, and still there
    assert daemon.close() == ["a/memory.high=max could not be restored: EISDIR"]
    assert (host.path / "run/journal.json").exists()
    with pytest.raises(CgroupError, match="could not be restored"):
        Journal(host.path / "run/journal.json", host.roots).recover()


def test_a_journal_that_cannot_be_made_is_an_error_before_any_write(host: FakeHost) -> None:
    host.file("occupied", "")
    with pytest.raises(CgroupError, match="--journal"):
        Journal(host.path / "occupied/journal.json", host.roots)


def test_the_journal_forgets_nothing_it_was_told(host: FakeHost) -> None:
    journal = Journal(host.path / "run/j.json", host.roots)
    inode = (host.cgroup / "a").stat().st_ino
    journal.record({"a": Owned(inode, {"memory.low": "4096", "memory.high": "8192"})})
    assert journal.recover() == ["a: restored memory.high, memory.low"]
    journal.close()
    assert host.text("a/memory.low") == "4096" and host.text("a/memory.high") == "8192"


# --- the loop ------------------------------------------------------------------------------------

SCRIPT = """
import signal
import sys
from pathlib import Path
from memcg_gym.enforcer.daemon import Daemon, Policy
from memcg_gym.enforcer.facts import Site
from memcg_gym.enforcer.hostfs import Roots, find_nodes
from memcg_gym.enforcer.journal import Journal
from memcg_gym.enforcer.loop import StopSignal, run_loop
from tests.enforcer.test_daemon import Always

path = Path(sys.argv[1])
roots = Roots(cgroup=path / "cgroup", proc=path / "proc", sys=path / "sys")
stop = StopSignal()
stop.catch(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
daemon = Daemon(policy=Policy(decide=Always(throttle=3)), roots=roots, nodes=find_nodes(roots),
                cgroups=[Path("a")], interval_s=0.1, journal=Journal(path / "j.json", roots),
                site=Site(throttle_without_lock_signals=True))

def emit(records):
    if records[0].writes:
        print("wrote", flush=True)
    if sys.argv[2] == "fail":
        raise RuntimeError("emit failed")

sys.exit(run_loop(daemon, emit, stop))
"""


def start_loop(host: FakeHost, mode: str = "run") -> subprocess.Popen[str]:
    """A process that throttles cgroup ``a`` until it is told to stop; returns once it did."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(host.path), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "wrote\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_loop_and_gives_everything_back(host: FakeHost, number: int) -> None:
    before = settings(host)
    process = start_loop(host)
    assert host.text("a/memory.high") != "max"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert settings(host) == before
    assert not (host.path / "j.json").exists()


def test_an_exception_gives_everything_back(host: FakeHost) -> None:
    before = settings(host)
    _, errors = start_loop(host, "fail").communicate(timeout=30)
    assert "emit failed" in errors
    assert settings(host) == before


def test_after_a_killed_process_the_journal_gives_everything_back(host: FakeHost) -> None:
    process = start_loop(host)
    process.kill()
    process.communicate(timeout=30)
    assert host.text("a/memory.high") != "max"
    journal = Journal(host.path / "j.json", host.roots)
    journal.recover()
    journal.close()
    assert host.text("a/memory.high") == "max"


def test_the_loop_ends_after_its_ticks(host: FakeHost, make: Make) -> None:
    daemon = make(Always(), active=False, interval_s=0.01)
    ticks: list[int] = []
    assert run_loop(daemon, lambda records: ticks.append(records[0].tick), StopSignal(), 3) == 0
    assert ticks == [1, 2, 3]


def test_systemd_hears_that_it_is_ready_alive_and_stopping(
    host: FakeHost, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(host.path / "notify"))
        heard.settimeout(10.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(host.path / "notify"))
        run_loop(
            make(Always(), active=False, interval_s=0.01), lambda records: None, StopSignal(), 1
        )
        assert [heard.recv(99) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_stop_that_was_asked_for_ends_the_wait_at_once() -> None:
    stop = StopSignal()
    assert not stop.wait(0.0)
    stop._stop(signal.SIGTERM, None)
    assert stop.wait(3600.0)


# --- which cgroups -------------------------------------------------------------------------------


def test_children_are_managed_as_they_come_and_go(host: FakeHost, make: Make) -> None:
    for name in ("pods/x", "pods/y", "pods/kubelet.service"):
        host.make_cgroup(name)
    (host.cgroup / "pods/bare").mkdir()
    daemon = make(Always(throttle=3), "pods", children=True)
    assert [r.cgroup for r in daemon.tick()] == ["pods/x", "pods/y"]
    host.make_cgroup("pods/z")
    shutil.rmtree(host.cgroup / "pods/x")
    states = {r.cgroup: r.state for r in daemon.tick()}
    assert states == {"pods/x": "gone", "pods/y": "managed", "pods/z": "warming"}


def test_a_child_that_holds_this_process_is_left_alone(host: FakeHost, make: Make) -> None:
    host.make_cgroup("pods/x")
    host.make_cgroup("pods/mine/inner")
    host.make_cgroup("pods/mine")
    host.file("proc/self/cgroup", "0::/pods/mine/inner\n")
    daemon = make(Always(), "pods", children=True)
    assert [r.cgroup for r in daemon.tick()] == ["pods/x"]


def test_a_child_we_move_into_is_given_back(host: FakeHost, make: Make) -> None:
    host.make_cgroup("pods/x")
    daemon = make(Always(throttle=3), "pods", children=True)
    daemon.tick()
    assert host.text("pods/x/memory.high") != "max"
    daemon.own = host.cgroup / "pods/x"
    daemon.tick()
    assert host.text("pods/x/memory.high") == "max"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "no such cgroup"),
        ("../proc", "no such cgroup"),
        ("/", "root cgroup"),
        ("me", "holds this process"),
        ("bare", "cgroup.subtree_control"),
    ],
)
def test_a_cgroup_that_must_not_be_managed_is_refused(
    host: FakeHost, make: Make, name: str, message: str
) -> None:
    host.make_cgroup("me")
    (host.cgroup / "bare").mkdir()
    with pytest.raises(CgroupError, match=message):
        make(Always(), name, active=False)


def test_a_cgroup_may_be_named_by_its_folder(host: FakeHost, make: Make) -> None:
    assert only(make(Always(), str(host.cgroup / "a")).tick()).cgroup == "a"


# --- what the operator says ----------------------------------------------------------------------


def test_facts_reach_the_signals(host: FakeHost, make: Make) -> None:
    path = host.file(
        "facts.toml",
        """
        tags = "/tags"
        exclude = ["monitor"]
        fast_nodes = [0]
        lru_gen_aging = false
        throttle_without_lock_signals = true
        [shield]
        kill_hold_ticks = 3
        [cgroup."/a"]
        priority = 2
        value = 5
        memsw_ceiling_bytes = 4096
        """,
    )
    site = read_site(path)
    assert site.lines == ShieldLines(kill_hold_ticks=3)
    assert site.tags == Path("/tags") and site.fast_nodes == (0,) and "monitor" in site.exclude
    assert site.throttle_without_lock_signals and not site.lru_gen_aging
    daemon = make(Always(), site=site)
    daemon.tick()
    signals = daemon.managed[host.cgroup / "a"].before
    assert signals is not None
    assert signals[Sig.PRIORITY] == 2
    assert signals[Sig.KILL_RANK] == 0
    assert signals[Sig.MEMSW_CEILING_BYTES] == 4096


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tag = 'x'", "no setting 'tag'; did you mean 'tags'"),
        ("tags = 3", "tags: got 3"),
        ("exclude = 'x'", "list of names"),
        ("fast_nodes = [-1]", "fast_nodes"),
        ("[shield]\nkill_util_ratio = 97", "kill_util_ratio: got 97"),
        ("[shield]\nkill_hold_ticks = 0", "whole number in 1..3600"),
        ("[cgroup.a]\npriority = 4", "priority: got 4"),
        ("[cgroup.a]\nvalue = 'high'", "value: got 'high'"),
        ("[cgroup.a]\nvalue = nan", "value: got nan"),
        ("[cgroup.a]\nkill_rank = true", "kill_rank: got True"),
        ("[cgroup.a]\nworth = 1", "no setting 'worth'"),
        ("cgroup = 1", "expected a table"),
        ("throttle_without_lock_signals = 1", "got 1, expected true or false"),
        ("throttle_without_locks = true", "did you mean 'throttle_without_lock_signals'"),
        ("a = ", "not TOML"),
    ],
)
def test_an_unusable_facts_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "facts.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"facts\.toml") as caught:
        read_site(path)
    assert message in str(caught.value)


def test_the_guard_starts_with_nothing_in_force(host: FakeHost, make: Make) -> None:
    guard = make(Always(throttle=3)).managed[host.cgroup / "a"].guard
    assert not guard[Guard.IN_FORCE : Guard.IN_FORCE + N_HEADS].any()
