"""From a policy that speaks in levels to a rule table: DAgger with decision trees on integers.

::

    round 0: hosts run under the teacher; later: under the last table
    label every sampled row with what the teacher would do there
    fit a tree on all rows so far, on the very integers a host will see
    keep the table that scores best on validation hosts

A label is the joint action over all heads; rare ones count as the nearest frequent one.  Judge a
table by its score, not by its agreement: trees that agree in 80 % of rows can score alike.  It
knows nothing of states that neither the teacher nor a table ever led to.

Units: features in the contract's fixed point; ticks of one second; scores per cgroup and second.

Source: Ross, Gordon, Bagnell, "A Reduction of Imitation Learning ... to No-Regret Online Learning"
(2011) for DAgger; Bastani et al., VIPER (2018), for weights by how much an action matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from memcg_gym.agents.policy import Policy
from memcg_gym.agents.rollout import rollout, step, view_of
from memcg_gym.agents.table import TablePolicy
from memcg_gym.configs.schema import HostKindName, ObjectiveConfig, ScenarioConfig
from memcg_gym.enforcer.evaluator import evaluate_batch
from memcg_gym.enforcer.table import Table, table_from_tree
from memcg_gym.enforcer.table_layout import MAX_DEPTH, leaf_boxes
from memcg_gym.envs.contract.errors import ConfigError, MemcgGymError
from memcg_gym.envs.contract.features import FEATURES, F
from memcg_gym.envs.contract.heads import LIFT_LEVEL, N_HEADS, Head
from memcg_gym.envs.core import HostBatch, host_seed

Array = np.ndarray[Any, np.dtype[Any]]
Weighting = Literal["none", "gap"]
Report = Callable[[str], None]

FLOAT_EXACT = 1 << 24
"""scikit-learn compares in float32; integers below this are exact there."""
SEED_BASE = 0x7AB1E
"""Keeps export's hosts apart from those of training and evaluation at the same ``--seed``."""
EVERY_SETTLING = 5
"""While hosts settle, a row in so many ticks is looked at: a table also runs on young hosts."""
MAX_GAP = 10.0
"""Largest weight of a row in units of logits (assumption): beyond, the choice is certain anyway."""
LOW = np.array([f.low_fixed for f in FEATURES], dtype=np.int64)
HIGH = np.array([f.high_fixed for f in FEATURES], dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where a table is fitted and scored: train ranges, the shield on."""

    scenario: ScenarioConfig
    objective: ObjectiveConfig
    host_kind: HostKindName = "stock"
    seed: int = 0

    def hosts(self, n_hosts: int, purpose: int) -> HostBatch:
        """Fresh hosts; another purpose, other hosts."""
        batch = HostBatch(
            self.scenario, self.objective, n_hosts=n_hosts, host_kind=self.host_kind, shield=True
        )
        for at in range(n_hosts):
            batch.reset_host(at, host_seed(SEED_BASE + self.seed, at, purpose), "train")
        return batch


class Purpose:
    """Which hosts serve what; DAgger's rounds count up from ``ROUNDS``."""

    VALIDATE = 0
    POLISH = 1
    REPORT = 2
    GROW = 3
    ROUNDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilConfig:
    """How much to look at and how large a tree to fit.

    Attributes:
        leaves: Most rules.
        rounds: DAgger rounds.
        hosts: A round's hosts.
        settle_ticks: Before a round's rows are taken at every tick.
        ticks: A round's ticks after settling.
        rows: Most rows a round adds.
        classes: Joint actions kept apart.
        validate_hosts, validate_ticks: For choosing the best round.
        min_support: Rows a rule needs.
        weighting: ``gap`` = a row counts by the gap between the teacher's first and second choice.
    """

    leaves: int = 64
    rounds: int = 6
    hosts: int = 16
    settle_ticks: int = 1800
    ticks: int = 400
    rows: int = 40_000
    classes: int = 64
    validate_hosts: int = 16
    validate_ticks: int = 600
    min_support: int = 5
    weighting: Weighting = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("leaves", "rounds", "hosts", "ticks", "rows", "classes", "validate_hosts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"export: {name} must be at least 1, got {getattr(self, name)}")
        if self.leaves < 2:
            raise ConfigError("export: a table needs at least 2 leaves to decide anything, got 1")


class Rows(NamedTuple):
    """Labelled rows.

    Attributes:
        features: int32 ``[n, F]``.
        levels: The teacher's, int64 ``[n, N_HEADS]``.
        weights: float64 ``[n]``.
    """

    features: Array
    levels: Array
    weights: Array


@dataclass(slots=True)
class Round:
    """One DAgger round: the table, how it scored, how often it agrees with the teacher."""

    table: Table
    score: float
    agreement: float
    rows: int


@dataclass(slots=True)
class Distilled:
    """What distillation found.

    Attributes:
        table: The best round's.
        rounds: All of them.
        best: Which was best.
        teacher_score: On the validation hosts.
        cgroup_steps: Simulated cgroup-ticks it cost.
    """

    table: Table
    rounds: list[Round] = field(default_factory=list)
    best: int = 0
    teacher_score: float = math.nan
    cgroup_steps: int = 0


def distil(
    teacher: Policy,
    world: World,
    config: DistilConfig,
    *,
    policy_id: bytes = bytes(16),
    version: int = 1,
    report: Report = lambda text: None,
) -> Distilled:
    """Fit tables to a teacher and keep the best.

    Args:
        teacher: Any policy that speaks in levels.
        world: Where.
        config: How much.
        policy_id, version: As the table will carry them.
        report: Told what is being done.

    Raises:
        ConfigError: The teacher sets knobs.
        MemcgGymError: A table does not decide as the tree it was made from.
    """
    if teacher.speaks != "levels":
        raise ConfigError(
            f"{teacher.name}: sets knobs, and a table holds levels; "
            "a learned policy or one that speaks in levels would do, e.g. host-aware"
        )
    report("scoring the teacher")
    found = Distilled(
        owner_table(policy_id, version),
        teacher_score=float(np.mean(score_hosts(teacher, world, config, Purpose.VALIDATE))),
        cgroup_steps=scoring_steps(world, config),
    )
    rows: list[Rows] = []
    actor: Policy = teacher
    for number in range(config.rounds):
        report(f"round {number + 1} of {config.rounds}")
        rows.append(collect(actor, teacher, world, config, number))
        data = Rows(*(np.concatenate(part) for part in zip(*rows, strict=True)))
        table = fit(data, world, config, number, policy_id, version)
        actor = TablePolicy(table)
        score = float(np.mean(score_hosts(actor, world, config, Purpose.VALIDATE)))
        found.rounds.append(Round(table, score, agreement(table, data), len(data.levels)))
        found.cgroup_steps += scoring_steps(world, config) + round_steps(world, config)
    found.best = int(np.argmax([r.score for r in found.rounds]))
    found.table = found.rounds[found.best].table
    return found


def collect(
    actor: Policy, teacher: Policy, world: World, config: DistilConfig, number: int
) -> Rows:
    """Run hosts under the actor and label sampled rows by the teacher."""
    batch = world.hosts(config.hosts, Purpose.ROUNDS + number)
    shape = (batch.n_hosts, batch.n_cgroups)
    supported = batch.supported
    for policy in {id(actor): actor, id(teacher): teacher}.values():
        policy.reset(shape, supported, world.seed)
    kept: list[Rows] = []
    for tick in range(config.settle_ticks + config.ticks):
        labels = teacher.act(view_of(batch, tick)) * supported
        if tick >= config.settle_ticks or tick % EVERY_SETTLING == 0:
            kept.append(_rows(batch, labels, teacher, config.weighting))
        if actor is teacher:
            batch.step_levels(labels)
        else:
            step(batch, actor, tick)
    data = Rows(*(np.concatenate(part) for part in zip(*kept, strict=True)))
    if len(data.levels) > config.rows:
        rng = np.random.default_rng([SEED_BASE, world.seed, number])
        chosen = np.sort(rng.choice(len(data.levels), config.rows, replace=False))
        data = Rows(*(part[chosen] for part in data))
    return data


def fit(
    data: Rows, world: World, config: DistilConfig, number: int, policy_id: bytes, version: int
) -> Table:
    """A tree on the rows, as a table that decides exactly as the tree does.

    Raises:
        MemcgGymError: It does not.
    """
    classes = joint_classes(data, config.classes)
    labels = nearest_class(data.levels, classes)
    tree = DecisionTreeClassifier(
        max_leaf_nodes=config.leaves,
        max_depth=MAX_DEPTH,
        min_samples_leaf=min(config.min_support, max(1, len(labels) // 2)),
        random_state=world.seed + number,
    )
    if np.abs(data.features.astype(np.int64)).max(initial=0) >= FLOAT_EXACT:
        raise MemcgGymError("a feature is too large to be exact in float32")
    tree.fit(data.features.astype(np.float32), labels, sample_weight=data.weights)
    t = tree.tree_
    # A class that no row has shifts the tree's own numbering; classes_ undoes that.
    chosen = classes[tree.classes_[t.value[:, 0, :].argmax(axis=1)]]
    table = table_from_tree(
        t.children_left,
        t.children_right,
        t.feature,
        t.threshold,
        chosen,
        support=t.n_node_samples,
        version=version,
        policy_id=policy_id,
    )
    wanted = classes[tree.predict(data.features.astype(np.float32))]
    differ = (decide(table, data.features) != wanted).any(axis=1)
    if differ.any():
        raise MemcgGymError(
            f"the table decides unlike its tree on {int(differ.sum())} of {len(differ)} rows"
        )
    return table


def joint_classes(data: Rows, most: int) -> Array:
    """The most frequent joint actions, heaviest first, int64 ``[C, N_HEADS]``."""
    actions, which = np.unique(data.levels, axis=0, return_inverse=True)
    weight = np.bincount(which.ravel(), weights=data.weights, minlength=len(actions))
    order = np.argsort(-weight, kind="stable")[:most]
    classes: Array = actions[order].astype(np.int64)
    return classes


def nearest_class(levels: Array, classes: Array) -> Array:
    """The class of each row: its own action, or the one with the nearest levels, head by head.

    Ties go to the more frequent class.
    """
    actions, which = np.unique(levels, axis=0, return_inverse=True)
    distance = np.abs(actions[:, None, :] - classes[None, :, :]).sum(axis=2)
    nearest: Array = distance.argmin(axis=1)[which.ravel()]
    return nearest


def decide(table: Table, features: Array) -> Array:
    """A table's levels for every row, int64 ``[n, N_HEADS]``."""
    levels: Array = table.levels.astype(np.int64)[evaluate_batch(table, features)]
    return levels


def agreement(table: Table, data: Rows) -> float:
    """Share of rows in which a table takes the teacher's joint action."""
    return float(np.mean((decide(table, data.features) == data.levels).all(axis=1)))


def score_hosts(policy: Policy, world: World, config: DistilConfig, purpose: int) -> Array:
    """Score of every host, settled under the policy's own control, ``[validate_hosts]``."""
    batch = world.hosts(config.validate_hosts, purpose)
    settled = rollout(batch, policy, config.settle_ticks, seed=world.seed)
    scored = rollout(
        batch, policy, config.validate_ticks, reset=False, first_tick=settled.next_tick
    )
    return scored.score


def scoring_steps(world: World, config: DistilConfig) -> int:
    """Cgroup-ticks of scoring one policy."""
    ticks = config.settle_ticks + config.validate_ticks
    return config.validate_hosts * ticks * world.scenario.n_cgroups


def round_steps(world: World, config: DistilConfig) -> int:
    """Cgroup-ticks of collecting a round's rows."""
    return config.hosts * (config.settle_ticks + config.ticks) * world.scenario.n_cgroups


def relying_rules(table: Table) -> int:
    """Rules that throttle and do not themselves rule out lock holders or critical threads.

    The shield withholds the throttle there, on every host; the number says how often a reader of
    the rules must bear it in mind.
    """
    _, high = leaf_boxes(table)
    columns = [ref.column for ref in table.features]
    safe = np.ones(table.n_rules, dtype=np.bool_)
    for feature in (F.LOCK_KERNEL_SHARE, F.LOCK_USER_SHARE, F.CRITICAL_SHARE):
        if feature in columns:
            safe &= high[:, columns.index(feature)] <= 0
        else:
            safe[:] = False
    return int(np.sum(~safe & (table.levels[:-1, Head.THROTTLE] > LIFT_LEVEL)))


def _rows(batch: HostBatch, labels: Array, teacher: Policy, weighting: Weighting) -> Rows:
    usable = batch.active & ((batch.features >= LOW) & (batch.features <= HIGH)).all(axis=2)
    features = batch.features[usable]
    weights = np.ones(len(features))
    if weighting == "gap":
        weights = choice_gaps(teacher, features)
    return Rows(features, labels[usable], weights)


def choice_gaps(teacher: Policy, features: Array) -> Array:
    """How much each row's choice matters: logit gap of first and second choice over the heads.

    Raises:
        ConfigError: The teacher has no logits.
    """
    logits_of = getattr(teacher, "logits", None)
    if logits_of is None:
        raise ConfigError(f"{teacher.name}: has no logits to weight rows by; use --weights none")
    logits = np.sort(logits_of(features), axis=-1)
    gaps = np.minimum(logits[..., -1] - logits[..., -2], MAX_GAP)
    open_heads = logits[..., -2] > -1e8  # a head with one level has no choice
    weights: Array = np.where(open_heads, gaps, 0.0).sum(axis=-1).astype(np.float64)
    return weights + 1e-3


def owner_table(policy_id: bytes, version: int) -> Table:
    """One rule: as the owner configured it."""
    return table_from_tree(
        [-1], [-1], [0], [0], np.zeros((1, N_HEADS)), version=version, policy_id=policy_id
    )
