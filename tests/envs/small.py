"""A host of three small cgroups, one of them let to tenants who soon leave: quick to step."""

from __future__ import annotations

import tomllib
from functools import cache

from memcg_gym.configs.loader import load_objective, validate
from memcg_gym.configs.schema import ObjectiveConfig, ScenarioConfig
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv

SMALL_TOML = """
name = "small"
summary = "Three small cgroups, one of them let to short tenants."
heads = ["throttle", "reclaim", "protect", "kill"]
episode_ticks = 20
settle_ticks = 5

[host]
cpus = 4
dram_gib = { train = [0.9, 1.1], test = [0.8, 1.0] }
swap_gib = 1

[[cgroups]]
name = "service"
copies = 2
priority = 2
value = 3
[cgroups.workload]
requests_per_s = { train = [80, 120], test = [100, 140] }
[[cgroups.workload.regions]]
name = "heap"
popularity = "zipf:1.1"
size_mib = { train = [200, 300], test = [250, 350] }
touches_per_request = 20

[[cgroups]]
name = "tenant"
max_mib = 300
tenancy = { stays_s = 6, vacant_s = 3 }
[cgroups.workload]
requests_per_s = 50
[[cgroups.workload.regions]]
name = "heap"
pattern = "uniform"
size_mib = 150
touches_per_request = 30
"""


@cache
def small_scenario() -> ScenarioConfig:
    return validate(ScenarioConfig, tomllib.loads(SMALL_TOML), "small")


@cache
def objective() -> ObjectiveConfig:
    return load_objective()


def small_env(hosts: int = 3, seed: int = 1, threads: int = 1, shield: bool = True) -> CgroupVecEnv:
    return CgroupVecEnv(
        small_scenario(), objective(), hosts=hosts, seed=seed, threads=threads, shield=shield
    )
