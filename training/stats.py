"""Statistics that a comparison of policies rests on: robust means, intervals, corrected tests.

Every interval is an expanded percentile bootstrap that resamples hosts within their stratum (a
scenario, or a training seed), so that no stratum's weight changes with the draw.  The plain
percentile interval is too short for few hosts (normal values: 93 % for 95 % at 20, 84 % at 5);
the expanded one reads further out, as far as Student's t would.  With fewer than ``MIN_PAIRS``
hosts a stratum there is no interval and no claim.  The bootstrap knows only the hosts that were
run: it says nothing about scenarios or training seeds that were not.

Units: those of the values.

Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021) for the interquartile mean with stratified bootstrap; Hesterberg, "What Teachers
Should Know About the Bootstrap" (2015) for the expansion; Holm (1979) for the correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, trim_mean
from scipy.stats import t as student

Array = np.ndarray[Any, np.dtype[Any]]
Statistic = Callable[[Array], Array]
"""Maps values ``[..., n]`` to ``[...]``."""

CONFIDENCE = 0.95
RESAMPLES = 10_000
MIN_PAIRS = 5
"""Fewer values have too few different resamples for the ends of an interval (assumption)."""
WORST_SHARE = 0.1
COUNTABLE_DRAWS = 10
"""With fewer draws beyond 0 their count says little, and a correction for many comparisons needs
smaller p-values than one over the number of draws."""
SMALLEST_TAIL = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic and where it may lie; the ends are NaN where there are too few values."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference.

    Attributes:
        estimate, low, high: As in :class:`Interval`.
        p_value: Two-sided, from the same bootstrap; 1 where there are too few pairs.
        n_pairs: Pairs over all strata.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    n_pairs: int


def mean(values: Array) -> Array:
    """Mean over the last axis."""
    return np.asarray(np.mean(values, axis=-1))


def iqm(values: Array) -> Array:
    """Mean of the middle half over the last axis: a quarter is cut at each end.

    Example:
        >>> float(iqm(np.array([0.0, 1.0, 2.0, 99.0])))
        1.5
    """
    return np.asarray(trim_mean(values, 0.25, axis=-1))


def worst_decile(values: Array) -> Array:
    """Mean of the lowest tenth (at least one value) over the last axis.

    Example:
        >>> float(worst_decile(np.arange(20.0)))
        0.5
    """
    values = np.asarray(values)
    n_worst = max(1, math.ceil(WORST_SHARE * values.shape[-1]))
    return np.asarray(np.mean(np.sort(values, axis=-1)[..., :n_worst], axis=-1))


def bootstrap(
    strata: Sequence[Array],
    statistic: Statistic = mean,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """A statistic over the values of all strata, with its stratified bootstrap interval.

    Args:
        strata: One array ``[n]`` a stratum; none may be empty.
        statistic: Of the pooled values.
        resamples: Bootstrap draws.
        confidence: Of the two-sided interval.
        seed: Of the draws.

    Returns:
        The interval; its ends are NaN where a stratum has fewer than ``MIN_PAIRS`` values.

    Raises:
        ValueError: There is no stratum, or one is empty.
    """
    strata = _checked(strata)
    estimate = float(statistic(np.concatenate(strata)))
    if min(len(s) for s in strata) < MIN_PAIRS:
        return Interval(estimate, math.nan, math.nan)
    draws = statistic(resample(strata, resamples, seed))
    return Interval(estimate, *_ends(draws, _read_tail(1.0 - confidence, strata)))


def paired_difference(
    ours: Sequence[Array],
    theirs: Sequence[Array],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """Mean of ``ours - theirs`` over pairs that share a host, every stratum with equal weight.

    Args:
        ours: One array ``[n]`` a stratum; entry ``k`` of both sides is the same host.
        theirs: The same shapes.
        resamples: Bootstrap draws.
        confidence: Of the two-sided interval.
        seed: Of the draws.

    Raises:
        ValueError: There is no stratum, one is empty, or the shapes differ.
    """
    if [len(a) for a in ours] != [len(b) for b in theirs]:
        raise ValueError("pairs need as many values on both sides of every stratum")
    differences = _checked(
        [np.asarray(a) - np.asarray(b) for a, b in zip(ours, theirs, strict=True)]
    )
    n_pairs = sum(len(d) for d in differences)
    estimate = float(np.mean([np.mean(d) for d in differences]))
    if min(len(d) for d in differences) < MIN_PAIRS:
        return Difference(estimate, math.nan, math.nan, 1.0, n_pairs)
    parts = [mean(resample([d], resamples, seed + k)) for k, d in enumerate(differences)]
    draws = np.mean(parts, axis=0)
    low, high = _ends(draws, _read_tail(1.0 - confidence, differences))
    p_value = _p_value(bootstrap_tail(draws), differences)
    return Difference(estimate, low, high, p_value, n_pairs)


def bootstrap_tail(draws: Array) -> float:
    """Share of draws on the far side of 0, two-sided; where hardly any is, a normal tail's share.

    Args:
        draws: Bootstrap draws of the statistic, shape ``[B]``.
    """
    beyond = min(int(np.sum(draws <= 0.0)), int(np.sum(draws >= 0.0)))
    if beyond >= COUNTABLE_DRAWS:
        return min(1.0, 2.0 * beyond / len(draws))
    countable = 2.0 * COUNTABLE_DRAWS / len(draws)
    spread = float(np.std(draws))
    if spread == 0.0:
        return SMALLEST_TAIL
    smooth = float(2.0 * norm.sf(abs(float(np.mean(draws))) / spread))
    return min(1.0, countable, max(smooth, SMALLEST_TAIL))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: each p-value, corrected for all of them, in their order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def standard_error(values: Array) -> float:
    """Standard error of the mean; infinite for fewer than two values."""
    values = np.asarray(values)
    if len(values) < 2:
        return math.inf
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def resample(strata: Sequence[Array], resamples: int, seed: int) -> Array:
    """Draws with replacement within each stratum, pooled: shape ``[resamples, n_values]``."""
    rng = np.random.default_rng(seed)
    parts = [s[rng.integers(0, len(s), size=(resamples, len(s)))] for s in strata]
    return np.concatenate(parts, axis=1)


def _checked(strata: Sequence[Array]) -> list[Array]:
    arrays = [np.asarray(s, dtype=np.float64) for s in strata]
    if not arrays or any(len(a) == 0 for a in arrays):
        raise ValueError("every stratum needs at least one value")
    return arrays


def _read_tail(tail: float, strata: Sequence[Array]) -> float:
    """The two-sided tail of the draws at which to read an interval that leaves out ``tail``."""
    n, free = _degrees(strata)
    return float(2.0 * norm.sf(student.isf(tail / 2.0, free) * math.sqrt(n / free)))


def _p_value(tail: float, strata: Sequence[Array]) -> float:
    """The p-value that belongs to a two-sided tail of the draws: inverse of :func:`_read_tail`."""
    n, free = _degrees(strata)
    return float(2.0 * student.sf(norm.isf(tail / 2.0) * math.sqrt(free / n), free))


def _degrees(strata: Sequence[Array]) -> tuple[int, int]:
    n = sum(len(s) for s in strata)
    return n, n - len(strata)


def _ends(draws: Array, tail: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [tail / 2.0, 1.0 - tail / 2.0])
    return float(low), float(high)
