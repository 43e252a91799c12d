"""A host of a scenario on a real kernel, with the face of :class:`HostBatch`.

The demand (load, phases, bursts, tenants, restarts) comes from the model's own code, so both
worlds want the same at the same tick; everything that memory does to it comes from the guest.  The
decision passes the same shield and the same adapter, becomes writes by the enforcer's planner, and
what the guest's files say afterwards is read by the enforcer's readers.  The objective's
arithmetic is the model's.

Units: bytes in signals, pages in records, microseconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from memcg_gym.configs.schema import ObjectiveConfig, ScenarioConfig, Split
from memcg_gym.enforcer.lru_gen import AgingSchedule
from memcg_gym.enforcer.writer import plan_writes
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import PAGE_BYTES, HostSig, Sig
from memcg_gym.envs.core import KNOBS, LEVELS, HostBatch, begin_vectors, decide, observe
from memcg_gym.envs.guest_plan import guest_mib, plan_of
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.machine import Hardware, Machine
from memcg_gym.envs.lab.plan import Demand
from memcg_gym.envs.lab.protocol import LabError
from memcg_gym.envs.lab.qemu import Accel
from memcg_gym.envs.lab.session import LockSource, Session, SlotOrder, Snapshot
from memcg_gym.envs.lab.stats import SlotStats, quantile_us
from memcg_gym.envs.model.oom import restart
from memcg_gym.envs.model.records import Array
from memcg_gym.envs.model.state import FAST, SLOW, LockRole
from memcg_gym.envs.model.workload import begin_tick
from memcg_gym.envs.reward import measure, reward_terms, sum_terms

LATENCY_TICKS = 5
"""Ticks a p99 is taken over: a scaled host serves tens of requests a second, not hundreds."""

SEED_MASK = (1 << 31) - 1


class KernelBatch(HostBatch):
    """One host of a scenario in a guest.

    Args:
        scenario: Already small enough for a guest (:func:`~memcg_gym.envs.lab.scale`).
        objective: What counts, scaled alike.
        image: The guest's kernel and programs.
        shield: False lets every decision through.
        accel: ``"auto"``, ``"tcg"`` or ``"kvm"``.
        make_machine: Makes what is stepped, from an image and its hardware.
        lock_source: Who says who holds locks: the workloads' own tags, or the guest's tracepoints.

    Attributes:
        snapshot: What the guest said last.

    Raises:
        LabError, GuestError: The guest cannot be had, or died; with its last console lines.
    """

    def __init__(
        self,
        scenario: ScenarioConfig,
        objective: ObjectiveConfig,
        image: GuestImage,
        *,
        shield: bool = True,
        accel: Accel | Literal["auto"] = "auto",
        make_machine: Callable[[GuestImage, Hardware], Machine] = Machine,
        lock_source: LockSource = "tag",
    ) -> None:
        super().__init__(scenario, objective, n_hosts=1, host_kind="stock", shield=shield)
        self.image = image
        self.accel: Accel | Literal["auto"] = accel
        self.make_machine = make_machine
        self.lock_source: LockSource = lock_source
        self.session: Session | None = None
        self.snapshot: Snapshot | None = None

    def reset_host(self, at: int, seed: int, split: Split = "train") -> None:
        """Boot a fresh guest and load it with the host that this seed draws."""
        self.close()
        # Draws the host and its demand; what the model lays out in memory is not looked at.
        super().reset_host(at, seed, split)
        host = self.hosts[0]
        plan = plan_of(self.scenario, host, self.memcgs[0], self.regions[0], self.layout)
        hardware = Hardware(
            cpus=int(host.cpus),
            memory_mib=memory_mib(host, plan.devices.swap_mib),
            slow_mib=int(host.node_pages[SLOW]) * PAGE_BYTES >> 20,
            seed=seed & SEED_MASK,
            accel=self.accel,
        )
        self._stats = [SlotStats() for _ in range(self.n_cgroups)]
        self._latency: list[deque[np.ndarray]] = [
            deque(maxlen=LATENCY_TICKS) for _ in range(self.n_cgroups)
        ]
        self._aging = AgingSchedule()
        machine = self.make_machine(self.image, hardware)
        self.session = Session(machine, plan, self._tell, self.lock_source)
        try:
            self._begin(self.session.start())
        except BaseException:
            self.close()
            raise

    def clone(self) -> HostBatch:
        """Refused: a real kernel has one future."""
        raise LabError("kernel batch: a running guest cannot be copied")

    def copy_host(self, source: HostBatch, source_at: int, at: int) -> None:
        """Refused: a real kernel has one future."""
        raise LabError("kernel batch: a running guest cannot be copied")

    def close(self) -> None:
        """End the guest."""
        if self.session is not None:
            self.session.close()
            self.session = None

    def _begin(self, snapshot: Snapshot) -> None:
        assert self.session is not None
        self._take(snapshot)
        host, total = self.hosts[0], snapshot.host_signals[HostSig.TOTAL_BYTES] / PAGE_BYTES
        host.reserved_pages = total - self.session.available_bytes / PAGE_BYTES
        host.total_pages = total
        self.signals_before[...] = self.signals
        self.host_before[...] = self.host_signals
        begin_vectors(
            self.memcgs[0],
            self.signals[0],
            self.signals_before[0],
            self.host_signals[0],
            self.host_before[0],
            self.averages[0],
            self.guard[0],
            self.host_guard[0],
            self.knobs[0],
            self.pending_knobs[0],
            self.features[0],
            self.observation[0],
            self.active[0],
            self.born[0],
        )

    def _step(self, mode: int) -> None:
        if self.session is None:
            raise LabError("kernel batch: no guest is running; call reset first")
        changes = np.zeros(self.n_cgroups)
        if mode == LEVELS:
            self._decide(changes)
        else:
            self.interventions[...] = 0
        self.signals_before[...] = self.signals
        self.host_before[...] = self.host_signals
        orders = [self._order(i, mode) for i in range(self.n_cgroups)]
        self._take(self.session.tick(orders, self._aging_writes()))
        self._judge(changes)
        observe(
            self.memcgs[0],
            self.signals[0],
            self.signals_before[0],
            self.host_signals[0],
            self.host_before[0],
            self.averages[0],
            self.guard[0],
            self.features[0],
            self.observation[0],
            self.active[0],
            self.born[0],
        )

    def _decide(self, changes: Array) -> None:
        decide(
            self.hosts[0],
            self.shield,
            self.lines,
            self.supported,
            self.levels[0],
            self.signals[0],
            self.features[0],
            self.active[0],
            self.guard[0],
            self.host_guard[0],
            self.knobs[0],
            changes,
            self.interventions[0],
        )

    def _aging_writes(self) -> dict[str, str]:
        assert self.session is not None
        return self._aging.writes(self.session.mirror.roots, int(self.hosts[0].tick))

    def _order(self, i: int, mode: int) -> SlotOrder:
        """One cgroup's coming tick: what its workload wants, what enforcement writes."""
        assert self.snapshot is not None and self.session is not None
        host, memcg, knobs = self.hosts[0], self.memcgs[0, i], self.knobs[0, i]
        if i == 0:
            host.tick += 1
        order = SlotOrder()
        before = (int(memcg.present), int(memcg.alive), int(memcg.burst_on), memcg.phase_left_s)
        memcg.killed = 0
        memcg.shed_asked = knobs[Knob.SHED_RATIO]
        restart(memcg)
        begin_tick(host, memcg, self.regions[0, i], self.layout.traces, i)
        order.events += self._events(i, *before)
        order.demand = Demand(
            load=float(memcg.load) if memcg.alive else 0.0,
            shed=float(memcg.shed),
            burst_on=bool(memcg.burst_on),
            burst_pages_per_s=float(memcg.burst_pages_per_s),
            burst_target_pages=self._burst_target(i),
        )
        if memcg.alive:
            # A hand policy writes what it says; the enforcer lowers memory.high in steps.
            usage = self.signals[0, i, Sig.USAGE_BYTES] if mode != KNOBS else math.nan
            order.writes = plan_writes(
                knobs,
                self.snapshot.settings[i],
                self.session.managed[i].owner,
                float(usage),
                PAGE_BYTES,
            )
        return order

    def _events(
        self, i: int, present: int, alive: int, burst_on: int, phase_left_s: float
    ) -> list[str]:
        """What the demand's step asks of the agent."""
        memcg = self.memcgs[0, i]
        if present and not memcg.present:
            return [f"stop {i}"]
        if memcg.alive and not alive:
            return [f"start {i}"]
        events = []
        if burst_on and not memcg.burst_on and memcg.series < 0:
            events.append(f"free_burst {i}")
        target = self._burst_target(i)
        if target and self._stats[i]["burst_pages"] > 1.25 * target:
            events.append(f"free_burst {i}")
        woke = memcg.phase_left_s > phase_left_s and not memcg.phase_idle
        if woke and memcg.phase_overlap < 1.0:
            seed = (int(self.hosts[0].tick) * 64 + i) & SEED_MASK
            events.append(f"remix {i} overlap={float(memcg.phase_overlap):.9g} seed={seed}")
        return events

    def _burst_target(self, i: int) -> float:
        """Pages a recorded series holds now; 0 = the burst is not driven by one."""
        memcg = self.memcgs[0, i]
        if memcg.series < 0:
            return 0.0
        trace = self.layout.traces[memcg.series]
        at = (int(memcg.trace_offset) + int(self.hosts[0].tick)) % len(trace)
        return max(float(trace[at]), 1.0)

    def _tell(self, stats: Sequence[SlotStats]) -> list[Mapping[Sig, float]]:
        """What each workload would tell its host: locks, load, slack; keeps the latency window."""
        told: list[Mapping[Sig, float]] = []
        for i, (now, before) in enumerate(zip(stats, self._stats, strict=True)):
            memcg = self.memcgs[0, i]
            self._latency[i].append(now.latency - before.latency)
            p99 = quantile_us(np.sum(self._latency[i], axis=0), 0.99)
            memcg.p99_us = memcg.base_us if math.isnan(p99) else p99
            kernel = bool(memcg.lock_kernel)
            told.append(
                {
                    Sig.LOCK_USER_HELD_US: 0.0 if kernel else now["lock_held_us"],
                    **({Sig.LOCK_KERNEL_HELD_US: now["lock_held_us"]} if kernel else {}),
                    Sig.LOCK_WAIT_US: now["lock_waiters_us"],
                    Sig.LOCK_WAITERS: max(0.0, now["lock_waiters_us"] - before["lock_waiters_us"])
                    * 1e-6,
                    Sig.CRITICAL_CHARGE_PAGES: now["critical_faults"],
                    Sig.LOAD_RATIO: float(memcg.load * (1.0 - memcg.shed)),
                    Sig.SLACK_RATIO: float(1.0 - memcg.p99_us / memcg.slo_us),
                    Sig.SLACK_VALID: float(now.alive),
                    Sig.SHED_HONOURED_RATIO: float(memcg.honoured),
                }
            )
        return told

    def _take(self, snapshot: Snapshot) -> None:
        """The guest's tick as signals and as the record fields the objective looks at."""
        self.signals[0] = snapshot.signals
        self.host_signals[0] = snapshot.host_signals
        excess_s = self._lock_excess(snapshot.stats)
        for i, now in enumerate(snapshot.stats):
            memcg, before, row = self.memcgs[0, i], self._stats[i], self.signals[0, i]
            row[Sig.PRIORITY], row[Sig.KILL_RANK] = memcg.priority, memcg.kill_rank
            row[Sig.MEMSW_CEILING_BYTES] = float(memcg.memsw) * PAGE_BYTES
            memcg.requests = now["done"] - before["done"]
            memcg.arrived = now["arrived"] - before["arrived"]
            memcg.failed = now["failed"] - before["failed"]
            memcg.node[FAST] = pages(row[Sig.FAST_BYTES], row[Sig.USAGE_BYTES])
            memcg.node[SLOW] = pages(row[Sig.SLOW_BYTES], 0.0)
            memcg.zswap = pages(row[Sig.ZSWAP_BYTES], 0.0)
            memcg.swap = pages(row[Sig.SWAP_BYTES], 0.0)
            memcg.wss_pages = pages(row[Sig.WSS_BYTES], row[Sig.USAGE_BYTES])
            memcg.inversion_s, memcg.harm_s = excess_s[i]
            self._note_death(i, now)
        self._stats = snapshot.stats
        self.snapshot = snapshot

    def _note_death(self, i: int, now: SlotStats) -> None:
        """A generator that is gone though it should be there was killed."""
        memcg = self.memcgs[0, i]
        if memcg.present and memcg.alive and not now.alive:
            memcg.alive = 0
            memcg.killed = 1
            memcg.restart_left = memcg.restart_s
            memcg.burst_on = 0
            memcg.burst_left_s = memcg.burst_every_s

    def _lock_excess(self, stats: Sequence[SlotStats]) -> list[tuple[float, float]]:
        """Seconds lost to inversion by each waiter, and charged to each holder by time held."""
        rows = self.memcgs[0]
        gain = [
            (
                now["lock_excess_us"] - old["lock_excess_us"],
                now["lock_held_us"] - old["lock_held_us"],
            )
            for now, old in zip(stats, self._stats, strict=True)
        ]
        out = []
        for i, memcg in enumerate(rows):
            inversion = min(max(gain[i][0], 0.0) * 1e-6, 1.0)
            harm = 0.0
            if memcg.lock_role == LockRole.HOLDER:
                same = [j for j in range(len(rows)) if rows[j].lock == memcg.lock]
                lost = sum(min(max(gain[j][0], 0.0) * 1e-6, 1.0) for j in same)
                held = sum(max(gain[j][1], 0.0) for j in same)
                harm = min(lost, 1.0) * max(gain[i][1], 0.0) / held if held > 0 else 0.0
            out.append((inversion, harm))
        return out

    def _judge(self, changes: Array) -> None:
        """Raw metrics and reward terms by the model's own arithmetic."""
        memcgs, signals, before = self.memcgs[0], self.signals[0], self.signals_before[0]
        for i, memcg in enumerate(memcgs):
            delta = signals[i] - before[i]
            memcg.swap_write_tick = pages_moved(delta[Sig.SWAPOUT_PAGES])
            memcg.critical_stall_s = memcg.inversion_s
            if memcg.threads_critical > 0:
                # two threads: the mean share of threads that stall lies between some and full
                stall_us = 0.5 * (delta[Sig.PSI_MEM_SOME_US] + delta[Sig.PSI_MEM_FULL_US])
                memcg.critical_stall_s += min(max(stall_us, 0.0) * 1e-6, 1.0)
        host = self.hosts[0]
        measure(host, memcgs, signals, before, self.host_signals[0], self.weights, self.metrics[0])
        reward_terms(
            host,
            memcgs,
            self.metrics[0],
            signals,
            self.host_signals[0],
            self.host_before[0],
            changes,
            self.weights,
            self.terms[0],
        )
        for i in range(self.n_cgroups):
            self.reward[0, i] = sum_terms(self.terms[0, i])


def memory_mib(host: Any, swap_mib: int) -> int:
    """Memory of the guest's first node that leaves the cgroups what the drawn host leaves them."""
    managed = float(host.node_pages[FAST]) - float(host.reserved_pages)
    return math.ceil(guest_mib(managed * PAGE_BYTES / (1 << 20) + swap_mib))


def pages(value_bytes: float, otherwise_bytes: float) -> float:
    """Bytes as pages; another value where the kernel does not say."""
    return float(otherwise_bytes if math.isnan(value_bytes) else value_bytes) / PAGE_BYTES


def pages_moved(count: float) -> float:
    """A counter's gain, 0 where the kernel does not say or the cgroup is new."""
    return 0.0 if math.isnan(count) else max(count, 0.0)
