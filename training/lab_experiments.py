"""The sub-verb ``lab experiments``: three small experiments, in both worlds, as a page.

A limit that falls below a working set, a lock held across allocation, two tiers of memory: the same
scenario, the same writes at the same second, on the lab's kernel and in the model.  One guest for a
seed; the model's host gets the memory that the guest's kernel left.

Units: a row is a second; MiB, pages, microseconds, percent as named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from memcg_gym.configs.loader import load_objective
from memcg_gym.configs.schema import ScenarioConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import PAGE_BYTES, HostSig, Sig
from memcg_gym.envs.core import HostBatch, host_seed
from memcg_gym.envs.kernel_batch import KernelBatch
from memcg_gym.envs.lab.guest_image import GuestImage, build
from memcg_gym.envs.lab.qemu import qemu_version
from memcg_gym.envs.lab.stats import quantile_us
from memcg_gym.envs.reward import Metric
from memcg_gym.training.files import write_whole
from memcg_gym.training.lab_fetch import add_kernel_arguments, chosen_kernel
from memcg_gym.training.lab_runs import HostFacts, KernelLatency, ModelLatency

MIB = float(1 << 20)
TOUCHES = 16
"""Page touches of a request in all three."""

Row = dict[str, float]
Rows = list[Row]
Phase = tuple[str, int]
"""What it is called, and how many seconds it lasts."""
Control = Callable[[HostBatch, np.ndarray, str, int], None]
"""Fills knobs for the coming second, given the phase and the second in it."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the tables.

    Attributes:
        title: With its unit.
        key: Of a row.
        how: What makes one value of a phase's seconds.
        digits: Behind the point.
        relative: Whether the error is a share of the kernel's value, or a difference.
    """

    title: str
    key: str
    how: Callable[[np.ndarray], float] = np.median
    digits: int = 0
    relative: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One experiment.

    Attributes:
        title: Its heading.
        text: What is done, and what to look at.
        scenario: Runs in both worlds.
        phases: In order.
        tail: Seconds at the end of each phase that count; 0 = all.
        control: What is written.
        columns: What is shown.
    """

    title: str
    text: str
    scenario: Mapping[str, Any]
    phases: Sequence[Phase]
    tail: int
    control: Control
    columns: Sequence[Column]


Tables = dict[str, list[float]]
"""Values of the columns by phase, the median over seeds."""


def anon(name: str, size_mib: float, **more: object) -> dict[str, object]:
    """A private region touched by Zipf's law with exponent 1.1."""
    return {
        "name": name,
        "kind": "anon",
        "pattern": "heat",
        "popularity": "zipf:1.1",
        "size_mib": size_mib,
        "touches_per_request": TOUCHES,
        "write_share": 1.0,
    } | more


def work(requests_per_s: float, cpu_us: float, **more: object) -> dict[str, object]:
    """A workload of constant arrivals."""
    return {
        "requests_per_s": requests_per_s,
        "cpu_us_per_request": cpu_us,
        "slo_p99_ms": 5,
        "arrival": {"kind": "constant", "swing": 0},
    } | more


def machine(dram_gib: float, **more: object) -> dict[str, object]:
    """A host of one CPU with swap on a device of 8,000 operations a second."""
    return {
        "cpus": 1,
        "dram_gib": dram_gib,
        "swap_gib": 0.375,
        "zswap_max_ratio": 0,
        "reserved_ratio": 0.05,
        "disk": {"iops": 8000, "latency_us": 100},
    } | more


LIMITS_MIB = (300, 240, 200, 160, 128, 96)

FALLING = MappingProxyType(
    {
        "name": "falling-limit",
        "summary": "A heap of 256 MiB under a limit that falls.",
        "heads": ["reclaim"],
        "host": machine(0.5),
        "cgroups": [
            {
                "name": "heap",
                "workload": work(2500, 100, threads_tolerant=1, regions=[anon("heap", 256)]),
            }
        ],
    }
)

LOCK_LIMIT_MIB = 90
LOCK = MappingProxyType({"name": "map", "section_us": 100, "charge_share": 1.0})
INVERSION = MappingProxyType(
    {
        "name": "lock-across-allocation",
        "summary": "Who allocates holds a mutex that another one needs.",
        "heads": ["reclaim"],
        "host": machine(0.6),
        "cgroups": [
            {
                "name": "holder",
                "workload": work(
                    100,
                    200,
                    threads_tolerant=1,
                    burst={"every_s": 1, "hold_s": 6, "rate_mib_per_s": 33, "on_path_ratio": 0},
                    lock=dict(LOCK) | {"role": "holder", "sections_per_s": 100},
                    regions=[
                        anon("heap", 40),
                        {"name": "ring", "pattern": "idle", "size_mib": 200, "burst": True},
                    ],
                ),
            },
            {
                "name": "waiter",
                "workload": work(
                    200,
                    100,
                    threads_critical=1,
                    threads_tolerant=0,
                    lock=dict(LOCK) | {"role": "waiter", "sections_per_s": 200},
                    regions=[anon("heap", 16, critical_share=1.0)],
                ),
            },
        ],
    }
)

TIERED = MappingProxyType(
    {
        "name": "two-tiers",
        "summary": "A heap of 480 MiB over two tiers of 384 MiB.",
        "heads": ["reclaim"],
        "host": machine(0.375, slow_gib=0.375),
        "cgroups": [
            {
                "name": "heap",
                "workload": work(10_000, 5, threads_tolerant=2, regions=[anon("heap", 480)]),
            }
        ],
    }
)


def lower_limit(batch: HostBatch, knobs: np.ndarray, phase: str, second: int) -> None:
    """memory.high at the phase's size; what is over it is reclaimed at once."""
    limit = float(phase.split()[0]) * MIB
    knobs[0, 0, Knob.HIGH_BYTES] = limit
    over = float(batch.signals[0, 0, Sig.USAGE_BYTES]) - limit
    knobs[0, 0, Knob.RECLAIM_BYTES] = max(over, 0.0) if second == 0 else 0.0


def hold_limit(batch: HostBatch, knobs: np.ndarray, phase: str, second: int) -> None:
    """Nothing, memory.high, or a trimmer that writes what is over the limit every second."""
    limit = LOCK_LIMIT_MIB * MIB
    if phase == "memory.high":
        knobs[0, 0, Knob.HIGH_BYTES] = limit
    elif phase == "trimmer":
        over = float(batch.signals[0, 0, Sig.USAGE_BYTES]) - limit
        knobs[0, 0, Knob.RECLAIM_BYTES] = max(over, 0.0)


def write_once(batch: HostBatch, knobs: np.ndarray, phase: str, second: int) -> None:
    """memory.reclaim of 100 MiB in one second."""
    if phase.startswith("100 MiB") and second == 0:
        knobs[0, 0, Knob.RECLAIM_BYTES] = 100 * MIB


EXPERIMENTS = (
    Experiment(
        title="A limit that falls below a working set",
        text=(
            "256 MiB of private memory, 2,500 requests a second of 16 page touches each by Zipf's "
            "law (1.1), one thread. `memory.high` is lowered every nine seconds and what is over "
            "it is reclaimed at once; medians of the last five seconds."
        ),
        scenario=FALLING,
        phases=[(f"{limit} MiB", 9) for limit in LIMITS_MIB],
        tail=5,
        control=lower_limit,
        columns=(
            Column("touches/s", "touches"),
            Column("p99 of a request [us]", "p99_us"),
            Column("refaults/s", "refaults"),
            Column("memory stall [%]", "memory_some", digits=1, relative=False),
            Column("I/O stall [%]", "io_some", digits=1, relative=False),
            Column("usage [MiB]", "usage_mib"),
        ),
    ),
    Experiment(
        title="A lock held across allocation",
        text=(
            "One cgroup allocates 33 MiB a second in sections of a mutex, six seconds long, then "
            "gives all of it back; another one takes the same mutex with each of its 200 requests "
            f"a second. Nothing is enforced, then `memory.high` = {LOCK_LIMIT_MIB} MiB, then a "
            "trimmer writes what is over that to `memory.reclaim` every second."
        ),
        scenario=INVERSION,
        phases=[("nothing", 16), ("memory.high", 17), ("trimmer", 16)],
        tail=14,
        control=hold_limit,
        columns=(
            Column("p99 of the waiter [us], median", "waiter_p99_us"),
            Column("worst second", "waiter_p99_us", how=np.max),
            Column("time lost to inversion [%], mean", "inversion", np.mean, 1, relative=False),
            Column("memory stall of the holder [%], mean", "memory_some", np.mean, 1, False),
            Column("pages it reclaims itself/s, mean", "direct", np.mean),
        ),
    ),
    Experiment(
        title="Demotion and promotion",
        text=(
            "480 MiB of private memory over a fast and a slow node of 384 MiB each, demotion on, "
            "`numa_balancing` = 2, 160,000 page touches a second. After 20 seconds 100 MiB are "
            "written to `memory.reclaim`, once. The kernel looks for pages to promote as a task "
            "uses the processor, not as time passes; the model does not know that."
        ),
        scenario=TIERED,
        phases=[("first 10 s", 10), ("next 10 s", 10), ("100 MiB reclaimed", 3), ("after", 12)],
        tail=0,
        control=write_once,
        columns=(
            Column("pages demoted", "demoted", np.sum),
            Column("pages promoted", "promoted", np.sum),
            Column("memory.current falls by [MiB]", "fell_mib", np.sum, 1, relative=False),
            Column("fast memory, at the end [MiB]", "fast_mib", lambda x: float(x[-1])),
            Column("slow memory, at the end [MiB]", "slow_mib", lambda x: float(x[-1])),
            Column("swapped, at the end [MiB]", "swap_mib", lambda x: float(x[-1]), 0, False),
        ),
    ),
)

HEAD = """# Three experiments in both worlds

Made by `memcg-gym lab experiments --out docs/kernel_experiments.md`.
Kernel {kernel} (QEMU {qemu}, one CPU, guest time by instruction count: a run repeats to the bit),
beside it the model of this version with its shipped parameters. Medians over {seeds} seeds.
The model's host is given the memory that the guest's kernel left, and nothing else of that world.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    add_kernel_arguments(parser)
    parser.add_argument(
        "--only", type=int, action="append", metavar="N", help="experiment 1, 2 or 3; repeatable"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="[3]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a Markdown page")


def run(args: argparse.Namespace) -> int:
    """Run the experiments in both worlds and show the tables.

    Raises:
        ConfigError: There is no such experiment, or the page cannot be written.
        LabError, GuestError: A guest cannot be had, or died.
    """
    chosen = choose(args.only, args.seeds)
    image = build(chosen_kernel(args))
    sections = []
    for experiment in chosen:
        kernel, model = both_worlds(
            experiment, image, args.seeds, lambda text: print(text, file=sys.stderr)
        )
        sections.append(section(experiment, kernel, model))
        print(sections[-1])
    if args.out:
        head = HEAD.format(kernel=image.version, qemu=qemu_version(), seeds=args.seeds)
        write_whole(args.out, "\n".join([head, *sections]).encode())
    return 0


def choose(only: Sequence[int] | None, seeds: int) -> list[Experiment]:
    """The experiments of these numbers; None = all.

    Raises:
        ConfigError: There is none of that number, or no seed is asked for.
    """
    wrong = [n for n in only or () if not 1 <= n <= len(EXPERIMENTS)]
    if wrong:
        raise ConfigError(f"--only: there is no experiment {wrong[0]}; 1 to {len(EXPERIMENTS)}")
    if seeds < 1:
        raise ConfigError(f"--seeds: got {seeds}, at least 1")
    return [EXPERIMENTS[n - 1] for n in only] if only else list(EXPERIMENTS)


def both_worlds(
    experiment: Experiment, image: GuestImage, seeds: int, tell: Tell
) -> tuple[Tables, Tables]:
    """Values of the kernel and of the model, medians over seeds."""
    kernel, model = [], []
    for seed in range(seeds):
        tell(f"{experiment.title}: seed {seed}")
        rows, facts = on_kernel(experiment, image, seed)
        kernel.append(summarise(experiment, rows))
        model.append(summarise(experiment, in_model(experiment, seed, facts)))
    return median_of(kernel), median_of(model)


def on_kernel(
    experiment: Experiment, image: GuestImage, seed: int
) -> tuple[dict[str, Rows], HostFacts]:
    """One seed in a guest: rows by phase, and the memory its host has."""
    scenario = ScenarioConfig.model_validate(dict(experiment.scenario))
    batch = KernelBatch(scenario, load_objective(), image, shield=False, accel="tcg")
    try:
        batch.reset_host(0, host_seed(seed, 0))
        facts = facts_of(batch)
        return play(experiment, batch, KernelLatency(batch)), facts
    finally:
        batch.close()


def facts_of(batch: KernelBatch) -> HostFacts:
    """The memory of a guest that has just been loaded."""
    signals = batch.host_signals[0] / PAGE_BYTES
    slow = float(np.nan_to_num(signals[HostSig.SLOW_TOTAL_BYTES]))
    fast = float(signals[HostSig.TOTAL_BYTES]) - slow
    return HostFacts(fast, slow, float(batch.hosts[0].reserved_pages))


def in_model(experiment: Experiment, seed: int, facts: HostFacts) -> dict[str, Rows]:
    """The same seed in the model, on a host of that memory."""
    scenario = ScenarioConfig.model_validate(dict(experiment.scenario))
    batch = HostBatch(facts.applied(scenario), load_objective(), shield=False)
    batch.reset_host(0, host_seed(seed, 0))
    return play(experiment, batch, ModelLatency(batch))


def play(
    experiment: Experiment, batch: HostBatch, latency: Callable[[HostBatch], np.ndarray]
) -> dict[str, Rows]:
    """Step a batch through the phases."""
    rows: dict[str, Rows] = {}
    for phase, seconds in experiment.phases:
        rows[phase] = []
        for second in range(seconds):
            knobs = batch.owner_knobs()
            experiment.control(batch, knobs, phase, second)
            batch.step_knobs(knobs)
            rows[phase].append(row_of(batch, latency(batch)))
    return rows


def row_of(batch: HostBatch, latency: np.ndarray) -> Row:
    """What a second showed; the first cgroup's, unless it says whose."""
    now, before = batch.signals[0], batch.signals_before[0]
    gain = now[0] - before[0]
    return {
        "touches": TOUCHES * float(batch.metrics[0, 0, Metric.REQUESTS]),
        "p99_us": quantile_us(latency[0], 0.99),
        "waiter_p99_us": quantile_us(latency[-1], 0.99),
        "refaults": float(gain[Sig.REFAULT_ANON]),
        "memory_some": float(gain[Sig.PSI_MEM_SOME_US]) / 1e4,
        "io_some": float(gain[Sig.PSI_IO_SOME_US]) / 1e4,
        "usage_mib": float(now[0, Sig.USAGE_BYTES]) / MIB,
        "inversion": 100.0 * float(batch.metrics[0, -1, Metric.INVERSION_S]),
        "direct": float(gain[Sig.PGSTEAL_DIRECT]),
        "demoted": float(gain[Sig.PGDEMOTE]),
        "promoted": float(gain[Sig.PGPROMOTE]),
        "fell_mib": -float(gain[Sig.USAGE_BYTES]) / MIB,
        "fast_mib": float(now[0, Sig.FAST_BYTES]) / MIB,
        "slow_mib": float(now[0, Sig.SLOW_BYTES]) / MIB,
        "swap_mib": float(now[0, Sig.SWAP_BYTES]) / MIB,
    }


def summarise(experiment: Experiment, rows: Mapping[str, Rows]) -> Tables:
    """One value a phase and column.

    The first second of a phase still runs under the phase before: a write takes effect a second
    after it was decided.
    """
    tables: Tables = {}
    for phase, seconds in experiment.phases:
        counted = rows[phase][-experiment.tail :] if 0 < experiment.tail < seconds else rows[phase]
        tables[phase] = [
            float(column.how(np.array([row[column.key] for row in counted])))
            for column in experiment.columns
        ]
    return tables


def median_of(tables: Sequence[Tables]) -> Tables:
    """Medians over seeds, cell by cell."""
    return {
        phase: np.median([table[phase] for table in tables], axis=0).tolist() for phase in tables[0]
    }


def section(experiment: Experiment, kernel: Tables, model: Tables) -> str:
    """An experiment's part of the page: two tables of values, one of errors."""
    parts = [f"## {experiment.title}\n", experiment.text, ""]
    for title, tables in (("The kernel", kernel), ("The model", model)):
        parts += [f"### {title}\n", table(experiment, tables), ""]
    parts += ["### The model's error\n", error_table(experiment, kernel, model), ""]
    return "\n".join(parts)


def table(experiment: Experiment, tables: Tables) -> str:
    """Values by phase."""
    lines = head_of(experiment)
    for phase, values in tables.items():
        cells = (
            f"{value:,.{column.digits}f}"
            for value, column in zip(values, experiment.columns, strict=True)
        )
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    return "\n".join(lines)


def error_table(experiment: Experiment, kernel: Tables, model: Tables) -> str:
    """Model against kernel: a share of the kernel's value, or a difference where that says more."""
    lines = head_of(experiment)
    for phase, values in kernel.items():
        cells = (
            error_of(column, value, other)
            for column, value, other in zip(experiment.columns, values, model[phase], strict=True)
        )
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    return "\n".join(lines)


def error_of(column: Column, kernel: float, model: float) -> str:
    """One error: ``+12 %``, or ``-3.1`` in the column's unit; ``-`` where both are nothing."""
    if not column.relative:
        return f"{model - kernel:+,.{column.digits}f}"
    if kernel == 0.0:
        return "-" if model == 0.0 else f"{model:+,.{column.digits}f}"
    return f"{100.0 * (model - kernel) / kernel:+,.0f} %"


def head_of(experiment: Experiment) -> list[str]:
    """The head of a table."""
    titles = [column.title for column in experiment.columns]
    return [f"| | {' | '.join(titles)} |", f"|{'---|' * (len(titles) + 1)}"]
