"""The page that says how far the model can be trusted, from a finished comparison.

Numbers of the kernel and of the model stand in columns of their own; every family is named.

Units: in each table's head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memcg_gym.training.calibration import FREE, Fit
from memcg_gym.training.fidelity import TARGETS, Spreading
from memcg_gym.training.fidelity_study import FamilyResult, Pair, median_tau

MIB = float(1 << 20)
TAU_MEDIAN, TAU_WORST = 0.8, 0.5
"""What rankings should reach: the median over families, and every one of them."""


@dataclass(frozen=True, slots=True)
class Study:
    """Everything the page shows.

    Attributes:
        command: What made it.
        kernels, machines: Of the recordings.
        before: Families with the parameters as shipped without a fit.
        after: Families with parameters fitted without them.
        fits: Of each family that was left out.
        whole: Fitted to all families, for the preset.
        settle_ticks: Of each recording, not compared.
        pictures: Path of each family's picture, as the page links it.
    """

    command: str
    kernels: Sequence[str]
    machines: Sequence[str]
    before: Sequence[FamilyResult]
    after: Sequence[FamilyResult]
    fits: Mapping[str, Fit]
    whole: Fit
    settle_ticks: int
    pictures: Mapping[str, str]


def page(study: Study) -> str:
    """The page as Markdown."""
    parts = [
        head(study),
        "## Where it stands\n",
        targets_table(study),
        "## Errors by family\n",
        "Median over runs and cgroups of the family, the worst in brackets; **bold** misses the "
        "target.  Parameters were fitted to the other families only.\n",
        errors_table(study.after),
        "The same before any fit (`params.toml`):\n",
        errors_table(study.before),
        "## Rankings\n",
        rankings_text(study),
        "## Parameters\n",
        parameters_table(study),
        "## Both worlds over time\n",
        *(f"### {f.name}\n\n![{f.name}]({study.pictures[f.name]})\n" for f in study.after),
        "## Every run\n",
        "Means over the scored seconds; p99 over all their requests.  A run is *held out* twice "
        "where its policy or its host was fitted for no family.\n",
        runs_table(study.after),
    ]
    return "\n".join(parts)


def head(study: Study) -> str:
    """What was compared, and how."""
    runs = [pair for family in study.after for pair in family.pairs]
    policies = sorted({pair.recorded.policy for pair in runs})
    seeds = sorted({pair.recorded.seed for pair in runs})
    ticks = sorted({pair.recorded.recording.n_ticks for pair in runs})
    return f"""# How far the model can be trusted

Made by `{study.command}`; do not edit.

The same scenario, the same policy and the same host, on Linux {", ".join(study.kernels)} in a
virtual machine and in the model, each under its own closed loop: {len(runs)} runs of
{" or ".join(map(str, ticks))} s, the first {study.settle_ticks} s of which settle and do not count;
{len(study.after)} families, {len(policies)} policies ({", ".join(policies)}), hosts
{", ".join(map(str, seeds))}.  Machine: {"; ".join(study.machines)}.

Every family is judged with parameters that were fitted without it (`lab calibrate --leave-out`).
The kernel is taken as the truth, its own chance included.  How the numbers are defined is said in
`training/fidelity.py`, how recordings are made in [lab.md](lab.md).
"""


def targets_table(study: Study) -> str:
    """How many families meet each target, before and after the fit."""
    lines = [
        "| measure | target | families that meet it, fitted without them | before any fit |",
        "|---|---|---|---|",
    ]
    for target in TARGETS:
        cells = [met(study.after, target.name), met(study.before, target.name)]
        lines.append(f"| {target.meaning} | {target.limit:g} | {cells[0]} | {cells[1]} |")
    both = (study.after, study.before)
    medians = " | ".join(number(median_tau(families), 2) for families in both)
    lines.append(
        f"| Kendall's tau with the kernel's ranking, median over families | {TAU_MEDIAN:g} or more "
        f"| {medians} |"
    )
    counts = " | ".join(
        f"{sum(tau >= TAU_WORST for tau in taus(families))} of {len(taus(families))}"
        for families in both
    )
    lines.append(f"| and in every family | {TAU_WORST:g} or more | {counts} |")
    return "\n".join(lines) + "\n"


def met(families: Sequence[FamilyResult], name: str) -> str:
    """How many families' medians are within a target."""
    limit = next(target.limit for target in TARGETS if target.name == name)
    medians = [f.errors[name].median for f in families if f.errors[name].cases]
    return f"{sum(m <= limit for m in medians)} of {len(medians)}"


def taus(families: Sequence[FamilyResult]) -> list[float]:
    """Kendall's tau of every family that has one."""
    found = [f.ranking.tau for f in families if f.ranking is not None]
    return [tau for tau in found if not math.isnan(tau)]


def errors_table(families: Sequence[FamilyResult]) -> str:
    """Every family's errors."""
    names = [t.name for t in TARGETS]
    lines = [
        "| family | resident, % of working set | refaults, % | correlation | PSI some, points "
        "| throughput, % | p99, factor |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in families:
        e = family.errors
        cells = [
            cell(e[names[0]], names[0], 100.0, 1),
            cell(e[names[1]], names[1], 100.0, 0),
            f"{number(e['correlation'].median, 2)} ({number(e['correlation'].worst, 2)})",
            cell(e[names[2]], names[2], 100.0, 2),
            cell(e[names[3]], names[3], 100.0, 1),
            cell(e[names[4]], names[4], 1.0, 2),
        ]
        lines.append(f"| {family.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(found: Spreading, name: str, factor: float, digits: int) -> str:
    """Median and worst of one measure; bold where the median misses the target."""
    if not found.cases:
        return "-"
    limit = next(target.limit for target in TARGETS if target.name == name)
    text = f"{number(factor * found.median, digits)} ({number(factor * found.worst, digits)})"
    return text if found.median <= limit else f"**{text}**"


def rankings_text(study: Study) -> str:
    """Kendall's tau of every family, and every pair the model has the wrong way round."""
    lines = [
        "Scores by the default objective, higher is better; pairs count where the kernel's mean "
        "paired difference is beyond two standard errors.\n",
        "| family | tau | tau before any fit | pairs | not told apart by the kernel |",
        "|---|---|---|---|---|",
    ]
    for before, after in zip(study.before, study.after, strict=True):
        r, b = after.ranking, before.ranking
        if r is None or b is None:
            lines.append(f"| {after.name} | - | - | - | too few policies or hosts |")
            continue
        tau = number(r.tau, 2)
        shown = tau if math.isnan(r.tau) or r.tau >= TAU_WORST else f"**{tau}**"
        lines.append(
            f"| {after.name} | {shown} | {number(b.tau, 2)} | {len(r.pairs)} | {r.undecided} |"
        )
    wrong = [
        f"| {f.name} | {p.one} | {p.other} | {p.kernel:+.4f} | {p.model:+.4f} |"
        for f in study.after
        if f.ranking is not None
        for p in f.ranking.discordant
    ]
    if wrong:
        lines += [
            "\nPairs that the model has the other way round, or cannot tell apart:\n",
            "| family | one | other | one less other, kernel | one less other, model |",
            "|---|---|---|---|---|",
            *wrong,
        ]
    elif taus(study.after):
        lines.append("\nThe model has no pair the other way round.")
    else:
        lines.append("\nNo family was recorded on two hosts or more, so nothing is ranked here.")
    return "\n".join(lines) + "\n"


def parameters_table(study: Study) -> str:
    """What was fitted: to all families, and the range over those that left one out."""
    lines = [
        f"Loss over all families {study.whole.before:.3f} before, {study.whole.after:.3f} after "
        "the fit (1 is about one allowed error in one measure of a run).  A value at a bound says "
        "that the model's structure, not its cost, is off.\n",
        "| parameter | fitted to all | least to most with a family left out | believable |",
        "|---|---|---|---|",
    ]
    for free in FREE:
        if free.name not in study.whole.fitted:
            continue
        others = [f.params[free.name] for f in study.fits.values()]
        spread = f"{min(others):.3g} to {max(others):.3g}" if others else "-"
        mark = " (at its bound)" if free.name in study.whole.at_bounds else ""
        lines.append(
            f"| `{free.name}` | {study.whole.params[free.name]:.3g}{mark} | {spread} "
            f"| {free.low:g} to {free.high:g} |"
        )
    return "\n".join(lines) + "\n"


def runs_table(families: Sequence[FamilyResult]) -> str:
    """What each world saw in each run."""
    lines = [
        "| family | policy | host | cgroup | MiB, kernel | MiB, model | refaults/s, kernel "
        "| refaults/s, model | PSI %, kernel | PSI %, model | requests/s, kernel "
        "| requests/s, model | p99 ms, kernel | p99 ms, model | held out |",
        "|---" * 15 + "|",
    ]
    for family in families:
        for pair in family.pairs:
            for errors in pair.errors:
                lines.append(run_row(family.name, pair, errors.cgroup))
    return "\n".join(lines) + "\n"


def run_row(family: str, pair: Pair, cgroup: str) -> str:
    """One cgroup of one run."""
    at = pair.kernel.names.index(cgroup)
    there = pair.kernel.active[:, at] & pair.model.active[:, at]
    cells = [family, f"`{pair.recorded.policy}`", str(pair.recorded.seed), cgroup]
    for name, factor, digits in (
        ("usage_bytes", 1.0 / MIB, 0),
        ("refaults_per_s", 1.0, 0),
        ("psi_some", 100.0, 2),
        ("served_per_s", 1.0, 1),
    ):
        for world in (pair.kernel, pair.model):
            cells.append(number(factor * float(getattr(world, name)[there, at].mean()), digits))
    cells += [number(1e-3 * float(w.p99_us[at]), 2) for w in (pair.kernel, pair.model)]
    cells.append("yes" if pair.held_out else "")
    return f"| {' | '.join(cells)} |"


def number(value: float, digits: int) -> str:
    """A number with fixed digits, or a dash."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
