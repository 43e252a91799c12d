"""The whole comparison of model and kernel over a set of recordings.

For every family: parameters fitted without it, then each of its recordings beside a run of the
model under the same policy on the same host.  Unlike in the fit, the policy here looks at the
model: what it would do in a user's hands.

Units: ticks of one second; errors as in :mod:`memcg_gym.training.fidelity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memcg_gym.configs.schema import LabSplitConfig
from memcg_gym.training.fidelity import (
    MIN_SEEDS,
    Errors,
    Ranking,
    Series,
    Spreading,
    compare_runs,
    rank,
    series_of,
    summarise,
)
from memcg_gym.training.lab_runs import HostFacts, run_in_model
from memcg_gym.training.lab_set import Recorded

Params = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Pair:
    """One recording of the kernel and the model's run beside it.

    Attributes:
        recorded: The recording.
        kernel, model: Both, scored ticks only.
        errors: Of every cgroup.
        held_out: Its policy or its seed was never fitted either.
    """

    recorded: Recorded
    kernel: Series
    model: Series
    errors: tuple[Errors, ...]
    held_out: bool


@dataclass(frozen=True, slots=True)
class FamilyResult:
    """A family's comparison with one set of parameters.

    Attributes:
        name: Of the family.
        pairs: One a recording.
        errors: Over all runs and cgroups, by measure.
        ranking: Of its policies; None where there are too few policies or seeds.
    """

    name: str
    pairs: tuple[Pair, ...]
    errors: Mapping[str, Spreading]
    ranking: Ranking | None


def compare_family(
    recorded: Sequence[Recorded],
    split: LabSplitConfig,
    params: Params,
    report: Callable[[int], None] = lambda runs: None,
) -> FamilyResult:
    """Run the model beside every recording of one family.

    Args:
        recorded: Of one family.
        split: Says what was fitted, and how long hosts settle.
        params: Of the model.
        report: Told how many more runs are done.
    """
    pairs = []
    for one in recorded:
        pairs.append(compare_one(one, split, params))
        report(1)
    return FamilyResult(
        recorded[0].family,
        tuple(pairs),
        summarise([errors for pair in pairs for errors in pair.errors]),
        ranking_of(pairs),
    )


def compare_one(one: Recorded, split: LabSplitConfig, params: Params) -> Pair:
    """Run the model beside one recording."""
    ran = run_in_model(one.spec, facts=HostFacts.of(one.recording), params=params)
    kernel = series_of(one.recording, split.settle_ticks)
    model = series_of(ran, split.settle_ticks)
    return Pair(
        one,
        kernel,
        model,
        tuple(compare_runs(kernel, model)),
        one.policy not in split.fitting_policies or one.seed not in split.fitting_seeds,
    )


def ranking_of(pairs: Sequence[Pair]) -> Ranking | None:
    """How the model ranks the policies that ran on all of the family's seeds."""
    seeds = sorted({pair.recorded.seed for pair in pairs})
    scores: dict[str, dict[int, tuple[float, float]]] = {}
    for pair in pairs:
        row = scores.setdefault(pair.recorded.policy, {})
        row[pair.recorded.seed] = (pair.kernel.score, pair.model.score)
    whole = {policy: row for policy, row in scores.items() if len(row) == len(seeds)}
    if len(whole) < 2 or len(seeds) < MIN_SEEDS:
        return None
    kernel = {policy: [row[seed][0] for seed in seeds] for policy, row in whole.items()}
    model = {policy: [row[seed][1] for seed in seeds] for policy, row in whole.items()}
    return rank(kernel, model)


def median_tau(families: Sequence[FamilyResult]) -> float:
    """Median of Kendall's tau over the families that have one; NaN without any."""
    taus = sorted(
        f.ranking.tau for f in families if f.ranking is not None and not math.isnan(f.ranking.tau)
    )
    if not taus:
        return math.nan
    middle = len(taus) // 2
    return taus[middle] if len(taus) % 2 else 0.5 * (taus[middle - 1] + taus[middle])
