"""Programs of the distribution in a guest: how the agent runs them."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator

import pytest

from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.machine import Machine
from memcg_gym.envs.lab.protocol import Report, parse_results
from memcg_gym.envs.lab.qemu import Hardware
from tests.lab_program import tiny_image

pytestmark = pytest.mark.lab

ROOT = "/sys/fs/cgroup"
DD = "/usr/bin/dd"


@pytest.fixture(scope="module")
def machine(guest_image: GuestImage) -> Iterator[Machine]:
    image = tiny_image(guest_image).image
    with Machine(image, Hardware(memory_mib=256, accel="tcg")) as machine:
        machine.start()
        yield machine


def step(machine: Machine, commands: str, ticks: int = 1) -> Report:
    report = machine.step(f"{commands}tick\n".encode())
    for _ in range(ticks - 1):
        report = machine.step(b"tick\n")
    return report


def test_a_command_is_run_for_so_many_rounds_each_of_them_timed(machine: Machine) -> None:
    report = step(machine, f"run a {ROOT} /tmp 3 {DD} if=/dev/zero of=a bs=4096 count=1000\n")

    lines = [x.split() for x in report.text("out/a").splitlines() if x.startswith("@round")]
    assert [(words[1], words[4]) for words in lines] == [("1", "0"), ("2", "0"), ("3", "0")]
    begins, ends = ([int(words[at]) for words in lines] for at in (2, 3))
    assert sorted(begins + ends) == [t for pair in zip(begins, ends, strict=True) for t in pair]
    assert ends[-1] < report.time_ns
    assert report.text("program/a") == "alive 0\nlast_status 0\n"
    assert "copied" in report.text("out/a")  # dd's summary is on its standard error


def test_it_works_in_its_folder_and_a_failing_round_is_the_last(machine: Machine) -> None:
    command = f"{DD} if=/lab/missing of=b"
    report = step(machine, f"run b {ROOT} /tmp 0 {command}\n")

    assert "/lab/missing" in report.text("out/b")
    assert report.text("out/b").count("@round") == 1
    assert report.text("program/b") == "alive 0\nlast_status 256\n"


def test_a_signal_reaches_what_is_run_in_rounds(machine: Machine) -> None:
    command = f"watch procs {ROOT}/c/cgroup.procs\nmkdir {ROOT}/c\n"
    command += f"run c {ROOT}/c /tmp 0 {DD} if=/dev/zero of=/dev/null bs=65536\n"
    before = step(machine, command)
    after = step(machine, f"signal c {int(signal.SIGKILL)}\n")

    assert len(before.text("procs").split()) == 2  # the command, and what repeats it
    assert after.text("procs") == ""
    assert after.text("program/c") == f"alive 0\nlast_status {int(signal.SIGKILL)}\n"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("run", errno.EINVAL),
        (f"run d {ROOT} /tmp x {DD}", errno.EINVAL),
        (f"run d {ROOT} /tmp 1", errno.EINVAL),
        (f"run d {ROOT} /tmp 1 /nowhere", errno.ENOENT),
        (f"run d {ROOT}/gone /tmp 1 {DD}", errno.ENOENT),
    ],
)
def test_what_cannot_be_run_gets_its_errno(machine: Machine, command: str, expected: int) -> None:
    report = machine.step(f"{command}\npause\n".encode())
    assert parse_results(report.text("results")) == [expected]


def test_a_folder_that_is_not_there_is_told_in_the_output(machine: Machine) -> None:
    report = step(machine, f"run e {ROOT} /nowhere 1 {DD}\n")
    assert report.text("out/e").startswith("/nowhere: No such file")
    assert report.text("program/e") == f"alive 0\nlast_status {126 << 8}\n"
