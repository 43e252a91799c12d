"""Locks held across allocation, and who waits: priority inversion by memory enforcement.

A holder that stalls inside its section keeps everybody else out.  memory.high sleeps happen on
return to user mode, so they hit holders of user mutexes but not of kernel locks; memory.max and
global direct reclaim hit both (reference: mm/memcontrol.c mem_cgroup_handle_over_high,
try_charge_memcg).

Units: microseconds, seconds.
"""

from __future__ import annotations

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import SUBSTEP_S, SUBSTEP_US, LockRole

CONTENDED_US = 50.0  # a section at rest shorter than this is not worth a futex wait (assumption)


@compiled
def hold(
    memcg: Rec, batches: float, reclaim_us: float, sleep_us: float, sleep_event_us: float
) -> None:
    """After the charge path: how much of the sub-step the holder kept its lock while stalled.

    Args:
        memcg: The holder.
        batches: Charge batches of this sub-step, over which stalls spread.
        reclaim_us: Direct reclaim of this sub-step.
        sleep_us, sleep_event_us: Throttle sleep in all, and of one event.
    """
    if memcg.lock_role != LockRole.HOLDER:
        return
    stall_us = reclaim_us * memcg.lock_charge_share
    event_us = reclaim_us / max(batches, 1.0)
    if not memcg.lock_kernel:
        inside_us = sleep_us * memcg.lock_charge_share
        stall_us += inside_us
        if inside_us > 0.0:
            event_us = max(event_us, sleep_event_us)
    memcg.lock_stalled = min(stall_us / SUBSTEP_US, 1.0)
    memcg.lock_event_us = min(event_us, 2e6)


@compiled
def wait(memcgs: Rec, n_memcgs: int, i: int) -> tuple[float, float]:
    """What waiter ``i`` meets: its chance of finding a stalled holder, and the wait then [us].

    Every attempt also pays the lock's ordinary contention.
    """
    memcg = memcgs[i]
    memcg.lock_waiting_us = 0.0
    if memcg.lock_role != LockRole.WAITER or not memcg.alive:
        return 0.0, 0.0
    stalled = 0.0
    event_us = 0.0
    for j in range(n_memcgs):
        holder = memcgs[j]
        if holder.lock_role != LockRole.HOLDER or holder.lock != memcg.lock or not holder.alive:
            continue
        stalled = max(stalled, holder.lock_stalled)
        event_us = max(event_us, holder.lock_event_us)
        attempts = memcg.lock_per_s * SUBSTEP_S
        busy_us = holder.lock_per_s * holder.lock_section_us * SUBSTEP_S
        # Those who arrive during a stall wait for what is left of it; at most all threads wait.
        waiting_us = min(
            attempts * holder.lock_stalled * 0.5 * holder.lock_event_us,
            memcg.threads * SUBSTEP_US * holder.lock_stalled,
        )
        waiting_us += attempts * min(busy_us / SUBSTEP_US, 1.0) * 0.5 * holder.lock_section_us
        if memcg.threads_critical > 0.0:
            present = min(1.0, memcg.lock_per_s * max(holder.lock_event_us, 1.0) * 1e-6)
            holder.harm_s += holder.lock_stalled * present * SUBSTEP_S
        book_wait(memcg, holder, waiting_us)
        memcg.lock_waiting_us += waiting_us
    if stalled > 0.0 and memcg.threads_critical > 0.0:
        # inversion: a critical waiter behind a holder that memory enforcement stalls
        present = min(1.0, memcg.lock_per_s * max(event_us, 1.0) * 1e-6)
        memcg.inversion_s += stalled * present * SUBSTEP_S
        memcg.critical_stall_s += stalled * present * SUBSTEP_S
    return stalled, event_us


@compiled
def book_wait(waiter: Rec, holder: Rec, waiting_us: float) -> None:
    """Attribute a wait to the cgroup whose task owns the lock, as the tracepoints do."""
    if waiting_us < 1.0:
        return
    held_us = holder.lock_stalled * SUBSTEP_US
    busy_us = holder.lock_per_s * holder.lock_section_us * SUBSTEP_S
    if holder.lock_section_us >= CONTENDED_US:
        held_us = min(held_us + busy_us, SUBSTEP_US)
    if holder.lock_kernel:
        holder.lock_kernel_us += held_us
    else:
        holder.lock_user_us += held_us
    holder.lock_wait_us += waiting_us
