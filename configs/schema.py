"""The shape of every configuration: host, workload, scenario, objective, training preset.

All models are frozen and refuse unknown keys.  A number that differs between hosts of a scenario
is written as a :class:`Spread` with a train and a held-out test range; everything else is a plain
number.  Derived values are properties, never fields.

Units: in each name (``_mib``, ``_gib``, ``_us``, ``_s``, ``_per_s``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from memcg_gym.envs.contract.heads import HEADS

Split = Literal["train", "test"]
HostKindName = Literal["stock", "bpf"]

MAX_REGIONS = 4
MAX_CGROUPS = 64


class Frozen(BaseModel):
    """Base of every configuration class: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spread(Frozen):
    """A number drawn per host: uniformly from ``train`` or, held out, from ``test``.

    A plain number in TOML is a spread of width zero.
    """

    train: tuple[float, float]
    test: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Spread:
        for name, (low, high) in (("train", self.train), ("test", self.test)):
            if low > high:
                raise ValueError(f"{name} range must be [low, high], got [{low}, {high}]")
        return self

    def span(self, split: Split) -> tuple[float, float]:
        """The range of one split."""
        return self.train if split == "train" else self.test

    @property
    def lowest(self) -> float:
        """Smallest value any host can draw."""
        return min(self.train[0], self.test[0])

    @property
    def highest(self) -> float:
        """Largest value any host can draw."""
        return max(self.train[1], self.test[1])


def _as_spread(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return {"train": (value, value), "test": (value, value)}


Number = Annotated[Spread, BeforeValidator(_as_spread)]


def _spread(value: float) -> Spread:
    return Spread(train=(value, value), test=(value, value))


class DiskConfig(Frozen):
    """The device behind swap and files."""

    iops: Number = _spread(20_000)
    latency_us: float = Field(100.0, gt=0)  # NVMe NAND 4 KiB read: 80-150 us
    write_cost: float = Field(1.0, gt=0)  # IO slots one written page takes; swap writes cluster


class HostConfig(Frozen):
    """A machine: CPUs, tiers, swap, device, and how its kernel is set."""

    cpus: int = Field(16, ge=1, le=1024)
    dram_gib: Number = _spread(16)
    slow_gib: Number = _spread(0)
    swap_gib: Number = _spread(8)
    zswap_max_ratio: float = Field(0.2, ge=0, le=1)  # kernel default max_pool_percent
    zswap_compression: float = Field(2.8, gt=1)  # lzo/lz4 measure 2.6-2.8
    reserved_ratio: float = Field(0.08, ge=0, lt=0.5)  # kernel, system slice: not managed
    dram_latency_ns: float = Field(91.0, gt=0)  # Azure D8s v5: mean 91.2 ns
    slow_latency_ns: float = Field(210.0, gt=0)  # DRAM + CXL pool 70-90 ns, loaded; Optane 270
    slow_bandwidth_gb_s: float = Field(25.0, gt=0)
    lru: Literal["mglru", "classic"] = "mglru"
    swappiness: int = Field(60, ge=0, le=200)
    demotion: bool = True
    numa_balancing: bool = True
    disk: DiskConfig = DiskConfig()


class RegionConfig(Frozen):
    """A piece of a workload's memory with one access pattern."""

    name: str
    kind: Literal["anon", "file", "file_read", "shared"] = "anon"
    pattern: Literal["heat", "uniform", "loop", "stream", "idle"] = "heat"
    popularity: str = "cdn"  # a CacheLib distribution, or "zipf:1.1"
    size_mib: Number
    touches_per_request: float = Field(0.0, ge=0)  # page touches one request makes here
    touches_per_s: float = Field(0.0, ge=0)  # touches that do not depend on requests
    write_share: float = Field(0.0, ge=0, le=1)
    critical_share: float = Field(0.0, ge=0, le=1)  # touches by latency-critical threads
    shared_as: str = ""  # regions of one name in several cgroups are one object
    burst: bool = False  # grows and shrinks with the workload's burst or series

    @model_validator(mode="after")
    def _shared_has_a_name(self) -> RegionConfig:
        if (self.kind == "shared") != bool(self.shared_as):
            raise ValueError("kind 'shared' and shared_as go together")
        return self


class BurstConfig(Frozen):
    """Allocation bursts: the burst region grows at a rate, is held, and is freed."""

    every_s: Number = _spread(60)
    hold_s: Number = _spread(5)
    rate_mib_per_s: Number = _spread(500)
    on_path_ratio: float = Field(1.0, ge=0, le=1)  # share allocated by request threads
    series: str = ""  # path of a recorded memory series that drives the burst region instead


class ArrivalConfig(Frozen):
    """Load over nominal per second."""

    kind: Literal["constant", "azure"] = "azure"
    swing: float = Field(0.3, ge=0, le=1)  # how far the trace moves the load from its mean
    smooth_s: int = Field(30, ge=1)  # a load balancer in front spreads arrivals over this


class PhaseConfig(Frozen):
    """Active and idle stretches; a return to activity finds another heat."""

    active_s: Number = _spread(1e9)
    idle_s: Number = _spread(0)
    idle_load: float = Field(0.0, ge=0, le=1)
    overlap: float = Field(1.0, ge=0, le=1)  # share of heat that survives a phase change


class LockConfig(Frozen):
    """A mutex or kernel lock held by some threads while they allocate, wanted by others."""

    name: str
    role: Literal["holder", "waiter"]
    kind: Literal["user", "kernel"] = "user"
    section_us: float = Field(200.0, gt=0)
    sections_per_s: float = Field(200.0, ge=0)  # by the holder's threads, or attempts of waiters
    charge_share: float = Field(0.5, ge=0, le=1)  # holder's charges made inside the section


class ElasticityConfig(Frozen):
    """How a workload answers a request to shed load."""

    compliance: float = Field(0.0, ge=0, le=1)
    delay_s: float = Field(5.0, gt=0)


class WorkloadConfig(Frozen):
    """What runs in a cgroup and what it is measured by."""

    requests_per_s: Number = _spread(500)
    cpu_us_per_request: float = Field(500.0, ge=0)
    threads_critical: int = Field(0, ge=0, le=256)
    threads_tolerant: int = Field(8, ge=0, le=256)
    slo_p99_ms: float = Field(20.0, gt=0)
    regions: tuple[RegionConfig, ...] = Field(min_length=1, max_length=MAX_REGIONS)
    burst: BurstConfig | None = None
    arrival: ArrivalConfig = ArrivalConfig()
    phase: PhaseConfig = PhaseConfig()
    lock: LockConfig | None = None
    elasticity: ElasticityConfig = ElasticityConfig()

    @model_validator(mode="after")
    def _someone_works(self) -> WorkloadConfig:
        if self.threads_critical + self.threads_tolerant == 0:
            raise ValueError("threads_critical + threads_tolerant must be at least 1")
        if self.burst is not None and not any(r.burst for r in self.regions):
            raise ValueError("a burst needs a region with burst = true")
        return self


class TenancyConfig(Frozen):
    """A slot that changes hands: how long a tenant stays, and how long the slot is empty."""

    stays_s: Number
    vacant_s: Number = _spread(30)


class CgroupConfig(Frozen):
    """One cgroup: its owner's limits, its worth, its workload.  0 = not set (max for limits)."""

    name: str
    copies: int = Field(1, ge=1, le=MAX_CGROUPS)
    priority: int = Field(1, ge=0, le=3)
    value: float = Field(1.0, gt=0)
    restart_s: int = Field(20, ge=1)
    min_mib: Number = _spread(0)
    low_mib: Number = _spread(0)
    high_mib: Number = _spread(0)
    max_mib: Number = _spread(0)
    swap_max_mib: Number = _spread(0)
    no_swap: bool = False
    memsw_mib: Number = _spread(0)
    tenancy: TenancyConfig | None = None
    workload: WorkloadConfig


class ScenarioConfig(Frozen):
    """A host and its cgroups, with what the scenario is about."""

    name: str
    summary: str
    host: HostConfig = HostConfig()
    cgroups: tuple[CgroupConfig, ...] = Field(min_length=1)
    heads: tuple[str, ...] = tuple(h.name for h in HEADS)
    episode_ticks: int = Field(600, ge=1)
    settle_ticks: int = Field(1800, ge=0)

    @property
    def n_cgroups(self) -> int:
        """Managed cgroups on one host."""
        return sum(c.copies for c in self.cgroups)

    @model_validator(mode="after")
    def _fits(self) -> ScenarioConfig:
        known = {h.name for h in HEADS}
        for head in self.heads:
            if head not in known:
                raise ValueError(f"heads: unknown head {head!r}; known: {', '.join(sorted(known))}")
        if self.n_cgroups > MAX_CGROUPS:
            raise ValueError(f"at most {MAX_CGROUPS} cgroups, got {self.n_cgroups}")
        names = [c.name for c in self.cgroups]
        if len(set(names)) != len(names):
            raise ValueError(f"cgroup names must differ, got {names}")
        host_mib = 1024 * (self.host.dram_gib.lowest + self.host.slow_gib.lowest)
        for c in self.cgroups:
            if c.min_mib.highest * c.copies > host_mib:
                raise ValueError(
                    f"cgroup {c.name!r}: min_mib {c.min_mib.highest:g} times {c.copies} does not "
                    f"fit the host's smallest {host_mib:g} MiB of memory"
                )
        if "demote" in self.heads and self.host.slow_gib.highest == 0:
            raise ValueError(
                "heads: 'demote' needs a slow tier, and host.slow_gib is 0; "
                "give the host one or leave the head out"
            )
        return self


class ObjectiveConfig(Frozen):
    """The policy a host is run for, as numbers: reward, constraints, the shield's lines, score.

    Weights are per cgroup and second; each term is between 0 and about 1 before its weight.
    """

    name: str
    summary: str
    util_ceiling_ratio: float = Field(0.95, gt=0, le=1)
    slo_weight: float = Field(1.0, ge=0)
    slo_softness: float = Field(1.0, gt=0)  # slowdown beyond the objective that counts as 1
    throughput_weight: float = Field(1.0, ge=0)
    inversion_weight: float = Field(1.0, ge=0)
    critical_stall_weight: float = Field(1.0, ge=0)
    memory_weight: float = Field(0.3, ge=0)  # DRAM held, over the cgroup's fair share
    slow_memory_cost: float = Field(0.4, ge=0, le=1)  # price of a slow page over a DRAM page
    util_weight: float = Field(1.0, ge=0)  # host over the ceiling: shared by who holds too much
    harm_weight: float = Field(1.0, ge=0)  # price for the stall others suffer
    shed_weight: float = Field(0.5, ge=0)
    kill_weight: float = Field(5.0, ge=0)  # times the cgroup's value, once per kill or OOM
    swap_wear_weight: float = Field(0.05, ge=0)
    swap_write_budget_mib_s: float = Field(8.0, gt=0)  # per host: 1 MiB/s a cgroup (oomd Senpai)
    churn_weight: float = Field(0.01, ge=0)  # a changed level; keeps policies calm
    kill_psi_full_ratio: float = Field(0.2, ge=0, le=1)
    kill_util_ratio: float = Field(0.97, ge=0, le=1)
    kill_hold_ticks: int = Field(10, ge=1)


class PpoConfig(Frozen):
    """PPO's numbers; they belong together, so presets carry them together."""

    hosts: int = Field(32, ge=1)
    n_steps: int = Field(64, ge=1)
    batch_size: int = Field(4096, ge=2)
    n_epochs: int = Field(4, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    final_learning_rate_ratio: float = Field(0.1, gt=0, le=1)
    # Ticks a sampled action is held in training.  What a level does shows after many seconds, and
    # levels redrawn every second are noise that dwell times turn into other noise.
    hold_ticks: int = Field(1, ge=1)
    gamma: float = Field(0.98, gt=0, le=1)  # per tick
    gae_lambda: float = Field(0.95, ge=0, le=1)
    clip_range: float = Field(0.2, gt=0)
    ent_coef: float = Field(0.002, ge=0)
    vf_coef: float = Field(0.5, ge=0)
    max_grad_norm: float = Field(0.5, gt=0)
    hidden: tuple[int, ...] = (64, 64)
    critic_hidden: tuple[int, ...] = (64, 64)
    activation: Literal["relu", "tanh"] = "relu"
    # Logit of the preferred level at the start: with five levels 2 is 65 %, 4 is 93 %.
    start_preference: float = Field(2.0, ge=0, le=15)


class TrainingConfig(Frozen):
    """One training run."""

    name: str
    scenario: str = "host-mix"
    host_kind: HostKindName = "stock"
    objective: str = "default"
    total_rows: int = Field(4_000_000, ge=1)
    # Rules grown by trial first, in cgroup-steps; the policy starts out preferring what they
    # answer.  0 = start out preferring the owner's configuration.
    grow_cgroup_steps: int = Field(0, ge=0)
    # Train and validate on hosts from train ranges widened by this share on both sides.
    widen_ratio: float = Field(0.0, ge=0, lt=1)
    train_episode_ticks: int = Field(240, ge=1)
    settle_ticks: int = Field(300, ge=0)
    validate_every_rows: int = Field(500_000, ge=1)
    validate_hosts: int = Field(16, ge=1)
    validate_ticks: int = Field(300, ge=1)
    checkpoint_every_rows: int = Field(500_000, ge=1)
    torch_threads: int = Field(1, ge=1)
    ppo: PpoConfig = PpoConfig()


class LabSplitConfig(Frozen):
    """Which recordings of the kernel lab a calibration may look at."""

    name: str
    summary: str
    settle_ticks: int = Field(30, ge=0)  # of each recording, at its start: replayed, not compared
    families: tuple[str, ...] = Field(min_length=2)
    fitting_seeds: tuple[int, ...] = Field(min_length=1)
    held_out_seeds: tuple[int, ...] = ()
    fitting_policies: tuple[str, ...] = Field(min_length=1)
    held_out_policies: tuple[str, ...] = ()

    @property
    def policies(self) -> tuple[str, ...]:
        """All policies, those that are fitted first."""
        return self.fitting_policies + self.held_out_policies

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, those that are fitted first."""
        return self.fitting_seeds + self.held_out_seeds

    @model_validator(mode="after")
    def _nothing_twice(self) -> LabSplitConfig:
        for what, values in (
            ("families", self.families),
            ("policies", self.policies),
            ("seeds", self.seeds),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{what}: one is named twice: {list(values)}")
        return self
