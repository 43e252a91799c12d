from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import ClassVar

import pytest

from memcg_gym.envs.lab import kernel_image
from memcg_gym.envs.lab.doctor import Check
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.protocol import GuestError, Report, State
from memcg_gym.envs.lab.qemu import Hardware
from memcg_gym.training import cli, lab, lab_boot, lab_doctor, lab_fetch


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", lab.SUB_VERBS)
def test_every_sub_verb_has_its_module_and_help(name, capsys):
    module = importlib.import_module(f"memcg_gym.training.lab_{name}")
    assert callable(module.add_arguments)
    assert callable(module.run)
    with pytest.raises(SystemExit) as caught:
        cli.main(["lab", name, "--help"])
    assert caught.value.code == 0
    assert f"usage: memcg-gym lab {name}" in capsys.readouterr().out


def test_help_lists_every_sub_verb(capsys):
    with pytest.raises(SystemExit):
        cli.main(["lab", "--help"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]

    assert set(lab.SUB_VERBS) <= set(listed)


@pytest.mark.parametrize("argv", [["lab"], ["lab", "nosuch"], ["lab", "doctor", "--nosuch"]])
def test_wrong_usage_is_status_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: memcg-gym" in capsys.readouterr().err


# --- doctor


def row(**changes) -> Check:
    return Check(**{"name": "thing", "found": "here", "ok": True, **changes})


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([row()], 0),
        ([row(), row(ok=False, needed=False)], 0),
        ([row(), row(ok=False, remedy="get it")], 1),
    ],
)
def test_doctor_fails_where_something_needed_is_missing(checks, status, monkeypatch, capsys):
    monkeypatch.setattr(lab_doctor, "examine", lambda: checks)

    assert cli.main(["lab", "doctor"]) == status
    text = capsys.readouterr().out
    assert ("the lab can run here" in text) == (status == 0)
    assert cli.main(["lab", "doctor", "--json"]) == status
    content = json.loads(capsys.readouterr().out)
    assert content["ready"] == (status == 0)
    assert [c["remedy"] for c in content["checks"]] == [c.remedy for c in checks]


def test_doctor_shows_the_command_that_would_help(monkeypatch, capsys):
    monkeypatch.setattr(lab_doctor, "examine", lambda: [row(ok=False, remedy="apt-get install x")])
    cli.main(["lab", "doctor"])

    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("MISSING")
    assert second.strip() == "-> apt-get install x"


# --- fetch


@pytest.mark.parametrize("verb", ["fetch", "boot"])
@pytest.mark.parametrize("given", [["--kernel", "k"], ["--modules", "m"]])
def test_kernel_and_modules_belong_together(verb, given, home, capsys):
    assert cli.main(["lab", verb, *given]) == 2
    assert "--kernel and --modules belong together" in capsys.readouterr().err


def test_refresh_is_not_for_a_kernel_of_ones_own(home, capsys):
    argv = ["lab", "fetch", "--refresh", "--kernel", "k", "--modules", "m"]

    assert cli.main(argv) == 2
    assert "--refresh" in capsys.readouterr().err


def test_a_kernel_that_is_none_is_refused_and_not_used(home, capsys):
    (home / "modules").mkdir()
    (home / "vmlinuz").write_text("text")
    argv = ["lab", "fetch", "--kernel", str(home / "vmlinuz"), "--modules", str(home / "modules")]

    assert cli.main(argv) == 2
    assert "not an x86 bzImage" in capsys.readouterr().err
    assert kernel_image.cached() is None


@pytest.fixture
def own_kernel(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that name a kernel; its image is not really built."""
    (home / "modules").mkdir()
    (home / "vmlinuz").touch()
    monkeypatch.setattr(kernel_image, "image_version", lambda path: "7.9-own")
    for module in (lab_fetch, lab_boot):
        monkeypatch.setattr(
            module, "build", lambda k: GuestImage(k.vmlinuz, home / "initrd", k.version, "abc")
        )
    return ["--kernel", str(home / "vmlinuz"), "--modules", str(home / "modules")]


def test_a_kernel_of_ones_own_is_used_from_then_on(own_kernel, home, capsys):
    assert cli.main(["lab", "fetch", *own_kernel]) == 0
    said = capsys.readouterr().out
    assert "linux   7.9-own" in said
    assert "digest  abc" in said
    assert kernel_image.fetch().vmlinuz == home / "vmlinuz"
    assert cli.main(["lab", "fetch"]) == 0
    assert capsys.readouterr().out == said


# --- boot


class FakeMachine:
    """Boots at once, or not at all."""

    accel = "tcg"
    console = "said this\n"
    made: ClassVar[list[Hardware]] = []
    error: ClassVar[GuestError | None] = None

    def __init__(self, image: GuestImage, hardware: Hardware) -> None:
        self.made.append(hardware)

    def __enter__(self) -> FakeMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.made.append("closed")

    def start(self) -> Report:
        if self.error:
            raise self.error
        return Report(State.READY, 0, 1_500_000_000, 0, {"boot/version": b"Linux version 7.9\n"})

    def power_off(self) -> None:
        self.made.append("off")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> type[FakeMachine]:
    """What ``lab boot`` starts."""
    made: list[object] = []
    monkeypatch.setattr(FakeMachine, "made", made)
    monkeypatch.setattr(lab_boot, "Machine", FakeMachine)
    monkeypatch.setattr(lab_boot, "qemu_version", lambda: "99.1")
    return FakeMachine


def test_boot_says_what_came_up_and_switches_it_off(own_kernel, machine, capsys):
    words = ["--memory", "300", "--slow", "200", "--cpus", "2", "--seed", "5", "--accel", "tcg"]

    assert cli.main(["lab", "boot", *own_kernel, *words, "--console"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Linux version 7.9\nQEMU 99.1, accelerator tcg\n")
    assert "(1.500 s of guest time)" in out
    assert err == "said this\n"
    hardware = Hardware(memory_mib=300, slow_mib=200, cpus=2, seed=5, accel="tcg")
    assert machine.made == [hardware, "off", "closed"]


def test_a_guest_that_does_not_boot_is_an_error_with_its_words(own_kernel, machine, capsys):
    machine.error = GuestError("guest: boot: it died")
    try:
        assert cli.main(["lab", "boot", *own_kernel]) == 2
    finally:
        machine.error = None

    assert "memcg-gym: error: guest: boot: it died" in capsys.readouterr().err
    assert machine.made[-1] == "closed"


def test_hardware_out_of_range_is_wrong_usage(own_kernel, machine, capsys):
    assert cli.main(["lab", "boot", *own_kernel, "--memory", "1"]) == 2
    assert "memory_mib must be in" in capsys.readouterr().err


@pytest.mark.lab
def test_boot_starts_a_real_kernel(guest_image, capsys):
    assert cli.main(["lab", "boot", "--memory", "256", "--accel", "tcg"]) == 0
    out = capsys.readouterr().out

    assert out.startswith(f"Linux version {guest_image.version} ")
    assert "accelerator tcg" in out
