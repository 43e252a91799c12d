"""The program ``memcg-gym``: one verb a module, loaded only when it is used.

A verb's module offers ``HELP``, ``add_arguments(parser)`` and ``run(args) -> int``.  Its one line
of help stands here too, so that ``memcg-gym --help`` imports nothing.  Exit status: 0 done, 1 a
check failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import MappingProxyType, ModuleType

from memcg_gym import __version__
from memcg_gym.envs.contract.errors import MemcgGymError, MissingExtraError

VERBS = MappingProxyType(
    {
        "list": "what there is: scenarios, objectives, policies, presets",
        "train": "train a policy in the model",
        "evaluate": "compare policies on the same seeds",
        "export": "make a rule table of a trained policy",
        "show": "show a rule table as IF-THEN rules",
        "enforce": "run a rule table on this host's cgroups",
        "lab": "run scenarios on a real Linux kernel in a virtual machine",
    }
)
"""One line of help by verb, in the order of use."""

EXTRAS = MappingProxyType(
    {
        "cryptography": "host",
        "gymnasium": "train",
        "matplotlib": "train",
        "numba": "train",
        "pydantic": "train",
        "rich": "train",
        "safetensors": "train",
        "scipy": "train",
        "sklearn": "train",
        "stable_baselines3": "train",
        "tensorboard": "train",
        "torch": "train",
    }
)
"""Optional dependencies by the extra that installs them."""

INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments without the program's name; None = the command line's.

    Returns:
        The exit status.

    Raises:
        SystemExit: For ``--help``, ``--version`` and arguments that argparse refuses.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return run_verb(arguments)
    except MemcgGymError as error:
        print(f"memcg-gym: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as in "| head"; keep the interpreter from saying so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run_verb(argv: Sequence[str]) -> int:
    """Load the verb's module, parse its arguments, run it."""
    verb = next((word for word in argv if not word.startswith("-")), None)
    try:
        module = load_verb(verb) if verb in VERBS else None
        args = make_parser(verb, module).parse_args(argv)  # exits where there is no known verb
        return int(module.run(args)) if module is not None else 2
    except ImportError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise MissingExtraError(str(error.name), extra) from error


def make_parser(verb: str | None, module: ModuleType | None) -> argparse.ArgumentParser:
    """The whole program's parser, with the arguments of the chosen verb only."""
    parser = argparse.ArgumentParser(
        prog="memcg-gym",
        description="Learn, evaluate and ship memory-cgroup enforcement policies.",
    )
    parser.add_argument("--version", action="version", version=f"memcg-gym {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, text in VERBS.items():
        sub = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == verb and module is not None:
            module.add_arguments(sub)
    return parser


def load_verb(verb: str | None) -> ModuleType:
    """The verb's module."""
    return importlib.import_module(f"memcg_gym.training.{verb}")
