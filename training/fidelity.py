"""How far the model can be trusted: the same scenario, policy and seed on the kernel and in it.

Errors are of one cgroup over the scored ticks of one run; a family of scenarios is judged by the
median over its runs and cgroups, and the worst is told beside it.  Rankings compare what a user of
the model would decide: which of two policies is better, counted only where the kernel itself tells
them apart.

What it does not know: which world is right.  The kernel is taken as the truth, its chance included.

Units: bytes, pages per second, shares of time, requests per second, microseconds, as named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np

from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.signals import Sig
from memcg_gym.envs.lab.stats import quantile_us
from memcg_gym.envs.recording import Recording

Array = np.ndarray[Any, np.dtype[Any]]

BINDING_RATIO = 0.95
"""A limit binds a cgroup that uses more than this share of it (assumption)."""
LEAST_REFAULTS_PER_S = 50.0
"""Fewer refaults than this per second are few whatever their number: errors count against it."""
NOISE_FACTOR = 2.0
"""Two policies differ where their mean paired difference is beyond this many standard errors."""
MIN_SEEDS = 2


@dataclass(frozen=True, slots=True)
class Target:
    """What an error measure should stay under.

    Attributes:
        name: Of the measure, a field of :class:`Errors`.
        limit: What the median of a family should not exceed.
        unit: For tables.
        meaning: One line.
    """

    name: str
    limit: float
    unit: str
    meaning: str


TARGETS: tuple[Target, ...] = (
    Target(
        "resident",
        0.05,
        "share",
        "resident size where no limit binds, median over ticks, of the kernel's working set",
    ),
    Target("refaults", 0.25, "share", "refaults per second, of max(kernel, 50/s)"),
    Target("psi_some", 0.05, "share of time", "memory pressure, some"),
    Target("throughput", 0.15, "share", "requests served, of the kernel's"),
    Target("p99", 1.5, "factor", "99th percentile of latency, whichever is larger over the other"),
)


@dataclass(frozen=True, slots=True)
class Series:
    """A run as the measures look at it: its scored ticks, one column a cgroup.

    Attributes:
        names: Of the cgroups.
        usage_bytes: Memory charged, ``[T, N]``.
        wss_bytes: Estimate of the working set, NaN where there is none, ``[T, N]``.
        limit_bytes: The lower of memory.high and memory.max in force, ``[T, N]``.
        refaults_per_s: Anonymous and file, ``[T, N]``.
        psi_some: Share of each second in which some task stalls on memory, ``[T, N]``.
        served_per_s: Requests done, ``[T, N]``.
        p99_us: Over all requests of the scored ticks, ``[N]``; NaN where none were served.
        active: True where the slot holds a cgroup, ``[T, N]``.
        score: Of the host, by its objective.
    """

    names: tuple[str, ...]
    usage_bytes: Array
    wss_bytes: Array
    limit_bytes: Array
    refaults_per_s: Array
    psi_some: Array
    served_per_s: Array
    p99_us: Array
    active: Array
    score: float


@dataclass(frozen=True, slots=True)
class Errors:
    """How far the model is from the kernel for one cgroup of one run; NaN where it cannot be said.

    Attributes:
        cgroup: Its name.
        resident: Median over ticks in which no limit binds in either world.
        refaults: Of the mean rate, against max(kernel, 50/s).
        correlation: Of refaults second by second; NaN where either world has none.
        psi_some: Difference of the mean share of time.
        throughput: Of requests served.
        p99: Factor, at least 1.
    """

    cgroup: str
    resident: float
    refaults: float
    correlation: float
    psi_some: float
    throughput: float
    p99: float


def compare_runs(kernel: Series, model: Series) -> list[Errors]:
    """The errors of every cgroup that was there.

    Raises:
        ConfigError: The two are not of the same cgroups and ticks.
    """
    if kernel.names != model.names or kernel.usage_bytes.shape != model.usage_bytes.shape:
        raise ConfigError(
            f"fidelity: runs of {kernel.usage_bytes.shape} ticks and cgroups "
            f"{', '.join(kernel.names)} and of {model.usage_bytes.shape} with "
            f"{', '.join(model.names)} cannot be compared; record both with the same settings"
        )
    both = kernel.active & model.active
    return [
        _compare_cgroup(kernel, model, at, both[:, at])
        for at in range(len(kernel.names))
        if both[:, at].any()
    ]


def _compare_cgroup(kernel: Series, model: Series, at: int, there: Array) -> Errors:
    def mean(series: Array) -> float:
        return float(series[there, at].mean())

    refaults, modelled = mean(kernel.refaults_per_s), mean(model.refaults_per_s)
    served = mean(kernel.served_per_s)
    return Errors(
        kernel.names[at],
        resident_error(kernel, model, at, there),
        abs(modelled - refaults) / max(refaults, LEAST_REFAULTS_PER_S),
        correlation(kernel.refaults_per_s[there, at], model.refaults_per_s[there, at]),
        abs(mean(model.psi_some) - mean(kernel.psi_some)),
        abs(mean(model.served_per_s) - served) / served if served > 0 else math.nan,
        factor_between(float(kernel.p99_us[at]), float(model.p99_us[at])),
    )


def resident_error(kernel: Series, model: Series, at: int, there: Array) -> float:
    """Median over ticks without a binding limit of the difference in size over the working set."""
    free = there.copy()
    for world in (kernel, model):
        free &= world.usage_bytes[:, at] < BINDING_RATIO * world.limit_bytes[:, at]
    if not free.any():
        return math.nan
    usage = kernel.usage_bytes[free, at]
    wss = kernel.wss_bytes[free, at]
    wss = np.where(np.isnan(wss) | (wss <= 0.0), usage, wss)
    difference = np.abs(model.usage_bytes[free, at] - usage)
    return float(np.median(difference / np.maximum(wss, 1.0)))


def correlation(kernel: Array, model: Array) -> float:
    """Pearson's, of two series; NaN where one does not move."""
    if len(kernel) < 3 or kernel.std() <= 0.0 or model.std() <= 0.0:
        return math.nan
    return float(np.corrcoef(kernel, model)[0, 1])


def factor_between(one: float, other: float) -> float:
    """The larger over the smaller; NaN unless both are above 0.

    Example:
        >>> factor_between(2.0, 3.0)
        1.5
    """
    if not (one > 0.0 and other > 0.0):
        return math.nan
    return max(one, other) / min(one, other)


@dataclass(frozen=True, slots=True)
class Spreading:
    """One measure over the runs and cgroups of a family.

    Attributes:
        median, worst: NaN where no run says anything.
        within: Share of the cases that meet the target.
        cases: How many there are.
    """

    median: float
    worst: float
    within: float
    cases: int


def summarise(errors: Sequence[Errors]) -> dict[str, Spreading]:
    """Every target's measure over a family, and the correlation (its worst is the lowest)."""
    limits = {target.name: target.limit for target in TARGETS}
    found = {}
    for name in (f.name for f in fields(Errors) if f.name != "cgroup"):
        values = np.array([getattr(e, name) for e in errors], dtype=np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            found[name] = Spreading(math.nan, math.nan, math.nan, 0)
            continue
        worst = values.min() if name == "correlation" else values.max()
        within = np.mean(values <= limits[name]) if name in limits else math.nan
        found[name] = Spreading(float(np.median(values)), float(worst), float(within), len(values))
    return found


# ---- rankings -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PolicyPair:
    """Two policies that the kernel tells apart.

    Attributes:
        one, other: Their names.
        kernel, model: Mean score of the first less that of the second, in each world.
    """

    one: str
    other: str
    kernel: float
    model: float

    @property
    def concordant(self) -> bool:
        """The model prefers the same one; a tie in the model is no preference."""
        return self.kernel * self.model > 0.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """How the model ranks policies against how the kernel does.

    Attributes:
        tau: Kendall's, over the pairs that differ on the kernel; NaN where none do.
        noise: Standard error of a mean difference on the kernel.
        pairs: Those that differ by more than noise.
        undecided: Pairs that do not.
    """

    tau: float
    noise: float
    pairs: tuple[PolicyPair, ...]
    undecided: int

    @property
    def discordant(self) -> tuple[PolicyPair, ...]:
        """The pairs that the model has the other way round, or cannot tell apart."""
        return tuple(pair for pair in self.pairs if not pair.concordant)


def rank(kernel: Mapping[str, Sequence[float]], model: Mapping[str, Sequence[float]]) -> Ranking:
    """Kendall's tau over the pairs of policies that the kernel tells apart.

    The noise is the standard error of the mean paired difference on the kernel, pooled over the
    pairs: with two or three seeds a single pair's own would be luck.

    Args:
        kernel, model: Score of every policy on the same seeds in the same order.

    Raises:
        ConfigError: Fewer than two policies or seeds, or the worlds do not have the same.
    """
    names = list(kernel)
    seeds = {len(scores) for world in (kernel, model) for scores in world.values()}
    if sorted(model) != sorted(names) or len(seeds) != 1:
        raise ConfigError("fidelity: rankings need the same policies and seeds in both worlds")
    n_seeds = seeds.pop()
    if len(names) < 2 or n_seeds < MIN_SEEDS:
        raise ConfigError(
            f"fidelity: a ranking needs at least 2 policies and {MIN_SEEDS} seeds, "
            f"got {len(names)} and {n_seeds}"
        )
    differences = {
        (a, b): np.asarray(kernel[a], dtype=np.float64) - np.asarray(kernel[b], dtype=np.float64)
        for a, b in combinations(names, 2)
    }
    variance = np.mean([d.var(ddof=1) for d in differences.values()])
    noise = float(np.sqrt(variance / n_seeds))
    pairs = tuple(
        PolicyPair(a, b, float(d.mean()), float(np.mean(model[a]) - np.mean(model[b])))
        for (a, b), d in differences.items()
        if abs(d.mean()) > NOISE_FACTOR * noise
    )
    agree = sum(
        1 if p.kernel * p.model > 0.0 else -1 if p.kernel * p.model < 0.0 else 0 for p in pairs
    )
    tau = agree / len(pairs) if pairs else math.nan
    return Ranking(tau, noise, pairs, len(differences) - len(pairs))


# ---- from recordings ---------------------------------------------------------------------------


def series_of(recording: Recording, skip: int) -> Series:
    """A recording as the measures look at it, without its first ``skip`` ticks.

    Raises:
        ConfigError: It is no longer than that, or lacks latencies or the score.
    """
    if recording.n_ticks <= skip:
        raise ConfigError(
            f"fidelity: a recording of {recording.n_ticks} ticks has none after the first {skip}"
        )
    if recording.latency_counts is None or "score" not in recording.metric_names:
        raise ConfigError("fidelity: the recording has no latencies or no score; record it again")
    signals, active = recording.memcg_signals[skip:], recording.active[skip:]
    latency = recording.latency_counts[skip:].sum(axis=0)
    scores = recording.column("metrics", "score")[skip:]
    return Series(
        names=recording.cgroups,
        usage_bytes=signals[1:, :, Sig.USAGE_BYTES],
        wss_bytes=signals[1:, :, Sig.WSS_BYTES],
        limit_bytes=limits_in_force(signals),
        refaults_per_s=refault_rates(signals),
        psi_some=stall_shares(signals),
        served_per_s=recording.column("metrics", "requests")[skip:],
        p99_us=np.array([quantile_us(counts, 0.99) for counts in latency]),
        active=active,
        score=float(scores[active].sum() / max(active.sum(), 1)),
    )


def refault_rates(signals: Array) -> Array:
    """Refaults per second, ``[T, N]``, of signals ``[T + 1, N, S]``; 0 where a count began anew."""
    total = signals[..., Sig.REFAULT_ANON] + signals[..., Sig.REFAULT_FILE]
    return np.maximum(np.diff(total, axis=0), 0.0)


def stall_shares(signals: Array) -> Array:
    """Share of each second in which some task stalls on memory, ``[T, N]``."""
    gain = np.diff(signals[..., Sig.PSI_MEM_SOME_US], axis=0)
    return np.clip(gain * 1e-6, 0.0, 1.0)


def limits_in_force(signals: Array) -> Array:
    """The lower of memory.high and memory.max at each tick's end, ``[T, N]``."""
    after = signals[1:]
    return np.fmin(after[..., Sig.HIGH_BYTES], after[..., Sig.OWNER_MAX_BYTES])
