"""The sub-verb ``lab boot``: start the guest once and switch it off.

Units: MiB, seconds.
"""

from __future__ import annotations

import argparse
import sys
import time

from memcg_gym.envs.lab.guest_image import build
from memcg_gym.envs.lab.machine import Machine
from memcg_gym.envs.lab.qemu import Hardware, qemu_version
from memcg_gym.training.lab_fetch import add_kernel_arguments, chosen_kernel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    add_kernel_arguments(parser)
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="[512]")
    parser.add_argument("--slow", type=int, default=0, metavar="MIB", help="slow tier's [0]")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="[1]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
    parser.add_argument(
        "--accel", choices=("auto", "tcg", "kvm"), default="auto", help="what executes it [auto]"
    )
    parser.add_argument("--console", action="store_true", help="print what the guest said")


def run(args: argparse.Namespace) -> int:
    """Boot, say what came up and in what time, switch off.

    Raises:
        ConfigError: Arguments that do not fit together.
        LabError: The machine cannot be had, or its guest did not do what it should.
    """
    image = build(chosen_kernel(args))
    hardware = Hardware(
        memory_mib=args.memory,
        slow_mib=args.slow,
        cpus=args.cpus,
        seed=args.seed,
        accel=args.accel,
    )
    started_s = time.monotonic()
    with Machine(image, hardware) as machine:
        report = machine.start()
        booted_s = time.monotonic() - started_s
        machine.power_off()
    whole_s = time.monotonic() - started_s
    if args.console:
        print(machine.console, end="", file=sys.stderr)
    print(report.text("boot/version").strip())
    print(f"QEMU {qemu_version()}, accelerator {machine.accel}")
    print(f"ready after {booted_s:.1f} s ({report.time_ns * 1e-9:.3f} s of guest time)")
    print(f"off after {whole_s:.1f} s")
    return 0
