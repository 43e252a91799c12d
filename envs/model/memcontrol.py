"""The charge path's limits: mm/memcontrol.c try_charge_memcg and mem_cgroup_handle_over_high.

memory.max reclaims in the allocating task and ends in OOM; memory.high reclaims what was charged
over it and sleeps only when reclaim makes no progress.

Units: pages, microseconds.
"""

from __future__ import annotations

import math

from memcg_gym.envs.contract.heads import HostKind
from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.oom import kill
from memcg_gym.envs.model.page_counter import MEMCG_CHARGE_BATCH, high_delay_us
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import SUBSTEP_US
from memcg_gym.envs.model.vmscan import DIRECT, try_to_free_mem_cgroup_pages

SLEEPLESS_OVERAGE = math.sqrt(0.01 / MEMCG_CHARGE_BATCH)
"""Overage whose delay for one batch is the 10 ms that are not slept: 1.25 %."""

MAX_TRIES = 16  # MAX_RECLAIM_RETRIES


@compiled
def charge_limits(params: Rec, host: Rec, memcg: Rec, regions: Rec) -> None:
    """Apply memory.max and memory.high to what this sub-step charged."""
    batches = memcg.charged / params.charge_batch_pages
    if memcg.usage > memcg.limit_max:
        over_max(params, host, memcg, regions, batches)
    if memcg.usage > memcg.limit_high:
        handle_over_high(params, host, memcg, regions, batches)
    elif host.kind == HostKind.BPF and memcg.stall_ceiling_us > 0.0 and memcg.charged > 0.0:
        throttle_by_hook(memcg, batches)


@compiled
def over_max(params: Rec, host: Rec, memcg: Rec, regions: Rec, batches: float) -> None:
    """Direct reclaim in the charging task, then OOM inside the cgroup."""
    memcg.events_max += batches
    for _ in range(MAX_TRIES):
        over = memcg.usage - memcg.limit_max
        if over <= 0.0:
            return
        if try_to_free_mem_cgroup_pages(params, host, memcg, regions, over, DIRECT) < 0.5:
            break
    if memcg.usage - memcg.limit_max > params.charge_batch_pages and memcg.charged > 0.0:
        memcg.oom_kill += 1.0
        host.oom_kills += 1.0
        kill(host, memcg, regions)


@compiled
def handle_over_high(params: Rec, host: Rec, memcg: Rec, regions: Rec, batches: float) -> None:
    """Reclaim what was charged; go on while the penalty is over 10 ms; sleep without progress."""
    memcg.events_high += batches
    over = memcg.usage - memcg.limit_high
    beyond = memcg.usage - memcg.limit_high * (1.0 + SLEEPLESS_OVERAGE)
    want = max(min(over, memcg.charged + 32.0), beyond)
    if want <= 0.0 or memcg.charged <= 0.0:
        return
    gone = try_to_free_mem_cgroup_pages(params, host, memcg, regions, want, DIRECT)
    if gone >= 0.5 * want:
        return
    delay_us = high_delay_us(memcg.usage, memcg.limit_high, params.charge_batch_pages)
    if delay_us > 0.0:
        stuck = batches * (1.0 - gone / want)
        memcg.events_high += stuck * MAX_TRIES  # each try without progress raises the event anew
        sleep(host, memcg, stuck, delay_us)


@compiled
def throttle_by_hook(memcg: Rec, batches: float) -> None:
    """memcg_ext: every throttleable batch waits up to the ceiling; holders and critical do not."""
    share = 1.0 - memcg.critical_charged / max(memcg.charged, 1e-9)
    memcg.sleep_us += batches * share * memcg.stall_ceiling_us
    memcg.sleep_event_us = memcg.stall_ceiling_us


@compiled
def sleep(host: Rec, memcg: Rec, batches: float, delay_us: float) -> None:
    """schedule_timeout_killable inside psi_memstall, by whoever charged."""
    if memcg.tagged:  # the hook returns 0 for a lock holder or a critical thread
        batches *= 1.0 - memcg.critical_charged / max(memcg.charged, 1e-9)
    # a sleeping task charges no more: the threads of the cgroup bound how much is slept
    memcg.sleep_us += min(batches * delay_us, memcg.threads * SUBSTEP_US)
    memcg.sleep_event_us = delay_us
