"""A program's batch against a machine without QEMU: what is asked of it, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.configs.loader import load_objective
from memcg_gym.envs.contract.heads import HEADS
from memcg_gym.envs.contract.signals import HostSig, Sig
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.programs_image import ProgramImage
from memcg_gym.envs.lab.protocol import GuestError, LabError, Report
from memcg_gym.envs.lab.qemu import Hardware
from memcg_gym.envs.lab.scale import scale_objective
from memcg_gym.envs.program_batch import MIB, ProgramBatch, scenario_of
from tests.envs.lab.fake_guest import FakeMachine
from tests.lab_program import tiny_program

IMAGE = ProgramImage(GuestImage(Path("vmlinuz"), Path("initrd"), "0.0", "none"), 9 * MIB)
LIMIT = 16 * MIB
RECLAIM = [head.name for head in HEADS].index("reclaim")
LIVES, DONE, FAILED, KILLED = (
    *("alive 1\nlast_status 0\n", "alive 0\nlast_status 0\n"),
    *(f"alive 0\nlast_status {1 << 8}\n", f"alive 0\nlast_status {137 << 8}\n"),
)


class ProgramMachine(FakeMachine):
    """Programs besides a model host: what each step says of them is set by a test.

    Attributes:
        says: Files of the next reports, over the model host's.
    """

    def __init__(self, batch: HostBatch, folder: Path, extra_total_bytes: int = 0) -> None:
        super().__init__(batch, folder, extra_total_bytes)
        self.says = {"program/load": DONE}

    def step(self, commands: bytes) -> Report:
        """As a host, and what the programs say."""
        report = super().step(commands)
        if b"run measure" in commands:
            self.says |= {"program/measure": LIVES}
        said = {name: text.encode() for name, text in self.says.items()}
        self.says = {k: v for k, v in self.says.items() if not k.startswith("out/")}
        return replace(report, files={**report.files, "slot/0/stats": b"alive 0\n", **said})


class Lab:
    """A program's batch, the fake machine behind it, and the model host in that."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.program = tiny_program(**changes)
        objective = scale_objective(load_objective(), 16)
        self.model = HostBatch(scenario_of(self.program, LIMIT), objective)
        self.model.reset_host(0, 3)
        devices = (self.program.host.swap_mib + self.program.host.data_mib) * MIB
        self.machine = ProgramMachine(self.model, folder, extra_total_bytes=devices)
        self.batch = ProgramBatch(
            self.program, objective, IMAGE, limit_bytes=LIMIT, make_machine=self.make
        )
        self.hardware = Hardware(memory_mib=128)

    def make(self, image: GuestImage, hardware: Hardware) -> ProgramMachine:
        self.hardware = hardware
        return self.machine

    def commands(self) -> list[str]:
        """All lines of all blocks."""
        return [line for block in self.machine.blocks for line in block.decode().splitlines()]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path)
    made.batch.reset_host(0, 3)
    return made


def test_a_program_is_loaded_then_limited_then_measured(lab: Lab) -> None:
    lines = lab.commands()
    places = [
        next(at for at, line in enumerate(lines) if word in line)
        for word in (
            *("fill /dev/labdata", "mke2fs", "mount ext4", "run load /sys/fs/cgroup/work/tiny"),
            "write - 8 /sys/fs/cgroup/work/tiny/memory.max",
            "run measure /sys/fs/cgroup/work/tiny",
        )
    ]
    assert places == sorted(places)
    assert str(LIMIT) in lines
    assert not any(line.startswith(("start", "launch", "region")) for line in lines)


@pytest.mark.parametrize(("seed", "times"), [(0, 0), (7, 1)])
def test_a_seed_is_mixed_into_the_guests_random_numbers(
    tmp_path: Path, seed: int, times: int
) -> None:
    lab = Lab(tmp_path)
    lab.batch.reset_host(0, seed)
    lines = lab.commands()
    assert sum("/dev/urandom" in line for line in lines) == times
    assert lines.count(f"seed {seed}") == times


def test_rounds_of_the_load_are_counted_and_those_of_the_measure_are_not(lab: Lab) -> None:
    lines = lab.commands()
    (load,) = (x for x in lines if x.startswith("run load") and "/usr/bin/dd" in x)
    (measured,) = (x for x in lines if x.startswith("run measure"))
    assert load.split()[4] == "6"
    assert measured.split()[4] == "0"


def test_devices_and_programs_are_added_to_the_guests_memory_and_taken_out_again(lab: Lab) -> None:
    host = lab.program.host
    assert lab.hardware.memory_mib > host.memory_mib + host.swap_mib + host.data_mib + 9
    wanted = lab.model.host_signals[0, HostSig.TOTAL_BYTES]
    assert lab.batch.host_signals[0, HostSig.TOTAL_BYTES] == pytest.approx(wanted, abs=2**21)


def test_signals_are_what_the_guests_files_say_and_no_workload_tells_any(lab: Lab) -> None:
    lab.batch.settle(2)
    for sig in (Sig.USAGE_BYTES, Sig.PSI_MEM_SOME_US, Sig.OWNER_MAX_BYTES):
        wanted = lab.model.signals[0, :, sig]
        np.testing.assert_allclose(lab.batch.signals[0, :, sig], wanted, atol=4096.0)
    assert not lab.batch.signals[0, 0, Sig.SLACK_VALID] > 0


def test_a_decision_becomes_a_write_and_a_program_gets_no_demand(lab: Lab) -> None:
    levels = np.zeros((1, 1, len(HEADS)), dtype=np.int64)
    levels[..., RECLAIM] = 3
    before = len(lab.machine.blocks)
    for _ in range(3):
        lab.batch.step_levels(levels)
    lines = [x for block in lab.machine.blocks[before:] for x in block.decode().splitlines()]
    assert any(line.startswith("reclaim 0 ") for line in lines)
    assert not any(line.startswith("demand") for line in lines)


def test_rounds_are_told_with_their_output_though_reports_cut_lines(lab: Lab) -> None:
    lab.machine.says["out/measure"] = "one\n@round 1 10 20 0\ntw"
    lab.batch.settle(1)
    lab.machine.says["out/measure"] = "o\n@round 2 20 40 0\n"
    lab.batch.settle(1)

    rounds = lab.batch.running.rounds
    assert [(r.begin_ns, r.end_ns, r.lines) for r in rounds] == [
        *((10, 20, ("one",)), (20, 40, ("two",))),
    ]


def test_a_round_that_fails_is_none_and_its_words_are_kept(lab: Lab) -> None:
    lab.machine.says |= {"out/measure": "no space\n@round 1 10 20 256\n", "program/measure": FAILED}
    lab.batch.settle(1)
    assert lab.batch.running.rounds == []
    assert lab.batch.running.died == "the measure ended with status 1"
    assert "no space" in lab.batch.running.last_words()


def test_a_command_killed_in_a_round_is_told_as_killed(lab: Lab) -> None:
    lab.machine.says["program/measure"] = KILLED
    lab.batch.settle(1)
    assert lab.batch.running.died == "the measure was killed by SIGKILL"


def test_a_load_that_fails_says_what_it_said(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.machine.says = {"program/load": FAILED, "out/load": "mke2fs: no such device\n"}
    with pytest.raises(GuestError, match=r"mke2fs: ended with status 1.*\n.*no such device"):
        lab.batch.reset_host(0, 3)
    assert lab.machine.closed


def test_a_load_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.machine.says = {"program/load": LIVES}
    with pytest.raises(GuestError, match="not done within 60 s of guest time"):
        lab.batch.reset_host(0, 3)


def test_a_service_that_dies_while_it_is_loaded_ends_the_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path, service={"command": "/usr/bin/dd"})
    lab.machine.says["program/service"] = FAILED
    lab.machine.says["out/service"] = "bad directive\n"
    with pytest.raises(GuestError, match=r"the service ended with status 1.*\n.*bad directive"):
        lab.batch.reset_host(0, 3)


def test_without_a_guest_there_is_nothing_running(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="call reset first"):
        assert Lab(tmp_path).batch.running
