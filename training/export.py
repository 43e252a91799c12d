"""The verb ``export``: a rule table of a trained policy, scored beside it.

Distils, polishes where asked, chooses on validation hosts, and reports on hosts that neither
step has seen.  The table is not signed: until somebody signs it, hosts run it dry only.

Units: bytes; scores per cgroup and second; ticks of one second.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memcg_gym.agents.policy import Policy
from memcg_gym.agents.registry import make_policy
from memcg_gym.agents.table import TablePolicy
from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.enforcer.render import support_path, table_sha256, write_support
from memcg_gym.enforcer.table import Table, encode, read_table, write_table
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.schema import contract_hash
from memcg_gym.training.cells import policy_digest
from memcg_gym.training.distil import (
    DistilConfig,
    Distilled,
    Purpose,
    Report,
    World,
    collect,
    decide,
    distil,
    owner_table,
    relying_rules,
    round_steps,
    score_hosts,
    scoring_steps,
)
from memcg_gym.training.evaluate import count, positive
from memcg_gym.training.files import write_whole
from memcg_gym.training.polish import PolishConfig, Polished, polish
from memcg_gym.training.results import versions
from memcg_gym.training.stats import Difference, paired_difference

if TYPE_CHECKING:
    from memcg_gym.training.run_folder import RunConfig

HELP = "make a rule table of a trained policy"

DISTIL, POLISH = DistilConfig(), PolishConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.description = (
        "Distil a policy into a rule table, write it with the support of its rules, and report "
        "what the table scores beside the policy on hosts that neither has seen.  Exit status: "
        "0 written, 1 it loses more than --max-loss and is not written, 2 wrong usage."
    )
    parser.add_argument(
        "policy", metavar="POLICY", help="run folder, or a policy that speaks in levels"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="policy.mrt")
    parser.add_argument("--scenario", metavar="NAME", help="where to distil [the run's]")
    parser.add_argument("--objective", metavar="NAME", help="what counts [the run's, or default]")
    parser.add_argument(
        "--host-kind", choices=("stock", "bpf"), help="how decisions act [the run's, or stock]"
    )
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="[0]")
    parser.add_argument("--version", type=positive, default=1, metavar="N", help="table's [1]")
    parser.add_argument(
        "--weights",
        choices=("none", "gap"),
        default=DISTIL.weighting,
        help="gap = a row counts by how sure the network is [none]",
    )
    for name, help_text in (
        ("leaves", "most rules"),
        ("rounds", "DAgger rounds"),
        ("hosts", "hosts a round"),
        ("settle_ticks", "ticks before rows are taken at every tick"),
        ("ticks", "ticks of a round after that"),
        ("validate_hosts", "hosts for choosing and for the report"),
        ("validate_ticks", "their scored ticks"),
    ):
        default = getattr(DISTIL, name)
        option = f"--{name.replace('_', '-')}"
        kind = count if name == "settle_ticks" else positive
        parser.add_argument(
            option, type=kind, default=default, metavar="N", help=f"{help_text} [{default}]"
        )
    parser.add_argument("--polish", action="store_true", help="improve the rules by trial")
    parser.add_argument(
        "--polish-budget",
        type=positive,
        default=POLISH.budget,
        metavar="N",
        help=f"cgroup-ticks it may cost [{POLISH.budget}]",
    )
    parser.add_argument(
        "--max-loss", type=float, metavar="X", help="refuse a table that loses more score than X"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


@dataclass(frozen=True, slots=True)
class Export:
    """What an export made.

    Attributes:
        table: The one that is written.
        distilled: How it came about.
        polished: Likewise, where it was asked for.
        polish_kept: The polished table was better on the validation hosts.
        others: Scores on the validation hosts of tables that are no copy of the policy: the
            owner's configuration, and the rules the run started from, if it grew any.
        instead: Which of them is written, because it scored highest; empty = the policy's table.
        policy_score, table_score: Per host, on hosts that nothing was chosen by.
        lost: Policy minus table on those hosts.
        agreement: Share of rows on those hosts, under the table, with the policy's joint action.
        cgroup_steps: Simulated cgroup-ticks, all in all.
    """

    table: Table
    distilled: Distilled
    polished: Polished | None
    polish_kept: bool
    others: dict[str, float]
    instead: str
    policy_score: np.ndarray
    table_score: np.ndarray
    lost: Difference
    agreement: float
    cgroup_steps: int


def run(args: argparse.Namespace) -> int:
    """Distil, report, write.

    Raises:
        ConfigError: The policy, the scenario or a number is not usable.
        TableError: The table cannot be written.
    """
    world = world_of(args)
    policy = make_policy(args.policy, host_kind=world.host_kind)
    config = DistilConfig(
        leaves=args.leaves,
        rounds=args.rounds,
        hosts=args.hosts,
        settle_ticks=args.settle_ticks,
        ticks=args.ticks,
        validate_hosts=args.validate_hosts,
        validate_ticks=args.validate_ticks,
        weighting=args.weights,
    )
    polishing = None
    if args.polish:
        polishing = PolishConfig(
            hosts=max(2, min(POLISH.hosts, args.validate_hosts)),
            settle_ticks=args.settle_ticks,
            ticks=min(POLISH.ticks, args.validate_ticks),
            budget=args.polish_budget,
        )
    with _status() as report:
        made = export(
            policy,
            world,
            config,
            polishing,
            policy_id_of(args.policy, policy),
            args.version,
            grown_table(args, policy),
            report,
        )
    content = report_of(made, args, world, config)
    refused = args.max_loss is not None and made.lost.estimate > args.max_loss
    if not refused:
        write_table(args.out, made.table)
        support_path(args.out).unlink(missing_ok=True)
        write_support(args.out, made.table)
        text = json.dumps(content, indent=1, allow_nan=False)
        write_whole(Path(f"{args.out}.export.json"), (text + "\n").encode())
    print(json.dumps(content, indent=1, allow_nan=False) if args.json else summary(content))
    if refused:
        print(
            f"not written: it loses {made.lost.estimate:.4g}, more than --max-loss "
            f"{args.max_loss:g}; more --leaves, --rounds or --polish may help",
            file=sys.stderr,
        )
        return 1
    return 0


def export(
    policy: Policy,
    world: World,
    config: DistilConfig,
    polishing: PolishConfig | None,
    policy_id: bytes,
    version: int,
    others: dict[str, Table] | None = None,
    report: Report = lambda text: None,
) -> Export:
    """Distil, polish, and score the outcome on hosts that neither has seen.

    The owner's configuration and ``others`` are candidates too: what is written is never below
    them on the validation hosts.
    """
    others = others or {}
    found = distil(policy, world, config, policy_id=policy_id, version=version, report=report)
    table, polished, kept = found.table, None, False
    one_scoring = scoring_steps(world, config)
    steps = found.cgroup_steps + (1 + len(others)) * one_scoring
    best_score = found.rounds[found.best].score
    if polishing is not None:
        polished = polish(table, world, polishing, report)
        report("scoring the polished table")
        score = score_hosts(TablePolicy(polished.table), world, config, Purpose.VALIDATE)
        kept = float(np.mean(score)) > best_score
        if kept:
            table, best_score = polished.table, float(np.mean(score))
        steps += polished.cgroup_steps + one_scoring
    scores: dict[str, float] = {}
    instead = ""
    for name, other in {"owner": owner_table(policy_id, version), **others}.items():
        report(f"scoring the table {name}")
        score = score_hosts(TablePolicy(other), world, config, Purpose.VALIDATE)
        scores[name] = float(np.mean(score))
        if scores[name] > best_score:
            table, best_score, instead, kept = other, scores[name], name, False
    report("scoring policy and table on fresh hosts")
    ours = score_hosts(policy, world, config, Purpose.REPORT)
    theirs = score_hosts(TablePolicy(table), world, config, Purpose.REPORT)
    return Export(
        table,
        found,
        polished,
        kept,
        scores,
        instead,
        ours,
        theirs,
        paired_difference([ours], [theirs]),
        fresh_agreement(table, policy, world, config),
        steps + 2 * one_scoring + round_steps(world, config),
    )


def fresh_agreement(table: Table, policy: Policy, world: World, config: DistilConfig) -> float:
    """Share of rows that the table leads to in which it takes the policy's joint action."""
    data = collect(
        TablePolicy(table),
        policy,
        world,
        dataclasses.replace(config, weighting="none"),
        config.rounds,
    )
    supported = world.hosts(1, Purpose.REPORT).supported
    levels = decide(table, data.features) * supported
    return float(np.mean((levels == data.levels).all(axis=1)))


def world_of(args: argparse.Namespace) -> World:
    """Scenario, objective and host kind: as given, else as the run was trained.

    Raises:
        ConfigError: A policy that is no run needs ``--scenario``.
        CheckpointError: The run's configuration cannot be read.
    """
    trained = trained_on(Path(args.policy))
    if trained is None and args.scenario is None:
        raise ConfigError(f"{args.policy}: not a run folder, so --scenario is needed")
    if args.scenario is not None or trained is None:
        scenario = load_scenario(args.scenario)
    else:
        scenario = trained.scenario
    if args.objective is not None or trained is None:
        objective = load_objective(args.objective or "default")
    else:
        objective = trained.objective
    kind = args.host_kind or ("stock" if trained is None else trained.training.host_kind)
    return World(scenario=scenario, objective=objective, host_kind=kind, seed=args.seed)


def trained_on(path: Path) -> RunConfig | None:
    """What a run folder, its ``best/`` or one of its checkpoints was trained on; else None.

    Raises:
        CheckpointError: The run's configuration cannot be read.
    """
    if not path.is_dir():
        return None
    from memcg_gym.training.run_folder import CONFIG, open_run

    for folder in (path, path.parent, path.parent.parent):
        if (folder / CONFIG).is_file():
            return open_run(folder)
    return None


def grown_table(args: argparse.Namespace, policy: Policy) -> dict[str, Table]:
    """The rules a run folder's policy started from, by name; empty where there are none.

    They are fitted to the run's own scenario, so another one leaves them out.
    """
    from memcg_gym.training.run_folder import GROWN

    path = Path(args.policy) / GROWN
    if args.scenario is not None or not path.is_file():
        return {}
    table = read_table(path)
    policy_id = policy_id_of(args.policy, policy)
    return {"grown": dataclasses.replace(table, policy_id=policy_id, version=args.version)}


def policy_id_of(spec: str, policy: Policy) -> bytes:
    """16 bytes that name the policy: by its weights, or by its name where it has none."""
    text = policy_digest(spec) or f"{policy.name}"
    return hashlib.sha256(f"{contract_hash()} {text}".encode()).digest()[:16]


def report_of(
    made: Export, args: argparse.Namespace, world: World, config: DistilConfig
) -> dict[str, Any]:
    """The export as plain JSON data."""
    lost = made.lost
    return {
        "command": shlex.join(["memcg-gym", *sys.argv[1:]]),
        "versions": versions(),
        "contract": contract_hash(),
        "policy": args.policy,
        "policy_id": made.table.policy_id.hex(),
        "scenario": world.scenario.name,
        "objective": world.objective.name,
        "host_kind": world.host_kind,
        "seed": world.seed,
        "distil": dataclasses.asdict(config),
        "table": {
            "file": args.out.name,
            "sha256": table_sha256(made.table),
            "bytes": len(encode(made.table)),
            "rules": made.table.n_rules,
            "features": len(made.table.features),
            "rules_that_rely_on_the_shield": relying_rules(made.table),
        },
        "rounds": [
            {"score": r.score, "agreement": r.agreement, "rows": r.rows, "rules": r.table.n_rules}
            for r in made.distilled.rounds
        ],
        "best_round": made.distilled.best + 1,
        "polish": None
        if made.polished is None
        else {
            "kept": made.polish_kept,
            "changes": made.polished.changes,
            "trials": made.polished.trials,
            "cgroup_steps": made.polished.cgroup_steps,
        },
        "others": made.others,
        "instead": made.instead,
        "report_hosts": len(made.policy_score),
        "policy_score": float(np.mean(made.policy_score)),
        "table_score": float(np.mean(made.table_score)),
        "score_lost": {
            "estimate": lost.estimate,
            "low": None if np.isnan(lost.low) else lost.low,
            "high": None if np.isnan(lost.high) else lost.high,
        },
        "agreement": made.agreement,
        "cgroup_steps": made.cgroup_steps,
    }


def summary(content: dict[str, Any]) -> str:
    """The report for people."""
    table, lost, polished = content["table"], content["score_lost"], content["polish"]
    interval = "" if lost["low"] is None else f" [{lost['low']:.4f}, {lost['high']:.4f}]"
    lines = [
        f"{table['file']}: {table['rules']} rules over {table['features']} features, "
        f"{table['bytes']} bytes, round {content['best_round']} of {len(content['rounds'])}",
        f"score on {content['report_hosts']} fresh hosts of {content['scenario']}: policy "
        f"{content['policy_score']:.4f}, table {content['table_score']:.4f}, "
        f"lost {lost['estimate']:.4f}{interval}",
        f"same joint action in {100 * content['agreement']:.1f} % of rows",
        f"rules whose throttle the shield withholds from lock holders: "
        f"{table['rules_that_rely_on_the_shield']}",
        f"cost: {content['cgroup_steps']:,} cgroup-ticks",
    ]
    if polished:
        kept = "kept" if polished["kept"] else "not kept: no better on the validation hosts"
        lines.insert(
            3,
            f"polish: {polished['changes']} levels changed in {polished['trials']} trials, {kept}",
        )
    if content["instead"]:
        written = {"owner": "the owner's configuration", "grown": "the rules the run started from"}
        lines.insert(1, f"best on the validation hosts, so written: {written[content['instead']]}")
    return "\n".join(lines)


@contextmanager
def _status() -> Iterator[Report]:
    """What is being done, on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("distilling") as status:
        yield lambda text: status.update(text)
