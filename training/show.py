"""The verb ``show``: a rule table as text or JSON, or what changed between two of them.

Units: as ``enforcer/render.py`` prints them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from memcg_gym.enforcer.render import changes, read_support, render, render_changes, table_to_dict
from memcg_gym.enforcer.table import MAX_BYTES, Table, read_table
from memcg_gym.envs.contract.errors import ConfigError, TableError

HELP = "show a rule table as IF-THEN rules"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.description = (
        "Print a rule table as IF-THEN rules in units, made from the file itself.  Exit status: "
        "0 shown (with --diff: alike), 1 the table is refused or the two differ, 2 wrong usage."
    )
    parser.add_argument("table", metavar="TABLE", help="rule table file")
    parser.add_argument("--json", action="store_true", help="print JSON with exact integers")
    parser.add_argument(
        "--diff", metavar="OLD", help="print the regions in which TABLE decides unlike OLD"
    )
    parser.add_argument(
        "--public-key",
        metavar="FILE",
        help="check the signature by this Ed25519 key: 32 bytes, or 64 hexadecimal digits",
    )


def run(args: argparse.Namespace) -> int:
    """Print the table; 1 where it is refused or differs from ``--diff``.

    Raises:
        ConfigError: The key file is not usable.
        MissingExtraError: A signature is to be checked and the extra is not installed.
    """
    key = None if args.public_key is None else read_public_key(args.public_key)
    try:
        table = _read(args.table, key)
        old = None if args.diff is None else _read(args.diff, key)
    except TableError as error:
        print(f"TableError: {error}", file=sys.stderr)
        return 1
    if old is None:
        print(json.dumps(table_to_dict(table), indent=2) if args.json else render(table).rstrip())
        return 0
    found = changes(old, table)
    if args.json:
        print(json.dumps([change._asdict() for change in found], indent=2))
    else:
        print(render_changes(found).rstrip())
    return 1 if found else 0


def read_public_key(path: str) -> bytes:
    """The 32 bytes of an Ed25519 public key, from raw bytes or hexadecimal digits.

    Raises:
        ConfigError: The file cannot be read or holds neither.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES)
        return content if len(content) == 32 else _key_from_hex(content)
    except OSError as error:
        raise ConfigError(f"--public-key: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(
            f"--public-key: {path}: got {len(content)} bytes, "
            "needs 32 raw bytes or 64 hexadecimal digits"
        ) from error


def _key_from_hex(content: bytes) -> bytes:
    key = bytes.fromhex(content.decode("ascii"))
    if len(key) != 32:
        raise ValueError(len(key))
    return key


def _read(path: str, public_key: bytes | None) -> Table:
    table = read_table(path, public_key=public_key)
    return dataclasses.replace(table, support=read_support(path, table))
