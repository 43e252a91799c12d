"""A batch of hosts of one scenario: the one core that every environment is a face of.

``HostBatch`` owns the record arrays, steps them in compiled code, and exposes what came of it as
arrays ``[hosts, cgroups, ...]``.  It knows nothing of Gymnasium or of SB3.

A decision passes the shield, becomes the accepted level, takes effect (at once on a ``bpf`` host,
one tick later on a ``stock`` one), is turned into knobs, and the model runs for a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memcg_gym.configs.schema import HostKindName, ObjectiveConfig, ScenarioConfig, Split
from memcg_gym.enforcer.adapter import levels_to_knobs, owner_knobs
from memcg_gym.enforcer.features import N_AVERAGES, Guard, fill_features, update_averages
from memcg_gym.enforcer.shield import (
    HostGuard,
    line_array,
    put_in_force,
    reset_guard,
    reset_host_guard,
    shield_host_tick,
    shield_row,
)
from memcg_gym.envs.contract.features import N_FEATURES, SHIFT
from memcg_gym.envs.contract.heads import HEADS, N_HEADS, HostKind
from memcg_gym.envs.contract.knobs import N_KNOBS
from memcg_gym.envs.contract.shield_rules import ShieldLines
from memcg_gym.envs.contract.signals import N_HOST_SIGNALS, N_MEMCG_SIGNALS, Sig
from memcg_gym.envs.model.accounting import export_host, export_memcg
from memcg_gym.envs.model.build import build_host, empty_arrays, layout_of
from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Array, Rec
from memcg_gym.envs.model.tick import tick_host
from memcg_gym.envs.reward import (
    N_METRICS,
    N_TERMS,
    measure,
    reward_terms,
    sum_terms,
    weights_of,
)

TO_FLOAT = np.float32(1.0 / (1 << SHIFT))
LEVELS, KNOBS = 0, 1

STATE_ARRAYS = (
    "hosts",
    "memcgs",
    "regions",
    "signals",
    "signals_before",
    "host_signals",
    "host_before",
    "averages",
    "guard",
    "host_guard",
    "knobs",
    "pending_knobs",
    "features",
    "observation",
    "active",
    "born",
)
"""What makes up a batch's state: copied whole when a batch is cloned or a host replaced."""


@dataclass(frozen=True, slots=True)
class HostSeed:
    """A host's identity: its seed and the ranges it was drawn from."""

    seed: int
    split: Split


class HostBatch:
    """``n_hosts`` hosts of one scenario, stepped together.

    Args:
        scenario: What to simulate.
        objective: What counts; gives the reward and the shield's lines.
        n_hosts: Hosts in the batch.
        host_kind: ``"stock"`` or ``"bpf"``.
        shield: False lets every decision through (hand policies run without a shield).
        params: Cost parameters (:func:`~memcg_gym.configs.loader.load_params`); None = the shipped.

    Attributes:
        features: Fixed-point vectors, int32 ``[H, N, F]``.
        observation: The same as float32.
        signals, signals_before: What a host reads, float64 ``[H, N, S]``.
        host_signals, host_before: Per host, float64 ``[H, SH]``.
        active: True where a slot holds a cgroup, ``[H, N]``.
        born: True where a new cgroup took the slot over in this tick, ``[H, N]``.
        reward: Sum of ``terms``, ``[H, N]``.
        terms: Weighted reward terms, ``[H, N, T]``.
        metrics: Raw metrics of the tick, ``[H, N, M]``.
        interventions: The shield's reasons, bit masks, ``[H, N]``.
        supported: 1 where the scenario has a knob for the head, ``[N_HEADS]``.

    Example:
        >>> from memcg_gym.configs.loader import load_objective, load_scenario
        >>> batch = HostBatch(load_scenario("burst"), load_objective(), n_hosts=2)
        >>> batch.reset(seed=7)
        >>> batch.step_levels(np.zeros((2, 4, 7), dtype=np.int64))
        >>> batch.reward.shape
        (2, 4)
    """

    def __init__(
        self,
        scenario: ScenarioConfig,
        objective: ObjectiveConfig,
        *,
        n_hosts: int = 1,
        host_kind: HostKindName = "stock",
        shield: bool = True,
        params: Mapping[str, float] | None = None,
    ) -> None:
        self.scenario = scenario
        self.objective = objective
        self.host_kind: HostKindName = host_kind
        self.shield = shield
        self.params = params
        self.layout = layout_of(scenario, params)
        self.n_hosts, self.n_cgroups = n_hosts, self.layout.n_cgroups
        self.supported = np.array([h.name in scenario.heads for h in HEADS], dtype=np.int64)
        self.weights = weights_of(objective)
        self.lines = line_array(
            ShieldLines(
                objective.kill_psi_full_ratio,
                objective.kill_util_ratio,
                objective.kill_hold_ticks,
            )
        )
        self._allocate()

    def _allocate(self) -> None:
        h, n = self.n_hosts, self.n_cgroups
        self.hosts, self.memcgs, self.regions = empty_arrays(self.layout, h)
        self.signals = np.zeros((h, n, N_MEMCG_SIGNALS))
        self.signals_before = np.zeros((h, n, N_MEMCG_SIGNALS))
        self.host_signals = np.zeros((h, N_HOST_SIGNALS))
        self.host_before = np.zeros((h, N_HOST_SIGNALS))
        self.averages = np.zeros((h, n, N_AVERAGES))
        self.guard = np.zeros((h, n, int(Guard.SIZE)), dtype=np.int64)
        self.host_guard = np.zeros((h, int(HostGuard.SIZE)), dtype=np.int64)
        self.knobs = np.zeros((h, n, N_KNOBS))
        self.pending_knobs = np.zeros((h, n, N_KNOBS))
        self.features = np.zeros((h, n, N_FEATURES), dtype=np.int32)
        self.observation = np.zeros((h, n, N_FEATURES), dtype=np.float32)
        self.active = np.zeros((h, n), dtype=np.bool_)
        self.born = np.zeros((h, n), dtype=np.bool_)
        self.levels = np.zeros((h, n, N_HEADS), dtype=np.int64)
        self.terms = np.zeros((h, n, N_TERMS))
        self.metrics = np.zeros((h, n, N_METRICS))
        self.reward = np.zeros((h, n))
        self.interventions = np.zeros((h, n), dtype=np.int64)

    def reset(self, seed: int, split: Split = "train") -> None:
        """Build every host anew from one seed; host ``k`` is :meth:`reset_host` with its own."""
        for at in range(self.n_hosts):
            self.reset_host(at, host_seed(seed, at), split)

    def reset_host(self, at: int, seed: int, split: Split = "train") -> None:
        """Build one host from its own seed: alone or in a batch, the same host."""
        arrays = (self.hosts, self.memcgs, self.regions)
        build_host(self.scenario, self.layout, self.host_kind, split, seed, arrays, at)
        begin_host(
            self.hosts[at],
            self.memcgs[at],
            self.signals[at],
            self.signals_before[at],
            self.host_signals[at],
            self.host_before[at],
            self.averages[at],
            self.guard[at],
            self.host_guard[at],
            self.knobs[at],
            self.pending_knobs[at],
            self.features[at],
            self.observation[at],
            self.active[at],
            self.born[at],
        )

    def step_levels(self, levels: Array) -> None:
        """One tick under a policy that speaks in levels, int64 ``[H, N, N_HEADS]``."""
        self.levels[...] = levels
        self._step(LEVELS)

    def step_knobs(self, knobs: Array) -> None:
        """One tick under a policy that writes the kernel's files, float64 ``[H, N, N_KNOBS]``.

        No shield stands in between: that is how hand policies run today.
        """
        if self.host_kind == "stock":
            self.knobs[...] = self.pending_knobs
            self.pending_knobs[...] = knobs
        else:
            self.knobs[...] = knobs
        self._step(KNOBS)

    def settle(self, ticks: int) -> None:
        """Run under the owner's configuration, as if nobody were there."""
        nothing = np.zeros_like(self.levels)
        for _ in range(ticks):
            self.step_levels(nothing)

    def clone(self) -> HostBatch:
        """An independent copy that continues to the same future."""
        twin = HostBatch(
            self.scenario,
            self.objective,
            n_hosts=self.n_hosts,
            host_kind=self.host_kind,
            shield=self.shield,
            params=self.params,
        )
        for name in STATE_ARRAYS:
            getattr(twin, name)[...] = getattr(self, name)
        return twin

    def copy_host(self, source: HostBatch, source_at: int, at: int) -> None:
        """Overwrite host ``at`` with a host of another batch of the same scenario."""
        for name in STATE_ARRAYS:
            getattr(self, name)[at] = getattr(source, name)[source_at]

    def owner_knobs(self) -> Array:
        """The owner's configuration as knobs, ``[H, N, N_KNOBS]``: where hand policies start."""
        knobs = np.zeros((self.n_hosts, self.n_cgroups, N_KNOBS))
        fill_owner_knobs(self.signals, knobs)
        return knobs

    def _step(self, mode: int) -> None:
        step_hosts(
            mode,
            self.shield,
            self.layout.params,
            self.layout.traces,
            self.weights,
            self.lines,
            self.supported,
            self.hosts,
            self.memcgs,
            self.regions,
            self.levels,
            self.knobs,
            self.signals,
            self.signals_before,
            self.host_signals,
            self.host_before,
            self.averages,
            self.guard,
            self.host_guard,
            self.features,
            self.observation,
            self.active,
            self.born,
            self.metrics,
            self.terms,
            self.reward,
            self.interventions,
        )


def host_seed(seed: int, at: int, episode: int = 0) -> int:
    """The seed of one host of a batch in one episode: independent streams, stable forever."""
    words = np.random.SeedSequence([seed, at, episode]).generate_state(2, np.uint32)
    return int(words[0]) << 32 | int(words[1])


@compiled
def fill_owner_knobs(signals: Array, knobs: Array) -> None:
    """Owner's knobs of every cgroup."""
    for h in range(signals.shape[0]):
        for i in range(signals.shape[1]):
            owner_knobs(signals[h, i], knobs[h, i])


@compiled
def begin_vectors(
    memcgs: Rec,
    signals: Array,
    signals_before: Array,
    host_signals: Array,
    host_before: Array,
    averages: Array,
    guard: Array,
    host_guard: Array,
    knobs: Array,
    pending_knobs: Array,
    features: Array,
    observation: Array,
    active: Array,
    born: Array,
) -> None:
    """First feature vectors from first signals, with a clean slate and the owner's knobs."""
    reset_host_guard(host_guard)
    for i in range(memcgs.shape[0]):
        averages[i, :] = 0.0
        reset_guard(guard[i])
        owner_knobs(signals[i], knobs[i])
        pending_knobs[i, :] = knobs[i]
        active[i] = memcgs[i].present != 0
        born[i] = False
        fill_features(
            signals[i],
            signals_before[i],
            host_signals,
            host_before,
            averages[i],
            guard[i],
            features[i],
        )
        for k in range(N_FEATURES):
            observation[i, k] = features[i, k] * TO_FLOAT


@compiled
def begin_host(
    host: Rec,
    memcgs: Rec,
    signals: Array,
    signals_before: Array,
    host_signals: Array,
    host_before: Array,
    averages: Array,
    guard: Array,
    host_guard: Array,
    knobs: Array,
    pending_knobs: Array,
    features: Array,
    observation: Array,
    active: Array,
    born: Array,
) -> None:
    """First vector of a freshly built host."""
    export_host(host, memcgs, host_signals)
    host_before[:] = host_signals
    for i in range(host.n_memcgs):
        signals[i, Sig.LOCK_WAIT_US] = 0.0
        export_memcg(host, memcgs[i], signals[i])
        signals_before[i, :] = signals[i]
    begin_vectors(
        memcgs,
        signals,
        signals_before,
        host_signals,
        host_before,
        averages,
        guard,
        host_guard,
        knobs,
        pending_knobs,
        features,
        observation,
        active,
        born,
    )


@compiled
def step_hosts(
    mode: int,
    shielded: bool,
    params: Rec,
    traces: Array,
    weights: Array,
    lines: Array,
    supported: Array,
    hosts: Rec,
    memcgs: Rec,
    regions: Rec,
    levels: Array,
    knobs: Array,
    signals: Array,
    signals_before: Array,
    host_signals: Array,
    host_before: Array,
    averages: Array,
    guard: Array,
    host_guard: Array,
    features: Array,
    observation: Array,
    active: Array,
    born: Array,
    metrics: Array,
    terms: Array,
    reward: Array,
    interventions: Array,
) -> None:
    """Step every host of the batch by one tick."""
    changes = np.zeros(memcgs.shape[1])
    for h in range(hosts.shape[0]):
        host = hosts[h]
        if mode == LEVELS:
            decide(
                host,
                shielded,
                lines,
                supported,
                levels[h],
                signals[h],
                features[h],
                active[h],
                guard[h],
                host_guard[h],
                knobs[h],
                changes,
                interventions[h],
            )
        else:
            changes[:] = 0.0
            interventions[h, :] = 0
        signals_before[h] = signals[h]
        host_before[h] = host_signals[h]
        tick_host(
            params[0],
            host,
            memcgs[h],
            regions[h],
            traces,
            knobs[h],
            signals[h],
            host_signals[h],
        )
        measure(
            host, memcgs[h], signals[h], signals_before[h], host_signals[h], weights, metrics[h]
        )
        reward_terms(
            host,
            memcgs[h],
            metrics[h],
            signals[h],
            host_signals[h],
            host_before[h],
            changes,
            weights,
            terms[h],
        )
        for i in range(memcgs.shape[1]):
            reward[h, i] = sum_terms(terms[h, i])
        observe(
            memcgs[h],
            signals[h],
            signals_before[h],
            host_signals[h],
            host_before[h],
            averages[h],
            guard[h],
            features[h],
            observation[h],
            active[h],
            born[h],
        )


@compiled
def decide(
    host: Rec,
    shielded: bool,
    lines: Array,
    supported: Array,
    levels: Array,
    signals: Array,
    features: Array,
    active: Array,
    guard: Array,
    host_guard: Array,
    knobs: Array,
    changes: Array,
    interventions: Array,
) -> None:
    """Shield every row's decision and make knobs of what is in force."""
    shield_host_tick(features[0], host_guard, lines)
    for i in range(levels.shape[0]):
        if host.kind == HostKind.STOCK:
            put_in_force(guard[i])
        if not active[i]:
            for head in range(N_HEADS):
                levels[i, head] = 0
        changed = 0.0
        held = guard[i, Guard.ACCEPTED : Guard.ACCEPTED + N_HEADS].copy()
        interventions[i] = shield_row(
            levels[i],
            features[i],
            signals[i, Sig.USAGE_BYTES],
            signals[i, Sig.OWNER_MIN_BYTES],
            supported,
            host.kind,
            guard[i],
            host_guard,
            lines,
            shielded,
        )
        for head in range(N_HEADS):
            if guard[i, Guard.ACCEPTED + head] != held[head]:
                changed += 1.0
        changes[i] = changed
        if host.kind == HostKind.BPF:
            put_in_force(guard[i])
        levels_to_knobs(
            guard[i, Guard.IN_FORCE : Guard.IN_FORCE + N_HEADS],
            signals[i],
            host.kind,
            1.0,
            knobs[i],
        )


@compiled
def observe(
    memcgs: Rec,
    signals: Array,
    signals_before: Array,
    host_signals: Array,
    host_before: Array,
    averages: Array,
    guard: Array,
    features: Array,
    observation: Array,
    active: Array,
    born: Array,
) -> None:
    """Averages and vectors after a tick; a slot's new tenant starts with a clean slate."""
    for i in range(memcgs.shape[0]):
        active[i] = memcgs[i].present != 0
        born[i] = memcgs[i].born != 0
        if born[i]:
            averages[i, :] = 0.0
            reset_guard(guard[i])
            signals_before[i, :] = signals[i]
        update_averages(signals[i], signals_before[i], 1.0, averages[i])
        fill_features(
            signals[i],
            signals_before[i],
            host_signals,
            host_before,
            averages[i],
            guard[i],
            features[i],
        )
        for k in range(N_FEATURES):
            observation[i, k] = features[i, k] * TO_FLOAT
