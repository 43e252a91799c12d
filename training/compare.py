"""From cells to a comparison: normalised scores, intervals, paired and corrected differences.

Score 0 is ``kernel-default``, score 1 the upper line: the clairvoyant policy on its own hosts, or
the best contestant where one beats it there.  One gap a scenario serves all its hosts, so the
normalised scores of two policies differ exactly as their raw scores do.  A scenario whose gap is
under three times its noise is named and left out of the aggregate: there is nothing to win in it.

Units: raw scores per cgroup and second; normalised scores in gaps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from memcg_gym.agents.registry import policy_names
from memcg_gym.envs.reward import SCORE_TERMS, TERM_NAMES
from memcg_gym.training.cells import Cell
from memcg_gym.training.stats import (
    Difference,
    Interval,
    bootstrap,
    holm,
    iqm,
    paired_difference,
    standard_error,
    worst_decile,
)

Array = np.ndarray[Any, np.dtype[Any]]
Cells = Mapping[str, Cell]
"""Cells of one scenario by policy."""

DEFAULT = "kernel-default"
GAP_OVER_NOISE = 3.0
SIGNIFICANCE = 0.05
WEIGHT_FACTORS = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class UpperLine:
    """What score 1 means in a scenario.

    Attributes:
        policy: Whose score it is.
        gap: Mean gain over ``kernel-default`` on the hosts it was run on.
        noise: Standard error of that gain.
        n_hosts: Hosts it rests on.
        beaten: The clairvoyant policy was run, and this one beats it on the same hosts.
        contestant_clear: The best contestant's own gain can be told from noise, which settles the
            matter where the upper line was run on too few hosts to tell.
    """

    policy: str
    gap: float
    noise: float
    n_hosts: int
    beaten: bool = False
    contestant_clear: bool = False

    @property
    def clear(self) -> bool:
        """The gap is positive and at least three times its noise."""
        return self.gap > 0.0 and self.gap >= GAP_OVER_NOISE * self.noise

    @property
    def usable(self) -> bool:
        """There is something to win, and it can be told from noise."""
        return self.gap > 0.0 and (self.clear or self.contestant_clear)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference in the same hosts, with its corrected p-value.

    Attributes:
        policy, reference: ``policy - reference``.
        where: A scenario, or ``aggregate``.
        difference: In normalised scores for the aggregate, else in raw scores.
        corrected_p: After Holm's correction over its family.
    """

    policy: str
    reference: str
    where: str
    difference: Difference
    corrected_p: float = 1.0

    @property
    def claim(self) -> str:
        """``better``, ``worse``, or ``-`` where the hosts do not tell."""
        if not self.corrected_p < SIGNIFICANCE:
            return "-"
        return "better" if self.difference.estimate > 0.0 else "worse"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a policy stands in a scenario or over them.

    Attributes:
        policy: Spec.
        n_hosts: Hosts.
        raw: Mean raw score; NaN for the aggregate.
        iqm, worst: Interquartile mean and mean of the worst tenth, normalised where the scenario
            is usable, else raw.
    """

    policy: str
    n_hosts: int
    raw: float
    iqm: Interval
    worst: Interval


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """One scenario: its line, standings (best mean first) and differences."""

    name: str
    upper: UpperLine
    best_baseline: str
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]
    rankings: tuple[Ranking, ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The order of the contestants with one weight of the objective changed.

    Attributes:
        term: Reward term whose weight is multiplied by ``factor``.
        factor: Half or twice.
        tau: Kendall's rank correlation with the order under the committed weights.
        best: Who leads.
    """

    term: str
    factor: float
    tau: float
    best: str


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Over the usable scenarios; every scenario counts alike."""

    scenarios: tuple[str, ...]
    left_out: tuple[str, ...]
    best_baseline: str
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]


def compare(
    cells: Mapping[str, Cells], upper: str | None, seed: int = 0
) -> tuple[list[ScenarioResult], Aggregate | None]:
    """Compare all policies of all scenarios.

    Args:
        cells: By scenario, then by policy; each scenario has ``kernel-default``, and all its
            policies but ``upper`` ran on the same seeds.
        upper: The policy that gives the upper line, no contestant itself; None = the best known.
        seed: Of the bootstrap draws.

    Returns:
        One result a scenario, and the aggregate, or None where no scenario is usable.
    """
    results = [_scenario(name, row, upper, seed) for name, row in cells.items()]
    corrected = _correct([c for r in results for c in r.comparisons])
    results = [
        dataclasses.replace(r, comparisons=tuple(c for c in corrected if c.where == r.name))
        for r in results
    ]
    return results, _aggregate(cells, results, upper, seed)


def contestants(row: Cells, upper: str | None) -> list[str]:
    """Policies that are compared."""
    return [policy for policy in row if policy != upper]


def is_baseline(policy: str) -> bool:
    """A hand policy known by name, or a combination of them; no run folder, no table."""
    parts = policy.partition(":")[0].split("+")
    return not Path(policy).is_dir() and all(part in policy_names() for part in parts)


def upper_line(row: Cells, upper: str | None) -> UpperLine:
    """Who marks score 1 in a scenario."""
    gains = {name: row[name].score - row[DEFAULT].score for name in contestants(row, upper)}
    best = max(gains, key=lambda name: float(np.mean(gains[name])))
    best_line = UpperLine(
        best, float(np.mean(gains[best])), standard_error(gains[best]), len(gains[best])
    )
    if upper is None or upper not in row:
        return best_line
    at = _shared_hosts(row[upper], row[DEFAULT])
    gain = row[upper].score - row[DEFAULT].score[at]
    if float(np.mean(gain)) < float(np.mean(gains[best][at])):
        return dataclasses.replace(best_line, beaten=True)
    return UpperLine(
        upper,
        float(np.mean(gain)),
        standard_error(gain),
        len(gain),
        contestant_clear=best_line.clear,
    )


def normalised(row: Cells, line: UpperLine) -> dict[str, Array]:
    """Scores of every host with 0 = ``kernel-default`` on the same host and 1 = the upper line."""
    return {
        name: (cell.score - row[DEFAULT].score[_shared_hosts(cell, row[DEFAULT])]) / line.gap
        for name, cell in row.items()
    }


def rankings(row: Cells, names: Sequence[str]) -> list[Ranking]:
    """The order under half and twice each weight, from the terms of the same rollouts."""
    nominal = np.array([float(np.mean(row[name].score)) for name in names])
    found = []
    for term in np.flatnonzero(SCORE_TERMS):
        share = np.array([float(np.mean(row[name].terms[:, term])) for name in names])
        if not share.any():
            continue
        for factor in WEIGHT_FACTORS:
            changed = nominal + (factor - 1.0) * share
            tau = float(kendalltau(nominal, changed).statistic) if len(names) > 1 else 1.0
            best = names[int(np.argmax(changed))]
            found.append(Ranking(TERM_NAMES[term], factor, tau, best))
    return found


def _scenario(name: str, row: Cells, upper: str | None, seed: int) -> ScenarioResult:
    line = upper_line(row, upper)
    scores = normalised(row, line) if line.usable else {p: c.score for p, c in row.items()}
    names = contestants(row, upper)
    baseline = max(filter(is_baseline, names), key=lambda p: float(np.mean(row[p].score)))
    standings = [
        _standing(policy, float(np.mean(cell.score)), [scores[policy]], seed)
        for policy, cell in row.items()
    ]
    standings.sort(key=lambda s: -s.raw)
    comparisons = [
        Comparison(
            policy,
            reference,
            name,
            paired_difference([row[policy].score], [row[reference].score], seed=seed),
        )
        for policy, reference in _pairs(names, baseline)
    ]
    return ScenarioResult(
        name, line, baseline, tuple(standings), tuple(comparisons), tuple(rankings(row, names))
    )


def _aggregate(
    cells: Mapping[str, Cells], results: Sequence[ScenarioResult], upper: str | None, seed: int
) -> Aggregate | None:
    usable = {r.name: normalised(cells[r.name], r.upper) for r in results if r.upper.usable}
    left_out = tuple(r.name for r in results if not r.upper.usable)
    if not usable:
        return None
    names = [n for n in contestants(cells[next(iter(usable))], upper)]
    names = [n for n in names if all(n in scores for scores in usable.values())]
    strata = {n: [scores[n] for scores in usable.values()] for n in names}
    means = {n: float(np.mean([np.mean(s) for s in strata[n]])) for n in names}
    baseline = max(filter(is_baseline, names), key=lambda n: means[n])
    standings = [_standing(n, math.nan, strata[n], seed) for n in names]
    standings.sort(key=lambda s: -means[s.policy])
    comparisons = [
        Comparison(
            policy,
            reference,
            "aggregate",
            paired_difference(strata[policy], strata[reference], seed=seed),
        )
        for policy, reference in _pairs(names, baseline)
    ]
    return Aggregate(
        tuple(usable), left_out, baseline, tuple(standings), tuple(_correct(comparisons))
    )


def _standing(policy: str, raw: float, strata: Sequence[Array], seed: int) -> Standing:
    return Standing(
        policy,
        sum(len(s) for s in strata),
        raw,
        bootstrap(strata, iqm, seed=seed),
        bootstrap(strata, worst_decile, seed=seed),
    )


def _pairs(names: Sequence[str], baseline: str) -> list[tuple[str, str]]:
    """Everybody against ``kernel-default``, and against the best baseline where that is another."""
    pairs = [(name, DEFAULT) for name in names if name != DEFAULT]
    if baseline != DEFAULT:
        pairs += [(name, baseline) for name in names if name not in (DEFAULT, baseline)]
    return pairs


def _correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Holm's correction over one family."""
    adjusted = holm([c.difference.p_value for c in comparisons])
    return [
        dataclasses.replace(c, corrected_p=p) for c, p in zip(comparisons, adjusted, strict=True)
    ]


def _shared_hosts(cell: Cell, other: Cell) -> list[int]:
    """Where the hosts of one cell stand in another that has them all."""
    where = {seed: at for at, seed in enumerate(other.spec.seeds)}
    return [where[seed] for seed in cell.spec.seeds]


__all__ = [
    "DEFAULT",
    "Aggregate",
    "Comparison",
    "Ranking",
    "ScenarioResult",
    "Standing",
    "UpperLine",
    "compare",
    "contestants",
    "is_baseline",
    "normalised",
    "rankings",
    "upper_line",
]
