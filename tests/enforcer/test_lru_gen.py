from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcg_gym.enforcer.capabilities import capabilities, why_unsupported
from memcg_gym.enforcer.cgroupfs import CgroupReader
from memcg_gym.enforcer.hostfs import HostReader, Nodes, find_nodes
from memcg_gym.enforcer.lru_gen import (
    HOT_WINDOW_S,
    LRU_GEN_FILE,
    WALK_PERIOD_S,
    AgingSchedule,
    Generation,
    LruGen,
    LruGenFile,
    WorkingSet,
    aging_commands,
    read_lru_gen,
    subtree,
    working_set,
)
from memcg_gym.enforcer.writer import CommandWorker
from memcg_gym.envs.contract.errors import CgroupError
from memcg_gym.envs.contract.heads import Head
from memcg_gym.envs.contract.signals import Sig
from tests.cgroupfs import FakeHost

# What Linux 7.3 printed of a process that holds 64 MiB and touches 16 MiB of them, 2 s after the
# fourth of the walks it was given every 30 s; node 1 is of a slower tier and empty.  Blanks at the
# ends of lines are left out here; text_of has them.
LINUX_7_3 = """\
memcg 1 /
 node     0
          0      99984          0           0
          1      99984          0           1
          2      99984        374           0
          3      99984          0           0
 node     1
          0      99984          0           0
          1      99984          0           0
          2      99984          0           0
          3      99984          0           0
memcg 28 /p
 node     0
          4      92064      12288           0
          5      62052          0           0
          6      32028       4096           0
          7       2008          0           0
 node     1
          4      92060          0           0
          5      62044          0           0
          6      32020          0           0
          7       2000          0           0
"""

# The same process on one node, walked every 10 s: the oldest of four generations is 30 s old.
WALKED_TOO_OFTEN = """\
memcg 67 /a/b
 node     0
          9      30040      12289           0
         10      20028         26           0
         11      10012       4069           0
         12          4          0           0
"""

# The same with memory.high below what it touches: the kernel walks thirty times in four seconds.
UNDER_PRESSURE = """\
memcg 28 /p
 node     0
        119        152       1790           0
        120        132        504           0
        121        100        795           0
        122         56        379           0
"""

PAGE = 4096
TIERS = Nodes((0,), (1,))


def gens(*rows: tuple[int, int, int, int]) -> tuple[Generation, ...]:
    return tuple(Generation(*row) for row in rows)


def one(*rows: tuple[int, int, int, int], node: int = 0) -> list[LruGen]:
    return [LruGen(9, {node: gens(*rows)})]


def text_of(table: dict[str, LruGen]) -> str:
    """The file as lru_gen_seq_show of Linux 6.1 writes it."""
    lines = []
    for name, lru in table.items():
        lines.append(f"memcg {lru.memcg_id:5} {'/' if name == '.' else '/' + name}\n")
        for node, rows in lru.nodes.items():
            lines.append(f" node {node:5}\n")
            lines += [
                f" {g.seq:10} {g.age_ms:10} {g.anon_pages:10}  {g.file_pages:10} \n" for g in rows
            ]
    return "".join(lines)


# --- reading -------------------------------------------------------------------------------------


def test_the_text_of_a_real_kernel_is_taken_apart() -> None:
    table = read_lru_gen(LINUX_7_3)

    assert list(table) == [".", "p"]
    assert table["p"].memcg_id == 28
    assert table["p"].nodes[0][0] == Generation(4, 92064, 12288, 0)
    assert table["p"].nodes[1][-1] == Generation(7, 2000, 0, 0)
    assert table["."].nodes[0][1].file_pages == 1


whole = st.integers(0, 2**40)
rows_of = st.lists(st.builds(Generation, whole, whole, whole, whole), min_size=1, max_size=4)
tables = st.dictionaries(
    st.sampled_from([".", "a", "a/b", "c d", "memcg 1", "node 2 3", "7 7 7 7"]),
    st.builds(LruGen, whole, st.dictionaries(st.integers(0, 99), rows_of.map(tuple), max_size=3)),
)


@settings(max_examples=40, deadline=None)
@given(tables)
def test_what_the_kernel_prints_is_what_is_read(table: dict[str, LruGen]) -> None:
    assert read_lru_gen(text_of(table)) == table


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("node 0\n", 1),
        ("memcg one /\n", 1),
        ("memcg 1 /\n 3 100 0 0\n", 2),
        ("memcg 1 /\n node 0\n 3 100 0\n", 3),
        ("memcg 1 /\n node 0\n 3 100 0 -1\n", 3),
        ("memcg 1 /\n node 0\n 3 100 0x 5x\n", 3),
        ("memcg 1 /\n node 0\n\n", 3),
        ("memcg 1 /\n node 0\nmemcg 2 /a\n", 1),
    ],
)
def test_text_the_kernel_never_writes_is_refused_by_line(text: str, line: int) -> None:
    with pytest.raises(CgroupError, match=f"^there:{line}: got "):
        read_lru_gen(text, "there")


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="memcg node0123/ \n", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        table = read_lru_gen(text)
    except CgroupError:
        return
    assert all(gens for lru in table.values() for gens in lru.nodes.values())


def test_of_two_cgroups_of_one_path_the_later_made_counts() -> None:
    removed, made = one((3, 5, 10, 0)), one((3, 5, 20, 0))
    text = text_of({"a": removed[0]}) + text_of({"a": made[0]})

    assert read_lru_gen(text) == {"a": made[0]}


def test_a_subtree_is_the_cgroup_and_all_below_it() -> None:
    table = {name: LruGen(i, {}) for i, name in enumerate([".", "a", "a/b", "a/b/c", "ab"])}

    assert [lru.memcg_id for lru in subtree(table, "a")] == [1, 2, 3]
    assert len(subtree(table, ".")) == 5
    assert subtree(table, "b") == []


# --- the working set -----------------------------------------------------------------------------


def test_the_working_set_of_a_real_kernel_is_what_its_process_touches() -> None:
    found = working_set(subtree(read_lru_gen(LINUX_7_3), "p"), TIERS, PAGE)

    assert found.wss_bytes == 16 << 20
    assert found.cold_fast_bytes == 48 << 20
    assert found.hot_slow_bytes == 0
    assert found.confidence == pytest.approx(1 - 2.008 / 60)


def test_walks_closer_than_half_the_window_find_nothing_cold() -> None:
    lrus = subtree(read_lru_gen(WALKED_TOO_OFTEN), "a")

    assert working_set(lrus, TIERS, PAGE).cold_fast_bytes == 0
    # the oldest generation was not touched for two walks; that is all that is known
    assert working_set(lrus, TIERS, PAGE, window_s=20).cold_fast_bytes == 12289 * PAGE


def test_under_pressure_all_that_is_resident_is_the_working_set() -> None:
    found = working_set(read_lru_gen(UNDER_PRESSURE).values(), TIERS, PAGE)

    assert found.wss_bytes == (1790 + 504 + 795 + 379) * PAGE
    assert found.cold_fast_bytes == 0
    assert found.confidence > 0.99


@pytest.mark.parametrize(
    ("ended_ms", "cold"), [(60_000, 100), (59_100, 100), (58_900, 0), (30_000, 0)]
)
def test_a_generation_is_cold_that_ended_a_window_before_the_last_walk(
    ended_ms: int, cold: int
) -> None:
    walk_ms = 7_000
    rows = ((4, 200_000, 60, 40), (5, walk_ms + ended_ms, 5, 0), (6, walk_ms, 1, 2))

    found = working_set(one(*rows), TIERS, PAGE)

    assert found.cold_fast_bytes == cold * PAGE
    assert found.wss_bytes == (108 - cold) * PAGE


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 29_999))
def test_between_walks_the_estimate_stands_still(later_ms: int) -> None:
    rows = ((4, 92_000, 300, 0), (5, 62_000, 20, 0), (6, 32_000, 100, 0), (7, 2_000, 3, 0))
    moved = [(seq, age + later_ms, anon, file) for seq, age, anon, file in rows]
    first, then = (working_set(one(*r), TIERS, PAGE) for r in (rows, moved))

    assert (first.wss_bytes, first.cold_fast_bytes) == (then.wss_bytes, then.cold_fast_bytes)
    assert then.confidence == pytest.approx(first.confidence - later_ms / 60_000)


def test_tiers_are_told_apart() -> None:
    rows = ((4, 92_000, 30, 0), (5, 62_000, 0, 0), (6, 32_000, 10, 0), (7, 2_000, 0, 0))
    lrus = [LruGen(1, {0: gens(*rows), 1: gens(*rows)})]
    found = working_set(lrus, TIERS, PAGE)

    assert found[:1] + found[2:] == (20 * PAGE, 30 * PAGE, 10 * PAGE)
    untold = working_set(lrus, Nodes(), PAGE)
    assert untold.wss_bytes == 20 * PAGE
    assert math.isnan(untold.cold_fast_bytes) and math.isnan(untold.hot_slow_bytes)


def test_a_cgroup_that_was_never_walked_is_believed_while_it_is_younger_than_the_window() -> None:
    def born(age_ms: int) -> WorkingSet:
        return working_set(one(*((seq, age_ms, 10, 0) for seq in range(4))), TIERS, PAGE)

    assert born(59_000).wss_bytes == 40 * PAGE
    assert born(59_000).confidence == 0.0
    assert math.isnan(born(61_000).wss_bytes)
    assert born(61_000).confidence == 0.0


def test_an_estimate_older_than_the_window_says_nothing() -> None:
    found = working_set(one((4, 120_000, 7, 0), (5, 60_001, 3, 0)), TIERS, PAGE)

    assert found.confidence == 0.0
    assert all(map(math.isnan, (found.wss_bytes, found.cold_fast_bytes, found.hot_slow_bytes)))


def test_a_new_child_does_not_silence_its_parent() -> None:
    parent = one((4, 92_000, 900, 0), (5, 62_000, 0, 0), (6, 2_000, 100, 0))
    child = one(*((seq, 1_000, 0, 0) for seq in range(3)), (3, 1_000, 10, 0))
    found = working_set(parent + child, TIERS, PAGE)

    assert found.wss_bytes == 110 * PAGE
    assert found.confidence == pytest.approx((1 - 2 / 60) * 1000 / 1010)


def test_a_cgroup_without_pages_has_no_working_set_and_an_unlisted_one_says_nothing() -> None:
    assert working_set(one((4, 90_000, 0, 0), (5, 1_000, 0, 0)), TIERS, PAGE).wss_bytes == 0
    assert all(map(math.isnan, working_set([], TIERS, PAGE)))


@settings(max_examples=40, deadline=None)
@given(st.lists(rows_of.map(tuple), min_size=1, max_size=4))
def test_hot_and_cold_are_all_there_is(nodes: list[tuple[Generation, ...]]) -> None:
    lru = LruGen(1, dict(enumerate(nodes)))
    found = working_set([lru], Nodes(tuple(range(4)), ()), 1)

    if not math.isnan(found.wss_bytes):
        assert found.wss_bytes + found.cold_fast_bytes == sum(g.pages for r in nodes for g in r)
    assert 0.0 <= found.confidence <= 1.0


# --- aging ---------------------------------------------------------------------------------------


def test_walks_are_asked_for_that_were_never_made_or_are_a_period_old() -> None:
    lrus = [
        LruGen(1, {0: gens((3, 10, 5, 0))}),
        LruGen(2, {0: gens((6, 40_000, 5, 0), (7, 29_600, 0, 0)), 1: gens((7, 29_600, 0, 0))}),
        LruGen(3, {0: gens((6, 40_000, 5, 0), (7, 29_000, 0, 0))}),
        LruGen(4, {2: gens((8, 50_000, 0, 9))}),
    ]

    assert aging_commands(lrus) == ["+ 1 0 3 1 1", "+ 4 2 8 1 1", "+ 2 0 7 1 1"]
    assert aging_commands(lrus, most=2) == ["+ 1 0 3 1 1", "+ 4 2 8 1 1"]
    assert aging_commands(lrus, period_s=100.0) == ["+ 1 0 3 1 1"]


class FakeKernel:
    """Generations as the kernel keeps them: four at most, the oldest two merged by a walk."""

    def __init__(self, count: int) -> None:
        self.rows = {i: [[seq, 0, 10] for seq in range(4)] for i in range(1, count + 1)}
        self.walks: list[tuple[int, int]] = []

    def lrus(self) -> list[LruGen]:
        return [
            LruGen(i, {0: tuple(Generation(s, a, p, 0) for s, a, p in rows)})
            for i, rows in self.rows.items()
        ]

    def second(self) -> None:
        for rows in self.rows.values():
            for row in rows:
                row[1] += 1000

    def obey(self, command: str, tick: int) -> None:
        sign, memcg, node, seq, swap, force = command.split()
        rows = self.rows[int(memcg)]
        assert (sign, node, swap, force) == ("+", "0", "1", "1")
        assert int(seq) == rows[-1][0]
        oldest = rows.pop(0)
        rows[0][2] += oldest[2]
        rows.append([int(seq) + 1, 0, 0])
        self.walks.append((tick, int(memcg)))


def test_every_cgroup_is_walked_once_a_period_and_evenly() -> None:
    kernel, schedule = FakeKernel(9), AgingSchedule()
    for tick in range(200):
        for command in schedule.commands(kernel.lrus(), tick):
            kernel.obey(command, tick)
        kernel.second()

    for memcg in kernel.rows:
        ticks = [tick for tick, walked in kernel.walks if walked == memcg]
        assert set(np.diff(ticks)) == {int(WALK_PERIOD_S)}
    busy, walks = np.unique([tick for tick, _ in kernel.walks], return_counts=True)
    assert busy[0] == 0 and walks.max() == 1
    # nobody touched anything: after three walks all is cold
    found = working_set(kernel.lrus(), TIERS, PAGE)
    assert found.wss_bytes == 0 and found.cold_fast_bytes == 9 * 40 * PAGE


def test_a_walk_that_was_refused_is_asked_for_again_after_a_period() -> None:
    schedule, lrus = AgingSchedule(), one((8, 90_000, 5, 0))
    asked = [tick for tick in range(100) if schedule.commands(lrus, tick)]

    assert asked == [0, 30, 60, 90]


def test_a_walk_of_the_kernel_s_own_counts() -> None:
    assert AgingSchedule().commands(read_lru_gen(UNDER_PRESSURE).values(), 0) == []


def test_nested_cgroups_are_walked_once() -> None:
    lru = LruGen(5, {0: gens((8, 90_000, 5, 0))})

    assert AgingSchedule(period_s=1.0).commands([lru, lru], 0) == ["+ 5 0 8 1 1"]


def test_a_mirrored_host_gets_its_commands_in_one_write(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    table = {name: one((8, 90_000, 5, 0))[0] for name in (".", "a", "b")}
    table = {name: LruGen(i, lru.nodes) for i, (name, lru) in enumerate(table.items())}
    host.file("sys/kernel/debug/lru_gen", text_of(table))
    everyone = AgingSchedule(period_s=1.0)

    assert everyone.writes(host.roots, 0) == {LRU_GEN_FILE: "+ 1 0 8 1 1\n+ 2 0 8 1 1"}
    assert everyone.writes(host.roots, 0) == {}
    assert AgingSchedule(period_s=1.0).writes(host.roots, 0, ["b"]) == {LRU_GEN_FILE: "+ 2 0 8 1 1"}
    shutil.rmtree(host.path / "sys/kernel")
    assert AgingSchedule().writes(host.roots, 0) == {}


def finish(worker: CommandWorker) -> None:
    while worker.busy:
        time.sleep(0.001)


def test_commands_are_written_each_by_itself_and_a_failure_is_told(tmp_path: Path) -> None:
    file = tmp_path / "lru_gen"
    os.mkfifo(file)
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    worker = CommandWorker(str(file))
    assert worker.submit(["+ 1", "+ 2"])
    finish(worker)

    assert worker.outcome == "written" and os.read(reader, 99) == b"+ 1+ 2"
    os.close(reader)
    lost = CommandWorker(str(tmp_path / "absent"))
    lost.submit(["+ 1"])
    finish(lost)
    assert lost.outcome == "ENOENT"


# --- on a host -----------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    fake = FakeHost(tmp_path)
    fake.make_cgroup("p")
    fake.file("sys/kernel/debug/lru_gen", LINUX_7_3)
    fake.file("sys/kernel/mm/lru_gen/enabled", "0x0007\n")
    return fake


def reader(host: FakeHost) -> CgroupReader:
    return CgroupReader(host.roots, host.cgroup / "p", find_nodes(host.roots))


def test_a_cgroup_s_generations_become_its_working_set_signals(host: FakeHost) -> None:
    reading = reader(host).read()

    assert reading.working_set == "lru_gen"
    assert reading.signals[Sig.WSS_BYTES] == 16 << 20
    assert reading.signals[Sig.COLD_FAST_BYTES] == 48 << 20
    assert reading.signals[Sig.HOT_SLOW_BYTES] == 0
    assert reading.signals[Sig.WSS_CONFIDENCE] == pytest.approx(1 - 2.008 / HOT_WINDOW_S)


def test_generations_read_once_serve_every_cgroup(host: FakeHost) -> None:
    table = LruGenFile(host.roots).read()
    (host.path / "sys/kernel/debug/lru_gen").unlink()

    assert reader(host).read(table).signals[Sig.WSS_BYTES] == 16 << 20
    assert math.isnan(reader(host).read({}).signals[Sig.WSS_BYTES])


def test_larger_pages_are_larger(host: FakeHost) -> None:
    large = FakeHost(host.path / "large", page_bytes=65536)
    large.make_cgroup("p")
    large.file("sys/kernel/debug/lru_gen", LINUX_7_3)

    assert reader(large).read().signals[Sig.WSS_BYTES] == 4096 * 65536


def test_a_tag_wins_over_the_generations(host: FakeHost) -> None:
    host.file("tags/p/wss_bytes", "4096")
    reading = reader(host).read()

    assert reading.working_set == "tag" and reading.signals[Sig.WSS_BYTES] == 4096
    assert math.isnan(reading.signals[Sig.WSS_CONFIDENCE])
    assert reading.signals[Sig.COLD_FAST_BYTES] == 48 << 20
    host.file("tags/p/wss_confidence", "0.5")
    assert reader(host).read().signals[Sig.WSS_CONFIDENCE] == 0.5


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("mm/lru_gen/enabled", "0x0000\n", "enabled is 0x0000, and 0x0003 is needed"),
        ("mm/lru_gen/enabled", "0x0005\n", "enabled is 0x0005, and 0x0003 is needed"),
        ("debug/lru_gen", "memcg 1 /\n node 0\n 3 9 0 0\n", "lists no page"),
        ("debug/lru_gen", "", "lists no page"),
    ],
)
def test_generations_that_nobody_fills_are_not_believed(
    host: FakeHost, file: str, text: str, why: str
) -> None:
    host.file(f"sys/kernel/{file}", text)
    source = LruGenFile(host.roots)

    assert source.read() == {} and why in source.why
    assert reader(host).read().working_set == ""


def test_a_host_without_the_file_says_so(host: FakeHost) -> None:
    (host.path / "sys/kernel/debug/lru_gen").unlink()
    source = LruGenFile(host.roots)

    assert source.read() == {} and "debugfs" in source.why
    host.file("sys/kernel/debug/lru_gen", LINUX_7_3)
    assert len(source.read()) == 2 and source.why == ""


def test_a_mask_that_is_none_is_refused(host: FakeHost) -> None:
    host.file("sys/kernel/mm/lru_gen/enabled", "yes\n")

    with pytest.raises(CgroupError, match="0x0007"):
        reader(host).read()


def test_generations_make_protect_supported_and_the_report_names_them(host: FakeHost) -> None:
    cgroup_reader = reader(host)
    reading = cgroup_reader.read()

    assert why_unsupported(Head.PROTECT, cgroup_reader.path, reading) == ""
    found = capabilities(cgroup_reader.path, reading, HostReader(host.roots, TIERS).read())
    assert "working set from lru_gen" in found.lines()
    assert "protect" not in found.unsupported_heads
