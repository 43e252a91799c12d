"""Running a policy over a batch of hosts, and what came of it.

Knows nothing of statistics: it adds up, per cgroup, what the batch reports each tick.

Units: ticks of one second; weighted reward terms as the objective defines them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, Policy, View
from memcg_gym.envs.contract.heads import N_HEADS
from memcg_gym.envs.contract.shield_rules import Shielded
from memcg_gym.envs.contract.signals import Sig
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.reward import N_METRICS, N_TERMS, SCORE_TERMS

REASONS: tuple[Shielded, ...] = tuple(Shielded)
"""The shield's reasons in the order in which interventions are counted."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened tick by tick.

    Attributes:
        score: Mean over cgroups of the score terms, ``[T, H]``.
        usage_bytes: Memory charged, ``[T, H, N]``.
        levels: Accepted levels, int64 ``[T, H, N, N_HEADS]``; zero for policies that set knobs.
    """

    score: Array
    usage_bytes: Array
    levels: Array


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """Sums over the ticks of a rollout.

    Attributes:
        ticks: How many there were.
        next_tick: What ``first_tick`` should be to go on.
        cgroup_ticks: Ticks each slot held a cgroup, ``[H, N]``.
        terms: Weighted reward terms, ``[H, N, N_TERMS]``.
        metrics: Raw metrics, ``[H, N, N_METRICS]``.
        interventions: Shield interventions by reason, int64 ``[H, N, len(REASONS)]``.
        timeline: Per tick, where it was asked for.
    """

    ticks: int
    next_tick: int
    cgroup_ticks: Array
    terms: Array
    metrics: Array
    interventions: Array
    timeline: Timeline | None = None

    @property
    def score(self) -> Array:
        """Score of each host, ``[H]``: mean of the score terms over its cgroups and ticks."""
        total = self.terms[..., SCORE_TERMS].sum(axis=(1, 2))
        mean: Array = total / np.maximum(self.cgroup_ticks.sum(axis=1), 1)
        return mean


def view_of(batch: HostBatch, tick: int = 0) -> View:
    """What a policy may see of a batch."""
    return View(
        batch.features,
        batch.signals,
        batch.signals_before,
        batch.host_signals,
        batch.host_before,
        batch.active,
        tick,
    )


def attach(policy: Policy, batch: HostBatch) -> None:
    """Give a policy that needs more than the view (the clairvoyant one) the batch itself."""
    wants = getattr(policy, "attach", None)
    if wants is not None:
        wants(batch)


def step(batch: HostBatch, policy: Policy, tick: int) -> None:
    """One tick of a batch under a policy."""
    action = policy.act(view_of(batch, tick))
    if policy.speaks == "levels":
        batch.step_levels(action)
    else:
        batch.levels[...] = 0
        batch.step_knobs(action)


def rollout(
    batch: HostBatch,
    policy: Policy,
    ticks: int,
    *,
    seed: int = 0,
    reset: bool = True,
    first_tick: int = 0,
    timeline: bool = False,
) -> RolloutResult:
    """Step a batch under a policy and add up what came of it.

    Args:
        batch: Already reset; stepped in place.  Whether its shield is on is the caller's choice.
        policy: Any policy.
        ticks: How many ticks [s].
        seed: For policies that draw.
        reset: False goes on with the policy as it is, e.g. after it settled the hosts.
        first_tick: Ticks the policy has been in charge already.
        timeline: Keep a record per tick.

    Returns:
        Sums per cgroup, and the timeline if asked for.

    Example:
        >>> settled = rollout(batch, policy, 1800)
        >>> scored = rollout(batch, policy, 600, reset=False, first_tick=settled.next_tick)
    """
    if reset:
        policy.reset((batch.n_hosts, batch.n_cgroups), batch.supported, seed)
    attach(policy, batch)
    shape = (batch.n_hosts, batch.n_cgroups)
    cgroup_ticks = np.zeros(shape)
    terms = np.zeros((*shape, N_TERMS))
    metrics = np.zeros((*shape, N_METRICS))
    counts = np.zeros((*shape, len(REASONS)), dtype=np.int64)
    bits = np.array([int(reason) for reason in REASONS], dtype=np.int64)
    record = _empty_timeline(ticks if timeline else 0, shape)
    for k in range(ticks):
        step(batch, policy, first_tick + k)
        cgroup_ticks += batch.active
        terms += batch.terms
        metrics += batch.metrics
        if batch.interventions.any():
            counts += (batch.interventions[..., None] & bits) != 0
        if timeline:
            _note(record, k, batch)
    return RolloutResult(
        ticks,
        first_tick + ticks,
        cgroup_ticks,
        terms,
        metrics,
        counts,
        record if timeline else None,
    )


def _empty_timeline(ticks: int, shape: tuple[int, int]) -> Timeline:
    return Timeline(
        np.zeros((ticks, shape[0])),
        np.zeros((ticks, *shape)),
        np.zeros((ticks, *shape, N_HEADS), dtype=np.int64),
    )


def _note(record: Timeline, k: int, batch: HostBatch) -> None:
    cgroups = np.maximum(batch.active.sum(axis=1), 1)
    record.score[k] = batch.terms[..., SCORE_TERMS].sum(axis=(1, 2)) / cgroups
    record.usage_bytes[k] = batch.signals[..., Sig.USAGE_BYTES]
    record.levels[k] = batch.levels
