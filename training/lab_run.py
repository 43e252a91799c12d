"""The sub-verb ``lab run``: one policy on one host of a scenario, second by second.

Units: ticks of one second; MiB, pages per second, percent of time, milliseconds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from memcg_gym.configs.loader import FAMILIES, load_params, names
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.lab.stats import quantile_us
from memcg_gym.envs.recording import Recording, read_recording, write_recording
from memcg_gym.training.evaluate import count, divisor, positive
from memcg_gym.training.fidelity import Series, series_of
from memcg_gym.training.lab_runs import (
    FAMILY_FLOOR_DIVISOR,
    SETTLE_TICKS,
    HostFacts,
    RunSpec,
    run_in_model,
    run_on_kernel,
)

MIB = float(1 << 20)
SCALE = 16.0
"""A scenario of a real host becomes one of half a GiB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    parser.epilog = "A lab family runs as it is; other scenarios are made smaller (--scale)."
    parser.add_argument(
        "--scenario", default="heap-zipf", metavar="NAME", help="lab family or scenario [heap-zipf]"
    )
    parser.add_argument(
        "--policy", default="kernel-default", metavar="SPEC", help="see list [kernel-default]"
    )
    parser.add_argument("--world", choices=("kernel", "model"), default="kernel", help="[kernel]")
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="of the host [0]")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="[train]")
    parser.add_argument(
        "--settle",
        type=count,
        default=SETTLE_TICKS,
        metavar="N",
        help=f"ticks before what counts [{SETTLE_TICKS}]",
    )
    parser.add_argument("--ticks", type=positive, default=60, metavar="N", help="what counts [60]")
    parser.add_argument(
        "--scale", type=divisor, metavar="N", help=f"host N times smaller [families: 1; {SCALE:g}]"
    )
    parser.add_argument(
        "--shield",
        choices=("default", "on", "off"),
        default="default",
        help="default: behind policies that set levels, not behind those that write files",
    )
    parser.add_argument(
        "--lock-source",
        choices=("tag", "trace"),
        default="tag",
        help="who says who holds locks: the workloads, or the kernel's tracepoints [tag]",
    )
    parser.add_argument(
        "--params", default="params", metavar="NAME", help="the model's costs [params]"
    )
    parser.add_argument(
        "--like", type=Path, metavar="FILE", help="model: a host with the memory of a recording's"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep it as a recording (.npz)")
    parser.add_argument(
        "--every", type=positive, default=5, metavar="N", help="seconds a line stands for [5]"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON summary instead")


def run(args: argparse.Namespace) -> int:
    """Run it, show it, keep it.

    Raises:
        ConfigError: Arguments that do not fit together, or an unknown scenario or policy.
        LabError: The lab cannot run; with the guest's last console lines.
    """
    if args.like and args.world == "kernel":
        raise ConfigError("lab run: --like gives the model a guest's memory; add --world model")
    spec = spec_of(args)
    started_s = time.monotonic()
    recording = run_shown(spec, args)
    wall_s = time.monotonic() - started_s
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_recording(args.out, recording)
    if args.json:
        print(json.dumps(summary(recording, args.settle) | {"wall_s": wall_s}, indent=2))
    else:
        show(recording, args.settle, args.every)
        print(f"{spec.ticks} s in {wall_s:.0f} s")
    return 0


def spec_of(args: argparse.Namespace) -> RunSpec:
    """The run that the arguments ask for."""
    family = args.scenario in names(FAMILIES)
    scale = args.scale if args.scale is not None else 1.0 if family else SCALE
    return RunSpec(
        scenario=args.scenario,
        policy=args.policy,
        seed=args.seed,
        split=args.split,
        ticks=args.settle + args.ticks,
        divisor=scale,
        floor_divisor=FAMILY_FLOOR_DIVISOR if family else scale,
        world=args.world,
        shield=args.shield,
        lock_source=args.lock_source,
    )


def run_shown(spec: RunSpec, args: argparse.Namespace) -> Recording:
    """Run under a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    facts = like(args.like) if args.like else None
    params = load_params(args.params)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(f"{spec.scenario}: {spec.policy}", total=spec.ticks)

        def report(ticks: int) -> None:
            progress.advance(task, ticks)

        if spec.world == "kernel":
            return run_on_kernel(spec, report=report)
        return run_in_model(spec, facts=facts, params=params, report=report)


def like(path: Path) -> HostFacts:
    """The memory of a recording's host."""
    return HostFacts.of(read_recording(path))


def show(recording: Recording, settle: int, every: int) -> None:
    """What happened, a line every few seconds and a summary, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    series = series_of(recording, 0)
    for at, name in enumerate(series.names):
        table = Table(
            "s",
            "MiB",
            "refaults/s",
            "PSI some %",
            "requests/s",
            "p99 ms",
            title=f"{name} ({recording.provenance.world})",
        )
        for column in table.columns:
            column.justify = "right"
        for first in range(0, recording.n_ticks, every):
            mark = "" if first >= settle else " (settling)"
            span = slice(first, first + every)
            table.add_row(f"{first}{mark}", *cells(recording, series, span, at))
        table.add_section()
        table.add_row("scored", *cells(recording, series, slice(settle, None), at))
        console.print(table)
    console.print(f"score {series_of(recording, settle).score:.4f}")


def cells(recording: Recording, series: Series, span: slice, at: int) -> list[str]:
    """One stretch of one cgroup as text."""
    assert recording.latency_counts is not None
    p99_us = quantile_us(recording.latency_counts[span, at].sum(axis=0), 0.99)
    return [
        f"{series.usage_bytes[span, at].mean() / MIB:.1f}",
        f"{series.refaults_per_s[span, at].mean():.0f}",
        f"{100.0 * series.psi_some[span, at].mean():.2f}",
        f"{series.served_per_s[span, at].mean():.1f}",
        "-" if math.isnan(p99_us) else f"{p99_us * 1e-3:.2f}",
    ]


def summary(recording: Recording, settle: int) -> dict[str, Any]:
    """The scored ticks as plain data."""
    series = series_of(recording, settle)
    about = recording.provenance
    return {
        "world": about.world,
        "kernel": about.kernel,
        "machine": about.machine,
        "policy": about.policy,
        "seed": about.seed,
        "split": about.split,
        "settle_ticks": settle,
        "ticks": len(series.usage_bytes),
        "score": series.score,
        "cgroups": {
            name: {
                "usage_mib": float(series.usage_bytes[:, at].mean() / MIB),
                "refaults_per_s": float(series.refaults_per_s[:, at].mean()),
                "psi_some_ratio": float(series.psi_some[:, at].mean()),
                "requests_per_s": float(series.served_per_s[:, at].mean()),
                "p99_ms": None if math.isnan(us := float(series.p99_us[at])) else us * 1e-3,
            }
            for at, name in enumerate(series.names)
        },
    }
