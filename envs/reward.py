"""From a tick to reward terms: the objective's clauses, each under its own name.

A row's reward is the sum of its own terms and of an N-independent price on what it does to
others: memory it holds beyond its working set while the host is over its ceiling or stalls, and
stalls it causes while it holds a lock others want.  Own reward alone is a tragedy of the commons,
pure team reward collapses for some seeds; the score of a host leaves the ``harm`` price out.

Units: every term is between about -1 and 0 before its weight, per cgroup and second.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from memcg_gym.configs.schema import ObjectiveConfig
from memcg_gym.envs.contract.heads import N_HEADS
from memcg_gym.envs.contract.signals import HostSig, Sig
from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Array, Rec
from memcg_gym.envs.model.state import FAST, SLOW

PAGES_PER_MIB = 256.0


class Term(IntEnum):
    """Index of a reward term."""

    SLO = 0
    THROUGHPUT = 1
    INVERSION = 2
    CRITICAL_STALL = 3
    MEMORY = 4
    UTIL = 5
    HARM = 6
    SHED = 7
    KILL = 8
    SWAP_WEAR = 9
    CHURN = 10


class Metric(IntEnum):
    """Index of a raw per-cgroup metric of one tick."""

    P99_US = 0
    SLOWDOWN = 1
    REQUESTS = 2
    ARRIVED = 3
    DRAM_PAGES = 4
    MEMORY_PAGES = 5
    SWAP_PAGES = 6
    INVERSION_S = 7
    CRITICAL_STALL_S = 8
    REFAULT_PAGES = 9
    KILLS = 10
    SWAP_WRITE_PAGES = 11
    SHED = 12
    OVER_UTIL_S = 13
    SLO_VIOLATED_S = 14


N_TERMS = len(Term)
N_METRICS = len(Metric)
TERM_NAMES: tuple[str, ...] = tuple(t.name.lower() for t in Term)
METRIC_NAMES: tuple[str, ...] = tuple(m.name.lower() for m in Metric)
SCORE_TERMS: Array = np.array([t is not Term.HARM for t in Term])


class Weight(IntEnum):
    """Index into the objective's numbers as :func:`weights_of` lays them out."""

    SLO = 0
    THROUGHPUT = 1
    INVERSION = 2
    CRITICAL_STALL = 3
    MEMORY = 4
    UTIL = 5
    HARM = 6
    SHED = 7
    KILL = 8
    SWAP_WEAR = 9
    CHURN = 10
    UTIL_CEILING = 11
    SLO_SOFTNESS = 12
    SLOW_MEMORY_COST = 13
    SWAP_BUDGET_PAGES = 14


def weights_of(objective: ObjectiveConfig) -> Array:
    """The objective as one float64 array, shape ``(len(Weight),)``."""
    o = objective
    return np.array(
        [
            o.slo_weight,
            o.throughput_weight,
            o.inversion_weight,
            o.critical_stall_weight,
            o.memory_weight,
            o.util_weight,
            o.harm_weight,
            o.shed_weight,
            o.kill_weight,
            o.swap_wear_weight,
            o.churn_weight,
            o.util_ceiling_ratio,
            o.slo_softness,
            o.slow_memory_cost,
            o.swap_write_budget_mib_s * PAGES_PER_MIB,
        ]
    )


@compiled
def measure(
    host: Rec,
    memcgs: Rec,
    signals: Array,
    before: Array,
    host_signals: Array,
    weights: Array,
    metrics: Array,
) -> None:
    """Fill the raw metrics of one host's tick, shape ``(N, N_METRICS)``."""
    util = 1.0 - host_signals[HostSig.AVAILABLE_BYTES] / host_signals[HostSig.TOTAL_BYTES]
    over_util = 1.0 if util > weights[Weight.UTIL_CEILING] else 0.0
    for i in range(host.n_memcgs):
        memcg = memcgs[i]
        out = metrics[i]
        if not memcg.present:
            out[:] = 0.0
            continue
        slowdown = memcg.p99_us / memcg.slo_us
        if not memcg.alive:
            slowdown = DEAD_SLOWDOWN
        out[Metric.P99_US] = memcg.p99_us
        out[Metric.SLOWDOWN] = slowdown
        out[Metric.REQUESTS] = memcg.requests
        out[Metric.ARRIVED] = memcg.arrived
        out[Metric.DRAM_PAGES] = memcg.node[FAST] + memcg.zswap
        out[Metric.MEMORY_PAGES] = memcg.node[FAST] + memcg.node[SLOW] + memcg.zswap
        out[Metric.SWAP_PAGES] = memcg.swap
        out[Metric.INVERSION_S] = memcg.inversion_s
        out[Metric.CRITICAL_STALL_S] = memcg.critical_stall_s
        out[Metric.REFAULT_PAGES] = (
            signals[i, Sig.REFAULT_ANON]
            - before[i, Sig.REFAULT_ANON]
            + signals[i, Sig.REFAULT_FILE]
            - before[i, Sig.REFAULT_FILE]
        )
        out[Metric.KILLS] = memcg.killed
        out[Metric.SWAP_WRITE_PAGES] = memcg.swap_write_tick
        out[Metric.SHED] = memcg.shed
        out[Metric.OVER_UTIL_S] = over_util
        out[Metric.SLO_VIOLATED_S] = 1.0 if slowdown > 1.0 else 0.0


DEAD_SLOWDOWN = 8.0
"""What a cgroup that is down counts as: its requests wait far beyond any objective."""


@compiled
def reward_terms(
    host: Rec,
    memcgs: Rec,
    metrics: Array,
    signals: Array,
    host_now: Array,
    host_before: Array,
    changes: Array,
    weights: Array,
    terms: Array,
) -> None:
    """Fill one host's weighted reward terms, shape ``(N, N_TERMS)``.

    Args:
        changes: Heads whose accepted level changed this tick, shape ``(N,)``.
    """
    n = host.n_memcgs
    fair = (host.total_pages - host.reserved_pages) / n
    util = 1.0 - host_now[HostSig.AVAILABLE_BYTES] / host_now[HostSig.TOTAL_BYTES]
    ceiling = weights[Weight.UTIL_CEILING]
    over = max(0.0, min((util - ceiling) / (1.0 - ceiling), 1.0)) if ceiling < 1.0 else 0.0
    stall_us = host_now[HostSig.PSI_MEM_SOME_US] - host_before[HostSig.PSI_MEM_SOME_US]
    pressure = min(stall_us * 1e-6, 1.0)
    mean_value = mean_present_value(memcgs, n)
    budget = weights[Weight.SWAP_BUDGET_PAGES] / n
    for i in range(n):
        memcg = memcgs[i]
        out = terms[i]
        if not memcg.present:
            out[:] = 0.0
            continue
        worth = min(max(memcg.value / mean_value, 0.25), 3.0)
        row = metrics[i]
        miss = max(0.0, row[Metric.SLOWDOWN] - 1.0) / weights[Weight.SLO_SOFTNESS]
        # A missed objective counts by the requests that miss it: an idle service's few slow ones
        # are not an outage.
        traffic = min(row[Metric.ARRIVED] / max(memcg.requests_per_s, 1.0), 1.0)
        unserved = max(0.0, row[Metric.ARRIVED] * (1.0 - memcg.shed) - row[Metric.REQUESTS])
        held = row[Metric.DRAM_PAGES]
        slow = row[Metric.MEMORY_PAGES] - held
        excess = max(0.0, row[Metric.MEMORY_PAGES] - memcg.wss_pages) / fair
        out[Term.SLO] = -weights[Weight.SLO] * worth * traffic * (1.0 - 1.0 / (1.0 + miss))
        out[Term.THROUGHPUT] = (
            -weights[Weight.THROUGHPUT] * worth * unserved / max(row[Metric.ARRIVED], 1.0)
        )
        out[Term.INVERSION] = -weights[Weight.INVERSION] * memcg.harm_s
        out[Term.CRITICAL_STALL] = -weights[Weight.CRITICAL_STALL] * row[Metric.CRITICAL_STALL_S]
        out[Term.MEMORY] = (
            -weights[Weight.MEMORY] * (held + weights[Weight.SLOW_MEMORY_COST] * slow) / fair
        )
        out[Term.UTIL] = -weights[Weight.UTIL] * over * min(excess, 2.0)
        out[Term.HARM] = -weights[Weight.HARM] * pressure * min(excess, 2.0)
        out[Term.SHED] = -weights[Weight.SHED] * worth * memcg.shed
        out[Term.KILL] = -weights[Weight.KILL] * worth * memcg.killed
        out[Term.SWAP_WEAR] = -weights[Weight.SWAP_WEAR] * min(
            row[Metric.SWAP_WRITE_PAGES] / budget, 10.0
        )
        out[Term.CHURN] = -weights[Weight.CHURN] * changes[i] / N_HEADS


@compiled
def mean_present_value(memcgs: Rec, n: int) -> float:
    """Mean value of the cgroups that are there."""
    total = 0.0
    count = 0
    for i in range(n):
        if memcgs[i].present:
            total += memcgs[i].value
            count += 1
    return total / count if count > 0 else 1.0


@compiled
def sum_terms(terms: Array) -> float:
    """The reward of one row: its terms added in their order, so that the sum is exact."""
    total = 0.0
    for k in range(N_TERMS):
        total += terms[k]
    return total
