"""The sub-verb ``lab record``: a set of runs as recordings, several guests side by side.

Every finished run is a file of its own, so a set that was broken off goes on where it stopped; a
file that is broken, or that was made with other settings, is made anew.

Units: ticks of one second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memcg_gym.agents.registry import make_policy
from memcg_gym.configs.loader import load_lab_split, load_scenario
from memcg_gym.envs.contract.errors import MemcgGymError
from memcg_gym.envs.recording import read_recording, write_recording
from memcg_gym.training.cells import World
from memcg_gym.training.evaluate import positive, seeds, split_specs
from memcg_gym.training.files import safe_name
from memcg_gym.training.lab_runs import (
    SETTLE_TICKS,
    RunSpec,
    run_in_model,
    run_on_kernel,
    scenario_text,
    spec_of,
)

_QUEUE: Any = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    parser.epilog = "Runs again, it records only what is missing."
    parser.add_argument(
        "--families", metavar="A,B", help="lab families, or scenarios by path [the split's]"
    )
    parser.add_argument("--policies", metavar="A,B", help="see list [the split's]")
    parser.add_argument("--seeds", type=seeds, metavar="A,B", help="of hosts [the split's]")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="[train]")
    parser.add_argument(
        "--ticks",
        type=positive,
        default=SETTLE_TICKS + 60,
        metavar="N",
        help=f"seconds of guest time, settling included [{SETTLE_TICKS + 60}]",
    )
    parser.add_argument("--world", choices=("kernel", "model"), default="kernel", help="[kernel]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where files go")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="guests at once [1]")
    parser.add_argument(
        "--keep-going", action="store_true", help="go on where a run fails; exit status 1"
    )


def run(args: argparse.Namespace) -> int:
    """Record what is missing.

    Raises:
        ConfigError: An unknown family or policy.
        LabError: A guest cannot be had, or died; what has finished is kept.
    """
    work = missing(plan(args), args.out)
    failures = record(work, args.jobs, keep_going=args.keep_going)
    for text in failures:
        print(f"failed: {text}")
    total = len(plan(args))
    print(f"{total - len(failures)} of {total} recordings in {args.out}")
    return 1 if failures else 0


@dataclass(frozen=True, slots=True)
class Work:
    """A run to make, and where it is kept."""

    spec: RunSpec
    path: Path


def plan(args: argparse.Namespace) -> list[RunSpec]:
    """Every run of the set.

    Raises:
        ConfigError: An unknown family or policy.
    """
    usual = load_lab_split()
    families = args.families.split(",") if args.families else usual.families
    policies = split_specs(args.policies) if args.policies else usual.policies
    for family in families:
        load_scenario(family)
    for policy in policies:
        make_policy(policy, host_kind="stock")
    return [
        RunSpec(
            scenario=family,
            policy=policy,
            seed=seed,
            split=args.split,
            ticks=args.ticks,
            world=args.world,
        )
        for family in families
        for seed in args.seeds or usual.seeds
        for policy in policies
    ]


def recording_path(folder: Path, spec: RunSpec) -> Path:
    """Where a run is kept."""
    family = safe_name(Path(spec.scenario).stem)
    split = "" if spec.split == "train" else f".{spec.split}"
    return folder / family / f"{safe_name(spec.policy)}.seed{spec.seed}{split}.{spec.world}.npz"


def missing(specs: Sequence[RunSpec], folder: Path) -> list[Work]:
    """The runs that have no whole file of just these settings."""
    return [
        Work(spec, path) for spec in specs if not holds(path := recording_path(folder, spec), spec)
    ]


def holds(path: Path, spec: RunSpec) -> bool:
    """The file is there, whole, and of this run: the same scenario, policy, seed, length, world."""
    if not path.is_file():
        return False
    try:
        found = spec_of(read_recording(path))
        return found == replace(spec, scenario=scenario_text(spec.scaled_scenario()))
    except MemcgGymError:
        return False


def make(work: Work, report: Callable[[int], None]) -> None:
    """Run and keep."""
    world: World = work.spec.world
    work.path.parent.mkdir(parents=True, exist_ok=True)
    runner = run_on_kernel if world == "kernel" else run_in_model
    write_recording(work.path, runner(work.spec, report=report))


def record(work: Sequence[Work], jobs: int, *, keep_going: bool = False) -> list[str]:
    """Make runs, several at once in processes of their own, under a progress bar.

    Returns:
        What failed, where it was told to go on.

    Raises:
        MemcgGymError: The first problem of any, where it was not.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not work:
        return []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        total = sum(w.spec.ticks for w in work)
        task = progress.add_task(f"0 of {len(work)} runs", total=total)
        done = 0

        def finished() -> None:
            nonlocal done
            done += 1
            progress.update(task, description=f"{done} of {len(work)} runs")

        def report(ticks: int) -> None:
            progress.advance(task, ticks)

        runner = _here if jobs == 1 else _in_processes
        return runner(work, jobs, keep_going, report, finished)


def _here(
    work: Sequence[Work],
    jobs: int,
    keep_going: bool,
    report: Callable[[int], None],
    finished: Callable[[], None],
) -> list[str]:
    failures = []
    for one in work:
        if problem := attempt(one, report):
            if not keep_going:
                raise MemcgGymError(problem)
            failures.append(problem)
        finished()
    return failures


def _in_processes(
    work: Sequence[Work],
    jobs: int,
    keep_going: bool,
    report: Callable[[int], None],
    finished: Callable[[], None],
) -> list[str]:
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    failures: list[str] = []
    with ProcessPoolExecutor(jobs, context, _set_queue, (ticks,)) as pool:
        waiting: set[Future[str]] = {pool.submit(_work, w) for w in work}
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            report(_drain(ticks))
            for future in done:
                finished()
                if not (problem := _outcome(future)):
                    continue
                if not keep_going:
                    pool.shutdown(cancel_futures=True)
                    raise MemcgGymError(problem)
                failures.append(problem)
    return failures


def _set_queue(ticks: Any) -> None:
    global _QUEUE
    _QUEUE = ticks


def _work(work: Work) -> str:
    """In a worker."""
    return attempt(work, _QUEUE.put)


def attempt(work: Work, report: Callable[[int], None]) -> str:
    """Make a run; what went wrong as text, because not every error can go between processes."""
    try:
        make(work, report)
    except MemcgGymError as error:
        return f"{work.spec.scenario}: {work.spec.policy}: seed {work.spec.seed}: {error}"
    return ""


def _drain(ticks: Any) -> int:
    total = 0
    while True:
        try:
            total += ticks.get_nowait()
        except queue.Empty:
            return total


def _outcome(future: Future[str]) -> str:
    try:
        return future.result()
    except BrokenProcessPool:
        return "a worker ended before its time; fewer --jobs need less memory"
