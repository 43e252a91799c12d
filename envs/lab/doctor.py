"""What the lab needs of this machine, what of it is there, and which command gets the rest.

Every check looks and changes nothing; in particular none boots a guest.

Units: MiB.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memcg_gym.envs.lab import kernel_image
from memcg_gym.envs.lab.accel import kvm_obstacle
from memcg_gym.envs.lab.guest_image import COMPILER, build_inputs, is_built
from memcg_gym.envs.lab.kernel_image import KernelFiles, cache_dir, cached, find_mirror
from memcg_gym.envs.lab.protocol import LabError
from memcg_gym.envs.lab.qemu import OVERHEAD_MIB, QEMU, available_mib, qemu_version

GUEST_MIB = 1024
"""A scenario of 8 GiB scaled by 16, with its swap and slow tier; assumption: room for any that
ships."""

INSTALL = "apt-get install --no-install-recommends"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing the lab uses.

    Attributes:
        name: What.
        found: What is there; in words.
        ok: Whether that will do.
        needed: Whether the lab is of no use without it.
        remedy: The command, or what else, that would get it; empty where nothing is wrong.
    """

    name: str
    found: str
    ok: bool
    needed: bool = True
    remedy: str = ""


def examine() -> list[Check]:
    """Every check, in the order of use."""
    kernel = cached()
    built = kernel is not None and image_state(kernel) == "built"
    return [
        check_machine(),
        check_qemu(),
        *check_compiler(needed=not built),
        *check_packages(needed=kernel is None),
        check_memory(),
        check_disk(0 if built else kernel_image.NEED_MIB),
        check_kvm(),
        check_kernel(kernel),
        check_image(kernel),
    ]


def check_machine() -> Check:
    """The guest's programs are compiled here and run there."""
    found = platform.machine()
    ok = found == "x86_64"
    return Check(
        name="machine", found=found, ok=ok, remedy="" if ok else "use an x86-64 Linux machine"
    )


def check_qemu() -> Check:
    """QEMU itself."""
    if shutil.which(QEMU) is None:
        return missing(QEMU, f"{INSTALL} qemu-system-x86")
    return Check(name=QEMU, found=qemu_version(), ok=True)


def check_compiler(*, needed: bool) -> Iterator[Check]:
    """What an image is built with."""
    if shutil.which(COMPILER) is None:
        yield missing(COMPILER, f"{INSTALL} gcc libc6-dev", needed=needed)
    else:
        command = [COMPILER, "-print-file-name=libc.a"]
        path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        yield Check(name=COMPILER, found=str(shutil.which(COMPILER)), ok=True, needed=needed)
        # The compiler repeats the bare name where it does not find the file.
        if Path(path).is_absolute():
            yield Check(name="static libc", found=path, ok=True, needed=needed)
        else:
            yield missing("static libc", f"{INSTALL} libc6-dev", needed=needed)
    yield check_program("cpio", "cpio", needed=needed)


def check_packages(*, needed: bool) -> Iterator[Check]:
    """What a kernel is fetched with."""
    yield check_program("apt-get", "apt", needed=needed)
    yield check_program("dpkg", "dpkg", needed=needed)
    keyring = kernel_image.KEYRING
    if keyring.exists():
        yield Check(name="keyring", found=str(keyring), ok=True, needed=needed)
    else:
        yield missing("keyring", f"{INSTALL} debian-archive-keyring", needed=needed)
    try:
        mirror = find_mirror(kernel_image.APT_SOURCES)
        yield Check(name="mirror", found=mirror, ok=True, needed=needed)
    except LabError:
        remedy = "memcg-gym lab fetch --kernel VMLINUZ --modules DIR"
        yield missing("mirror", remedy, needed=needed)


def check_memory() -> Check:
    """Memory for one guest."""
    have, need = available_mib(), GUEST_MIB + OVERHEAD_MIB
    ok = have >= need
    remedy = "" if ok else f"end other programs: a guest takes up to {need} MiB"
    return Check(name="memory", found=f"{have} MiB available", ok=ok, remedy=remedy)


def check_disk(need_mib: int) -> Check:
    """Room in the cache folder for what is still to be made."""
    folder = cache_dir()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free_mib = shutil.disk_usage(there).free >> 20
    ok = free_mib >= need_mib
    remedy = "" if ok else f"make {need_mib} MiB of room, or set XDG_CACHE_HOME to another disk"
    return Check(name="disk", found=f"{free_mib} MiB free in {folder}", ok=ok, remedy=remedy)


def check_kvm() -> Check:
    """Hardware virtualisation, without which a guest is slower and repeats to the byte."""
    why = kvm_obstacle() if shutil.which(QEMU) else f"no {QEMU} to try it with"
    if why is None:
        found, remedy = "not tried yet", "memcg-gym lab boot --accel auto"
    elif why:
        found, remedy = why, "not needed: guests run on QEMU's translator"
    else:
        found, remedy = "a guest has booted", ""
    return Check(name="kvm", found=found, ok=why == "", needed=False, remedy=remedy)


def check_kernel(kernel: KernelFiles | None) -> Check:
    """The kernel in use."""
    if kernel is None:
        return missing("kernel", "memcg-gym lab fetch (done when first used)", needed=False)
    return Check(name="kernel", found=f"{kernel.version} ({kernel.vmlinuz})", ok=True)


def check_image(kernel: KernelFiles | None) -> Check:
    """The guest's programs, built."""
    found = "not built" if kernel is None else image_state(kernel)
    ok = found == "built"
    remedy = "" if ok else "memcg-gym lab fetch (done when first used)"
    return Check(name="image", found=found, ok=ok, needed=False, remedy=remedy)


def image_state(kernel: KernelFiles) -> str:
    """``built``, or why not."""
    try:
        with build_inputs(kernel) as inputs:
            return "built" if is_built(inputs) else "not built"
    except LabError as error:
        return str(error)


def check_program(name: str, package: str, *, needed: bool) -> Check:
    """A program of a package."""
    path = shutil.which(name)
    if path is None:
        return missing(name, f"{INSTALL} {package}", needed=needed)
    return Check(name=name, found=path, ok=True, needed=needed)


def missing(name: str, remedy: str, *, needed: bool = True) -> Check:
    """A check of something that is not there."""
    return Check(name=name, found="not found", ok=False, needed=needed, remedy=remedy)
