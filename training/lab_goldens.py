"""The sub-verb ``lab goldens``: what the kernel's source says, checked on the lab's kernel.

Units: as each value says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from memcg_gym.envs.lab.goldens.golden import Golden
from memcg_gym.envs.lab.goldens.suite import run as run_suite
from memcg_gym.envs.lab.goldens.suite import sections
from memcg_gym.envs.lab.guest_image import build
from memcg_gym.envs.lab.qemu import qemu_version
from memcg_gym.training.files import write_whole
from memcg_gym.training.lab_fetch import add_kernel_arguments, chosen_kernel

Found = Mapping[str, Sequence[Golden]]

HEAD = """# Golden values on the lab's kernel

What Linux does by its source, and what it did: every value was worked out beforehand from the
source named beside it and then seen from user space, in a guest of the kernel lab. Made by
`memcg-gym lab goldens --out docs/kernel_goldens.md`; the same checks are tests
(`tests/envs/lab/test_goldens.py`).

Kernel {kernel}, QEMU {qemu}, one CPU, guest time by instruction count: a run repeats to the bit.
{total} values, {bad} of them not as expected.
"""

CHANGED = """## What Linux 6.18 does otherwise

The model was written from the source of Linux 6.18. Where the lab's kernel does something else,
the tables below expect what this one does.

| what | this kernel | Linux 6.18 |
|---|---|---|
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    parser.epilog = f"Sections: {', '.join(sections())}."
    add_kernel_arguments(parser)
    parser.add_argument(
        "--section", action="append", default=[], metavar="NAME", help="only this one; repeatable"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a Markdown page")
    parser.add_argument("--json", action="store_true", help="print the values as JSON")


def run(args: argparse.Namespace) -> int:
    """Check, print, write the page; 1 where a value is not as expected.

    Raises:
        ConfigError: The page cannot be written.
        LabError, GuestError: A guest cannot be had, or died.
    """
    image = build(chosen_kernel(args))
    found = run_suite(image, args.section, lambda name: print(name, file=sys.stderr))
    if args.json:
        print(json.dumps(as_json(found), indent=1))
    else:
        print_table(found)
    if args.out:
        write_whole(args.out, page(found, image.version, qemu_version()).encode())
    return int(any(not golden.ok for goldens in found.values() for golden in goldens))


def print_table(found: Found) -> None:
    """Every value in a line."""
    for section, goldens in found.items():
        print(section)
        for golden in goldens:
            print(f"  {golden}")


def as_json(found: Found) -> dict[str, list[dict[str, object]]]:
    """For programs; intervals without an end have none."""
    return {
        section: [
            {
                "name": g.name,
                "source": g.source,
                "expected": str(g.expected),
                "observed": g.observed,
                "unit": g.unit,
                "ok": g.ok,
                "note": g.note,
                "before": g.before,
            }
            for g in goldens
        ]
        for section, goldens in found.items()
    }


def page(found: Found, kernel: str, qemu: str) -> str:
    """The page that ``--out`` writes."""
    flat = [golden for goldens in found.values() for golden in goldens]
    bad = [golden for golden in flat if not golden.ok]
    parts = [HEAD.format(kernel=kernel, qemu=qemu, total=len(flat), bad=len(bad))]
    changed = [golden for golden in flat if golden.before]
    if changed:
        rows = (f"| {g.name} | {g.value} | {g.before} |\n" for g in changed)
        parts.append(CHANGED + "".join(rows))
    parts += [table(section, goldens) for section, goldens in found.items()]
    return "\n".join(parts)


def table(section: str, goldens: Sequence[Golden]) -> str:
    """A section's table."""
    lines = [
        f"## {section}\n",
        "| what | expected | seen | | source | note |",
        "|---|---|---|---|---|---|",
    ]
    for g in goldens:
        mark = "ok" if g.ok else "**differs**"
        lines.append(f"| {g.name} | {g.expected} | {g.value} | {mark} | {g.source} | {g.note} |")
    return "\n".join(lines) + "\n"
