"""The machine as QEMU is told of it: hardware, command line, and what it needs of the host.

Units: mebibytes; seconds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.protocol import SHARED_BYTES, LabError

QEMU = "qemu-system-x86_64"
MEMINFO = Path("/proc/meminfo")

SHIFT = 1
"""An instruction is 2**SHIFT ns of guest time: 500 million a second."""

TRANSLATED_MIB = 128
"""Translated code that QEMU keeps; left alone it may take 1 GiB in a long run."""

OVERHEAD_MIB = 128 + TRANSLATED_MIB
"""QEMU's own memory beside the guest's; 150 MiB measured after a boot and 10 s of work."""

MIN_MEMORY_MIB = 128
"""Below, the kernel and its initramfs leave nothing to measure in."""

MAX_CPUS = 8
"""Under TCG they run in turns, so that more only cost time."""

CMDLINE = (
    # The console is for what goes wrong; a panic or oops ends the machine, which the host sees.
    "console=ttyS0 quiet panic=-1 oops=panic psi=1 "
    # Nothing that differs from run to run: addresses, seeds, a clock timed against another.
    "nokaslr norandmaps random.trust_cpu=off random.trust_bootloader=off tsc=reliable "
    # A tenth of the boot, and nothing the lab looks at.
    "cryptomgr.notests"
)

TCG_CMDLINE = "clearcpuid=erms,fsrm,rep_good"
"""QEMU's translator runs string instructions an element at a time: clearing a page with them took
twice as long, in guest time and in wall time, as with the kernel's plain loops."""

SPIN_CMDLINE = "spin_idle=1"
"""Keeps a single processor from ever halting: see guest/agent_idle.c."""

TIERS = (("fast", 100, 200), ("slow", 300, 50))
"""Node, latency [ns], bandwidth [GB/s] that the firmware tells the kernel, which sorts tiers by
them; assumption: ratios as of memory behind CXL.  Accesses themselves are equally fast."""

Accel = Literal["tcg", "kvm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The guest's machine.

    Attributes:
        memory_mib: Memory of the first NUMA node.
        cpus: Processors; results are exact with one.
        slow_mib: Memory of a second node without processors, in a slower tier; 0 = no such node.
        seed: Of QEMU's random numbers.
        accel: ``tcg`` is exact, ``kvm`` fast; ``auto`` takes KVM where it boots a guest.
        extra_cmdline: Appended to the kernel's command line.

    Raises:
        LabError: A value is out of its range.
    """

    memory_mib: int
    cpus: int = 1
    slow_mib: int = 0
    seed: int = 0
    accel: Literal["auto", "tcg", "kvm"] = "auto"
    extra_cmdline: str = ""

    def __post_init__(self) -> None:
        """Check what QEMU would refuse with less to say."""
        ranges = {
            "memory_mib": (self.memory_mib, MIN_MEMORY_MIB, 1 << 20),
            "cpus": (self.cpus, 1, MAX_CPUS),
            "slow_mib": (self.slow_mib, 0, 1 << 20),
            "seed": (self.seed, 0, (1 << 63) - 1),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise LabError(f"hardware: {name} must be in {low}..{high}, got {value!r}")
        if self.accel not in ("auto", "tcg", "kvm"):
            raise LabError(f"hardware: accel must be auto, tcg or kvm, got {self.accel!r}")


def qemu_command(
    image: GuestImage, hardware: Hardware, accel: Accel, shared: str, console: str, monitor_fd: int
) -> list[str]:
    """The command that starts a machine.

    Args:
        image: What it boots.
        hardware: What it is.
        accel: What executes it.
        shared: File that is the memory shared with the agent.
        console: File that gets the console's text.
        monitor_fd: Connected socket for QEMU's monitor (QMP).
    """
    tiered = hardware.slow_mib > 0
    return [
        *(QEMU, "-no-user-config", "-nodefaults", "-display", "none"),
        *("-machine", f"q35{',hmat=on' if tiered else ''}", *accel_options(accel)),
        *("-smp", str(hardware.cpus), "-m", f"{hardware.memory_mib + hardware.slow_mib}M"),
        *(tier_options(hardware) if tiered else ()),
        *("-seed", str(hardware.seed), "-rtc", "base=2026-01-01T00:00:00,clock=vm"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", kernel_cmdline(hardware, accel)),
        *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=monitor,fd={monitor_fd}", "-mon", "monitor,mode=control"),
        # The agent stops the machine by this device; a guest that resets itself has died.
        *("-device", "pvpanic", "-action", "panic=pause,reboot=shutdown"),
        *(
            "-object",
            f"memory-backend-file,id=shared,share=on,mem-path={shared},size={SHARED_BYTES}",
        ),
        *("-device", "ivshmem-plain,memdev=shared"),
    ]


def kernel_cmdline(hardware: Hardware, accel: Accel) -> str:
    """The kernel's command line."""
    counted = accel == "tcg"
    parts = (
        CMDLINE,
        TCG_CMDLINE if counted else "",
        SPIN_CMDLINE if counted and hardware.cpus == 1 else "",
        hardware.extra_cmdline,
    )
    return " ".join(part for part in parts if part)


def accel_options(accel: Accel) -> list[str]:
    """Options for what executes the guest.

    TCG counts instructions and is single-threaded: with a thread a processor this guest crashed
    (QEMU 7.2), and nothing would repeat.
    """
    if accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    icount = f"shift={SHIFT},sleep=off"
    tcg = f"tcg,thread=single,tb-size={TRANSLATED_MIB}"
    return ["-accel", tcg, "-icount", icount, "-cpu", "max,-rdrand,-rdseed"]


def tier_options(hardware: Hardware) -> list[str]:
    """Options for two NUMA nodes, of which the second has memory only and is slower."""
    sizes = (hardware.memory_mib, hardware.slow_mib)
    words: list[str] = []
    for node, ((name, latency_ns, bandwidth), mib) in enumerate(zip(TIERS, sizes, strict=True)):
        owner = "initiator=0" if node else f"cpus=0-{hardware.cpus - 1}"
        target = f"hmat-lb,initiator=0,target={node},hierarchy=memory"
        words += ["-object", f"memory-backend-ram,id={name},size={mib}M"]
        words += ["-numa", f"node,nodeid={node},memdev={name},{owner}"]
        words += ["-numa", f"{target},data-type=access-latency,latency={latency_ns}"]
        words += ["-numa", f"{target},data-type=access-bandwidth,bandwidth={bandwidth}G"]
    return [*words, "-numa", "dist,src=0,dst=1,val=20"]


def check_host(hardware: Hardware) -> None:
    """Whether the host can start such a machine now.

    Raises:
        LabError: QEMU is missing, or memory is.
    """
    if shutil.which(QEMU) is None:
        raise LabError(f"{QEMU}: not found; apt-get install qemu-system-x86")
    need = hardware.memory_mib + hardware.slow_mib + OVERHEAD_MIB
    have = available_mib()
    if have < need:
        raise LabError(
            f"memory: the machine takes up to {need} MiB, {have} MiB are available "
            f"({MEMINFO}: MemAvailable); use a smaller scale or end other programs"
        )


def available_mib() -> int:
    """Memory that programs could take without swapping."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    return int(match[1]) >> 10 if match else 0


@cache
def qemu_version() -> str:
    """QEMU's version, of which the instructions' count and so every exact result depends.

    Raises:
        LabError: There is no QEMU.
    """
    try:
        text = subprocess.run([QEMU, "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        raise LabError(f"{QEMU}: {error.strerror}; apt-get install qemu-system-x86") from error
    match = re.search(r"version (\S+)", text)
    return match[1] if match else "unknown"


def fd_path(fd: int) -> str:
    """A path by which a child that inherits a descriptor can open the same file again."""
    return f"/proc/self/fd/{fd}"
