"""What the enforcer's tracer says of a guest's locks, against what the generators know of them."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from memcg_gym.enforcer.tracefs import LockTracer
from memcg_gym.envs.contract.signals import N_MEMCG_SIGNALS, Sig
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.machine import Machine
from memcg_gym.envs.lab.plan import (
    CGROUPS,
    CgroupPlan,
    Demand,
    DevicePlan,
    HostPlan,
    LockPlan,
    RegionPlan,
)
from memcg_gym.envs.lab.protocol import parse_results
from memcg_gym.envs.lab.qemu import Hardware
from memcg_gym.envs.lab.session import Session, SlotOrder, Snapshot
from memcg_gym.envs.lab.stats import SlotStats

pytestmark = pytest.mark.lab

TICKS = 5
HEAP_PAGES = 4096
HOLDER_USER, WAITER_USER, HOLDER_KERNEL, WAITER_KERNEL = range(4)
PROGRAMS = ("plain", "inherit", "maps")
"""Cgroups with a program that shares no lock with others: an ordinary mutex, one that inherits
priorities, and the lock of an address space."""

PROGRAM = """
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#define FILL (16 << 20)
static pthread_mutex_t mutex;
static void *want(void *arg)
{
	for (;; usleep(1000)) {
		pthread_mutex_lock(&mutex);
		pthread_mutex_unlock(&mutex);
	}
}
static void *map(void *arg)
{
	for (;; usleep(500))
		munmap(mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
}
int main(int argc, char **argv)
{
	int maps = !strcmp(argv[1], "maps");
	pthread_mutexattr_t attr;
	pthread_t thread;
	pthread_mutexattr_init(&attr);
	if (!strcmp(argv[1], "inherit"))
		pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&mutex, &attr);
	pthread_create(&thread, 0, maps ? map : want, 0);
	for (;; usleep(30000)) {
		if (maps) {
			int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
			munmap(mmap(0, FILL, PROT_READ | PROT_WRITE, flags, -1, 0), FILL);
		} else {
			pthread_mutex_lock(&mutex);
			usleep(30000);
			pthread_mutex_unlock(&mutex);
		}
	}
}
"""

Run = tuple[LockTracer, Snapshot, Snapshot, np.ndarray]


def cgroup(kind: str, role: str, seed: int) -> CgroupPlan:
    """A holder in whose sections memory is short, or a critical waiter."""
    holds = role == "holder"
    heap = RegionPlan(
        kind="anon",
        pattern="heat",
        pages=HEAP_PAGES if holds else 256,
        touches_per_request=40,
        touches_per_s=0,
        write_share=0.5,
        critical_share=0,
        burst=False,
        object="",
        offset_pages=0,
        prefill=True,
        bin_pages=((HEAP_PAGES if holds else 256) / 8,) * 8,
        bin_heat=(0.125,) * 8,
    )
    limit = HEAP_PAGES * 4096 * 3 // 4
    return CgroupPlan(
        name=f"{kind}-{role}",
        threads_critical=0 if holds else 2,
        threads_tolerant=3 if holds else 0,
        cpu_us=3000 if holds else 200,
        requests_per_s=60 if holds else 150,
        queue_s=0.5,
        burst_on_path=0,
        compute="sleep",
        seed=seed,
        regions=(heap,),
        lock=LockPlan(
            name=kind,
            role=role,
            section_us=2000 if holds else 1,
            per_s=60 if holds else 300,
            charge_share=0.8 if holds else 0,
            kind=kind,
        ),
        limits=(("memory.max", str(limit)),) if holds else (),
    )


@pytest.fixture(scope="module")
def image(guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    """The guest that ships, and one more program."""
    folder = tmp_path_factory.mktemp("guest")
    (folder / "program.c").write_text(PROGRAM)
    gcc = ["gcc", "-O2", "-static", "-pthread", "-o", "program", "program.c"]
    subprocess.run(gcc, cwd=folder, check=True)
    cpio = ["cpio", "-o", "-H", "newc", "--quiet", "-F", "more"]
    subprocess.run(cpio, cwd=folder, check=True, input=b"program\n")
    # The kernel unpacks one archive after the other.
    initrd = guest_image.initrd.read_bytes()
    initrd += bytes(-len(initrd) % 512) + (folder / "more").read_bytes()
    (folder / "initrd").write_bytes(initrd)
    return dataclasses.replace(guest_image, initrd=folder / "initrd")


@pytest.fixture(scope="module")
def run(image: GuestImage) -> Iterator[Run]:
    """Tracer, first and last snapshot, and the signals of all ticks."""
    # declared and never started: its cgroup is there for a program
    idle = dataclasses.replace(cgroup("none", "waiter", 7), lock=None, present=False)
    plan = HostPlan(
        devices=DevicePlan(
            swap_mib=64, file_mib=64, latency_us=300, swap_mib_per_s=100, file_mib_per_s=100
        ),
        cgroups=(
            *(cgroup(k, role, 7) for k in ("user", "kernel") for role in ("holder", "waiter")),
            *(dataclasses.replace(idle, name=name) for name in PROGRAMS),
        ),
        mglru=True,
        swappiness=100,
        zswap_percent=0,
        demotion=False,
        numa_balancing=False,
    )

    def silent(stats: Sequence[SlotStats]) -> list[dict[Sig, float]]:
        return [{} for _ in stats]

    machine = Machine(image, Hardware(memory_mib=384, accel="tcg", seed=3))
    session = Session(machine, plan, silent, "trace")
    try:
        first = session.start()
        spawn = [f"spawn {name} {CGROUPS}/{name} /program {name}\n" for name in PROGRAMS]
        report = machine.step("".join(spawn).encode() + b"pause\n")
        assert set(parse_results(report.text("results"))) == {0}
        wanted = Demand(load=1, shed=0, burst_on=False, burst_pages_per_s=0, burst_target_pages=0)
        rows = []
        for _ in range(TICKS):
            last = session.tick([SlotOrder(demand=wanted) for _ in plan.cgroups], {})
            rows.append(last.signals)
        assert session.locks is not None
        yield session.locks, first, last, np.stack(rows)
    finally:
        session.close()


def told(run: Run, slot: int, name: str) -> float:
    _, first, last, _ = run
    return last.stats[slot][name] - first.stats[slot][name]


def traced(run: Run, slot: int, sig: Sig) -> float:
    return float(run[3][-1, slot, sig])


def own_wait_us(run: Run, slot: int) -> float:
    return run[0].account.counts[slot].own_wait_us


def test_a_user_mutex_s_holder_is_charged_what_his_own_clock_says(run: Run) -> None:
    held = told(run, HOLDER_USER, "lock_held_us")
    assert held > 10_000
    assert traced(run, HOLDER_USER, Sig.LOCK_USER_HELD_US) == pytest.approx(held, rel=0.05)
    waiters = told(run, HOLDER_USER, "lock_waiters_us")
    assert traced(run, HOLDER_USER, Sig.LOCK_WAIT_US) == pytest.approx(waiters, rel=0.05)
    assert traced(run, HOLDER_USER, Sig.LOCK_KERNEL_HELD_US) < 0.05 * held


@pytest.mark.parametrize("slot", [HOLDER_USER, WAITER_USER, HOLDER_KERNEL, WAITER_KERNEL])
def test_every_cgroup_waits_as_long_as_its_threads_say(run: Run, slot: int) -> None:
    waited = told(run, slot, "lock_wait_us")
    assert waited > 1000
    assert own_wait_us(run, slot) == pytest.approx(waited, rel=0.1)


def test_a_kernel_lock_s_holder_is_found_though_nobody_tells(run: Run) -> None:
    # Waiters' clocks end when they run again, the tracer's when the lock is given on.
    held = told(run, HOLDER_KERNEL, "lock_held_us")
    assert held > 10_000
    assert 0.5 * held < traced(run, HOLDER_KERNEL, Sig.LOCK_KERNEL_HELD_US) < 1.1 * held
    assert traced(run, HOLDER_KERNEL, Sig.LOCK_USER_HELD_US) < 0.05 * held


@pytest.mark.parametrize("slot", [WAITER_USER, WAITER_KERNEL])
def test_who_only_waits_holds_nothing(run: Run, slot: int) -> None:
    for sig in (Sig.LOCK_KERNEL_HELD_US, Sig.LOCK_USER_HELD_US):
        assert traced(run, slot, sig) < 0.05 * told(run, slot, "lock_wait_us")


def test_lock_signals_are_whole_and_never_fall(run: Run) -> None:
    signals = run[3]
    assert signals.shape[-1] == N_MEMCG_SIGNALS
    for sig in (Sig.LOCK_KERNEL_HELD_US, Sig.LOCK_USER_HELD_US, Sig.LOCK_WAIT_US):
        assert (np.diff(signals[..., sig], axis=0) >= 0).all()
    gain = np.diff(signals[..., Sig.LOCK_WAIT_US], axis=0) * 1e-6
    np.testing.assert_allclose(signals[1:, :, Sig.LOCK_WAITERS], gain, atol=1e-3)
    assert run[0].account.lost == 0


@pytest.mark.parametrize("name", ["plain", "inherit"])
def test_a_program_that_nobody_made_for_this_is_charged_what_it_holds(run: Run, name: str) -> None:
    # 30 ms of 60 are held, and wanted 1 ms after they are given on
    held = traced(run, 4 + PROGRAMS.index(name), Sig.LOCK_USER_HELD_US)
    assert 0.4e6 * TICKS < held < 0.55e6 * TICKS


def test_the_lock_of_an_address_space_is_held_by_who_fills_it(run: Run) -> None:
    assert traced(run, 4 + PROGRAMS.index("maps"), Sig.LOCK_KERNEL_HELD_US) > 1000
