from __future__ import annotations

import os
from pathlib import Path

import pytest

from memcg_gym.envs.lab import accel, doctor, kernel_image, qemu
from memcg_gym.envs.lab.doctor import INSTALL, Check, examine
from memcg_gym.envs.lab.kernel_image import from_paths, use

from .test_kernel_image import bzimage, sources


def by_name() -> dict[str, Check]:
    return {check.name: check for check in examine()}


@pytest.fixture(autouse=True)
def forget_version():
    qemu.qemu_version.cache_clear()
    yield
    qemu.qemu_version.cache_clear()


@pytest.fixture
def bare(home, monkeypatch, tmp_path) -> Path:
    """A machine with nothing on it."""
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(kernel_image, "KEYRING", tmp_path / "none")
    monkeypatch.setattr(kernel_image, "APT_SOURCES", tmp_path / "none")
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")
    return tmp_path


def test_on_a_bare_machine_everything_missing_has_its_command(bare):
    checks = by_name()

    for name, package in {
        "qemu-system-x86_64": "qemu-system-x86",
        "gcc": "gcc libc6-dev",
        "cpio": "cpio",
        "keyring": "debian-archive-keyring",
    }.items():
        check = checks[name]
        assert (check.ok, check.needed) == (False, True)
        assert check.remedy == f"{INSTALL} {package}"
    assert "lab fetch --kernel VMLINUZ --modules DIR" in checks["mirror"].remedy
    assert not checks["kernel"].needed


def test_with_a_kernel_at_hand_packages_are_not_needed(bare):
    modules = bare / "modules"
    modules.mkdir()
    kernel = use(from_paths(bzimage(bare / "vmlinuz"), modules))
    checks = by_name()

    assert not any(checks[name].needed for name in ("apt-get", "dpkg", "keyring", "mirror"))
    assert checks["gcc"].needed
    assert kernel.version in checks["kernel"].found
    assert "no module null_blk" in checks["image"].found


def test_looking_makes_nothing(bare, home):
    before = sorted(bare.rglob("*"))
    examine()

    assert sorted(bare.rglob("*")) == before
    assert not home.exists()


def test_what_is_there_is_shown(home, fake_qemu, programs, tmp_path, monkeypatch):
    programs("gcc", "#!/bin/sh\necho /lib/libc.a\n")
    for name in ("cpio", "apt-get", "dpkg"):
        programs(name, "#!/bin/sh\n")
    apt = sources(tmp_path, a_list="deb http://m/debian bookworm main")
    monkeypatch.setattr(kernel_image, "APT_SOURCES", apt)
    monkeypatch.setattr(kernel_image, "KEYRING", tmp_path)
    checks = by_name()

    assert checks["qemu-system-x86_64"].found == "99.1"
    assert checks["static libc"].found == "/lib/libc.a"
    assert checks["mirror"].found == "http://m/debian"
    names = ("qemu-system-x86_64", "gcc", "static libc", "cpio", "apt-get", "dpkg", "mirror")
    assert all(checks[name].ok and not checks[name].remedy for name in names)


def test_a_compiler_without_a_static_libc_is_told_apart(home, programs):
    programs("gcc", "#!/bin/sh\necho libc.a\n")
    check = by_name()["static libc"]

    assert not check.ok
    assert check.remedy == f"{INSTALL} libc6-dev"


def test_too_little_memory_or_disk_is_a_lack(home, monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemAvailable: 524288 kB\n")
    monkeypatch.setattr(qemu, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(kernel_image, "NEED_MIB", 1 << 40)
    checks = by_name()

    assert checks["memory"].found == "512 MiB available"
    assert not checks["memory"].ok
    assert not checks["disk"].ok
    assert "XDG_CACHE_HOME" in checks["disk"].remedy


def test_kvm_is_reported_and_never_needed(home, fake_qemu, monkeypatch, tmp_path):
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path)
    first = by_name()["kvm"]
    accel.remember("a guest does not boot: no")
    second = by_name()["kvm"]
    accel.remember("")
    third = by_name()["kvm"]

    assert first.found == "not tried yet"
    assert second.found == "a guest does not boot: no"
    assert [c.ok for c in (first, second, third)] == [False, False, True]
    assert not (first.needed or second.needed or third.needed)


def test_a_kvm_device_that_may_not_be_opened_names_the_group(
    home, fake_qemu, monkeypatch, tmp_path
):
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path)
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: p != tmp_path and real(p, mode))

    assert "group kvm" in by_name()["kvm"].found


def test_another_architecture_is_said_first(home, monkeypatch):
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    first = examine()[0]

    assert (first.found, first.ok, first.needed) == ("aarch64", False, True)
