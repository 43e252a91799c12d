"""One policy on one scenario over some hosts: the unit that an evaluation runs and keeps.

Every seed is a host, the same for every policy.  The hosts are settled under the policy's own
control and then scored, all in one batch.  A cell is a file that carries what it was made from,
so that a later run can tell whether it still holds.

Units: ticks of one second; score and terms per cgroup and second.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from memcg_gym import __version__
from memcg_gym.agents.learned import POLICY, WEIGHTS, policy_folder
from memcg_gym.agents.policy import Policy
from memcg_gym.agents.registry import make_policy
from memcg_gym.agents.rollout import RolloutResult, rollout
from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.configs.schema import HostKindName, ObjectiveConfig, ScenarioConfig, Split
from memcg_gym.envs.contract.schema import contract_hash
from memcg_gym.envs.core import HostBatch, host_seed
from memcg_gym.envs.lab.scale import scale_objective, scale_scenario
from memcg_gym.envs.reward import N_TERMS, SCORE_TERMS
from memcg_gym.training.files import digest_of, write_whole
from memcg_gym.training.metrics import HOST_METRICS, REASONS, Sums, host_metrics, intervention_rates

Array = np.ndarray[Any, np.dtype[Any]]
ShieldMode = Literal["default", "on", "off"]
World = Literal["model", "kernel"]
Report = Callable[[int], None]
"""Told how many more ticks are done."""

CHUNK_TICKS = 50
PUBLISHED_FLOOR_MIB = 100.0
"""Senpai and TMO never trim a cgroup below 100 MiB; on a host 16 times smaller that is 6.25."""
ARRAYS = ("score", "terms", "metrics", "interventions")


@dataclass(frozen=True, slots=True)
class CellSpec:
    """What a cell is made from.

    Attributes:
        policy: As :func:`~memcg_gym.agents.registry.make_policy` takes it.
        scenario, objective: Names or paths.
        seeds: One host each.
        split: Ranges the hosts are drawn from.
        host_kind: How decisions reach the kernel.
        settle_ticks: Before scoring.
        own_ticks: The last of them, under the policy's own control; the ones before pass under the
            owner's configuration, so that every host is scored at the same age.
        ticks: Scored.
        shield: ``default`` = as the policy is meant to run.
        world: Where it runs: in the model, or on a real kernel in a guest.
        divisor: How much smaller the host is made (:mod:`memcg_gym.envs.lab.scale`).
        image: Digest of the guest's kernel and programs.
    """

    policy: str
    scenario: str
    objective: str
    seeds: tuple[int, ...]
    split: Split
    host_kind: HostKindName
    settle_ticks: int
    own_ticks: int
    ticks: int
    shield: ShieldMode
    world: World = "model"
    divisor: float = 1.0
    image: str = ""

    @property
    def total_ticks(self) -> int:
        """Ticks that running the cell takes."""
        return self.settle_ticks + self.ticks


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of a policy on a scenario, one row a host.

    Attributes:
        spec: What it was made from.
        speaks: What the policy answers in, ``levels`` or ``knobs``.
        shielded: Whether the shield stood behind it.
        cgroup_steps: Cgroup-ticks it cost, settling and search included.
        score: Mean of the score terms over cgroups and ticks, ``[H]``.
        terms: Mean of every weighted reward term, ``[H, N_TERMS]``.
        metrics: Raw metrics, ``[H, len(HOST_METRICS)]``.
        interventions: Per cgroup-hour by reason, ``[H, len(REASONS)]``.
    """

    spec: CellSpec
    speaks: str
    shielded: bool
    cgroup_steps: int
    score: Array
    terms: Array
    metrics: Array
    interventions: Array


def run_cell(spec: CellSpec, report: Report = lambda ticks: None) -> Cell:
    """Settle the hosts and score them.

    Raises:
        ConfigError: The scenario, the objective or the policy is not usable.
    """
    if spec.world == "kernel":
        from memcg_gym.training.kernel_cells import run_kernel_cell

        return run_kernel_cell(spec, report)
    policy = scaled_policy(spec)
    shielded = stands_behind(policy, spec.shield)
    scenario, objective = scaled_world(spec)
    batch = HostBatch(
        scenario,
        objective,
        n_hosts=len(spec.seeds),
        host_kind=spec.host_kind,
        shield=shielded,
    )
    for at, seed in enumerate(spec.seeds):
        batch.reset_host(at, host_seed(seed, 0), spec.split)
    return settle_and_score(spec, batch, policy, shielded, report)


def settle_and_score(
    spec: CellSpec, batch: HostBatch, policy: Policy, shielded: bool, report: Report
) -> Cell:
    """Settle a batch that was reset, score it, and make a cell of what came of it."""
    owner_ticks = spec.settle_ticks - spec.own_ticks
    batch.settle(owner_ticks)
    report(owner_ticks)
    policy.reset((batch.n_hosts, batch.n_cgroups), batch.supported, spec.seeds[0])
    run_chunks(batch, policy, spec.own_ticks, 0, report)
    oom_kills = batch.hosts["oom_kills"].copy()
    scored = run_chunks(batch, policy, spec.ticks, spec.own_ticks, report)
    sums = Sums(
        spec.ticks,
        scored.cgroup_ticks,
        scored.metrics,
        scored.interventions,
        batch.memcgs["value"].copy(),
        batch.hosts["oom_kills"] - oom_kills,
    )
    terms = mean_terms(scored)
    return Cell(
        spec,
        policy.speaks,
        shielded,
        spec.total_ticks * batch.n_hosts * batch.n_cgroups
        + int(getattr(policy, "searched_cgroup_steps", 0)),
        terms[:, SCORE_TERMS].sum(axis=1),
        terms,
        host_metrics(sums),
        intervention_rates(sums),
    )


def scaled_policy(spec: CellSpec) -> Policy:
    """The policy, its sizes in MiB divided like the host's."""
    if spec.divisor == 1.0:
        return make_policy(spec.policy, host_kind=spec.host_kind)
    floor_mib = PUBLISHED_FLOOR_MIB / spec.divisor
    return make_policy(
        spec.policy, host_kind=spec.host_kind, min_mib=floor_mib, limit_min_mib=floor_mib
    )


def scaled_world(spec: CellSpec) -> tuple[ScenarioConfig, ObjectiveConfig]:
    """Scenario and objective at the cell's scale."""
    scenario, objective = load_scenario(spec.scenario), load_objective(spec.objective)
    if spec.divisor == 1.0:
        return scenario, objective
    return scale_scenario(scenario, spec.divisor), scale_objective(objective, spec.divisor)


def merge_cells(cells: Sequence[Cell]) -> Cell:
    """Cells of the same policy on different hosts as one, hosts in their order."""
    first = cells[0]
    if len(cells) == 1:
        return first
    return Cell(
        replace(first.spec, seeds=tuple(s for c in cells for s in c.spec.seeds)),
        first.speaks,
        first.shielded,
        sum(c.cgroup_steps for c in cells),
        **{name: np.concatenate([getattr(c, name) for c in cells]) for name in ARRAYS},
    )


def run_chunks(
    batch: HostBatch, policy: Policy, ticks: int, first_tick: int, report: Report
) -> RolloutResult:
    """A rollout in pieces that reports on its way; the policy goes on as it is."""
    parts = []
    for done in range(0, max(ticks, 1), CHUNK_TICKS):
        piece = min(CHUNK_TICKS, ticks - done)
        parts.append(rollout(batch, policy, piece, reset=False, first_tick=first_tick + done))
        report(piece)
    return RolloutResult(
        ticks,
        first_tick + ticks,
        np.sum([p.cgroup_ticks for p in parts], axis=0),
        np.sum([p.terms for p in parts], axis=0),
        np.sum([p.metrics for p in parts], axis=0),
        np.sum([p.interventions for p in parts], axis=0),
    )


def mean_terms(result: RolloutResult) -> Array:
    """Mean of every term over a host's cgroups and ticks, shape ``[H, N_TERMS]``."""
    cgroup_ticks = np.maximum(result.cgroup_ticks.sum(axis=1), 1.0)
    mean: Array = result.terms.sum(axis=1) / cgroup_ticks[:, None]
    return mean


def stands_behind(policy: Policy, mode: ShieldMode) -> bool:
    """Whether the shield is on; nothing stands between a policy that sets knobs and the kernel."""
    if policy.speaks == "knobs":
        return False
    return policy.shielded if mode == "default" else mode == "on"


def identity(spec: CellSpec) -> str:
    """Everything a cell's numbers depend on, as one canonical text."""
    content = asdict(spec) | {
        "policy_files": policy_digest(spec.policy),
        "scenario_content": load_scenario(spec.scenario).model_dump(mode="json"),
        "objective_content": load_objective(spec.objective).model_dump(mode="json"),
        "contract": contract_hash(),
        "version": __version__,
        "code": code_digest(),
        "terms": N_TERMS,
        "metrics": [m.name for m in HOST_METRICS],
        "reasons": list(REASONS),
    }
    return json.dumps(content, sort_keys=True)


def policy_digest(spec: str) -> str:
    """SHA-256 of what a run folder or a table holds; empty for a policy known by name."""
    path = Path(spec)
    if path.is_dir():
        folder = policy_folder(path)
        return digest_of([folder / WEIGHTS, folder / POLICY], folder)
    if path.suffix == ".mrt":
        return digest_of([path], path.parent)
    return ""


@functools.cache
def code_digest() -> str:
    """SHA-256 of the code and data that decide a rollout: another model, other numbers."""
    root = Path(str(resources.files("memcg_gym")))
    folders = [root / name for name in ("agents", "configs", "enforcer", "envs")]
    kinds = (".py", ".toml", ".csv")
    files = [p for folder in folders for p in folder.rglob("*") if p.suffix in kinds]
    return digest_of(files, root)


def save_cell(path: Path, cell: Cell, made_from: str) -> None:
    """Write a cell so that a reader sees all of it or nothing.

    Args:
        path: Where.
        cell: What.
        made_from: Its :func:`identity`, taken before it was run.

    Raises:
        ConfigError: The file cannot be written.
    """
    about = {
        "identity": made_from,
        "speaks": cell.speaks,
        "shielded": cell.shielded,
        "cgroup_steps": cell.cgroup_steps,
    }
    arrays = {name: getattr(cell, name) for name in ARRAYS}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
    write_whole(path, buffer.getvalue())


def load_cell(path: Path, spec: CellSpec, made_from: str) -> Cell | None:
    """A kept cell, or None where there is none, it is damaged, or it was made from other things."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if about.get("identity") != made_from:
        return None
    return Cell(spec, about["speaks"], about["shielded"], about["cgroup_steps"], **arrays)
