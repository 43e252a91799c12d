"""The verb ``enforce``: run a rule table on this host's cgroups, or show what it would do.

Works with numpy alone.  Without ``--dry-run`` it writes cgroup files, and so wants a table whose
signature was checked; what it changes it gives back at the end.

Units: seconds, bytes.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np

from memcg_gym.enforcer.daemon import Daemon, Policy
from memcg_gym.enforcer.evaluator import evaluate_batch
from memcg_gym.enforcer.facts import Site, read_site
from memcg_gym.enforcer.hostfs import Roots, find_nodes
from memcg_gym.enforcer.journal import Journal
from memcg_gym.enforcer.loop import StopSignal, run_loop
from memcg_gym.enforcer.managed import Record, shield_names
from memcg_gym.enforcer.table import read_table
from memcg_gym.enforcer.table_layout import Table
from memcg_gym.enforcer.tracefs import LockTracer, open_tracer, remove_left
from memcg_gym.envs.contract.errors import CgroupError, ConfigError, MemcgGymError, TableError
from memcg_gym.envs.contract.heads import HEADS
from memcg_gym.training.show import read_public_key

HELP = "run a rule table on this host's cgroups"

DEFAULT_JOURNAL = Path("/run/memcg-gym/enforce.json")
"""On a tmpfs, as cgroups are: neither survives the host."""

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("--table", type=Path, metavar="FILE", help="the rule table")
    parser.add_argument(
        "--cgroup",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a cgroup to manage: its folder, or its path below the mount; may be repeated",
    )
    parser.add_argument(
        "--children", action="store_true", help="manage the children of each DIR, new ones too"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be written, and write nothing"
    )
    parser.add_argument(
        "--restore",
        action="store_true",
        help="only give back what a run that ended badly left changed (for ExecStopPost)",
    )
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="S", help="tick [1.0 s]")
    parser.add_argument("--ticks", type=count, metavar="N", help="end after N ticks")
    parser.add_argument("--config", type=Path, metavar="FILE", help="facts about cgroups (TOML)")
    parser.add_argument(
        "--public-key",
        type=Path,
        metavar="FILE",
        help="Ed25519 key that must have signed the table",
    )
    parser.add_argument("--min-version", type=count, metavar="N", help="refuse older tables")
    parser.add_argument(
        "--journal", type=Path, default=DEFAULT_JOURNAL, metavar="FILE", help="owners' values"
    )
    parser.add_argument(
        "--fast-nodes", type=nodes, metavar="N,N", help="NUMA nodes of the fast tier"
    )
    parser.add_argument(
        "--trace-locks",
        action="store_true",
        help="learn from tracefs who holds locks others wait for (needs root; off by default)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a cgroup and tick")
    for name, default in (("root", "/sys/fs/cgroup"), ("proc", "/proc"), ("sys", "/sys")):
        parser.add_argument(
            f"--{name}", type=Path, default=Path(default), metavar="DIR", help=f"[{default}]"
        )


def run(args: argparse.Namespace) -> int:
    """Enforce until told to stop.

    Raises:
        ConfigError: Arguments that do not fit together, or an unusable facts or key file.
        TableError: The table was refused; ``E_SIGNATURE`` where it would write unsigned.
        CgroupError: A cgroup or the journal cannot be used.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="memcg-gym: %(message)s")
    site = Site() if args.config is None else read_site(args.config)
    roots = Roots(cgroup=args.root, proc=args.proc, sys=args.sys, tags=site.tags)
    if args.restore:
        return restore_only(args.journal, roots)
    if args.table is None or not args.cgroup:
        raise ConfigError("enforce: --table and at least one --cgroup are needed")
    policy = load_policy(args)
    journal = None if args.dry_run else Journal(args.journal, roots)
    locks = trace_locks(roots, take_over=not args.dry_run) if args.trace_locks else None
    try:
        daemon = Daemon(
            policy=policy,
            roots=roots,
            nodes=find_nodes(roots, args.fast_nodes or site.fast_nodes),
            cgroups=args.cgroup,
            children=args.children,
            site=site,
            interval_s=args.interval,
            journal=journal,
            locks=locks,
        )
    except MemcgGymError:
        if locks is not None:
            locks.close()
        if journal is not None:
            journal.close()
        raise
    if args.dry_run and args.journal.exists():
        print(f"memcg-gym: {args.journal}: a run ended badly, see --restore", file=sys.stderr)
    stop = StopSignal()
    stop.catch(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    emit = emitter(sys.stdout, as_json=args.json, dry_run=args.dry_run)
    return run_loop(daemon, emit, stop, args.ticks)


def trace_locks(roots: Roots, *, take_over: bool) -> LockTracer | None:
    """This host's lock tracer, or None with a word on why there is none: tags may tell instead.

    Args:
        roots: Where the files are.
        take_over: This run holds the journal, so no other can be tracing.
    """
    try:
        tracer = open_tracer(roots, notrace=[os.getpid()], take_over=take_over)
    except CgroupError as error:
        logging.warning("locks are not traced: %s", error)
        return None
    logging.info("locks are traced in %s", tracer.instance)
    return tracer


def restore_only(path: Path, roots: Roots) -> int:
    """Give back what the journal says, and say so."""
    if not path.exists():
        print(remove_left(roots) or f"{path}: nothing to restore")
        return 0
    journal = Journal(path, roots)
    try:
        for line in journal.recover():
            print(line)
        if left := remove_left(roots):
            print(left)
    finally:
        journal.close()
    return 0


def load_policy(args: argparse.Namespace) -> Policy:
    """The table as a policy; one whose signature was not checked may only be shown."""
    key = None if args.public_key is None else read_public_key(str(args.public_key))
    table = read_table(args.table, now_s=time.time(), public_key=key, min_version=args.min_version)
    if not args.dry_run and not table.verified:
        why = (
            "unsigned tables run in dry-run only"
            if not table.signed
            else "its signature was not checked: give --public-key, or use --dry-run"
        )
        raise TableError("E_SIGNATURE", f"{args.table}: {why}")
    return table_policy(table)


def table_policy(table: Table, now_s: Callable[[], float] = time.time) -> Policy:
    """A table as a policy; after its validity has ended it decides nothing more.

    Args:
        table: A usable table.
        now_s: Wall clock [s since 1970].
    """
    levels = table.levels.astype(np.int64)
    rule_ids = table.leaves["rule_id"].astype(np.int64)
    leases = table.leaves["lease_ticks"].astype(np.int64)

    def decide(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if table.not_after_s and now_s() > table.not_after_s:
            raise TableError("E_VALIDITY", f"the table was valid until {table.not_after_s} s")
        leaf = evaluate_batch(table, vectors)
        return levels[leaf], rule_ids[leaf], leases[leaf]

    oldest_ms = min((f.max_age_ms for f in table.features), default=2000)
    return Policy(decide=decide, max_age_s=oldest_ms * 1e-3)


def emitter(out: TextIO, *, as_json: bool, dry_run: bool) -> Callable[[list[Record]], None]:
    """What prints a tick's records: JSON lines, or one line a cgroup."""

    def emit(records: list[Record]) -> None:
        for record in records:
            if as_json:
                text = json.dumps({**record.as_dict(), "dry_run": dry_run})
            else:
                text = record_line(record, dry_run=dry_run)
            print(text, file=out, flush=True)

    return emit


def record_line(record: Record, *, dry_run: bool) -> str:
    """One cgroup and tick in a line.

    Example:
        >>> record_line(Record(7, "work/batch", "warming"), dry_run=True)
        '     7 work/batch: warming'
    """
    head = f"{record.tick:6d} {record.cgroup}: "
    parts = []
    if record.state in ("managed", "undecided"):
        names = levels_text(record.accepted)
        asked = levels_text(record.requested)
        parts.append(f"R{record.rule_id:02d} {names}" if record.rule_id else f"default {names}")
        if record.shield:
            parts.append(f"shield {','.join(shield_names(record.shield))} (asked {asked})")
    if record.state != "managed":
        parts.append(record.state)
    if record.writes:
        verb = "would write" if dry_run else "wrote"
        parts.append(
            f"{verb} {' '.join(write_text(w.file, w.text, w.result) for w in record.writes)}"
        )
    if record.note:
        parts.append(record.note)
    return head + " | ".join(parts)


def write_text(file: str, text: str, result: str) -> str:
    """``memory.high=4096``, with what became of it where that is worth a word."""
    tail = "" if result in ("planned", "written", "queued") else f"({result})"
    return f"{file}={text.replace(' ', ':')}{tail}"


def levels_text(levels: tuple[int, ...]) -> str:
    """Levels that are not the owner's, ``owner`` where all are.

    Example:
        >>> levels_text((2, 0, 0, 0, 0, 0, 0))
        'throttle=10ms'
    """
    words = [
        f"{head.name}={head.levels[level]:g}{UNITS.get(head.unit, '')}"
        for head, level in zip(HEADS, levels, strict=True)
        if 0 < level < head.n_levels
    ]
    return " ".join(words) or "owner"


UNITS = {"ms": "ms", "1/s": "/s", "factor": "x"}


def seconds(text: str) -> float:
    """An argument: the length of a tick."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not MIN_INTERVAL_S <= value <= MAX_INTERVAL_S:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected seconds in {MIN_INTERVAL_S}..{MAX_INTERVAL_S}"
        )
    return value


def count(text: str) -> int:
    """An argument: a number of ticks, or a version."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


def nodes(text: str) -> tuple[int, ...]:
    """An argument: NUMA nodes."""
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected node numbers such as 0,1")
    return tuple(int(word) for word in words)
