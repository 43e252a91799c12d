"""The verb ``list``: scenarios, objectives, training presets, policies and action heads."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from memcg_gym.training.list_presets import Entry, everything

HELP = "what there is: scenarios, objectives, policies, presets"

KINDS = ("scenarios", "objectives", "presets", "policies", "heads")
PIPE_COLUMNS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("kind", nargs="?", choices=KINDS, help="only this kind [all]")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what there is.

    Raises:
        ConfigError: A shipped preset is not usable.
    """
    found = everything()
    if args.kind:
        found = {args.kind: found[args.kind]}
    if args.json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return 0
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_COLUMNS
    print("\n".join(line for kind, rows in found.items() for line in section(kind, rows, columns)))
    return 0


def section(kind: str, rows: list[Entry], columns: int) -> Iterator[str]:
    """One kind as text: its heading, then a name and what is known about it on each line."""
    yield f"{kind}:"
    width = max((len(str(row["name"])) for row in rows), default=0)
    for row in rows:
        body = textwrap.wrap(describe(row), max(columns - width - 4, 20)) or [""]
        for at, line in enumerate(body):
            yield f"  {row['name'] if at == 0 else '':<{width}}  {line}".rstrip()
    yield ""


def describe(row: Entry) -> str:
    """Everything about an entry but its name, the summary first."""
    parts = [str(row["summary"]).rstrip(".")] if "summary" in row else []
    parts += [
        f"{key.replace('_', ' ')}: {text_of(value)}"
        for key, value in row.items()
        if key not in ("name", "summary")
    ]
    return "; ".join(parts)


def text_of(value: Any) -> str:
    """A value as it reads in a line; null is what the owner configured."""
    if isinstance(value, list):
        return ", ".join(text_of(part) for part in value)
    if value is None:
        return "owner's"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
