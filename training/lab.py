"""The verb ``lab``: a real kernel in a virtual machine.  Its sub-verbs are a module each.

``training/lab_NAME.py`` offers ``add_arguments(parser)`` and ``run(args) -> int``, as a verb's
module does, and is loaded only when it is used; its line of help stands here.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

HELP = "run scenarios on a real Linux kernel in a virtual machine"

SUB_VERBS = MappingProxyType(
    {
        "doctor": "what the lab needs of this machine, and how to get what is missing",
        "fetch": "download the kernel and build the guest's programs",
        "boot": "start the guest once and switch it off",
        "goldens": "check the kernel against golden values of its source",
        "experiments": "a falling limit, a lock, two tiers: in both worlds, as a page",
        "run": "one policy on one host of a scenario, second by second",
        "programs": "Redis, SQLite and a compressor of the distribution, under any policy",
        "record": "a set of runs as recordings, several guests side by side",
        "calibrate": "fit the model to recordings of the kernel",
        "validate": "how far the model is from the kernel, as a page",
    }
)
"""One line of help by sub-verb, in the order of use; each is ``training/lab_NAME.py``."""


class LazyParser(argparse.ArgumentParser):
    """A sub-verb's parser, which asks its module for arguments when it first needs them."""

    module = ""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Load the module, then parse."""
        if self.module:
            module = importlib.import_module(self.module)
            self.module = ""
            module.add_arguments(self)
            self.set_defaults(run_sub_verb=module.run)
        return super().parse_known_args(args, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verbs."""
    verbs = parser.add_subparsers(
        title="sub-verbs", metavar="SUB-VERB", required=True, parser_class=LazyParser
    )
    for name, text in SUB_VERBS.items():
        sub = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.module = f"memcg_gym.training.lab_{name}"


def run(args: argparse.Namespace) -> int:
    """Run the sub-verb."""
    return int(args.run_sub_verb(args))
