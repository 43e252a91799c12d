"""Small worlds for the model's tests: hosts of one or two cgroups that do one thing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from memcg_gym.configs.loader import load_objective
from memcg_gym.configs.schema import HostKindName, ScenarioConfig
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.core import HostBatch

PAGES_PER_MIB = 256
HEAP: dict[str, Any] = {
    "name": "heap",
    "pattern": "uniform",
    "size_mib": 400,
    "touches_per_request": 50,
}
CACHE: dict[str, Any] = {**HEAP, "name": "cache", "kind": "file"}


def cgroup(name: str, *regions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A cgroup of eight threads under a steady load; ``changes`` may name workload fields too."""
    workload: dict[str, Any] = {
        "requests_per_s": 400,
        "cpu_us_per_request": 500,
        "threads_tolerant": 8,
        "arrival": {"kind": "constant"},
        "regions": list(regions) or [HEAP],
    }
    own: dict[str, Any] = {"name": name}
    for key, value in changes.items():
        (workload if key in WORKLOAD_FIELDS else own)[key] = value
    return {**own, "workload": workload}


WORKLOAD_FIELDS = (
    "requests_per_s",
    "threads_critical",
    "threads_tolerant",
    "slo_p99_ms",
    "burst",
    "phase",
    "lock",
    "elasticity",
)


def world(*cgroups: dict[str, Any], **host: Any) -> ScenarioConfig:
    """A scenario of the given cgroups on a host with 4 GiB and a fast device."""
    machine: dict[str, Any] = {"cpus": 16, "dram_gib": 4, "swap_gib": 4, "zswap_max_ratio": 0.0}
    machine |= {"disk": {"iops": 200_000}, **host}
    heads = ["throttle", "reclaim", "protect", "shed", "kill"]
    if "slow_gib" in host:
        heads.append("demote")
    return ScenarioConfig.model_validate(
        {
            "name": "test",
            "summary": "a test's",
            "heads": heads,
            "host": machine,
            "cgroups": list(cgroups),
        }
    )


def batch_of(
    scenario: ScenarioConfig, kind: HostKindName = "stock", n_hosts: int = 1, seed: int = 0
) -> HostBatch:
    """A fresh batch without a shield."""
    batch = HostBatch(scenario, load_objective(), n_hosts=n_hosts, host_kind=kind, shield=False)
    batch.reset(seed)
    return batch


def run(batch: HostBatch, ticks: int, **knobs: npt.ArrayLike) -> None:
    """Step under the owner's configuration with some knobs overwritten, by name, per cgroup."""
    for _ in range(ticks):
        wanted = batch.owner_knobs()
        for name, value in knobs.items():
            wanted[..., Knob[name.upper()]] = value
        batch.step_knobs(wanted)


def anon_pages(batch: HostBatch, at: int = 0) -> float:
    """memory.stat anon of a cgroup of the first host [pages]."""
    return float(batch.memcgs[0, at]["anon"])


def pages(batch: HostBatch, field: str, at: int = 0) -> Any:
    """A field of one cgroup of the first host, as a copy."""
    return np.copy(batch.memcgs[0, at][field])
