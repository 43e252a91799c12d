"""Out of memory: the kernel's killer, a policy's kill, and the restart that follows.

Units: pages, seconds.
"""

from __future__ import annotations

from memcg_gym.envs.model.faults import free_region
from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import ANON


@compiled
def kill(host: Rec, memcg: Rec, regions: Rec) -> None:
    """All processes of a cgroup die: anonymous memory and swap go, page cache stays."""
    for r in range(regions.shape[0]):
        region = regions[r]
        if region.used and region.type == ANON:
            free_region(host, memcg, region, 1.0)
    memcg.alive = 0
    memcg.restart_left = memcg.restart_s
    memcg.queue = 0.0
    memcg.burst_on = 0
    memcg.burst_left_s = memcg.burst_every_s
    memcg.service_us = memcg.base_us
    memcg.killed += 1


@compiled
def out_of_memory(host: Rec, memcgs: Rec, regions: Rec) -> None:
    """Global OOM: mm/oom_kill.c picks the largest badness, rss + swap; no idea of value."""
    victim = -1
    worst = 0.0
    for i in range(host.n_memcgs):
        memcg = memcgs[i]
        if not memcg.used or not memcg.alive:
            continue
        badness = memcg.anon + memcg.shmem + memcg.swap
        if badness > worst:
            worst = badness
            victim = i
    if victim >= 0:
        memcgs[victim].oom_kill += 1.0
        host.oom_kills += 1.0
        kill(host, memcgs[victim], regions[victim])


@compiled
def restart(memcg: Rec) -> None:
    """Once a tick: count down, then the workload starts again, cold."""
    if memcg.alive or not memcg.present:
        return
    memcg.restart_left -= 1
    if memcg.restart_left <= 0:
        memcg.alive = 1
