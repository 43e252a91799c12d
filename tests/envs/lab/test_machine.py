from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from memcg_gym.envs.lab import accel, machine, qemu
from memcg_gym.envs.lab.accel import choose_accel, kvm_obstacle, remember
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.machine import Hardware, Machine
from memcg_gym.envs.lab.protocol import COMMAND_BYTES, GuestError, LabError, Report, State
from memcg_gym.envs.lab.qemu import check_host, qemu_command
from memcg_gym.envs.lab.qmp import Monitor, MonitorClosed

IMAGE = GuestImage(Path("/boot/vmlinuz"), Path("/boot/initrd"), "7.1", "0" * 64)


def fake(way: str = "well", **timeouts: float) -> Machine:
    """A machine whose QEMU goes about it in this way."""
    hardware = Hardware(memory_mib=128, accel="tcg", extra_cmdline=f"fake={way}")
    return Machine(IMAGE, hardware, **timeouts)


def lives(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- hardware and command line


@pytest.mark.parametrize(
    "wrong", [{"memory_mib": 16}, {"cpus": 0}, {"cpus": 99}, {"slow_mib": -1}, {"seed": -1}]
)
def test_hardware_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(LabError, match=next(iter(wrong))):
        Hardware(**{"memory_mib": 512, **wrong})


def test_an_unknown_accelerator_is_refused():
    with pytest.raises(LabError, match="accel must be auto, tcg or kvm, got 'xen'"):
        Hardware(memory_mib=512, accel="xen")


def command(**hardware) -> str:
    given = Hardware(**{"memory_mib": 512, **hardware})
    chosen = "kvm" if given.accel == "kvm" else "tcg"
    return " ".join(qemu_command(IMAGE, given, chosen, "/s", "/c", 7))


def test_tcg_counts_instructions_and_kvm_does_not():
    assert "-icount shift=1,sleep=off" in command()
    assert "thread=single" in command(cpus=2)
    assert "icount" not in command(accel="kvm")


def test_a_slow_tier_is_a_second_node_of_its_size():
    text = command(memory_mib=300, slow_mib=200, cpus=2)

    assert "hmat=on" in text
    assert "-m 500M" in text
    assert "id=fast,size=300M" in text
    assert "id=slow,size=200M" in text
    assert "node,nodeid=0,memdev=fast,cpus=0-1" in text
    assert "numa" not in command()


def test_seed_and_extra_words_reach_the_command_line():
    text = command(seed=42, extra_cmdline="hello=1")

    assert "-seed 42" in text
    assert "hello=1" in text


# --- what the host must have


def test_without_qemu_the_error_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(LabError, match="apt-get install qemu-system-x86"), fake() as m:
        m.start()


def test_too_little_memory_is_said_before_the_start(monkeypatch, tmp_path, fake_qemu):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2000000 kB\nMemAvailable:     614400 kB\n")
    monkeypatch.setattr(qemu, "MEMINFO", meminfo)

    check_host(Hardware(memory_mib=256))
    with pytest.raises(LabError, match=f"up to {512 + qemu.OVERHEAD_MIB} MiB, 600 MiB are"):
        check_host(Hardware(memory_mib=384, slow_mib=128))


# --- lockstep, with a QEMU that boots nothing


def test_a_step_gives_the_commands_and_returns_the_report(fake_qemu):
    with fake() as m:
        assert m.start().state is State.READY
        for n in range(3):
            report = m.step(f"hello {n}\n".encode())
            assert report.state is State.PAUSED
            assert report.text("echo") == f"hello {n}\n"
        m.power_off()
    assert m.console == "first words\nlast words\n"


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("hangs-at-boot", "boot: nothing within 0.3 s"),
        ("never-ready", "the agent reports PAUSED, expected READY"),
        ("refuses", "QEMU ended with status 1: fake: no such device"),
    ],
)
def test_a_failed_start_says_why_and_leaves_nothing(fake_qemu, way, words):
    m = fake(way, boot_timeout_s=0.3)

    with pytest.raises(LabError, match=words):
        m.start()
    assert m._process is None


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("hangs", "step: nothing within 0.3 s"),
        ("fails", "the agent reports FAILED, expected PAUSED: no swap device"),
        ("stale", r"stopped without a report \(internal-error\)"),
        ("resets", r"the guest has ended \(guest-reset\)"),
        ("killed", r"QEMU was killed by SIGKILL \(out of memory\?\)"),
        ("garbage", "not JSON"),
        ("alien", "magic 0x7 version 1"),
        ("refuses-cont", "cont: .*not now"),
    ],
)
def test_a_failed_step_says_why_with_the_last_console_lines(fake_qemu, monkeypatch, way, words):
    monkeypatch.setattr(machine, "END_S", 0.2)
    with fake(way, step_timeout_s=0.3) as m:
        m.start()
        pid = m._process.pid
        with pytest.raises(GuestError, match=words) as caught:
            m.step(b"tick\n")
        assert "last words" in str(caught.value)
        assert not lives(pid)
        with pytest.raises(LabError, match="does not run"):
            m.step(b"tick\n")


def test_a_mute_qemu_is_given_up(fake_qemu, monkeypatch):
    monkeypatch.setattr("memcg_gym.envs.lab.qmp.ANSWER_S", 0.3)

    with pytest.raises(GuestError, match="QEMU does not answer"), fake("mute") as m:
        m.start()


def test_a_machine_that_does_not_run_takes_no_commands():
    m = fake()

    with pytest.raises(LabError, match=r"call start\(\) first"):
        m.step(b"tick\n")
    with pytest.raises(LabError, match=r"call start\(\) first"):
        m.power_off()


def test_a_machine_is_started_once(fake_qemu):
    with fake() as m:
        m.start()
        with pytest.raises(LabError, match="it runs already"):
            m.start()


def test_a_block_that_does_not_fit_is_refused_and_the_machine_lives(fake_qemu):
    with fake() as m:
        m.start()
        with pytest.raises(LabError, match="command block"):
            m.step(bytes(COMMAND_BYTES + 1))
        assert m.step(b"still\n").text("echo") == "still\n"


def test_close_kills_and_gives_every_file_back(fake_qemu):
    before = set(os.listdir("/proc/self/fd"))
    m = fake()
    m.start()
    pid = m._process.pid
    m.close()
    m.close()

    assert not lives(pid)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_qemu_dies_with_the_process_that_started_it(fake_qemu, end):
    code = (
        "import time; from pathlib import Path\n"
        "from memcg_gym.envs.lab.machine import *\n"
        "from memcg_gym.envs.lab.guest_image import GuestImage\n"
        "image = GuestImage(Path('k'), Path('i'), '7.1', '')\n"
        "m = Machine(image, Hardware(memory_mib=128, accel='tcg')); m.start()\n"
        "print(m._process.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert lives(pid)
    parent.send_signal(end)
    parent.communicate()
    for _ in range(200):
        if not lives(pid):
            break
        time.sleep(0.01)

    assert not lives(pid)


# --- the monitor


def test_events_before_an_answer_are_kept():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b'{"event": "RESUME"}\n{"event": "STOP"}\n{"return": 7}\n')
        monitor = Monitor(ours)

        assert monitor.execute("cont") == 7
        assert monitor.wait(("STOP",), time.monotonic())["event"] == "STOP"
        with pytest.raises(TimeoutError):
            monitor.wait(("STOP",), time.monotonic())


@pytest.mark.parametrize("text", [b"[1]\n", b"nonsense\n", b""])
def test_a_monitor_that_ends_or_talks_nonsense_is_closed(text):
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(text)
        with pytest.raises(MonitorClosed):
            Monitor(ours).greet()


# --- KVM


@pytest.fixture
def kvm(monkeypatch, tmp_path, home, fake_qemu) -> Iterator[None]:
    """A host with a KVM device, and no answer yet."""
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "kvm")
    qemu.qemu_version.cache_clear()
    yield
    qemu.qemu_version.cache_clear()


def test_kvm_is_tried_once_and_the_answer_kept_until_the_host_restarts(kvm, monkeypatch, tmp_path):
    tried = []

    def probe() -> str:
        tried.append(1)
        return ""

    assert kvm_obstacle() is None
    assert choose_accel("auto", probe) == "kvm"
    assert choose_accel("kvm", probe) == "kvm"
    assert len(tried) == 1
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(accel, "BOOT_ID", tmp_path / "boot_id")
    assert kvm_obstacle() is None


def test_where_kvm_boots_no_guest_auto_means_tcg(kvm):
    assert choose_accel("auto", lambda: "a guest does not boot") == "tcg"
    with pytest.raises(LabError, match="kvm: a guest does not boot; use accel tcg"):
        choose_accel("kvm", lambda: "")
    assert choose_accel("tcg", lambda: "never asked") == "tcg"


def test_without_the_device_nothing_is_tried(kvm, monkeypatch, tmp_path):
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")

    assert choose_accel("auto", lambda: pytest.fail("tried")) == "tcg"
    assert "does not exist" in kvm_obstacle()


def test_a_broken_answer_is_no_answer(kvm, home):
    remember("why not")
    assert kvm_obstacle() == "why not"
    (home / "kvm.json").write_text("{")
    assert kvm_obstacle() is None


# --- a real kernel


STEPS = 6


def drive(image: GuestImage, hardware: Hardware, pause_s: float) -> list[Report]:
    """Boot and take a few steps, with rests of the host between them."""
    with Machine(image, hardware) as m:
        reports = [m.start()]
        for n in range(STEPS):
            time.sleep(pause_s)
            reports.append(m.step(f"step {n}\n".encode()))
        m.power_off()
    return reports


@pytest.mark.lab
def test_two_runs_with_one_seed_agree_to_the_byte_whatever_the_host_does(echo_image):
    hardware = Hardware(memory_mib=256, seed=7, accel="tcg")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda pause_s: drive(echo_image, hardware, pause_s), (0.0, 0.2))

    assert first == second
    assert [report.files["echo"] for report in first[1:]] == [
        b"step %d\n" % n for n in range(STEPS)
    ]
    work = [int(report.text("work")) for report in first]
    assert all(before < after for before, after in pairwise(work))
    # The guest's clock: the agent's tick of 0.1 s and what it takes to read a few files.
    for before, after in pairwise(first):
        assert 0.1e9 <= after.time_ns - before.time_ns < 0.11e9
        assert int(after.text("resumed_ns")) - before.time_ns < 50_000


@pytest.mark.lab
def test_a_real_guest_has_what_it_was_given_and_its_panic_is_told(echo_image):
    hardware = Hardware(
        memory_mib=192, slow_mib=128, cpus=2, accel="tcg", extra_cmdline="lab.test=1"
    )
    with Machine(echo_image, hardware) as m:
        report = m.start()
        version, nodes = report.text("version"), report.text("nodes").split()
        assert echo_image.version in version
        assert report.text("cmdline").split()[-1] == "lab.test=1"
        assert report.text("interrupts").split()[:3] == ["CPU0", "CPU1", "0:"]
        assert {"node0", "node1"} <= set(nodes)
        assert len([t for t in report.text("tiers").split() if t.startswith("memory_tier")]) == 2
        total_kib = int(report.text("meminfo").split()[1])
        assert 192 << 10 < total_kib < 320 << 10
        order = report.text("order").split()
        assert order.index("configfs") < order.index("null_blk")
        assert {f"{name}.ko" for name in order} < set(report.text("modules").split())
        with pytest.raises(GuestError, match="Attempted to kill init") as caught:
            m.step(b"panic\n")
        assert "guest-reset" in str(caught.value)
