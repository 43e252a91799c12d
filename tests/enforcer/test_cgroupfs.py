from __future__ import annotations

import errno
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.enforcer import writer as writer_module
from memcg_gym.enforcer.capabilities import Capabilities, capabilities, why_unsupported
from memcg_gym.enforcer.cgroupfs import SETTING_FILES, TAG_MAX_AGE_S, TAG_SIGNALS, CgroupReader
from memcg_gym.enforcer.hostfs import HostReader, Nodes, Roots, find_nodes
from memcg_gym.enforcer.kernel_text import (
    CgroupGoneError,
    parse_bytes,
    parse_flat,
    parse_meminfo,
    parse_numa_stat,
    parse_pressure,
    parse_weight,
)
from memcg_gym.enforcer.writer import (
    CHUNK_BYTES,
    DEEPEST_RATIO,
    CgroupWriter,
    Write,
    align,
    high_step,
    plan_writes,
)
from memcg_gym.envs.contract.errors import CgroupError
from memcg_gym.envs.contract.heads import Head
from memcg_gym.envs.contract.knobs import N_KNOBS, Knob
from memcg_gym.envs.contract.signals import (
    UNLIMITED_BYTES,
    HostSig,
    Sig,
)
from tests.cgroupfs import MIB, STAT, FakeHost, flat, pressure

TOLD = {Sig.MEMSW_CEILING_BYTES, Sig.PRIORITY, Sig.KILL_RANK}
"""Signals that neither a kernel file nor a tag tells: configuration."""


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def reader(host: FakeHost, name: str = "a") -> CgroupReader:
    path = host.cgroup / name
    if not path.exists():
        host.make_cgroup(name)
    return CgroupReader(host.roots, path, find_nodes(host.roots))


EXPECTED = {
    Sig.USAGE_BYTES: 64 * MIB,
    Sig.SWAP_BYTES: 4 * MIB,
    Sig.ZSWAP_BYTES: 4096,
    Sig.ANON_BYTES: 40 * MIB,
    Sig.FILE_BYTES: 20 * MIB,
    Sig.SHMEM_BYTES: 1 * MIB,
    Sig.DIRTY_BYTES: 8192,
    Sig.WRITEBACK_BYTES: 4096,
    Sig.FAST_BYTES: 35,
    Sig.SLOW_BYTES: 12,
    Sig.OWNER_MIN_BYTES: 0,
    Sig.OWNER_LOW_BYTES: 0,
    Sig.OWNER_HIGH_BYTES: UNLIMITED_BYTES,
    Sig.OWNER_MAX_BYTES: 128 * MIB,
    Sig.OWNER_SWAP_MAX_BYTES: UNLIMITED_BYTES,
    Sig.LOW_BYTES: 0,
    Sig.HIGH_BYTES: UNLIMITED_BYTES,
    Sig.PSI_MEM_SOME_US: 11,
    Sig.PSI_MEM_FULL_US: 7,
    Sig.PSI_IO_SOME_US: 22,
    Sig.PSI_IO_FULL_US: 17,
    Sig.PSI_CPU_SOME_US: 33,
    Sig.PSI_MEM_SOME_AVG10: 1.25,
    Sig.REFAULT_ANON: 100,
    Sig.REFAULT_FILE: 200,
    Sig.ACTIVATE: 30,
    Sig.RESTORE: 3,
    Sig.PGSCAN_DIRECT: 400,
    Sig.PGSTEAL_DIRECT: 40,
    Sig.PGSCAN_KSWAPD: 300,
    Sig.PGSTEAL_KSWAPD: 30,
    Sig.PGSCAN_PROACTIVE: 500,
    Sig.PGSTEAL_PROACTIVE: 50,
    Sig.PGDEMOTE: 7,
    Sig.PGPROMOTE: 6,
    Sig.PGMAJFAULT: 7,
    Sig.EVENTS_LOW: 1,
    Sig.EVENTS_HIGH: 2,
    Sig.EVENTS_MAX: 3,
    Sig.EVENTS_OOM_KILL: 4,
    Sig.CHARGE_PAGES: 5000,
    Sig.PSI_MEM_SOME_AVG60: 0.75,
    Sig.PSI_IO_SOME_AVG10: 2.25,
    Sig.PSI_IO_SOME_AVG60: 1.75,
    Sig.UNRECLAIMABLE_BYTES: 69632,
    Sig.PGFAULT: 5000,
    Sig.SWAPOUT_PAGES: 9,
}


def test_every_memcg_signal_is_read_from_its_file_or_has_none(host: FakeHost) -> None:
    signals = reader(host).read().signals
    got = {sig: float(signals[sig]) for sig in Sig if not math.isnan(signals[sig])}
    assert got == EXPECTED


def test_every_host_signal_is_read_from_its_file(host: FakeHost) -> None:
    kb = 1024
    signals = HostReader(host.roots, find_nodes(host.roots), clock_us=lambda: 5e6).read()
    assert {HostSig(i): float(v) for i, v in enumerate(signals)} == {
        HostSig.TOTAL_BYTES: 2097152 * kb,
        HostSig.FREE_BYTES: 524288 * kb,
        HostSig.AVAILABLE_BYTES: 1048576 * kb,
        HostSig.FAST_TOTAL_BYTES: 1048576 * kb,
        HostSig.FAST_FREE_BYTES: 262144 * kb,
        HostSig.SLOW_TOTAL_BYTES: 1048576 * kb,
        HostSig.SLOW_FREE_BYTES: 524288 * kb,
        HostSig.SWAP_TOTAL_BYTES: 524288 * kb,
        HostSig.SWAP_FREE_BYTES: 262144 * kb,
        HostSig.PSI_MEM_SOME_US: 1000,
        HostSig.PSI_MEM_FULL_US: 500,
        HostSig.PSI_IO_SOME_US: 1000,
        HostSig.PSI_IO_FULL_US: 500,
        HostSig.PSI_CPU_SOME_US: 1000,
        HostSig.PSI_MEM_SOME_AVG10: 1.5,
        HostSig.PSI_MEM_FULL_AVG10: 1.5,
        HostSig.CPU_IDLE_US: 340 * 10_000,
        HostSig.CPUS: 2,
        HostSig.DIRTY_BYTES: 72 * kb,
        HostSig.FLUSHER_BACKLOG_BYTES: 64 * kb - 10 * 4096,
        HostSig.SWAPOUT_PAGES: 77,
        HostSig.UPTIME_US: 5e6,
    }


def test_page_counters_of_a_host_with_large_pages_count_4_kib_pages(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, page_bytes=65536)
    signals = reader(host).read().signals
    assert signals[Sig.REFAULT_ANON] == 1600
    assert signals[Sig.USAGE_BYTES] == 64 * MIB
    host_signals = HostReader(host.roots, find_nodes(host.roots)).read()
    assert host_signals[HostSig.SWAPOUT_PAGES] == 77 * 16


FILE_SIGNALS = [
    ("memory.current", [Sig.USAGE_BYTES]),
    ("memory.swap.current", [Sig.SWAP_BYTES]),
    ("memory.zswap.current", [Sig.ZSWAP_BYTES]),
    ("memory.events", [Sig.EVENTS_LOW, Sig.EVENTS_HIGH, Sig.EVENTS_MAX, Sig.EVENTS_OOM_KILL]),
    ("memory.numa_stat", [Sig.FAST_BYTES, Sig.SLOW_BYTES]),
    ("cpu.pressure", [Sig.PSI_CPU_SOME_US]),
    ("memory.low", [Sig.LOW_BYTES, Sig.OWNER_LOW_BYTES]),
    ("memory.swap.max", [Sig.OWNER_SWAP_MAX_BYTES]),
]


@pytest.mark.parametrize(("file", "sigs"), FILE_SIGNALS)
def test_a_missing_file_leaves_exactly_its_signals_unknown(
    host: FakeHost, file: str, sigs: list[Sig]
) -> None:
    (host.make_cgroup("a") / file).unlink()
    signals = reader(host).read().signals
    assert {s for s in EXPECTED if math.isnan(signals[s])} == set(sigs)


def test_pressure_switched_off_at_boot_counts_as_missing(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup_reader = reader(host)
    real = os.read

    def read(fd: int, size: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("memory.pressure"):
            raise OSError(errno.EOPNOTSUPP, "off")
        return real(fd, size)

    monkeypatch.setattr(os, "read", read)
    signals = cgroup_reader.read().signals
    assert math.isnan(signals[Sig.PSI_MEM_SOME_US])
    assert signals[Sig.PSI_IO_SOME_US] == 22


def test_refaults_of_kernels_before_5_9_count_as_missing(host: FakeHost) -> None:
    host.make_cgroup("a")
    old = {k: v for k, v in STAT.items() if not k.startswith("workingset_")}
    host.file("cgroup/a/memory.stat", flat({**old, "workingset_refault": 300}))
    signals = reader(host).read().signals
    assert math.isnan(signals[Sig.REFAULT_ANON]) and math.isnan(signals[Sig.REFAULT_FILE])
    assert signals[Sig.ANON_BYTES] == 40 * MIB


MALFORMED = [
    ("memory.current", "12 34\n", 1),
    ("memory.current", "", 1),
    ("memory.current", "-4096\n", 1),
    ("memory.high", "maximum\n", 1),
    ("memory.stat", "anon 1\nfile two\n", 2),
    ("memory.stat", "anon 1\nfile 2\nshmem 3 4\n", 3),
    ("memory.stat", "anon 1\nfile --2\n", 2),
    ("memory.events", "low 1\nhigh\n", 2),
    ("memory.pressure", "some avg10=0.00 total=1\nfull avg10=zero total=1\n", 2),
    ("memory.pressure", "some avg10=0.00\n", 1),
    ("memory.pressure", "some avg10=nan total=1\n", 1),
    ("memory.pressure", "none avg10=0.00 total=1\n", 1),
    ("memory.numa_stat", "anon N0=1 N1\n", 1),
    ("memory.numa_stat", "anon\nfile N0=x\n", 2),
    ("cpu.weight", "heavy\n", 1),
    ("io.weight", "8:0 50\n", 1),
]


@pytest.mark.parametrize(("file", "text", "line"), MALFORMED)
def test_a_malformed_file_is_refused_with_its_name_line_and_content(
    host: FakeHost, file: str, text: str, line: int
) -> None:
    host.make_cgroup("a")
    host.file(f"cgroup/a/{file}", text)
    with pytest.raises(CgroupError) as caught:
        reader(host).read()
    assert f"{file}:{line}: got " in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("meminfo", "MemTotal: lots kB\n"),
        ("meminfo", "MemTotal: 0 kB\n"),
        ("meminfo", "MemTotal: 5 MB\n"),
        ("stat", "cpu 1 2\n"),
        ("stat", ""),
        ("vmstat", "pswpout\n"),
        ("pressure/memory", "some total=x\n"),
    ],
)
def test_a_malformed_host_file_is_refused(host: FakeHost, file: str, text: str) -> None:
    host.file(f"proc/{file}", text)
    with pytest.raises(CgroupError, match=file):
        HostReader(host.roots, Nodes()).read()


@pytest.mark.parametrize("file", ["meminfo", "stat", "vmstat", "pressure/memory"])
def test_a_missing_host_file_gives_unknown_signals(host: FakeHost, file: str) -> None:
    (host.path / "proc" / file).unlink()
    signals = HostReader(host.roots, Nodes()).read()
    assert np.isnan(signals).any()
    assert not math.isnan(signals[HostSig.UPTIME_US])


def test_a_removed_cgroup_is_gone_and_not_malformed(host: FakeHost) -> None:
    cgroup_reader = reader(host)
    shutil.rmtree(host.cgroup / "a")
    with pytest.raises(CgroupGoneError, match="removed"):
        cgroup_reader.read()


def test_a_cgroup_removed_while_it_is_open_is_gone(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup_reader = reader(host)

    def read(fd: int, size: int) -> bytes:
        raise OSError(errno.ENODEV, "no such device")

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(CgroupGoneError):
        cgroup_reader.read()


def test_nodes_with_cpus_are_fast_unless_told_otherwise(host: FakeHost) -> None:
    assert find_nodes(host.roots) == Nodes((0,), (1,))
    assert find_nodes(host.roots, (1,)) == Nodes((1,), (0,))
    with pytest.raises(CgroupError, match="no node 7"):
        find_nodes(host.roots, (7,))


def test_a_host_without_node_files_has_no_tiers(tmp_path: Path) -> None:
    roots = Roots(cgroup=tmp_path, proc=tmp_path, sys=tmp_path)
    assert find_nodes(roots) == Nodes()
    assert math.isnan(HostReader(roots, Nodes()).read()[HostSig.FAST_TOTAL_BYTES])


def test_a_tag_file_tells_what_no_kernel_file_does(host: FakeHost) -> None:
    host.make_cgroup("work/batch")
    host.file("tags/work/batch/lock_user_held_us", "1500\n")
    host.file("tags/work/batch/slack_ratio", "-0.5\n")
    host.file("tags/work/batch/wss_bytes.new", "half a nu")
    signals = reader(host, "work/batch").read().signals
    assert signals[Sig.LOCK_USER_HELD_US] == 1500
    assert signals[Sig.SLACK_RATIO] == -0.5
    assert math.isnan(signals[Sig.WSS_BYTES])


def test_a_stale_tag_file_says_nothing(host: FakeHost) -> None:
    path = host.file("tags/a/wss_bytes", "4096\n")
    old_s = time.time() - TAG_MAX_AGE_S - 1.0
    os.utime(path, (old_s, old_s))
    assert math.isnan(reader(host).read().signals[Sig.WSS_BYTES])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("wss_byte", "1", "did you mean 'wss_bytes'"),
        ("usage_bytes", "1", "no tag is called"),
        ("wss_bytes", "many", "got 'many'"),
        ("wss_bytes", "nan", "finite"),
        ("wss_bytes", "-1", "not below 0"),
    ],
)
def test_an_unusable_tag_file_is_refused(
    host: FakeHost, name: str, text: str, message: str
) -> None:
    host.file(f"tags/a/{name}", text)
    with pytest.raises(CgroupError, match=message):
        reader(host).read()


def test_every_optional_signal_has_a_source_or_is_told() -> None:
    assert set(Sig) == set(EXPECTED) | set(TAG_SIGNALS) | TOLD


# --- capabilities --------------------------------------------------------------------------------


def report(host: FakeHost, name: str = "a") -> Capabilities:
    cgroup_reader = reader(host, name)
    host_signals = HostReader(host.roots, cgroup_reader.nodes).read()
    return capabilities(cgroup_reader.path, cgroup_reader.read(), host_signals)


def test_a_recent_kernel_lacks_only_what_cgroup_v2_never_offers(host: FakeHost) -> None:
    found = report(host)
    assert found.missing_required == ()
    assert set(found.unsupported_heads) == {"throttle", "demote", "protect", "shed"}
    assert "wss_bytes" in found.missing_signals
    assert "wss_ratio" in found.fallback_features
    assert "usage_ratio" not in found.fallback_features


@pytest.mark.parametrize(
    ("file", "head"),
    [("memory.high", "throttle"), ("memory.reclaim", "reclaim"), ("cgroup.kill", "kill")],
)
def test_a_head_without_its_file_is_unsupported(host: FakeHost, file: str, head: str) -> None:
    (host.make_cgroup("a") / file).unlink()
    assert head in report(host).unsupported_heads
    assert file in report(host).unsupported_heads[head]


def tell_locks(host: FakeHost, *but: str) -> None:
    for name in {"lock_kernel_held_us", "lock_user_held_us", "critical_charge_pages"} - set(but):
        host.file(f"tags/a/{name}", "7")


def test_throttle_needs_to_know_locks_and_critical_threads(host: FakeHost) -> None:
    reason = report(host).unsupported_heads["throttle"]
    assert reason.endswith("lock_kernel_held_us, lock_user_held_us, critical_charge_pages")
    tell_locks(host)
    assert "throttle" not in report(host).unsupported_heads


@pytest.mark.parametrize(
    "name", ["lock_kernel_held_us", "lock_user_held_us", "critical_charge_pages"]
)
def test_one_signal_that_is_not_told_keeps_a_cgroup_from_being_throttled(
    host: FakeHost, name: str
) -> None:
    tell_locks(host, name)
    assert report(host).unsupported_heads["throttle"].endswith(f"source for {name}")


def test_a_teller_must_have_told_a_tick_ago_and_counted_on(host: FakeHost) -> None:
    tell_locks(host)
    cgroup_reader = reader(host)
    reading = cgroup_reader.read()

    def reason(before: np.ndarray) -> str:
        return why_unsupported(Head.THROTTLE, cgroup_reader.path, reading, before)

    same = reading.signals.copy()
    assert reason(same) == ""
    silent, higher = same.copy(), same.copy()
    silent[Sig.LOCK_USER_HELD_US] = np.nan
    higher[Sig.LOCK_USER_HELD_US] = 8.0
    assert reason(silent).endswith("lock_user_held_us")
    assert reason(higher).endswith("lock_user_held_us")


def test_the_operator_may_have_cgroups_throttled_blindly(host: FakeHost) -> None:
    cgroup_reader = reader(host)
    reading = cgroup_reader.read()
    path = cgroup_reader.path
    assert why_unsupported(Head.THROTTLE, path, reading, blind_throttle=True) == ""
    (path / "memory.high").unlink()
    reading = cgroup_reader.read()
    assert why_unsupported(Head.THROTTLE, path, reading, blind_throttle=True) == "no memory.high"


def test_flush_needs_either_weight(host: FakeHost) -> None:
    path = host.make_cgroup("a")
    (path / "io.weight").unlink()
    assert "flush" not in report(host).unsupported_heads
    (path / "cpu.weight").unlink()
    assert "flush" in report(host).unsupported_heads


def test_a_working_set_estimate_makes_protect_supported(host: FakeHost) -> None:
    host.file("tags/a/wss_bytes", "4096\n")
    cgroup_reader = reader(host)
    assert why_unsupported(Head.PROTECT, cgroup_reader.path, cgroup_reader.read()) == ""


def test_a_missing_required_signal_is_reported_as_default_only(host: FakeHost) -> None:
    (host.make_cgroup("a") / "memory.pressure").unlink()
    (host.path / "proc/pressure/memory").unlink()
    found = report(host)
    assert set(found.missing_required) == {
        "psi_mem_some_us",
        "psi_mem_full_us",
        "host.psi_mem_some_us",
        "host.psi_mem_full_us",
    }
    assert found.lines()[0].startswith("default action only")


# --- text ----------------------------------------------------------------------------------------


def test_text_of_each_kind_is_taken_apart() -> None:
    assert parse_bytes("max\n", "f") == UNLIMITED_BYTES
    assert parse_bytes(f"{2**60}\n", "f") == UNLIMITED_BYTES
    assert parse_flat("a 1\nb 2\n", "f") == {"a": 1, "b": 2}
    assert parse_pressure(pressure(5, 3), "f")["full"]["total"] == 3
    assert parse_numa_stat("anon N0=1 N12=2\nfile N0=3\n", "f")["anon"] == {0: 1, 12: 2}
    assert parse_meminfo("Node 0 MemFree: 3 kB\n", "f", prefix_words=2) == {"MemFree": 3072.0}
    assert parse_weight("default 30\n8:0 5\n", "f") == 30


# --- writing -------------------------------------------------------------------------------------


def knobs(**values: float) -> np.ndarray:
    array = np.full(N_KNOBS, np.nan)
    array[[Knob.RECLAIM_BYTES, Knob.KILL]] = 0.0
    array[Knob.FLUSH_WEIGHT] = 1.0
    for name, value in values.items():
        array[Knob[name.upper()]] = value
    return array


SETTINGS = {
    "memory.min": "0",
    "memory.low": "8192",
    "memory.high": "max",
    "memory.max": "max",
    "memory.swap.max": "max",
    "cpu.weight": "100",
    "io.weight": "default 200",
    "memory.oom.group": "0",
}


def texts(writes: list[Write]) -> list[str]:
    return [f"{w.file}={w.text}" for w in writes]


def test_knobs_that_hold_already_write_nothing() -> None:
    wanted = knobs(
        min_bytes=0,
        low_bytes=8192,
        high_bytes=UNLIMITED_BYTES,
        max_bytes=UNLIMITED_BYTES,
        swap_max_bytes=UNLIMITED_BYTES,
    )
    assert plan_writes(wanted, SETTINGS, SETTINGS, 1e6, 4096) == []


def test_unknown_knobs_and_absent_files_are_left_alone() -> None:
    assert plan_writes(knobs(), SETTINGS, SETTINGS, 1e6, 4096) == []
    assert plan_writes(knobs(high_bytes=4096.0), {}, {}, 4096.0, 4096) == []


@pytest.mark.parametrize("page_bytes", [4096, 65536])
def test_limits_are_whole_pages(page_bytes: int) -> None:
    usage = 1_000_003.0 * 64
    wanted = knobs(high_bytes=usage, low_bytes=usage / 3, swap_max_bytes=12345678.9,
                   reclaim_bytes=usage / 7)  # fmt: skip
    writes = plan_writes(wanted, SETTINGS, SETTINGS, usage, page_bytes)
    assert len(writes) == 4
    assert all(int(w.text) % page_bytes == 0 and int(w.text) > 0 for w in writes)


def test_what_loosens_is_written_before_what_tightens_and_reclaim_comes_last() -> None:
    settings = {**SETTINGS, "memory.high": "1048576"}
    wanted = knobs(high_bytes=UNLIMITED_BYTES, low_bytes=4096, swap_max_bytes=0,
                   reclaim_bytes=4096, flush_weight=3)  # fmt: skip
    assert texts(plan_writes(wanted, settings, SETTINGS, 1e6, 4096)) == [
        "memory.high=max",
        "memory.low=4096",
        "cpu.weight=300",
        "io.weight=default 600",
        "memory.swap.max=0",
        "memory.reclaim=4096",
    ]


def test_memory_high_never_falls_below_the_deepest_level_in_one_write() -> None:
    usage = 100.0 * MIB
    writes = plan_writes(knobs(high_bytes=10.0 * MIB), SETTINGS, SETTINGS, usage, 4096)
    assert texts(writes) == [f"memory.high={align(DEEPEST_RATIO * usage, 4096)}"]
    assert high_step(10.0, 95.0, 100.0) == 92.0
    assert high_step(10.0, 50.0, 100.0) == 50.0  # waits for reclaim, and never rises
    assert high_step(60.0, 50.0, 100.0) == 60.0  # raising is free


def test_steps_reach_the_target_as_usage_follows() -> None:
    usage, high = 1000.0, UNLIMITED_BYTES
    for _ in range(40):
        high = high_step(100.0, high, usage)
        usage = min(usage, high)
    assert high == 100.0


def test_weights_keep_their_range_and_the_owner_s_idle_group() -> None:
    owner = {**SETTINGS, "cpu.weight": "5000", "io.weight": "default 0"}
    writes = plan_writes(knobs(flush_weight=10), owner, owner, 1e6, 4096)
    assert texts(writes) == ["cpu.weight=10000"]


def test_a_kill_writes_the_group_flag_and_the_kill_and_nothing_else() -> None:
    wanted = knobs(kill=1, high_bytes=4096, reclaim_bytes=4096)
    assert texts(plan_writes(wanted, SETTINGS, SETTINGS, 1e6, 4096)) == [
        "memory.oom.group=1",
        "cgroup.kill=1",
    ]


def test_writes_land_in_their_files_and_a_failure_stops_no_other(host: FakeHost) -> None:
    path = host.make_cgroup("a")
    (path / "memory.low").unlink()
    writes = [
        Write("memory.low", "4096"),
        Write("memory.high", "8192"),
        Write("memory.reclaim", "4096"),
    ]
    cgroup_writer = CgroupWriter(path, 4096)
    cgroup_writer.apply(writes, 1.0)
    cgroup_writer.worker.close(5.0)
    assert [w.result for w in writes] == ["ENOENT", "written", "queued"]
    assert not (path / "memory.low").exists()
    assert (path / "memory.high").read_text() == "8192"
    assert (path / "memory.reclaim").read_text() == "4096"
    assert cgroup_writer.worker.outcome == "written"


def test_memory_high_is_opened_so_that_the_writer_does_not_reclaim(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = host.make_cgroup("a")
    flags = {}
    real = os.open

    def spy(name: str, flag: int, *args: int) -> int:
        flags[Path(name).name] = flag
        return real(name, flag, *args)

    monkeypatch.setattr(os, "open", spy)
    CgroupWriter(path, 4096).apply([Write("memory.high", "8192"), Write("memory.low", "0")], 1.0)
    assert flags["memory.high"] & os.O_NONBLOCK
    assert not flags["memory.low"] & os.O_NONBLOCK
    assert not any(flag & os.O_CREAT for flag in flags.values())


def test_a_reclaim_that_finds_less_than_asked_is_normal(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(path: str, text: str, nonblocking: bool) -> None:
        raise BlockingIOError(errno.EAGAIN, "again")

    monkeypatch.setattr(writer_module, "write_text", again)
    cgroup_writer = CgroupWriter(host.make_cgroup("a"), 4096)
    writes = [Write("memory.reclaim", "4096")]
    cgroup_writer.apply(writes, 1.0)
    cgroup_writer.worker.close(5.0)
    assert writes[0].result == "queued"
    assert cgroup_writer.worker.outcome == "EAGAIN"


def test_one_request_at_a_time_and_the_end_cuts_it_short(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(path: str, text: str, nonblocking: bool) -> None:
        asked.append(int(text))
        begun.set()
        go_on.wait(10.0)

    monkeypatch.setattr(writer_module, "write_text", slow)
    worker = CgroupWriter(host.make_cgroup("a"), 4096).worker
    assert worker.submit(10 * CHUNK_BYTES, time_s=60.0)
    assert begun.wait(10.0)
    assert not worker.submit(4096, time_s=60.0)
    worker.close(0.0)
    go_on.set()
    worker.close(10.0)
    assert asked == [CHUNK_BYTES]
    assert worker.outcome == "late"


def test_a_request_whose_time_is_up_asks_for_no_more(host: FakeHost) -> None:
    worker = CgroupWriter(host.make_cgroup("a"), 4096).worker
    worker.submit(4096, time_s=-1.0)
    worker.close(10.0)
    assert worker.outcome == "late"
    assert host.text("a/memory.reclaim") == ""


# --- a real kernel -------------------------------------------------------------------------------


def cgroup2_mount() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


@pytest.fixture
def real_cgroup() -> Iterator[Path]:
    mount = cgroup2_mount()
    if mount is None:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    path = mount / f"memcg-gym-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"{mount} is not writable: {error.strerror}")
    yield path
    path.rmdir()


def test_a_real_cgroup_is_read_without_a_complaint(real_cgroup: Path) -> None:
    roots = Roots(cgroup=real_cgroup.parent)
    nodes = find_nodes(roots)
    host_signals = HostReader(roots, nodes).read()
    assert host_signals[HostSig.TOTAL_BYTES] >= host_signals[HostSig.FREE_BYTES] > 0.0
    assert host_signals[HostSig.CPUS] == os.cpu_count()
    reading = CgroupReader(roots, real_cgroup, nodes).read()
    if (real_cgroup / "memory.pressure").exists():
        assert reading.signals[Sig.PSI_MEM_SOME_US] >= 0.0
    assert set(reading.settings) <= set(SETTING_FILES)


def test_a_real_cgroup_takes_what_is_written_and_gives_it_back(real_cgroup: Path) -> None:
    if not (real_cgroup / "memory.high").exists():
        pytest.skip("the memory controller is not on the cgroup v2 hierarchy")
    roots = Roots(cgroup=real_cgroup.parent)
    cgroup_reader = CgroupReader(roots, real_cgroup, find_nodes(roots))
    before = cgroup_reader.read()
    writes = [Write("memory.high", str(64 * MIB)), Write("memory.low", str(4 * MIB))]
    cgroup_writer = CgroupWriter(real_cgroup, roots.page_bytes)
    cgroup_writer.apply(writes, 1.0)
    assert [w.result for w in writes] == ["written", "written"]
    changed = cgroup_reader.read()
    assert changed.signals[Sig.HIGH_BYTES] == 64 * MIB
    cgroup_writer.apply([Write(f, before.settings[f]) for f in ("memory.high", "memory.low")], 1.0)
    assert cgroup_reader.read().settings == before.settings
