"""The sub-verb ``lab doctor``: what the lab needs of this machine, and how to get it."""

from __future__ import annotations

import argparse
import dataclasses
import json

from memcg_gym.envs.lab.doctor import Check, examine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    parser.epilog = "Exit status: 0 the lab can run here, 1 something needed is missing."
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 where something needed is missing."""
    checks = examine()
    ready = all(check.ok or not check.needed for check in checks)
    if args.json:
        rows = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"ready": ready, "checks": rows}, indent=2))
    else:
        print("\n".join(render(check) for check in checks))
        print(f"the lab {'can' if ready else 'cannot'} run here")
    return 0 if ready else 1


def render(check: Check) -> str:
    """A check in a line or two.

    Example:
        >>> print(render(Check(name="cpio", found="not found", ok=False, remedy="apt install it")))
        MISSING  cpio                not found
                   -> apt install it
    """
    word = "ok" if check.ok else "MISSING" if check.needed else "-"
    line = f"{word:<8} {check.name:<19} {check.found}"
    return f"{line}\n{'':<11}-> {check.remedy}" if check.remedy else line
