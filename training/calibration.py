"""Fitting the model's costs to what a real kernel did.

Every recording of the kernel is replayed in the model under the same writes, so that an error does
not feed back through the policy; what the two say in windows of ten seconds is compared, each
measure in units of the error that is allowed (:mod:`memcg_gym.training.fidelity`), and the sum of
squares, large ones rounded off, is made least over the logarithms of the parameters by SciPy's
trust-region least squares.  One global set is fitted, never one a scenario.

What it does not know: whether the model's structure is right.  A parameter that runs into its
bound says that it is not.

Units: as each parameter's name says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.signals import Sig
from memcg_gym.envs.core import host_seed
from memcg_gym.envs.lab.stats import quantile_us
from memcg_gym.envs.recording import Recording
from memcg_gym.envs.reward import Metric
from memcg_gym.training.fidelity import (
    LEAST_REFAULTS_PER_S,
    TARGETS,
    Series,
    limits_in_force,
    refault_rates,
    series_of,
    stall_shares,
)
from memcg_gym.training.lab_runs import HostFacts, ModelLatency, model_batch, spec_of

Array = np.ndarray[Any, np.dtype[Any]]
WINDOW_TICKS = 10
STEP = 0.05
"""Relative step of the finite differences: the model is smooth, but for page counts."""
MAX_ROUNDS = 25


@dataclass(frozen=True, slots=True)
class Free:
    """A parameter that is fitted, and what is believable for it."""

    name: str
    low: float
    high: float


FREE: tuple[Free, ...] = (
    # From a fast server core to a guest that is emulated instruction by instruction, with room.
    Free("minor_fault_us", 0.2, 50.0),
    Free("zswap_load_us", 1.0, 300.0),
    Free("zswap_store_us", 1.0, 600.0),
    Free("scan_us", 0.02, 10.0),
    Free("steal_us", 0.1, 50.0),
    Free("migrate_us", 0.5, 200.0),
    Free("loads_per_touch", 0.01, 50.0),
    Free("kswapd_pages_per_s", 5e3, 1e6),
)
LIMITS = {target.name: target.limit for target in TARGETS}


class Case:
    """A recording of the kernel, ready to be replayed with other parameters again and again.

    Args:
        recording: Of the kernel.
        skip: Ticks at its start that are replayed and not compared.
    """

    def __init__(self, recording: Recording, skip: int) -> None:
        self.recording = recording
        self.skip = skip
        self.kernel = series_of(recording, skip)
        self.spec = spec_of(recording)
        self.facts = HostFacts.of(recording)
        self.batch = model_batch(self.spec, self.facts, None, shield=False)

    def replay(self, params: Mapping[str, float]) -> Series:
        """What the model says with these parameters."""
        batch, recording = self.batch, self.recording
        for name, value in params.items():
            batch.layout.params[name] = value
        batch.reset_host(0, host_seed(self.spec.seed, 0), self.spec.split)
        ticks = recording.n_ticks
        signals = np.empty((ticks + 1, *batch.signals[0].shape))
        served = np.empty((ticks, batch.n_cgroups))
        active = np.empty((ticks, batch.n_cgroups), dtype=np.bool_)
        latency = np.zeros_like(batch.memcgs["latency"][0])
        signals[0] = batch.signals[0]
        for tick, knobs in enumerate(recording.knobs):
            batch.pending_knobs[0] = knobs
            batch.step_knobs(batch.pending_knobs.copy())
            signals[tick + 1] = batch.signals[0]
            served[tick] = batch.metrics[0, :, Metric.REQUESTS]
            active[tick] = batch.active[0]
            if tick >= self.skip:
                latency += batch.memcgs["latency"][0]
        counts = latency @ ModelLatency(batch).matrix
        return Series(
            names=recording.cgroups,
            usage_bytes=signals[self.skip + 1 :, :, Sig.USAGE_BYTES],
            wss_bytes=signals[self.skip + 1 :, :, Sig.WSS_BYTES],
            limit_bytes=limits_in_force(signals[self.skip :]),
            refaults_per_s=refault_rates(signals[self.skip :]),
            psi_some=stall_shares(signals[self.skip :]),
            served_per_s=served[self.skip :],
            p99_us=np.array([quantile_us(row, 0.99) for row in counts]),
            active=active[self.skip :],
            score=math.nan,
        )


def residuals(kernel: Series, model: Series) -> Array:
    """Differences in units of the error that is allowed, as many of each measure in every run.

    Returns:
        Over cgroups: refaults, size, pressure and requests by window, and the tail latency, each
        measure weighted by its number of values; 0 where the kernel does not say.
    """
    parts = []
    for at in range(len(kernel.names)):
        refaults = windows(kernel.refaults_per_s[:, at])
        served = windows(kernel.served_per_s[:, at])
        usage = windows(kernel.usage_bytes[:, at])
        differences = {
            "refaults": (windows(model.refaults_per_s[:, at]) - refaults)
            / np.maximum(refaults, LEAST_REFAULTS_PER_S),
            "resident": (windows(model.usage_bytes[:, at]) - usage) / np.maximum(usage, 1.0),
            "psi_some": windows(model.psi_some[:, at]) - windows(kernel.psi_some[:, at]),
            "throughput": (windows(model.served_per_s[:, at]) - served) / np.maximum(served, 1.0),
        }
        for name, values in differences.items():
            parts.append(values / LIMITS[name] / math.sqrt(len(values)))
        ratio = model.p99_us[at] / kernel.p99_us[at]
        known = bool(np.isfinite(ratio) and ratio > 0.0)
        parts.append(np.array([math.log(ratio) / math.log(LIMITS["p99"]) if known else 0.0]))
    return np.concatenate(parts) / math.sqrt(len(kernel.names))


def windows(values: Array) -> Array:
    """Means of consecutive windows; a shorter rest counts as one."""
    starts = np.arange(0, len(values), WINDOW_TICKS)
    sums = np.add.reduceat(values.astype(np.float64), starts)
    means: Array = sums / np.diff(np.append(starts, len(values)))
    return means


@dataclass(frozen=True, slots=True)
class Fit:
    """What a calibration found.

    Attributes:
        params: The whole set, fitted and kept ones.
        fitted: Names of those that were fitted.
        before, after: Loss with the parameters it began with, and with those it found.
        cases: Recordings that went in.
        evaluations: How often all of them were replayed.
        at_bounds: Fitted parameters that ended within a percent of a bound.
    """

    params: Mapping[str, float]
    fitted: tuple[str, ...]
    before: float
    after: float
    cases: int
    evaluations: int
    at_bounds: tuple[str, ...]


def fit(
    cases: Sequence[Case],
    start: Mapping[str, float],
    *,
    free: Sequence[Free] = FREE,
    max_rounds: int = MAX_ROUNDS,
    report: Callable[[int, float], None] = lambda evaluations, loss: None,
) -> Fit:
    """Find the parameters that bring the model nearest to the recordings.

    Args:
        cases: Recordings to fit.
        start: A whole set of parameters to begin with.
        free: Which are fitted, and their bounds.
        max_rounds: Steps of the optimiser at most; each takes ``len(free) + 1`` replays of all.
        report: Told after every replay of all cases: how many there were, and the loss now.

    Raises:
        ConfigError: No cases, or a free parameter that the model does not have.
    """
    from scipy.optimize import least_squares

    if not cases:
        raise ConfigError("calibrate: no recordings to fit; see lab record")
    for parameter in free:
        if parameter.name not in start:
            raise ConfigError(f"calibrate: {parameter.name!r} is none of the model's parameters")
    low = np.log([p.low for p in free])
    high = np.log([p.high for p in free])
    evaluations = 0

    def differences(point: Array) -> Array:
        nonlocal evaluations
        found = all_residuals(cases, with_values(start, free, point))
        evaluations += 1
        report(evaluations, loss_of(found, len(cases)))
        return found

    first = np.clip(np.log([start[p.name] for p in free]), low + 1e-6, high - 1e-6)
    before = loss_of(all_residuals(cases, start), len(cases))
    found = least_squares(
        differences,
        first,
        bounds=(low, high),
        loss="soft_l1",
        diff_step=STEP,
        max_nfev=max_rounds,
        x_scale=1.0,
    )
    params = with_values(start, free, found.x)
    after = loss_of(all_residuals(cases, params), len(cases))
    near = np.minimum(found.x - low, high - found.x) < 0.01
    return Fit(
        params,
        tuple(p.name for p in free),
        before,
        after,
        len(cases),
        evaluations,
        tuple(p.name for p, bound in zip(free, near, strict=True) if bound),
    )


def all_residuals(cases: Sequence[Case], params: Mapping[str, float]) -> Array:
    """Residuals of every case, one after the other."""
    return np.concatenate([residuals(case.kernel, case.replay(params)) for case in cases])


def loss_of(found: Array, n_cases: int) -> float:
    """Mean over cases of the rounded-off squares: 1 is about one allowed error in one measure."""
    return float(np.sum(2.0 * (np.sqrt(1.0 + found**2) - 1.0)) / n_cases)


def with_values(
    start: Mapping[str, float], free: Sequence[Free], logarithms: Array
) -> dict[str, float]:
    """A whole set with the free parameters replaced."""
    values = (float(value) for value in np.exp(logarithms))
    return dict(start) | dict(zip((p.name for p in free), values, strict=True))
