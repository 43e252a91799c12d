"""The agent and the load generator on a real kernel.

All tests but the last share one guest: each has cgroups and slots of its own and leaves none
behind.
"""

from __future__ import annotations

import dataclasses
import errno
import signal
import subprocess
from itertools import pairwise

import numpy as np
import pytest

from memcg_gym.configs.heat import zipf_heat
from memcg_gym.envs.lab.machine import Machine
from memcg_gym.envs.lab.protocol import Report, State, parse_results, write_command
from memcg_gym.envs.lab.qemu import Hardware
from memcg_gym.envs.lab.stats import SlotStats, parse_stats, quantile_us

pytestmark = pytest.mark.lab

CGROUPS = "/sys/fs/cgroup"
MIB = 1 << 20
PAGES = 256  # of a MiB
SWAP_MIB, FILE_MIB = 192, 256
HARDWARE = Hardware(memory_mib=640, accel="tcg", seed=5, extra_cmdline="spin_idle=1")
FILES = ("memory.current", "memory.stat", "memory.pressure", "memory.high")

PROGRAM = """
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
static void leave(int number) { _exit(number); }
int main(int argc, char **argv)
{
	signal(SIGTERM, leave);
	for (int i = 1; i < argc; i++)
		printf("%s\\n", argv[i]);
	fflush(stdout);
	for (;;)
		pause();
}
"""


# --- a guest to talk to


@pytest.fixture(scope="module")
def image(guest_image, tmp_path_factory):
    """The guest that ships, and one more program."""
    folder = tmp_path_factory.mktemp("guest")
    (folder / "program.c").write_text(PROGRAM)
    gcc = ["gcc", "-O2", "-static", "-o", "program", "program.c"]
    subprocess.run(gcc, cwd=folder, check=True)
    cpio = ["cpio", "-o", "-H", "newc", "--quiet", "-F", "more"]
    subprocess.run(cpio, cwd=folder, check=True, input=b"program\n")
    # The kernel unpacks one archive after the other.
    initrd = guest_image.initrd.read_bytes()
    initrd += bytes(-len(initrd) % 512) + (folder / "more").read_bytes()
    (folder / "initrd").write_bytes(initrd)
    return dataclasses.replace(guest_image, initrd=folder / "initrd")


def boot(image) -> tuple[Machine, Report]:
    """A guest with swap, a device for files, and controllers; and what it said first."""
    machine = Machine(image, HARDWARE)
    ready = machine.start()
    swap = "/dev/swap"
    block = write_command(f"{CGROUPS}/cgroup.subtree_control", "+memory +io +cpu")
    block += null_block("swap", SWAP_MIB, backed=1) + null_block("files", FILE_MIB, backed=0)
    block += f"fill {swap} {SWAP_MIB}\nmkswap {swap}\nswapon {swap} 0\npause\n".encode()
    assert set(parse_results(machine.step(block).text("results"))) == {0}
    return machine, ready


def null_block(name: str, size_mib: int, *, backed: int) -> bytes:
    folder = f"/sys/kernel/config/nullb/{name}"
    settings = {
        "size": size_mib,
        "blocksize": 4096,
        "memory_backed": backed,
        "irqmode": 2,
        "completion_nsec": 100_000,
        "mbps": 400,
        "power": 1,
    }
    writes = (write_command(f"{folder}/{key}", str(value)) for key, value in settings.items())
    return f"mkdir {folder}\n".encode() + b"".join(writes)


class Bench:
    """One test's part of the guest."""

    def __init__(self, machine: Machine, ready: Report) -> None:
        self.machine = machine
        self.ready = ready
        self.names: list[str] = []

    def run(self, commands: str | bytes = b"", *, end: str = "tick") -> Report:
        """Commands that must succeed, then the end of the block."""
        report = self.step(commands, end=end)
        assert set(parse_results(report.text("results"))) <= {0}, commands
        return report

    def step(self, commands: str | bytes = b"", *, end: str = "tick") -> Report:
        block = commands.encode() if isinstance(commands, str) else commands
        return self.machine.step(block + end.encode() + b"\n")

    def ticks(self, n: int, commands: str | bytes = b"") -> Report:
        """The commands, then ``n`` ticks."""
        report = self.run(commands)
        for _ in range(n - 1):
            report = self.run()
        return report

    def workload(self, *lines: str, start: bool = True, **keys: object) -> int:
        """A slot in a cgroup of its own: its regions and locks, declared, started, watched."""
        slot = len(self.names)
        name = f"c{slot}"
        self.names.append(name)
        block = f"mkdir {CGROUPS}/{name}\nslot {slot} {CGROUPS}/{name} {words(keys)}\n"
        block += "".join(line.replace("SLOT", str(slot)) for line in lines)
        block += "".join(f"watch {slot}/{file} {CGROUPS}/{name}/{file}\n" for file in FILES)
        self.run(block + (f"start {slot}\n" if start else ""), end="pause")
        return slot

    def limit(self, slot: int, file: str, value: object) -> bytes:
        return write_command(f"{CGROUPS}/{self.names[slot]}/{file}", str(value))

    def close(self) -> None:
        block = ""
        for slot, name in enumerate(self.names):
            block += f"stop {slot}\nslot {slot} /gone\nrmdir {CGROUPS}/{name}\n"
            block += "".join(f"unwatch {slot}/{file}\n" for file in FILES)
        self.step(block, end="pause")


@pytest.fixture(scope="module")
def guest(image):
    machine, ready = boot(image)
    with machine:
        yield machine, ready


@pytest.fixture
def bench(guest):
    bench = Bench(*guest)
    bench.run()  # the next boundary is a whole second away, whatever the last test did
    yield bench
    bench.close()


def words(keys: dict[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in keys.items())


def region(mib: float, *, zipf: float = 1.0, **keys: object) -> str:
    pages = round(mib * PAGES)
    heat = zipf_heat(zipf, pages)
    bins = {
        "bin_pages": ",".join(f"{share * pages:.9g}" for share in heat.share_of_pages),
        "bin_heat": ",".join(f"{share:.9g}" for share in heat.share_of_touches),
    }
    given = {"kind": "anon", "pattern": "heat", "pages": pages, **bins, **keys}
    return f"region SLOT {words(given)}\n"


def demand(slot: int, load: float = 1.0, **keys: object) -> str:
    return f"demand {slot} {words({'load': load, **keys})}\n"


def stats(report: Report, slot: int) -> SlotStats:
    return parse_stats(report.text(f"slot/{slot}/stats"), f"slot/{slot}/stats")


def gain(after: Report, before: Report, slot: int, name: str) -> float:
    return stats(after, slot)[name] - stats(before, slot)[name]


def latency_us(after: Report, before: Report, slot: int, quantile: float) -> float:
    return quantile_us(stats(after, slot).latency - stats(before, slot).latency, quantile)


def usage_mib(report: Report, slot: int) -> float:
    return int(report.text(f"{slot}/memory.current")) / MIB


def memory_stat(report: Report, slot: int, key: str) -> int:
    lines = (line.split() for line in report.text(f"{slot}/memory.stat").splitlines())
    return int(dict(lines)[key])


def psi_us(report: Report, slot: int) -> int:
    some = report.text(f"{slot}/memory.pressure").splitlines()[0]
    return int(some.rpartition("total=")[2])


# --- the agent


def test_the_first_report_says_what_was_booted(bench, image):
    report = bench.ready

    assert report.state is State.READY
    assert image.version in report.text("boot/version")
    assert "console=ttyS0" in report.text("boot/cmdline")
    assert "MemTotal:" in report.text("boot/meminfo")


BAD_COMMANDS = {
    "nonsense": errno.EINVAL,
    "": errno.EINVAL,
    "mkdir": errno.EINVAL,
    "mkdir /tmp/a /tmp/b": errno.EINVAL,
    "mkdir /proc/a": errno.ENOENT,
    "mkdir  /tmp/two-spaces": errno.EINVAL,
    "rmdir /nowhere": errno.ENOENT,
    "write - x /tmp/a": errno.EINVAL,
    "write - 99999 /tmp/a": errno.EINVAL,
    "write ? 1 /proc/self/comm\n1": errno.EINVAL,
    "write - 1 /nowhere\n1": errno.ENOENT,
    "write - 1 /proc/version\n1": errno.EIO,
    "watch a": errno.EINVAL,
    "unwatch never-watched": errno.ENOENT,
    "mount tmpfs none /nowhere -": errno.ENOENT,
    "fill /dev/nowhere 1": errno.ENOENT,
    "mkswap /dev/nowhere": errno.ENOENT,
    "swapon /dev/null 0": errno.EINVAL,
    "slot 64 /sys/fs/cgroup": errno.EINVAL,
    "slot -1 /sys/fs/cgroup": errno.EINVAL,
    "slot 60 /sys/fs/cgroup cpu_us=nan": errno.EINVAL,
    "slot 60 /sys/fs/cgroup cpu_us=-1": errno.EINVAL,
    "slot 60 /sys/fs/cgroup colour=1": errno.EINVAL,
    "slot 60 /sys/fs/cgroup threads_tolerant=65": errno.EINVAL,
    "slot 60 /sys/fs/cgroup threads_tolerant=0": errno.EINVAL,
    "region 63 kind=anon pattern=idle pages=1": errno.EINVAL,
    "start 63": errno.EINVAL,
    "stop 63": errno.EINVAL,
    "demand 63 load=1": errno.EINVAL,
    "remix 63 overlap=0": errno.EINVAL,
    "free_burst 63": errno.EINVAL,
    "reclaim 63 1": errno.EINVAL,
    "spawn": errno.EINVAL,
    "spawn p /sys/fs/cgroup /nowhere": errno.ENOENT,
    "signal never-spawned 9": errno.ESRCH,
    "x" * 20_000: errno.EINVAL,
}


def test_a_bad_command_gets_its_errno_and_those_after_it_are_carried_out(bench):
    for command, expected in BAD_COMMANDS.items():
        report = bench.step(f"{command}\nmkdir /tmp/after\nrmdir /tmp/after\n", end="pause")

        assert parse_results(report.text("results")) == [expected, 0, 0], command[:60]


BAD_REGIONS = {
    "a pattern nobody knows": region(1, pattern="zigzag"),
    "no pages": region(1, pages=0),
    "bins that hold fewer pages than the region": region(1, pages=1000),
    "heat that does not add up": region(1, bin_heat="1,1,1,1,1,1,1,1"),
    "seven bins": region(1, bin_heat="1,0,0,0,0,0,0"),
    "a file without a device": region(1, kind="file"),
    "a share above one": region(1, write_share=1.5),
}


@pytest.mark.parametrize("wrong", BAD_REGIONS.values(), ids=BAD_REGIONS.keys())
def test_a_region_that_makes_no_sense_is_refused(bench, wrong):
    slot = bench.workload(start=False)

    report = bench.step(wrong.replace("SLOT", str(slot)), end="pause")

    assert parse_results(report.text("results")) == [errno.EINVAL]


def test_a_generator_that_cannot_start_is_told_apart_from_one_that_runs(bench):
    slot = bench.workload(
        region(1, kind="file", device="/dev/nowhere", prefill=1), start=False, seed=1
    )

    report = bench.step(f"start {slot}\n", end="pause")

    assert parse_results(report.text("results")) == [errno.ECHILD]
    assert not stats(report, slot).alive
    assert "/dev/nowhere" in bench.machine.console
    running = bench.workload(region(1))
    report = bench.step(f"start {running}\nslot {running} /x\n", end="pause")
    assert parse_results(report.text("results")) == [errno.EBUSY, errno.EBUSY]


def test_ticks_are_a_second_apart(bench):
    reports = [bench.run() for _ in range(4)]

    for before, after in pairwise(reports):
        assert after.tick == before.tick + 1
        assert after.time_ns - before.time_ns == pytest.approx(
            1e9, abs=1e5
        )  # an interrupt may be on
        assert after.overrun_ns == 0


def test_commands_that_take_longer_than_a_tick_move_it_and_say_by_how_much(bench):
    before = bench.run()

    # 600 MiB at 400 MiB/s
    after = bench.step(3 * "fill /dev/files 200\n")

    assert after.overrun_ns == pytest.approx(0.5e9, rel=0.3)
    assert after.time_ns - before.time_ns == pytest.approx(1e9 + after.overrun_ns, abs=1e7)
    assert bench.run().time_ns - after.time_ns == pytest.approx(1e9, abs=1e7)


def test_a_pause_lets_no_second_pass(bench):
    before = bench.run()

    after = bench.run(end="pause")

    assert after.tick == before.tick
    assert after.time_ns - before.time_ns < 1e8


def test_a_watched_file_is_in_every_report_while_there_is_one(bench):
    path, watch = f"{CGROUPS}/comes-and-goes", "comes-and-goes/memory.high"
    make, remove = f"mkdir {path}\n", f"rmdir {path}\n"

    assert watch not in bench.run(f"watch {watch} {path}/memory.high\n", end="pause").files
    assert bench.run(make, end="pause").text(watch) == "max\n"
    limited = write_command(f"{path}/memory.high", str(8 * MIB))
    assert bench.run(limited, end="pause").text(watch) == f"{8 * MIB}\n"
    assert watch not in bench.run(remove, end="pause").files
    assert bench.run(make, end="pause").text(watch) == "max\n"
    assert watch not in bench.run(f"unwatch {watch}\n{remove}", end="pause").files


def test_settings_of_the_kernel_can_be_watched(bench):
    changed = write_command("/proc/sys/vm/swappiness", "55")
    report = bench.run(b"watch swappiness /proc/sys/vm/swappiness\n" + changed, end="pause")
    back = write_command("/proc/sys/vm/swappiness", "60")
    bench.run(b"unwatch swappiness\n" + back, end="pause")

    assert report.text("swappiness") == "55\n"


def test_long_files_arrive_whole(bench):
    report = bench.run("watch symbols /proc/kallsyms\n", end="pause")
    bench.run("unwatch symbols\n", end="pause")

    lines = report.text("symbols").splitlines()
    assert len(lines) > 50_000
    assert all(len(line.split()) >= 3 for line in lines)


def test_a_program_runs_in_its_cgroup_and_its_output_is_reported_once(bench):
    slot = bench.workload(region(1), start=False)
    cgroup = f"{CGROUPS}/{bench.names[slot]}"

    first = bench.run(f"watch procs {cgroup}/cgroup.procs\nspawn p {cgroup} /program one two\n")
    second = bench.run()
    ended = bench.run(f"unwatch procs\nsignal p {signal.SIGTERM.value}\n")

    assert first.text("out/p") == "one\ntwo\n"
    assert len(first.text("procs").split()) == 1
    assert second.text("out/p") == ""
    assert first.text("program/p").startswith("alive 1")
    assert ended.text("program/p") == f"alive 0\nlast_status {signal.SIGTERM.value << 8}\n"


# --- requests


def test_arrivals_are_poisson_at_their_rate_and_latency_at_rest_is_the_cpu_time(bench):
    slot = bench.workload(region(4, touches_per_request=20, prefill=1), **REQUESTS)
    before = bench.run(demand(slot))
    counts, report = [], before
    for _ in range(12):
        last, report = report, bench.run()
        counts.append(gain(report, last, slot, "arrived"))

    # 12 draws with mean 300: the mean within 4 of its standard errors, and as wide as Poisson's
    assert np.mean(counts) == pytest.approx(300, abs=4 * np.sqrt(300 / 12))
    assert 0.3 < np.var(counts, ddof=1) / 300 < 2.6
    assert gain(report, before, slot, "done") == pytest.approx(sum(counts), abs=2)
    assert gain(report, before, slot, "touches") == pytest.approx(20 * sum(counts), abs=60)
    assert latency_us(report, before, slot, 0.1) == pytest.approx(500, rel=0.1)
    assert latency_us(report, before, slot, 0.99) < 3_000


REQUESTS = {"requests_per_s": 300, "cpu_us": 500, "threads_tolerant": 2, "seed": 11}


def test_shed_requests_arrive_and_are_neither_served_nor_refused(bench):
    slot = bench.workload(region(1), **REQUESTS)
    before = bench.run(demand(slot, 2.0, shed=0.75))

    after = bench.ticks(4)

    assert gain(after, before, slot, "arrived") == pytest.approx(2400, abs=200)
    assert gain(after, before, slot, "done") == pytest.approx(600, abs=100)
    assert gain(after, before, slot, "failed") == 0


def test_no_load_is_no_arrivals_and_load_comes_back_at_once(bench):
    slot = bench.workload(region(1), **REQUESTS)
    bench.run(demand(slot))

    idle = bench.run(demand(slot, 0.0))
    still = bench.run()
    back = bench.run(demand(slot, 1.0))

    assert gain(still, idle, slot, "arrived") == 0
    assert gain(back, still, slot, "arrived") == pytest.approx(300, abs=70)


def test_a_full_queue_refuses_the_oldest_and_no_request_is_lost(bench):
    slot = bench.workload(region(1), **(REQUESTS | {"queue_s": 0.1, "threads_tolerant": 1}))
    before = bench.run(demand(slot, 10.0))

    after = bench.ticks(3)

    arrived, done, failed = (gain(after, before, slot, n) for n in ("arrived", "done", "failed"))
    assert done == pytest.approx(6000, rel=0.05)  # one thread, 500 us each
    assert failed == pytest.approx(arrived - done, abs=31)  # 0.1 s of 300 a second may wait
    # a request waits until 30 more have come, 3000 a second
    assert latency_us(after, before, slot, 0.5) == pytest.approx(10_000, rel=0.3)


def test_critical_threads_touch_their_share_of_a_region(bench):
    keys = REQUESTS | {"threads_critical": 1, "threads_tolerant": 1}
    mine = bench.workload(region(64, zipf=0.0, touches_per_request=20, critical_share=1.0), **keys)
    theirs = bench.workload(
        region(64, zipf=0.0, touches_per_request=20, critical_share=0.0), **keys
    )
    before = bench.run()

    after = bench.run(demand(mine) + demand(theirs))

    # nothing is filled yet, so most touches are faults
    faults = gain(after, before, mine, "faults")
    assert faults > 2_000
    assert gain(after, before, mine, "critical_faults") == pytest.approx(faults, rel=0.1)
    assert gain(after, before, theirs, "faults") > 2_000
    assert gain(after, before, theirs, "critical_faults") < 50


# --- memory


HEAP = {"touches_per_request": 40, "write_share": 0.3, "prefill": 1}


def test_a_heap_above_memory_high_refaults_stalls_and_slows_its_requests(bench):
    slot = bench.workload(region(64, **HEAP), **(REQUESTS | {"requests_per_s": 100}))
    start = bench.run(demand(slot))
    free = bench.ticks(3)
    cut = bench.run(bench.limit(slot, "memory.high", 40 * MIB))

    tight = bench.ticks(4)

    assert usage_mib(free, slot) == pytest.approx(64, abs=2)
    assert usage_mib(tight, slot) <= 41
    refaults = [memory_stat(r, slot, "workingset_refault_anon") for r in (free, cut, tight)]
    assert refaults[0] == 0
    assert refaults[2] - refaults[1] > 500
    assert gain(free, start, slot, "faults") < 5
    assert psi_us(free, slot) == 0
    assert psi_us(tight, slot) - psi_us(cut, slot) > 20_000
    assert latency_us(tight, cut, slot, 0.99) > 2 * latency_us(free, start, slot, 0.99)


def test_less_memory_means_longer_waits_and_fewer_requests(bench):
    # more requests than one thread can serve: it serves as many as memory lets it
    slot = bench.workload(
        region(24, zipf=1.1, **(HEAP | {"touches_per_request": 64})),
        requests_per_s=3000,
        cpu_us=50,
        queue_s=0.01,
    )
    served, waited = [], []
    bench.run(demand(slot))
    for mib in (32, 9):
        before = bench.run(bench.limit(slot, "memory.high", mib * MIB))
        after = bench.run()
        served.append(gain(after, before, slot, "done"))
        waited.append(latency_us(after, before, slot, 0.99))

    assert served[1] < 0.5 * served[0]
    assert waited[1] > 2 * waited[0]


def test_the_reclaim_thread_trims_what_it_is_told_and_says_so(bench):
    slot = bench.workload(region(64, prefill=1))
    before = bench.run()

    after = bench.run(f"reclaim {slot} {24 * MIB}\n")

    assert usage_mib(before, slot) - usage_mib(after, slot) == pytest.approx(24, abs=1)
    assert gain(after, before, slot, "reclaim_asked") == 24 * MIB
    assert gain(after, before, slot, "reclaim_done") == 24 * MIB
    assert (stats(after, slot)["reclaim_errno"], stats(after, slot)["reclaim_busy"]) == (0, 0)


def test_reclaim_of_more_than_there_is_ends_with_eagain(bench):
    slot = bench.workload(region(16, prefill=1))
    before = bench.run()

    after = bench.ticks(2, f"reclaim {slot} {64 * MIB}\n")

    assert stats(after, slot)["reclaim_errno"] == errno.EAGAIN
    assert gain(after, before, slot, "reclaim_asked") == 64 * MIB
    assert gain(after, before, slot, "reclaim_done") <= 16 * MIB
    assert usage_mib(after, slot) < 2


def test_what_is_left_of_a_reclaim_order_ends_with_the_tick(bench):
    slot = bench.workload(region(96, prefill=1))
    order = f"reclaim {slot} {96 * MIB}\n"
    # the tick is over while most is still to do: the file device, not the swap, fills the second
    commands = 2 * "fill /dev/files 150\n" + order

    before = bench.run()

    first = bench.run(commands)
    second = bench.run()
    third = bench.run()

    done = [gain(report, before, slot, "reclaim_done") for report in (first, second, third)]
    assert 0 < done[0] < 96 * MIB
    assert done[1] <= done[0] + 4 * MIB
    assert done[2] == done[1]
    assert usage_mib(third, slot) > 10


def test_a_burst_grows_at_its_rate_to_its_target_and_is_given_back(bench):
    slot = bench.workload(
        region(32, burst=1), **(REQUESTS | {"requests_per_s": 100, "burst_on_path": 0.5})
    )
    start = bench.run(demand(slot))

    grown = bench.ticks(2, demand(slot, burst_on=1, burst_pages_per_s=1500))
    capped = bench.ticks(2, demand(slot, burst_target_pages=4000))
    held = bench.run(demand(slot, burst_on=0))
    kept = bench.run(f"free_burst {slot} 1000\n")
    freed = bench.run(f"free_burst {slot}\n")

    pages = [stats(r, slot)["burst_pages"] for r in (start, grown, capped, held, kept, freed)]
    assert pages[0] == 0
    assert pages[1] == pytest.approx(3000, rel=0.1)
    assert pages[2:] == [4000, 4000, 1000, 0]
    for report, count in zip((grown, capped, kept, freed), (pages[1], 4000, 1000, 0), strict=True):
        more = memory_stat(report, slot, "anon") - memory_stat(start, slot, "anon")
        assert more / 4096 == pytest.approx(count, abs=20)


def test_a_burst_without_requests_on_its_path_needs_none(bench):
    slot = bench.workload(region(8, burst=1))

    full = bench.ticks(2, demand(slot, 0.0, burst_on=1, burst_pages_per_s=4000))

    assert stats(full, slot)["burst_pages"] == 8 * PAGES


def test_memory_is_touched_without_requests_at_its_rate(bench):
    slot = bench.workload(region(4, touches_per_s=3000, prefill=1))
    before = bench.run()

    after = bench.ticks(2)

    assert gain(after, before, slot, "touches") == pytest.approx(6000, rel=0.02)
    assert gain(after, before, slot, "arrived") == 0


FILE = {"device": "/dev/files", "prefill": 0}


def test_a_sweep_over_a_file_evicts_its_own_pages(bench):
    slot = bench.workload(
        region(24, kind="file_read", pattern="sweep", touches_per_request=400, **FILE),
        **(REQUESTS | {"requests_per_s": 50}),
    )
    bench.run(bench.limit(slot, "memory.high", 8 * MIB) + demand(slot).encode())

    after = bench.ticks(3)

    assert usage_mib(after, slot) <= 9
    assert memory_stat(after, slot, "file") > 5 * MIB
    assert memory_stat(after, slot, "workingset_refault_file") > 1_000


@pytest.mark.parametrize("kind", ["file", "file_read"])
def test_written_file_pages_are_dirty(bench, kind):
    written = region(4, kind=kind, write_share=1.0, touches_per_request=20, **FILE)
    read = region(4, kind=kind, touches_per_request=20, **(FILE | {"offset_pages": 8 * PAGES}))
    slots = [bench.workload(line, **REQUESTS) for line in (written, read)]

    report = bench.run("".join(demand(slot) for slot in slots))

    assert memory_stat(report, slots[0], "file") > MIB
    assert memory_stat(report, slots[0], "file_dirty") > MIB // 2
    assert memory_stat(report, slots[1], "file") > MIB
    assert memory_stat(report, slots[1], "file_dirty") == 0


def test_a_shared_object_is_charged_to_who_touches_it_first(bench):
    line = region(8, zipf=0.0, kind="shared", object="library", touches_per_request=100)
    first = bench.workload(line.replace("pattern", "prefill=1 pattern"), **REQUESTS)
    second = bench.workload(line, **REQUESTS)

    report = bench.ticks(2, demand(second))

    assert memory_stat(report, first, "shmem") == 8 * MIB
    assert memory_stat(report, second, "shmem") == 0
    assert stats(report, second)["faults"] > 100


def test_a_shared_part_of_a_device_is_page_cache_of_who_touches_it_first(bench):
    line = region(8, zipf=0.0, kind="file", device="/dev/files", object="library",
                  offset_pages=(FILE_MIB - 8) * 256, touches_per_request=100)  # fmt: skip
    first = bench.workload(line.replace("pattern", "prefill=1 pattern"), **REQUESTS)
    second = bench.workload(line, **REQUESTS)

    report = bench.ticks(2, demand(second))

    assert memory_stat(report, first, "file_mapped") == 8 * MIB
    assert memory_stat(report, second, "file_mapped") == 0
    assert stats(report, second)["faults"] > 100


def test_another_working_set_is_faulted_in_as_far_as_it_does_not_overlap(bench):
    slot = bench.workload(region(48, zipf=1.4, **HEAP), **REQUESTS)
    bench.ticks(6, bench.limit(slot, "memory.high", 20 * MIB) + demand(slot).encode())
    settled = bench.run()

    same = bench.run(f"remix {slot} overlap=1 seed=3\n")
    other = bench.run(f"remix {slot} overlap=0 seed=3\n")

    at = [memory_stat(r, slot, "workingset_refault_anon") for r in (settled, same, other)]
    assert at[2] - at[1] > 2 * (at[1] - at[0])


# --- locks


LOCK = "lock SLOT name=index role={} per_s=100 section_us=300 charge_share={}\n"


def test_waiters_wait_longer_when_the_holder_is_throttled_and_it_is_charged_to_him(bench):
    holder = bench.workload(
        region(48, touches_per_request=80, prefill=1),
        region(48, burst=1),
        LOCK.format("holder", 0.8),
        **(REQUESTS | {"requests_per_s": 50, "cpu_us": 1000}),
    )
    waiter = bench.workload(
        region(1),
        LOCK.format("waiter", 0),
        **(REQUESTS | {"requests_per_s": 100, "threads_critical": 2, "threads_tolerant": 0}),
    )
    burst = demand(holder, burst_on=1, burst_pages_per_s=2000)
    rest = bench.run(demand(holder) + demand(waiter))
    free = bench.ticks(3, burst)
    limit = bench.limit(holder, "memory.high", 50 * MIB)
    cut = bench.run(f"{demand(holder, burst_on=0)}free_burst {holder}\n".encode() + limit)

    tight = bench.ticks(4, burst)

    def cost(after, before, slot, name):
        return gain(after, before, slot, name)

    for name in ("lock_wait_us", "lock_critical_wait_us", "lock_excess_us"):
        assert cost(tight, cut, waiter, name) > 5 * cost(free, rest, waiter, name), name
    assert cost(tight, cut, waiter, "lock_critical_wait_us") == pytest.approx(
        cost(tight, cut, waiter, "lock_wait_us"), abs=1
    )
    assert cost(tight, cut, holder, "lock_excess_us") == 0  # its threads are not critical
    held = cost(tight, cut, holder, "lock_held_us")
    waited = cost(tight, cut, holder, "lock_waiters_us")
    assert 10_000 < held <= waited
    everybody = sum(cost(tight, cut, slot, "lock_wait_us") for slot in (holder, waiter))
    assert waited == pytest.approx(everybody, rel=0.3)
    assert cost(tight, cut, waiter, "lock_held_us") == 0
    assert latency_us(tight, cut, waiter, 0.99) > latency_us(free, rest, waiter, 0.99)


def test_a_holder_that_is_killed_in_its_section_leaves_the_lock_to_the_others(bench):
    # a section of its own length: the holder is in it most of the time
    holder = bench.workload(
        region(1),
        "lock SLOT name=wedge role=holder per_s=8 section_us=100000 charge_share=0\n",
        **(REQUESTS | {"requests_per_s": 8, "cpu_us": 100000}),
    )
    waiter = bench.workload(
        region(1), "lock SLOT name=wedge role=waiter per_s=50\n", **(REQUESTS | {"cpu_us": 100})
    )
    bench.ticks(2, demand(holder) + demand(waiter))

    dead = bench.run(bench.limit(holder, "cgroup.kill", 1))
    after = bench.run()

    assert not stats(dead, holder).alive
    assert stats(dead, holder)["lock_held_us"] > 500_000
    assert gain(after, dead, waiter, "done") == pytest.approx(300, abs=70)
    assert gain(after, dead, holder, "lock_held_us") == 0
    assert gain(after, dead, holder, "lock_waiters_us") == 0


# --- lives


def test_a_killed_generator_is_seen_and_started_again_with_its_counters(bench):
    slot = bench.workload(region(8, **HEAP), **REQUESTS)
    alive = bench.ticks(2, demand(slot))

    killed = bench.run(bench.limit(slot, "cgroup.kill", 1))
    again = bench.run(f"start {slot}\n")

    assert [stats(r, slot).alive for r in (alive, killed, again)] == [True, False, True]
    assert stats(killed, slot)["last_status"] == signal.SIGKILL
    assert [gain(again, alive, slot, n) for n in ("starts", "exits")] == [1, 1]
    assert usage_mib(killed, slot) < 1
    for name in ("arrived", "done", "touches", "faults"):
        assert gain(killed, alive, slot, name) < 20, name
        assert gain(again, killed, slot, name) > 100, name


def test_a_stopped_slot_is_empty_and_can_be_declared_anew(bench):
    slot = bench.workload(region(8, prefill=1))
    stopped = bench.run(f"stop {slot}\n")
    another = region(2, prefill=1).replace("SLOT", str(slot))

    report = bench.run(f"slot {slot} {CGROUPS}/{bench.names[slot]}\n{another}start {slot}\n")

    assert usage_mib(stopped, slot) < 1
    assert usage_mib(report, slot) == pytest.approx(2, abs=1)


# --- all of it again


def story(image) -> list[dict[str, bytes]]:
    """A few seconds of everything that could differ from run to run."""
    reports = []
    machine, ready = boot(image)
    with machine:
        bench = Bench(machine, ready)
        slot = bench.workload(region(48, **HEAP), region(16, burst=1), **REQUESTS)
        reports.append(ready)
        reports.append(bench.run(demand(slot, burst_on=1, burst_pages_per_s=1000)))
        reports.append(bench.run(bench.limit(slot, "memory.high", 40 * MIB)))
        reports += [bench.run(f"reclaim {slot} {8 * MIB}\n"), bench.run()]
    return [dict(report.files) | {"time": str(report.time_ns).encode()} for report in reports]


def test_the_same_story_told_twice_is_the_same_to_the_byte(image):
    first, second = story(image), story(image)

    assert len(first) == len(second) == 5
    for one, other in zip(first, second, strict=True):
        assert one == other
