"""The verb ``evaluate``: policies by scenarios by held-out hosts, compared on the same hosts.

Runs what is missing, keeps every finished cell, and writes the comparison anew each time.  It
measures on the model, or with ``--world kernel`` on a real kernel in guests of the kernel lab.

Units: ticks of one second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from memcg_gym.agents.registry import make_policy
from memcg_gym.configs.loader import load_objective, load_scenario, names
from memcg_gym.envs.contract.errors import ConfigError, MemcgGymError
from memcg_gym.training.cells import (
    Cell,
    CellSpec,
    Report,
    identity,
    load_cell,
    merge_cells,
    run_cell,
    save_cell,
)
from memcg_gym.training.compare import DEFAULT, compare
from memcg_gym.training.files import safe_name
from memcg_gym.training.results import (
    Evaluation,
    all_policies,
    comparison_text,
    find,
    interval_text,
    short_names,
    to_dict,
    write_results,
)

HELP = "compare policies on the same seeds"

SETTLE_TICKS = 1800
"""Thirty simulated minutes: Senpai and TMO trim by a percent or less a step."""
SCORE_TICKS = 600
KERNEL_DIVISOR = 16.0
"""A host of 8 GiB becomes one of 512 MiB, which boots and runs on an ordinary machine."""
KERNEL_SETTLE_TICKS = 120
KERNEL_SCORE_TICKS = 120
"""Guest seconds cost about as much wall time; both are printed with the results."""
PIPE_COLUMNS = 160

_QUEUE: Any = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.description = (
        "Run policies over scenarios and held-out hosts, every policy on the same hosts, and "
        "write scores, intervals, paired differences and raw metrics to DIR.  kernel-default is "
        "always run.  Finished parts are kept in DIR/cells and used again."
    )
    parser.add_argument(
        "--policies",
        required=True,
        metavar="A,B",
        help="names (see list), combinations a+b, run folders, tables *.mrt",
    )
    parser.add_argument(
        "--scenarios", default="all", metavar="A,B", help="names or TOML files, or all [all]"
    )
    parser.add_argument(
        "--seeds", type=seeds, default=seeds("0:20"), metavar="A:B", help="hosts [0:20]"
    )
    parser.add_argument("--split", choices=("test", "train"), default="test", help="ranges [test]")
    parser.add_argument("--host-kind", choices=("stock", "bpf"), default="stock", help="[stock]")
    parser.add_argument(
        "--world",
        choices=("model", "kernel"),
        default="model",
        help="kernel: the same hosts on Linux in virtual machines, one a host (see lab) [model]",
    )
    parser.add_argument(
        "--scale",
        type=divisor,
        metavar="N",
        help=f"hosts N times smaller, ratios kept [1; kernel: {KERNEL_DIVISOR:g}]",
    )
    parser.add_argument("--objective", default="default", metavar="NAME", help="[default]")
    parser.add_argument(
        "--settle",
        type=count,
        metavar="N",
        help="ticks under the policy's own control before scoring "
        f"[{SETTLE_TICKS}; kernel: {KERNEL_SETTLE_TICKS}]",
    )
    parser.add_argument(
        "--ticks",
        type=positive,
        metavar="N",
        help=f"scored [{SCORE_TICKS}; kernel: {KERNEL_SCORE_TICKS}]",
    )
    parser.add_argument(
        "--shield",
        choices=("default", "on", "off"),
        default="default",
        help="default = as each policy is meant to run; policies that set knobs never have one",
    )
    parser.add_argument(
        "--upper", metavar="POLICY", help="marks score 1 where nobody beats it, e.g. clairvoyant"
    )
    parser.add_argument(
        "--upper-seeds", type=seeds, metavar="A:B", help="its hosts, out of --seeds [all]"
    )
    parser.add_argument(
        "--upper-settle",
        type=count,
        metavar="N",
        help="settling ticks under its own control; the owner's configuration before [--settle]",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results folder")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes [1]")
    parser.add_argument("--force", action="store_true", help="run finished parts again")
    parser.add_argument("--json", action="store_true", help="print results.json, not a table")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, compare, write.

    Raises:
        ConfigError: A policy, scenario, objective or seed is not usable.
    """
    specs = plan(args)
    for policy in dict.fromkeys(spec.policy for spec in specs):
        make_policy(policy, host_kind=args.host_kind)
    load_objective(args.objective)
    cells = obtain(specs, args.out, jobs=args.jobs, force=args.force)
    parts: dict[str, dict[str, list[Cell]]] = {}
    for spec, cell in zip(specs, cells, strict=True):
        parts.setdefault(spec.scenario, {}).setdefault(spec.policy, []).append(cell)
    by_scenario = {
        scenario: {policy: merge_cells(found) for policy, found in row.items()}
        for scenario, row in parts.items()
    }
    scenarios, aggregate = compare(by_scenario, args.upper)
    command = ["memcg-gym", *sys.argv[1:]]
    evaluation = Evaluation(command, by_scenario, args.upper, scenarios, aggregate)
    write_results(args.out, evaluation)
    from memcg_gym.training.plots import write_plots

    write_plots(args.out, evaluation)
    if args.json:
        print(json.dumps(to_dict(evaluation), indent=1, allow_nan=False))
    else:
        print_table(evaluation)
        print(f"written: {args.out}/results.md, results.json, per_seed.csv")
    return 0


def plan(args: argparse.Namespace) -> list[CellSpec]:
    """Every cell that the arguments ask for, scenario by scenario.

    Raises:
        ConfigError: A scenario is unknown, or the upper line's seeds are not among the others.
    """
    fill_defaults(args)
    scenarios = names("scenarios") if args.scenarios == "all" else args.scenarios.split(",")
    policies = list(dict.fromkeys([DEFAULT, *split_specs(args.policies)]))
    if args.upper == DEFAULT:
        raise ConfigError(f"--upper: {DEFAULT} is score 0 and cannot be score 1 too")
    upper_seeds = args.seeds if args.upper_seeds is None else args.upper_seeds
    if not set(upper_seeds) <= set(args.seeds):
        raise ConfigError("--upper-seeds: every one must be among --seeds, to be paired")
    own = args.settle if args.upper_settle is None else min(args.upper_settle, args.settle)
    specs = []
    for scenario in dict.fromkeys(scenarios):
        load_scenario(scenario)
        common = CellSpec(
            DEFAULT, scenario, args.objective, args.seeds, args.split, args.host_kind,
            args.settle, args.settle, args.ticks, args.shield, args.world, args.scale,
            guest_digest(args.world),
        )  # fmt: skip
        specs += [
            part
            for p in policies
            if p != args.upper
            for part in parts_of(replace(common, policy=p))
        ]
        if args.upper:
            specs.append(replace(common, policy=args.upper, seeds=upper_seeds, own_ticks=own))
    return specs


def fill_defaults(args: argparse.Namespace) -> None:
    """Lengths and scale that were not given, by world.

    Raises:
        ConfigError: What the real kernel cannot do was asked of it.
    """
    kernel = args.world == "kernel"
    if args.scale is None:
        args.scale = KERNEL_DIVISOR if kernel else 1.0
    if args.settle is None:
        args.settle = KERNEL_SETTLE_TICKS if kernel else SETTLE_TICKS
    if args.ticks is None:
        args.ticks = KERNEL_SCORE_TICKS if kernel else SCORE_TICKS
    if kernel and args.host_kind != "stock":
        raise ConfigError("--world kernel: a stock kernel runs in the guest; --host-kind stock")
    if kernel and args.upper:
        raise ConfigError("--world kernel: a real kernel cannot be cloned, so no --upper there")


def guest_digest(world: str) -> str:
    """What the guests of a kernel evaluation are made of; empty for the model."""
    if world == "model":
        return ""
    from memcg_gym.training.kernel_cells import guest_image

    return guest_image().digest


def parts_of(spec: CellSpec) -> list[CellSpec]:
    """A cell as it is run: in the model all hosts in one batch, on the kernel one guest a host."""
    if spec.world == "model":
        return [spec]
    return [replace(spec, seeds=(seed,)) for seed in spec.seeds]


def split_specs(text: str) -> list[str]:
    """A comma-separated list of policies, whose settings have commas too.

    Example:
        >>> split_specs("senpai,tmo:a=1,b=2,host-aware")
        ['senpai', 'tmo:a=1,b=2', 'host-aware']
    """
    specs: list[str] = []
    for part in filter(None, text.split(",")):
        if "=" in part and ":" not in part and specs and ":" in specs[-1]:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return specs


def seeds(text: str) -> tuple[int, ...]:
    """``0:20`` (20 not among them), ``7``, or ``1,5,0:3``.

    Raises:
        argparse.ArgumentTypeError: Not that, empty, or a seed twice.
    """
    found: list[int] = []
    try:
        for part in text.split(","):
            first, colon, end = part.partition(":")
            found += range(int(first), int(end)) if colon else [int(first)]
    except ValueError:
        found = []
    if not found or min(found) < 0 or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(
            f"seeds are like 0:20, or 1,5,9, each once and not negative; got {text!r}"
        )
    return tuple(found)


def count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number from 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if count(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number from 1, got {text!r}")
    return int(text)


def divisor(text: str) -> float:
    """A number from 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1.0 <= value <= 1024.0:
        raise argparse.ArgumentTypeError(f"a number from 1 to 1024, got {text!r}")
    return value


def cell_path(folder: Path, spec: CellSpec) -> Path:
    """Where a cell is kept."""
    name = safe_name(spec.policy)
    if spec.world == "kernel":
        name += f".host{spec.seeds[0]}"
    return folder / "cells" / safe_name(spec.scenario) / f"{name}.npz"


def obtain(specs: Sequence[CellSpec], folder: Path, *, jobs: int, force: bool) -> list[Cell]:
    """Every cell, from its file where that still holds, else run and kept.

    Raises:
        MemcgGymError: A cell cannot be run.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    work = [Work(spec, cell_path(folder, spec), identity(spec)) for spec in specs]
    found = {w.path: None if force else load_cell(w.path, w.spec, w.made_from) for w in work}
    missing = [w for w in work if found[w.path] is None]
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    if missing:
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            total = sum(w.spec.total_ticks for w in missing)
            task = progress.add_task(f"{len(missing)} of {len(work)} cells", total=total)

            def advance(ticks: int) -> None:
                progress.advance(task, ticks)

            if jobs == 1:
                for w in missing:
                    progress.update(task, description=f"{w.spec.scenario}: {w.spec.policy}")
                    found[w.path] = run_and_keep(w, advance)
            else:
                found |= run_in_processes(missing, jobs, advance)
    return [cell for w in work if (cell := found[w.path]) is not None]


class Work(NamedTuple):
    """A cell to run: what it is made from, and where it is kept."""

    spec: CellSpec
    path: Path
    made_from: str


def run_and_keep(work: Work, report: Report) -> Cell:
    """Run a cell and write it to its file."""
    cell = run_cell(work.spec, report)
    save_cell(work.path, cell, work.made_from)
    return cell


def run_in_processes(work: Sequence[Work], jobs: int, report: Report) -> dict[Path, Cell]:
    """Run cells in processes of their own, which keep them as they finish.

    Raises:
        MemcgGymError: The first problem of any; what has finished is kept.
    """
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    cells: dict[Path, Cell] = {}
    with ProcessPoolExecutor(jobs, context, _set_queue, (ticks,)) as pool:
        futures = {pool.submit(work_in_process, w): w.path for w in work}
        waiting: set[Future[Cell | str]] = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            report(_drain(ticks))
            for future in done:
                outcome = _outcome(future)
                if isinstance(outcome, str):
                    pool.shutdown(cancel_futures=True)
                    raise MemcgGymError(outcome)
                cells[futures[future]] = outcome
    return cells


def work_in_process(work: Work) -> Cell | str:
    """In a worker: a cell, or what went wrong as text, because not every error can be pickled."""
    try:
        return run_and_keep(work, _QUEUE.put)
    except MemcgGymError as error:
        return f"{work.spec.scenario}: {work.spec.policy}: {error}"


def print_table(evaluation: Evaluation) -> None:
    """The comparison on stdout: one table over all, one a scenario."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    short = short_names(all_policies(evaluation))
    groups = [(r.name, r.standings, r.comparisons, r.best_baseline) for r in evaluation.scenarios]
    found = evaluation.aggregate
    if found is not None:
        title = f"all ({', '.join(found.scenarios)})"
        groups.insert(0, (title, found.standings, found.comparisons, found.best_baseline))
    for title, standings, comparisons, baseline in groups:
        table = Table("policy", "IQM", "worst decile", f"minus {DEFAULT}", title=title)
        if baseline != DEFAULT:
            table.add_column(f"minus {short[baseline]}")
        for s in standings:
            texts = [short[s.policy], interval_text(s.iqm), interval_text(s.worst)]
            texts += [
                comparison_text(find(comparisons, s.policy, reference)).replace("*", "")
                for reference in dict.fromkeys([DEFAULT, baseline])
            ]
            table.add_row(*texts)
        console.print(table)
    for r in evaluation.scenarios:
        if not r.upper.usable:
            console.print(f"{r.name}: left out, its gap is under three times its noise; raw scores")


def _set_queue(ticks: Any) -> None:
    global _QUEUE
    _QUEUE = ticks


def _drain(ticks: Any) -> int:
    total = 0
    while True:
        try:
            total += ticks.get_nowait()
        except queue.Empty:
            return total


def _outcome(future: Future[Cell | str]) -> Cell | str:
    try:
        return future.result()
    except BrokenProcessPool:
        return "a worker ended before its time; fewer --jobs need less memory"
