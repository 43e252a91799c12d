"""Raw metrics of a scored stretch, one number a host: what stands beside every score.

They are sums of what the model measures each tick, brought to a share, a rate or a mean.  Slots
without a cgroup count for nothing.

Units: named by each metric; GiB are 2**30 bytes, MiB 2**20, an hour is 3,600 scored ticks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from memcg_gym.envs.contract.shield_rules import Shielded
from memcg_gym.envs.reward import Metric

Array = np.ndarray[Any, np.dtype[Any]]
REASONS: tuple[str, ...] = tuple(str(reason.name).lower() for reason in Shielded)
"""The shield's reasons in the order in which rollouts count them."""

PAGES_PER_GIB = 2.0**18
PAGES_PER_MIB = 2.0**8
SECONDS_PER_HOUR = 3600.0


class HostMetric(NamedTuple):
    """One raw metric of a host.

    Attributes:
        name: Stable name.
        unit: Of the value.
        meaning: One line.
    """

    name: str
    unit: str
    meaning: str


HOST_METRICS: tuple[HostMetric, ...] = (
    HostMetric("slo_violated", "share", "cgroup-seconds with p99 above the objective"),
    HostMetric("slowdown_mean", "ratio", "p99 over its objective, mean weighted by value"),
    HostMetric("slowdown_worst", "ratio", "the same, mean of the worst cgroup"),
    HostMetric("served", "share", "requests served over arrived"),
    HostMetric("requests", "1/s", "requests served by the host"),
    HostMetric("dram", "GiB", "DRAM held by managed cgroups, zswap included"),
    HostMetric("memory", "GiB", "DRAM and slow tier held by managed cgroups"),
    HostMetric("swap", "GiB", "swap held, in memory or on disk"),
    HostMetric("inversion", "s/h", "a lock holder stalled on memory while others waited"),
    HostMetric("critical_stall", "s/h", "memory stalls of latency-critical threads"),
    HostMetric("refaults", "1/s", "pages read back after eviction"),
    HostMetric("oom_kills", "1/h", "kills by the kernel's OOM killer"),
    HostMetric("policy_kills", "1/h", "kills by the policy"),
    HostMetric("over_util", "share", "cgroup-seconds with the host over its utilization line"),
    HostMetric("swap_writes", "MiB/s", "written to the swap device"),
    HostMetric("shed", "share", "load that was shed"),
    HostMetric("interventions", "1/h", "decisions of a cgroup that the shield changed, all kinds"),
)


class Sums(NamedTuple):
    """What a scored stretch adds up to.

    Attributes:
        ticks: Its length.
        cgroup_ticks: Ticks each slot held a cgroup, ``[H, N]``.
        metrics: Sums of :class:`~memcg_gym.envs.reward.Metric`, ``[H, N, N_METRICS]``.
        interventions: By reason, ``[H, N, len(REASONS)]``.
        values: Worth of each cgroup, ``[H, N]``.
        oom_kills: By the kernel, ``[H]``.
    """

    ticks: int
    cgroup_ticks: Array
    metrics: Array
    interventions: Array
    values: Array
    oom_kills: Array


def host_metrics(sums: Sums) -> Array:
    """Every metric of every host, shape ``(H, len(HOST_METRICS))``."""
    total = sums.metrics.sum(axis=1)
    present = np.maximum(sums.cgroup_ticks.sum(axis=1), 1.0)
    hours = sums.ticks / SECONDS_PER_HOUR
    kills = total[:, Metric.KILLS]
    columns = {
        "slo_violated": total[:, Metric.SLO_VIOLATED_S] / present,
        "slowdown_mean": _slowdown_mean(sums),
        "slowdown_worst": _slowdown_worst(sums),
        "served": total[:, Metric.REQUESTS] / np.maximum(total[:, Metric.ARRIVED], 1.0),
        "requests": total[:, Metric.REQUESTS] / sums.ticks,
        "dram": total[:, Metric.DRAM_PAGES] / sums.ticks / PAGES_PER_GIB,
        "memory": total[:, Metric.MEMORY_PAGES] / sums.ticks / PAGES_PER_GIB,
        "swap": total[:, Metric.SWAP_PAGES] / sums.ticks / PAGES_PER_GIB,
        "inversion": total[:, Metric.INVERSION_S] / hours,
        "critical_stall": total[:, Metric.CRITICAL_STALL_S] / hours,
        "refaults": total[:, Metric.REFAULT_PAGES] / sums.ticks,
        "oom_kills": sums.oom_kills / hours,
        "policy_kills": np.maximum(kills - sums.oom_kills, 0.0) / hours,
        "over_util": total[:, Metric.OVER_UTIL_S] / present,
        "swap_writes": total[:, Metric.SWAP_WRITE_PAGES] / sums.ticks / PAGES_PER_MIB,
        "shed": total[:, Metric.SHED] / present,
        "interventions": intervention_rates(sums).sum(axis=1),
    }
    return np.stack([columns[metric.name] for metric in HOST_METRICS], axis=1)


def intervention_rates(sums: Sums) -> Array:
    """Shield interventions per cgroup-hour by reason, shape ``(H, len(REASONS))``."""
    cgroup_hours = np.maximum(sums.cgroup_ticks.sum(axis=1), 1.0) / SECONDS_PER_HOUR
    rates: Array = sums.interventions.sum(axis=1) / cgroup_hours[:, None]
    return rates


def _slowdown_mean(sums: Sums) -> Array:
    weighted = (sums.metrics[..., Metric.SLOWDOWN] * sums.values).sum(axis=1)
    weight = (sums.cgroup_ticks * sums.values).sum(axis=1)
    mean: Array = weighted / np.maximum(weight, 1e-9)
    return mean


def _slowdown_worst(sums: Sums) -> Array:
    means = sums.metrics[..., Metric.SLOWDOWN] / np.maximum(sums.cgroup_ticks, 1.0)
    worst: Array = means.max(axis=1)
    return worst
