"""What an evaluation leaves behind: JSON, CSV and Markdown, all made from the same comparison.

A number measured on the model and one measured on a kernel never share a file; the world stands
in each header.

Units: named beside each column.
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from memcg_gym import __version__
from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.envs.contract.schema import contract_hash
from memcg_gym.envs.reward import TERM_NAMES
from memcg_gym.training.cells import Cell, CellSpec, code_digest, policy_digest
from memcg_gym.training.compare import (
    DEFAULT,
    GAP_OVER_NOISE,
    Aggregate,
    Cells,
    Comparison,
    ScenarioResult,
    Standing,
    normalised,
)
from memcg_gym.training.files import write_whole
from memcg_gym.training.metrics import HOST_METRICS, REASONS
from memcg_gym.training.stats import Interval

FORMAT = "memcg-gym evaluation 1"
PACKAGES = ("numpy", "scipy", "numba", "torch", "gymnasium", "stable-baselines3")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything an evaluation found.

    Attributes:
        command: As it was typed.
        cells: By scenario, then by policy.
        upper: Policy that was asked to mark score 1, if any.
        scenarios: One result each.
        aggregate: Over the usable ones, or None.
    """

    command: Sequence[str]
    cells: Mapping[str, Cells]
    upper: str | None
    scenarios: Sequence[ScenarioResult]
    aggregate: Aggregate | None

    @property
    def settings(self) -> CellSpec:
        """What all cells share; its policy and scenario are those of the first."""
        return next(iter(self.cells.values()))[DEFAULT].spec


def write_results(folder: Path, evaluation: Evaluation) -> None:
    """Write ``results.json``, ``per_seed.csv`` and ``results.md``.

    Raises:
        ConfigError: A file cannot be written.
    """
    text = json.dumps(to_dict(evaluation), indent=1, allow_nan=False)
    write_whole(folder / "results.json", (text + "\n").encode())
    write_whole(folder / "per_seed.csv", to_csv(evaluation).encode())
    write_whole(folder / "results.md", to_markdown(evaluation).encode())


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The whole evaluation as plain JSON data; what is not known is null."""
    s = evaluation.settings
    content = {
        "format": FORMAT,
        "world": s.world,
        "scale_divisor": s.divisor,
        "guest_image": s.image or None,
        "provenance": provenance(evaluation),
        "aggregate": None if evaluation.aggregate is None else _plain(evaluation.aggregate),
        "scenarios": {r.name: _scenario_dict(evaluation, r) for r in evaluation.scenarios},
    }
    finite: dict[str, Any] = _finite(content)
    return finite


def provenance(evaluation: Evaluation) -> dict[str, Any]:
    """What is needed to make the numbers again."""
    s = evaluation.settings
    first = next(iter(evaluation.cells.values()))
    uppers = [row[evaluation.upper].spec for row in evaluation.cells.values() if evaluation.upper]
    return {
        "command": shlex.join(evaluation.command),
        "versions": versions(),
        "contract": contract_hash(),
        "code": code_digest(),
        "host_kind": s.host_kind,
        "split": s.split,
        "seeds": list(s.seeds),
        "settle_ticks": s.settle_ticks,
        "ticks": s.ticks,
        "shield": s.shield,
        "policies": {
            policy: {
                "speaks": cell.speaks,
                "shielded": cell.shielded,
                "sha256": policy_digest(policy) or None,
            }
            for policy, cell in first.items()
        },
        "upper": {
            "policy": evaluation.upper,
            "seeds": list(uppers[0].seeds),
            "own_settle_ticks": uppers[0].own_ticks,
        }
        if uppers
        else None,
        "cgroup_steps": sum(
            c.cgroup_steps for row in evaluation.cells.values() for c in row.values()
        ),
        "objective": load_objective(s.objective).model_dump(mode="json"),
        "scenarios": {
            name: load_scenario(row[DEFAULT].spec.scenario).model_dump(mode="json")
            for name, row in evaluation.cells.items()
        },
    }


def world_text(spec: CellSpec) -> str:
    """Where the numbers come from, in words."""
    scale = "" if spec.divisor == 1.0 else f", hosts {spec.divisor:g} times smaller"
    return ("model" if spec.world == "model" else "a real Linux kernel in a guest") + scale


def versions() -> dict[str, str]:
    """Versions of what takes part, as far as it is installed."""
    found = {"memcg-gym": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def to_csv(evaluation: Evaluation) -> str:
    """One line a scenario, policy and seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["scenario", "policy", "seed", "score", "normalised"]
        + [f"{m.name} [{m.unit}]" for m in HOST_METRICS]
        + [f"term_{name}" for name in TERM_NAMES]
        + [f"shield_{reason} [1/h]" for reason in REASONS]
    )
    for result in evaluation.scenarios:
        row = evaluation.cells[result.name]
        scores = normalised(row, result.upper) if result.upper.usable else {}
        for policy, cell in row.items():
            for at, seed in enumerate(cell.spec.seeds):
                share = [repr(float(scores[policy][at]))] if policy in scores else [""]
                numbers = (cell.metrics[at], cell.terms[at], cell.interventions[at])
                writer.writerow(
                    [result.name, policy, seed, repr(float(cell.score[at])), *share]
                    + [repr(float(v)) for v in np.concatenate(numbers)]
                )
    return out.getvalue()


def to_markdown(evaluation: Evaluation) -> str:
    """The page for people."""
    lines = [*_header(evaluation), *_aggregate_lines(evaluation)]
    for result in evaluation.scenarios:
        lines += _scenario_lines(evaluation, result)
    return "\n".join(lines) + "\n"


def short_names(policies: Sequence[str]) -> dict[str, str]:
    """Names for tables and plots: the last part of a path where that is unambiguous."""
    last = {p: Path(p).name if "/" in p and "=" not in p else p for p in policies}
    taken = list(last.values())
    return {p: name if taken.count(name) == 1 else p for p, name in last.items()}


def all_policies(evaluation: Evaluation) -> list[str]:
    """Every policy that was run, in the order of the command line."""
    found = dict.fromkeys(p for row in evaluation.cells.values() for p in row)
    return list(found)


def interval_text(interval: Interval, digits: int = 3) -> str:
    """``0.512 [0.488, 0.531]``; without the ends where they are not known."""
    text = f"{interval.estimate:.{digits}f}"
    if math.isnan(interval.low):
        return text
    return f"{text} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def comparison_text(found: Comparison | None, digits: int = 3) -> str:
    """A difference with its interval, its corrected p-value and what may be claimed."""
    if found is None:
        return ""
    d = found.difference
    text = interval_text(Interval(d.estimate, d.low, d.high), digits)
    if math.isnan(d.low):
        return text
    verdict = f"**{found.claim}**" if found.claim != "-" else "-"
    return f"{text} p={found.corrected_p:.2g} {verdict}"


def find(comparisons: Sequence[Comparison], policy: str, reference: str) -> Comparison | None:
    """The comparison of two policies, if there is one."""
    for c in comparisons:
        if (c.policy, c.reference) == (policy, reference):
            return c
    return None


def _header(evaluation: Evaluation) -> Iterator[str]:
    s = evaluation.settings
    yield "# Evaluation"
    yield ""
    yield f"Made by `{shlex.join(evaluation.command)}`"
    yield f"with {', '.join(f'{k} {v}' for k, v in versions().items())},"
    yield f"contract {contract_hash()[:16]}, code {code_digest()[:16]}."
    yield ""
    yield (
        f"World: {world_text(s)}; host kind {s.host_kind}; {s.split} ranges; "
        f"{len(s.seeds)} hosts a policy and scenario, the same for all; "
        f"settled {s.settle_ticks} ticks of one second, scored {s.ticks}; "
        f"objective {Path(s.objective).stem}; shield: {s.shield}."
    )
    bare = [p for p, c in next(iter(evaluation.cells.values())).items() if not c.shielded]
    names = short_names(all_policies(evaluation))
    if bare:
        yield f"Without the shield: {', '.join(names[p] for p in bare)}."
    if evaluation.upper:
        spec = next(iter(evaluation.cells.values()))[evaluation.upper].spec
        yield (
            f"{evaluation.upper} ran on {len(spec.seeds)} of the hosts, the last {spec.own_ticks} "
            "settling ticks under its own control."
        )
    yield ""
    yield (
        "Score 0 is kernel-default and 1 the upper line. Brackets are 95 % bootstrap intervals "
        "over hosts; p is corrected by Holm's method, over all scenarios' tables "
        "together and over the first table by itself."
    )
    yield ""


def _aggregate_lines(evaluation: Evaluation) -> Iterator[str]:
    found = evaluation.aggregate
    yield "## All scenarios"
    yield ""
    left_out = [r for r in evaluation.scenarios if not r.upper.usable]
    for r in left_out:
        yield (
            f"Left out: **{r.name}** (gap {r.upper.gap:.4f}, noise {r.upper.noise:.4f}: under "
            f"{GAP_OVER_NOISE:g} times the noise)."
        )
    if left_out:
        yield ""
    if found is None:
        yield "No scenario has a gap that can be told from noise, so there is no aggregate."
        yield ""
        return
    yield f"Over {', '.join(found.scenarios)}; best baseline: {found.best_baseline}."
    yield ""
    yield "![Normalised scores](scores.png)"
    yield ""
    yield "![Paired differences](differences.png)"
    yield ""
    names = short_names(all_policies(evaluation))
    yield from _standing_table(
        names, found.standings, found.comparisons, found.best_baseline, raw=False
    )


def _scenario_lines(evaluation: Evaluation, result: ScenarioResult) -> Iterator[str]:
    row = evaluation.cells[result.name]
    names = short_names(all_policies(evaluation))
    line = result.upper
    yield f"## {result.name}"
    yield ""
    yield load_scenario(row[DEFAULT].spec.scenario).summary
    yield ""
    note = " (it beats the clairvoyant line)" if line.beaten else ""
    yield (
        f"Upper line: {names[line.policy]}{note}, gap {line.gap:.4f} with noise {line.noise:.4f} "
        f"on {line.n_hosts} hosts. Best baseline: {names[result.best_baseline]}."
        + ("" if line.usable else " The gap is too small: raw scores below.")
    )
    yield ""
    yield from _standing_table(
        names, result.standings, result.comparisons, result.best_baseline, raw=True
    )
    yield from _metric_table(names, row, result.standings)
    yield from _intervention_lines(names, row)
    yield from _ranking_lines(names, result)


def _standing_table(
    names: Mapping[str, str],
    standings: Sequence[Standing],
    comparisons: Sequence[Comparison],
    baseline: str,
    *,
    raw: bool,
) -> Iterator[str]:
    columns = ["policy", "hosts", *(["raw score"] if raw else []), "IQM", "worst decile"]
    columns += [f"minus {DEFAULT}", *([f"minus {baseline}"] if baseline != DEFAULT else [])]
    yield from _table_head(columns)
    for s in standings:
        cells = [names[s.policy], str(s.n_hosts), *([f"{s.raw:.4f}"] if raw else [])]
        cells += [interval_text(s.iqm), interval_text(s.worst)]
        cells.append(comparison_text(find(comparisons, s.policy, DEFAULT), 4 if raw else 3))
        if baseline != DEFAULT:
            cells.append(comparison_text(find(comparisons, s.policy, baseline), 4 if raw else 3))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _metric_table(
    names: Mapping[str, str], row: Cells, standings: Sequence[Standing]
) -> Iterator[str]:
    yield "Raw metrics, means over hosts:"
    yield ""
    order = [s.policy for s in standings]
    yield from _table_head(["metric", *(names[p] for p in order)])
    for k, metric in enumerate(HOST_METRICS):
        cells = [f"{float(np.mean(row[p].metrics[:, k])):.4g}" for p in order]
        yield f"| {metric.name} [{metric.unit}]: {metric.meaning} | {' | '.join(cells)} |"
    yield ""


def _intervention_lines(names: Mapping[str, str], row: Cells) -> Iterator[str]:
    lines = []
    for policy, cell in row.items():
        rates = cell.interventions.mean(axis=0)
        parts = [f"{r} {v:.3g}" for r, v in zip(REASONS, rates, strict=True) if v > 0]
        if parts:
            lines.append(f"- {names[policy]}: {', '.join(parts)}")
    if lines:
        yield "Shield interventions per cgroup-hour, by reason:"
        yield ""
        yield from lines
        yield ""


def _ranking_lines(names: Mapping[str, str], result: ScenarioResult) -> Iterator[str]:
    if len(result.standings) < 2 or not result.rankings:
        return
    known = [r for r in result.rankings if not math.isnan(r.tau)]
    lowest = min(known, key=lambda r: r.tau, default=None)
    leader = next(s.policy for s in result.standings if is_contestant(result, s.policy))
    if lowest is not None:
        yield (
            f"Ranking at half and twice each weight: Kendall's tau with the committed order is at "
            f"least {lowest.tau:.2f} ({lowest.term} x {lowest.factor:g})."
        )
    for r in result.rankings:
        if r.best != leader:
            yield f"With {r.term} x {r.factor:g} the leader is {names[r.best]}."
    yield ""


def is_contestant(result: ScenarioResult, policy: str) -> bool:
    """Whether a policy is a contestant; the first in the order of standings leads."""
    return policy == DEFAULT or any(c.policy == policy for c in result.comparisons)


def _table_head(columns: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"


def _scenario_dict(evaluation: Evaluation, result: ScenarioResult) -> dict[str, Any]:
    row = evaluation.cells[result.name]
    content = _plain(result) | {
        "upper": asdict(result.upper) | {"usable": result.upper.usable},
        "policies": {policy: _cell_dict(cell) for policy, cell in row.items()},
    }
    if result.upper.usable:
        for policy, scores in normalised(row, result.upper).items():
            content["policies"][policy]["normalised"] = scores.tolist()
    return content


def _cell_dict(cell: Cell) -> dict[str, Any]:
    return {
        "seeds": list(cell.spec.seeds),
        "score": cell.score.tolist(),
        "terms": dict(zip(TERM_NAMES, cell.terms.mean(axis=0).tolist(), strict=True)),
        "metrics": {
            m.name: float(v) for m, v in zip(HOST_METRICS, cell.metrics.mean(axis=0), strict=True)
        },
        "units": {m.name: m.unit for m in HOST_METRICS},
        "interventions_per_cgroup_hour": dict(
            zip(REASONS, cell.interventions.mean(axis=0).tolist(), strict=True)
        ),
        "speaks": cell.speaks,
        "shielded": cell.shielded,
        "settle_ticks": cell.spec.settle_ticks,
        "own_settle_ticks": cell.spec.own_ticks,
        "ticks": cell.spec.ticks,
    }


def _plain(result: ScenarioResult | Aggregate) -> dict[str, Any]:
    content = asdict(result)
    for entry, comparison in zip(content["comparisons"], result.comparisons, strict=True):
        entry["claim"] = comparison.claim
    return content


def _finite(value: Any) -> Any:
    """The same data with null for what is not a finite number."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
