"""What executes a guest: KVM where it really boots one, QEMU's translator everywhere else.

That ``/dev/kvm`` can be opened says little: inside another virtual machine, guests may still not
run.  So one boot is tried, and the answer is kept until the host starts anew.

Units: none.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from memcg_gym.envs.lab.kernel_image import cache_dir
from memcg_gym.envs.lab.protocol import LabError
from memcg_gym.envs.lab.qemu import Accel, qemu_version

KVM_DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def choose_accel(wanted: Literal["auto", "tcg", "kvm"], probe: Callable[[], str]) -> Accel:
    """What a machine is to run on.

    Args:
        wanted: As in :class:`~memcg_gym.envs.lab.qemu.Hardware`.
        probe: Boots a guest under KVM; returns why it failed, or nothing where it worked.

    Raises:
        LabError: KVM is asked for and does not work; with the reason.
    """
    if wanted == "tcg":
        return "tcg"
    why = kvm_obstacle()
    if why is None:
        why = probe()
        remember(why)
    if why and wanted == "kvm":
        raise LabError(f"kvm: {why}; use accel tcg, which is slower and exact")
    return "tcg" if why else "kvm"


def kvm_obstacle() -> str | None:
    """Why KVM is not used: empty where a guest has booted, None where that was not tried yet."""
    if not KVM_DEVICE.exists():
        return f"{KVM_DEVICE} does not exist: no hardware virtualisation"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return f"{KVM_DEVICE} may not be opened: add the user to the group kvm"
    try:
        answer = json.loads(answer_file().read_text())
        if answer["boot_id"] == boot_id() and answer["qemu"] == qemu_version():
            return str(answer["why"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def remember(why: str) -> None:
    """Keep the probe's answer while the host runs."""
    path = answer_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = {"boot_id": boot_id(), "qemu": qemu_version(), "why": why}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".kvm-", delete=False) as file:
        json.dump(answer, file)
    os.replace(file.name, path)


def answer_file() -> Path:
    """Where the answer is kept."""
    return cache_dir() / "kvm.json"


def boot_id() -> str:
    """A name of this run of the host's kernel."""
    return BOOT_ID.read_text().strip()
