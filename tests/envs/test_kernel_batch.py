"""A kernel batch against a machine without QEMU: what is asked of it, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.envs.contract.signals import HostSig, Sig
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.kernel_batch import KernelBatch
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.protocol import GuestError, LabError
from memcg_gym.envs.lab.scale import scale_objective, scale_scenario
from memcg_gym.envs.reward import Metric
from tests.envs.lab.fake_guest import FakeMachine

IMAGE = GuestImage(Path("vmlinuz"), Path("initrd"), "0.0", "none")


class Lab:
    """A kernel batch, the fake machine behind it, and the model host in that."""

    def __init__(self, folder: Path, name: str = "burst", seed: int = 3) -> None:
        self.scenario = scale_scenario(load_scenario(name), 16)
        self.objective = scale_objective(load_objective(), 16)
        self.model = HostBatch(self.scenario, self.objective)
        self.model.reset_host(0, seed, "test")
        swap_bytes = int(self.model.hosts[0].swap_pages) * 4096
        self.machine = FakeMachine(self.model, folder, extra_total_bytes=swap_bytes)
        self.batch = KernelBatch(
            self.scenario, self.objective, IMAGE, make_machine=lambda image, hardware: self.machine
        )

    def reset(self) -> None:
        self.batch.reset_host(0, 3, "test")

    def last_block(self) -> str:
        return self.machine.blocks[-1].decode()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path)
    made.reset()
    return made


def test_signals_are_what_the_guests_files_say(lab: Lab) -> None:
    lab.batch.settle(3)
    for sig in (Sig.USAGE_BYTES, Sig.REFAULT_ANON, Sig.PSI_MEM_SOME_US, Sig.LOW_BYTES):
        wanted = lab.model.signals[0, :, sig]
        np.testing.assert_allclose(lab.batch.signals[0, :, sig], wanted, atol=4096.0)


def test_the_emulated_disks_storage_is_taken_out_of_the_hosts_memory(lab: Lab) -> None:
    wanted = lab.model.host_signals[0, HostSig.TOTAL_BYTES]
    assert lab.batch.host_signals[0, HostSig.TOTAL_BYTES] == pytest.approx(wanted, abs=2**21)


def test_both_worlds_want_the_same_load_at_the_same_tick(lab: Lab) -> None:
    for _ in range(40):
        lab.batch.settle(1)
        np.testing.assert_array_equal(lab.batch.memcgs["load"], lab.model.memcgs["load"])
        np.testing.assert_array_equal(lab.batch.memcgs["burst_on"], lab.model.memcgs["burst_on"])


def test_every_region_of_the_scenario_is_declared_before_its_workload_starts(lab: Lab) -> None:
    text = "".join(block.decode() for block in lab.machine.blocks)
    regions = sum(c.copies * len(c.workload.regions) for c in lab.scenario.cgroups)
    assert text.count("\nregion ") == regions
    assert text.index("region 0 ") < text.index("launch 0")


def test_a_reclaim_level_goes_to_the_agents_worker_a_tick_after_it_was_decided(lab: Lab) -> None:
    levels = np.zeros_like(lab.batch.levels)
    levels[0, 0, 1] = 2
    lab.batch.step_levels(levels)
    assert "reclaim 0 " not in lab.last_block()
    lab.batch.step_levels(levels)
    usage = lab.batch.signals_before[0, 0, Sig.USAGE_BYTES]
    line = next(x for x in lab.last_block().splitlines() if x.startswith("reclaim 0 "))
    assert int(line.split()[2]) == pytest.approx(0.01 * usage, abs=4096)


def test_a_generator_that_is_gone_counts_as_killed_and_is_started_again(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.reset()
    lab.machine.stats[0] = "alive 0\n"
    lab.batch.settle(1)
    assert lab.batch.metrics[0, 0, Metric.KILLS] == 1
    restart_s = lab.scenario.cgroups[0].restart_s
    blocks = []
    for _ in range(restart_s + 1):
        lab.batch.settle(1)
        blocks.append(lab.last_block())
    assert sum("start 0" in block for block in blocks) == 1


def test_requests_and_latency_come_from_the_generators_counters(lab: Lab) -> None:
    lab.batch.settle(1)
    lab.machine.stats[0] = "alive 1\ndone 150\narrived 160\nlatency 80:45 96:5\n"
    lab.batch.settle(1)
    row = lab.batch.metrics[0, 0]
    assert row[Metric.REQUESTS] == 50
    assert 2**12 <= row[Metric.P99_US] <= 2**12.2


def test_a_set_up_command_that_fails_is_named_and_the_guest_is_ended(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.machine.errors["swapon"] = 22
    with pytest.raises(GuestError, match=r"swapon /dev/labswap 0: EINVAL.*\n  agent: slot 0"):
        lab.reset()
    assert lab.machine.closed


def test_a_running_guest_cannot_be_copied_or_stepped_after_its_end(lab: Lab) -> None:
    with pytest.raises(LabError, match="cannot be copied"):
        lab.batch.clone()
    lab.batch.close()
    with pytest.raises(LabError, match="call reset first"):
        lab.batch.settle(1)


@pytest.mark.parametrize("kind", ["user", "kernel"])
def test_a_workload_tells_of_the_kind_of_lock_it_holds(tmp_path: Path, kind: str) -> None:
    lab = Lab(tmp_path, "lock")
    data = lab.scenario.model_dump()
    for cgroup in data["cgroups"]:
        cgroup["workload"]["lock"]["kind"] = kind
    scenario = type(lab.scenario).model_validate(data)
    batch = KernelBatch(
        scenario, lab.objective, IMAGE, make_machine=lambda image, hardware: lab.machine
    )
    lab.machine.stats[0] = "alive 1\nlock_held_us 4711\nlock_waiters_us 5000\n"
    batch.reset_host(0, 3, "test")
    row = batch.signals[0, 0]
    told = {"kernel": row[Sig.LOCK_KERNEL_HELD_US], "user": row[Sig.LOCK_USER_HELD_US]}
    assert told.pop(kind) == 4711
    (other,) = told.values()
    assert np.isnan(other) if kind == "user" else other == 0
    assert row[Sig.LOCK_WAIT_US] == 5000
    batch.close()
