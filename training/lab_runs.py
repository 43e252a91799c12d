"""One policy on one host of a scenario, tick by tick, on the kernel or in the model.

The same seed draws the same host and wants the same in both worlds; the same settling, policy and
shield; and the model's host can be given the memory that a guest's kernel left to its cgroups.
Which request arrives when is the guest's own chance: the model serves a mean.

Units: ticks of one second; bytes, pages, microseconds as named.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from memcg_gym import __version__
from memcg_gym.agents.policy import Policy
from memcg_gym.agents.registry import make_policy
from memcg_gym.agents.rollout import attach, step
from memcg_gym.configs.loader import load_objective, load_params, load_scenario, validate
from memcg_gym.configs.schema import ObjectiveConfig, ScenarioConfig, Split, Spread
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.signals import PAGE_BYTES, HostSig
from memcg_gym.envs.core import HostBatch, host_seed
from memcg_gym.envs.lab.scale import scale_objective, scale_scenario
from memcg_gym.envs.lab.stats import BINS_PER_OCTAVE, N_LATENCY_BINS
from memcg_gym.envs.model import workload
from memcg_gym.envs.model.state import N_LATENCY_BINS as N_MODEL_BINS
from memcg_gym.envs.recording import Provenance, Recording
from memcg_gym.envs.reward import METRIC_NAMES, SCORE_TERMS
from memcg_gym.training.cells import (
    PUBLISHED_FLOOR_MIB,
    Report,
    ShieldMode,
    World,
    code_digest,
    policy_digest,
    stands_behind,
)

Array = np.ndarray[Any, np.dtype[Any]]
Watch = Callable[[int, HostBatch], None]
"""Told of every tick: its number from 0, and the batch after it."""

PAGES_PER_GIB = float((1 << 30) // PAGE_BYTES)
SETTLE_TICKS = 30
"""What a recording starts with and no measure looks at: the first seconds under the policy."""
FAMILY_FLOOR_DIVISOR = 16.0
"""Hosts of the lab's own families are about this much smaller than those the policies that have a
floor of 100 MiB were made for."""
ARRAYS = (
    "memcg_signals",
    "host_signals",
    "knobs",
    "levels",
    "metrics",
    "demands",
    "active",
    "born",
    "latency_counts",
)
METRIC_COLUMNS = (*METRIC_NAMES, "score")
DEMAND = ("load", "shed", "burst_on", "burst_pages_per_s", "phase_idle", "alive")
"""Fields of a cgroup's record that say what its workload wants of a tick."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The memory of a guest's host as its kernel says.

    Attributes:
        fast_pages, slow_pages: Memory of each tier.
        reserved_pages: Of the fast tier: what no cgroup can have.
    """

    fast_pages: float
    slow_pages: float
    reserved_pages: float

    @classmethod
    def of(cls, recording: Recording) -> Self:
        """What a recording's host has: what is neither free nor used by a cgroup is reserved.

        The least of all ticks: a kernel keeps up to an eighth of a zone on per-CPU lists that it
        counts as neither (mm/page_alloc.c, pcp->high), and gives it back with time.

        Raises:
            ConfigError: The recording does not tell its host's memory.
        """
        host = recording.host_signals / PAGE_BYTES
        total = float(host[0, HostSig.TOTAL_BYTES])
        slow = float(np.nan_to_num(host[0, HostSig.SLOW_TOTAL_BYTES]))
        used = np.nansum(recording.memcg("usage_bytes"), axis=-1) / PAGE_BYTES
        reserved = float(np.min(total - host[:, HostSig.FREE_BYTES] - used))
        if not (total > slow and 0.0 <= reserved < 0.5 * (total - slow)):
            raise ConfigError(
                f"recording: of {total:.0f} pages, {slow:.0f} of them slow, {reserved:.0f} are "
                "neither free nor used; no host has its memory like that"
            )
        return cls(total - slow, slow, reserved)

    def applied(self, scenario: ScenarioConfig) -> ScenarioConfig:
        """The scenario on a host of just this memory; every other draw stays what it was."""
        host = scenario.host
        update = {
            "dram_gib": narrowed(host.dram_gib, self.fast_pages / PAGES_PER_GIB),
            "slow_gib": narrowed(host.slow_gib, self.slow_pages / PAGES_PER_GIB),
            "reserved_ratio": self.reserved_pages / self.fast_pages,
        }
        return scenario.model_copy(update={"host": host.model_copy(update=update)})


def narrowed(spread: Spread, value: float) -> Spread:
    """A spread that gives one value, and takes a draw of the generator where it did before."""

    def narrow(span: tuple[float, float]) -> tuple[float, float]:
        return (value, value if span[0] == span[1] else math.nextafter(value, math.inf))

    return Spread(train=narrow(spread.train), test=narrow(spread.test))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run.

    Attributes:
        scenario: Name or path, or the TOML text of one (it has lines).
        policy: As :func:`~memcg_gym.agents.registry.make_policy` reads it.
        seed: Of the host; both worlds draw the same.
        split: Ranges the host is drawn from.
        ticks: How long, all under the policy's own control.
        divisor: How much smaller the host is made; the lab's families are small already.
        floor_divisor: How much smaller the published floors of policies are made.
        world: ``model`` or ``kernel``.
        objective: What scores it.
        shield: ``default`` = as the policy is meant to run.
        lock_source: Who says in a guest who holds locks: ``tag`` or ``trace``.
    """

    scenario: str
    policy: str
    seed: int = 0
    split: Split = "train"
    ticks: int = 90
    divisor: float = 1.0
    floor_divisor: float = FAMILY_FLOOR_DIVISOR
    world: World = "kernel"
    objective: str = "default"
    shield: ShieldMode = "default"
    lock_source: Literal["tag", "trace"] = "tag"

    def scaled_scenario(self) -> ScenarioConfig:
        """The scenario at the run's scale."""
        if "\n" in self.scenario:
            origin = "the recording's scenario"
            scenario = validate(ScenarioConfig, parse_toml(self.scenario, origin), origin)
        else:
            scenario = load_scenario(self.scenario)
        return scenario if self.divisor == 1.0 else scale_scenario(scenario, self.divisor)

    def scaled_objective(self) -> ObjectiveConfig:
        """The objective for a host of that size."""
        return scale_objective(load_objective(self.objective), self.floor_divisor)

    def make_policy(self) -> Policy:
        """The policy, its absolute sizes made to fit the host."""
        floor_mib = PUBLISHED_FLOOR_MIB / self.floor_divisor
        return make_policy(
            self.policy, host_kind="stock", min_mib=floor_mib, limit_min_mib=floor_mib
        )


class Tape:
    """What a run gives, growing by a tick at a time."""

    def __init__(self, batch: HostBatch) -> None:
        self.cgroups = batch.layout.names
        self.rows: dict[str, list[Array]] = {name: [] for name in ARRAYS}
        self._note_signals(batch)

    def note(self, batch: HostBatch, latency: Array) -> None:
        """Note a tick that just passed."""
        self._note_signals(batch)
        for name in ("knobs", "levels", "active", "born"):
            self.rows[name].append(getattr(batch, name)[0].copy())
        score = batch.terms[0][:, SCORE_TERMS].sum(axis=-1, keepdims=True)
        self.rows["metrics"].append(np.concatenate([batch.metrics[0], score], axis=-1))
        memcgs = batch.memcgs[0]
        demand = np.stack([memcgs[name].astype(np.float64) for name in DEMAND], axis=-1)
        self.rows["demands"].append(demand)
        self.rows["latency_counts"].append(latency)

    def recording(self, provenance: Provenance) -> Recording:
        """All of it."""
        return Recording(
            provenance=provenance,
            cgroups=self.cgroups,
            metric_names=METRIC_COLUMNS,
            demand_names=DEMAND,
            **{name: np.stack(rows) for name, rows in self.rows.items()},
        )

    def _note_signals(self, batch: HostBatch) -> None:
        self.rows["memcg_signals"].append(batch.signals[0].copy())
        self.rows["host_signals"].append(batch.host_signals[0].copy())


class ModelLatency:
    """Requests by latency in the model's ticks, in the bins of a guest's."""

    def __init__(self, batch: HostBatch) -> None:
        # A bin of the model reaches half a bin to either side of what it is named for.
        middle = BINS_PER_OCTAVE * math.log2(workload.LATENCY_FLOOR_US)
        width = BINS_PER_OCTAVE / workload.BINS_PER_OCTAVE
        edges = middle + width * (np.arange(N_MODEL_BINS)[:, None] - 0.5 + np.array([0.0, 1.0]))
        bins = np.arange(N_LATENCY_BINS)
        low, high = np.maximum(edges[:, :1], bins), np.minimum(edges[:, 1:], bins + 1.0)
        self.matrix = np.maximum(high - low, 0.0) / width
        self.matrix[:, -1] += np.maximum(1.0 - self.matrix.sum(axis=1), 0.0)
        self.total = np.zeros((batch.n_cgroups, N_LATENCY_BINS))

    def __call__(self, batch: HostBatch) -> Array:
        """Counts of this tick, int64 ``[N, N_LATENCY_BINS]``."""
        before = np.floor(self.total)
        self.total += batch.memcgs["latency"][0] @ self.matrix
        # The model serves fractions of requests: whole ones are told when they are complete.
        return (np.floor(self.total) - before).astype(np.int64)


class KernelLatency:
    """Requests by latency in a guest's ticks, from its cumulative counts."""

    def __init__(self, batch: Any) -> None:
        self.before = self._counts(batch)

    def __call__(self, batch: HostBatch) -> Array:
        """Counts of this tick, ``[N, N_LATENCY_BINS]``."""
        now = self._counts(batch)
        # a generator that was started again counts from what it had
        gain: Array = np.maximum(now - self.before, 0)
        self.before = now
        return gain

    @staticmethod
    def _counts(batch: Any) -> Array:
        return np.stack([stats.latency for stats in batch.snapshot.stats])


def run_in_model(
    spec: RunSpec,
    *,
    facts: HostFacts | None = None,
    params: Mapping[str, float] | None = None,
    report: Report = lambda ticks: None,
    watch: Watch = lambda tick, batch: None,
) -> Recording:
    """Run a spec in the model.

    Args:
        spec: The run; its ``world`` is not looked at.
        facts: Memory of the guest that it is compared with; None = as the scenario says.
        params: Cost parameters; None = the shipped ones.
        report: Told how many more ticks are done.
        watch: Told of every tick.
    """
    policy = spec.make_policy()
    batch = model_batch(spec, facts, params, shield=stands_behind(policy, spec.shield))
    tape = play(spec, batch, policy, ModelLatency(batch), report, watch)
    return tape.recording(provenance_of(spec, "model", "", model_text(params), ""))


def model_batch(
    spec: RunSpec,
    facts: HostFacts | None,
    params: Mapping[str, float] | None,
    *,
    shield: bool,
) -> HostBatch:
    """The host of a spec in the model, built and not stepped yet."""
    scenario = spec.scaled_scenario()
    batch = HostBatch(
        scenario if facts is None else facts.applied(scenario),
        spec.scaled_objective(),
        n_hosts=1,
        shield=shield,
        params=params,
    )
    batch.reset_host(0, host_seed(spec.seed, 0), spec.split)
    return batch


def run_on_kernel(
    spec: RunSpec,
    *,
    report: Report = lambda ticks: None,
    watch: Watch = lambda tick, batch: None,
) -> Recording:
    """Run a spec in a guest of the kernel lab.

    Raises:
        LabError, GuestError: A guest cannot be had, or died.
    """
    from memcg_gym.envs.kernel_batch import KernelBatch
    from memcg_gym.envs.lab.qemu import qemu_version
    from memcg_gym.training.kernel_cells import guest_image

    policy = spec.make_policy()
    image = guest_image()
    batch = KernelBatch(
        spec.scaled_scenario(),
        spec.scaled_objective(),
        image,
        shield=stands_behind(policy, spec.shield),
        lock_source=spec.lock_source,
    )
    try:
        batch.reset_host(0, host_seed(spec.seed, 0), spec.split)
        assert batch.session is not None
        hardware, accel = batch.session.machine.hardware, str(batch.session.machine.accel)
        tape = play(spec, batch, policy, KernelLatency(batch), report, watch)
    finally:
        batch.close()
    machine = (
        f"QEMU {qemu_version()}, {hardware.cpus} CPU, {hardware.memory_mib} MiB"
        f" + {hardware.slow_mib} MiB slow, guest {image.digest[:16]}"
        + (", locks traced" if spec.lock_source == "trace" else "")
    )
    return tape.recording(provenance_of(spec, "kernel", image.version, machine, accel))


def replay(recording: Recording, params: Mapping[str, float] | None = None) -> Recording:
    """The model under the very writes that a recording's host was given, tick by tick.

    Unlike a run under the same policy, an error of one tick cannot change what is written in the
    next: what differs is the model's.

    Raises:
        ConfigError: The recording's scenario is no valid scenario.
    """
    spec = spec_of(recording)
    facts = HostFacts.of(recording)
    batch = model_batch(spec, facts, params, shield=False)
    latency = ModelLatency(batch)
    tape = Tape(batch)
    for knobs in recording.knobs:
        # a stock host's writes take effect a tick late: hand them in as if they were a tick old
        batch.pending_knobs[0] = knobs
        batch.step_knobs(batch.pending_knobs.copy())
        tape.note(batch, latency(batch))
    return tape.recording(provenance_of(spec, "model", "", model_text(params), ""))


def play(
    spec: RunSpec,
    batch: HostBatch,
    policy: Policy,
    latency: Callable[[HostBatch], Array],
    report: Report,
    watch: Watch,
) -> Tape:
    """Step a batch that was reset under a policy and note everything."""
    policy.reset((1, batch.n_cgroups), batch.supported, spec.seed)
    attach(policy, batch)
    tape = Tape(batch)
    for tick in range(spec.ticks):
        step(batch, policy, tick)
        tape.note(batch, latency(batch))
        watch(tick, batch)
        report(1)
    return tape


def provenance_of(spec: RunSpec, world: World, kernel: str, machine: str, accel: str) -> Provenance:
    """Where a recording of a run is from."""
    return Provenance(
        world=world,
        kernel=kernel,
        machine=machine,
        accel=accel,
        scenario=scenario_text(spec.scaled_scenario()),
        scale={"divisor": spec.divisor, "floor_divisor": spec.floor_divisor},
        policy=spec.policy,
        policy_version=f"{__version__} {policy_digest(spec.policy)}".strip(),
        seed=spec.seed,
        split=spec.split,
        settle_ticks=0,
        tick_s=1.0,
        code_digest=code_digest(),
    )


def model_text(params: Mapping[str, float] | None) -> str:
    """What the model ran with, as a word or a digest."""
    values = load_params() if params is None else params
    text = json.dumps(dict(sorted(values.items())))
    return f"model, parameters {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def spec_of(recording: Recording) -> RunSpec:
    """The run that a recording is of; its scenario is the recorded text.

    Raises:
        ConfigError: It was made with a scale that is not ours.
    """
    about = recording.provenance
    try:
        floor_divisor = about.scale["floor_divisor"]
    except KeyError as error:
        raise ConfigError(f"recording of {about.policy!r}: no scale {error}") from None
    return RunSpec(
        scenario=about.scenario,
        policy=about.policy,
        seed=about.seed,
        split="train" if about.split == "train" else "test",
        ticks=recording.n_ticks,
        floor_divisor=floor_divisor,
        world=about.world,
    )


def scenario_text(scenario: ScenarioConfig) -> str:
    """A scenario as TOML, defaults written out: what it says does not change with them.

    Example:
        >>> scenario_text(load_scenario("heap-zipf")).splitlines()[0]
        'name = "heap-zipf"'
    """
    data = scenario.model_dump(mode="json", exclude_none=True)
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in data.items())


def toml_value(value: object) -> str:
    """A value as TOML; tables within are written in line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(value)


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """Text as plain data.

    Raises:
        ConfigError: It is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}") from None
