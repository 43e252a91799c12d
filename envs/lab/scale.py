"""A scenario made small enough for a virtual machine, with every ratio kept.

Sizes, touch rates, allocation rates, request rates, device operations and CPUs are divided by one
number; latencies, CPU time a request, touches a request and times stay.  Each page is then touched
as often as before, memory fills as fast, and stalls take the same share of time.  What does not
scale is said in docs/lab.md: the kernel's own constants (batches of 64 pages, a swap cluster), and
one thread cannot be divided.

The result is an ordinary scenario: the model runs it too, so both worlds face the same host.
"""

from __future__ import annotations

import math
from typing import Any

from memcg_gym.configs.schema import ObjectiveConfig, ScenarioConfig
from memcg_gym.envs.contract.errors import ConfigError

HOST_SIZES = ("dram_gib", "slow_gib", "swap_gib")
CGROUP_SIZES = ("min_mib", "low_mib", "high_mib", "max_mib", "swap_max_mib", "memsw_mib")


def scale_scenario(scenario: ScenarioConfig, divisor: float, *, cpus: int = 1) -> ScenarioConfig:
    """The same scenario on a host ``divisor`` times smaller.

    Args:
        scenario: A full-size scenario.
        divisor: What sizes and rates are divided by; 1 changes nothing but the CPUs.
        cpus: CPUs of the small host.

    Raises:
        ConfigError: The divisor is not at least 1.

    Example:
        >>> from memcg_gym.configs.loader import load_scenario
        >>> scale_scenario(load_scenario("burst"), 16).host.cpus
        1
    """
    if not math.isfinite(divisor) or divisor < 1:
        raise ConfigError(f"lab scale: divisor {divisor!r}: needs a number of at least 1")
    data = scenario.model_dump()
    host = data["host"]
    host["cpus"] = cpus
    _divide(host, HOST_SIZES, divisor)
    _divide(host["disk"], ("iops",), divisor)
    host["slow_bandwidth_gb_s"] /= divisor
    for cgroup in data["cgroups"]:
        _divide(cgroup, CGROUP_SIZES, divisor)
        _scale_workload(cgroup["workload"], divisor)
    return ScenarioConfig.model_validate(data)


def scale_objective(objective: ObjectiveConfig, divisor: float) -> ObjectiveConfig:
    """The objective for the smaller host: its swap-wear budget is bytes per second of a host."""
    small = objective.swap_write_budget_mib_s / divisor
    return objective.model_copy(update={"swap_write_budget_mib_s": small})


def _scale_workload(work: dict[str, Any], divisor: float) -> None:
    _divide(work, ("requests_per_s",), divisor)
    for name in ("threads_critical", "threads_tolerant"):
        work[name] = _threads(work[name], divisor)
    for region in work["regions"]:
        _divide(region, ("size_mib",), divisor)
        region["touches_per_s"] /= divisor
    if work["burst"] is not None:
        _divide(work["burst"], ("rate_mib_per_s",), divisor)
    if work["lock"] is not None:
        work["lock"]["sections_per_s"] /= divisor


def _threads(threads: int, divisor: float) -> int:
    # Two at least where there were two: with a single thread PSI some and full are the same.
    return max(min(threads, 2), math.ceil(threads / divisor))


def _divide(table: dict[str, Any], names: tuple[str, ...], divisor: float) -> None:
    for name in names:
        table[name] = {
            split: tuple(value / divisor for value in span) for split, span in table[name].items()
        }
