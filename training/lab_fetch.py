"""The sub-verb ``lab fetch``: download the kernel and build the guest's programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.lab.guest_image import build
from memcg_gym.envs.lab.kernel_image import KernelFiles, fetch, from_paths, use


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    parser.epilog = "What is there already is not made again."
    add_kernel_arguments(parser)
    parser.add_argument(
        "--refresh", action="store_true", help="look for a newer kernel in the distribution"
    )


def add_kernel_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that name a kernel."""
    parser.add_argument("--kernel", type=Path, metavar="VMLINUZ", help="use this bzImage instead")
    parser.add_argument("--modules", type=Path, metavar="DIR", help="and its modules")


def run(args: argparse.Namespace) -> int:
    """Fetch, build, and say where things are.

    Raises:
        ConfigError: Arguments that do not fit together.
        LabError: The kernel cannot be had, or the programs cannot be built.
    """
    if args.refresh and args.kernel:
        raise ConfigError("lab fetch: --refresh is for the distribution's kernel, not for --kernel")
    kernel = chosen_kernel(args, refresh=args.refresh)
    image = build(kernel)
    if args.kernel:
        use(kernel)
    print(f"linux   {kernel.version}")
    print(f"kernel  {kernel.vmlinuz}")
    print(f"guest   {image.initrd}")
    print(f"digest  {image.digest}")
    return 0


def chosen_kernel(args: argparse.Namespace, *, refresh: bool = False) -> KernelFiles:
    """The kernel that the arguments name, or else the one in use.

    Raises:
        ConfigError: One of the two paths is given without the other.
        LabError: The kernel cannot be had.
    """
    if (args.kernel is None) != (args.modules is None):
        raise ConfigError("--kernel and --modules belong together: give both or neither")
    if args.kernel is not None:
        return from_paths(args.kernel, args.modules)
    return fetch(lambda text: print(text, file=sys.stderr), refresh=refresh)
