"""The verb ``train``: PPO over the rows of many hosts, validated, checkpointed, resumable.

Units: rows (active cgroup-ticks); scores as ``training/validation.py`` says.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch as th
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback

from memcg_gym.agents.learned import Start
from memcg_gym.configs.loader import load_objective, load_scenario, load_training
from memcg_gym.configs.widen import widened
from memcg_gym.enforcer.table import write_table
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.heads import N_HEADS
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv
from memcg_gym.training import run_folder
from memcg_gym.training.checkpoint import (
    Progress as RunProgress,
)
from memcg_gym.training.checkpoint import (
    describe_policy,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_policy,
    to_learned,
)
from memcg_gym.training.cli import INTERRUPTED
from memcg_gym.training.distil import World
from memcg_gym.training.grow import GrowConfig, grow
from memcg_gym.training.policies import LevelsPolicy
from memcg_gym.training.ppo import CgroupPPO, make_ppo
from memcg_gym.training.run_folder import RunConfig
from memcg_gym.training.validation import Validation

HELP = "train a policy in the model"

NEW_RUN_OPTIONS = ("preset", "config", "set", "seed", "out", "scenario", "host_kind", "objective")
"""Options that make no sense with ``--resume``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.description = (
        "Train a policy with PPO in the model.  The run folder keeps configuration, checkpoints, "
        "curves (TensorBoard, JSON lines) and the policy with the best validation score.  Exit "
        "status: 0 trained, 2 wrong usage or configuration, 130 stopped by SIGINT or SIGTERM; a "
        "stopped run is saved first and goes on with --resume."
    )
    parser.add_argument(
        "preset", nargs="?", metavar="PRESET", help="a shipped training preset (default: default)"
    )
    parser.add_argument("--config", metavar="FILE", help="a training preset of your own, TOML")
    parser.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="change a setting of the preset, e.g. ppo.gamma=0.99; may be repeated",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything (default: 0)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="run folder (default: runs/PRESET-SCENARIO-SEED)"
    )
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in DIR")
    parser.add_argument("--scenario", metavar="NAME", help="scenario, instead of the preset's")
    parser.add_argument(
        "--host-kind", choices=("stock", "bpf"), help="host kind, instead of the preset's"
    )
    parser.add_argument("--objective", metavar="NAME", help="objective, instead of the preset's")
    parser.add_argument(
        "--stop-at", type=int, metavar="ROWS", help="save and stop there; --resume goes on"
    )
    parser.add_argument(
        "--env-threads",
        type=int,
        default=1,
        metavar="N",
        help="threads that step the hosts (default: 1); the result does not depend on it, and on "
        "a machine with other work more are slower",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(args: argparse.Namespace) -> int:
    """Train; see ``--help`` for the exit status.

    Raises:
        ConfigError: A setting is not usable.
        CheckpointError: The run to resume is not usable.
    """
    if args.env_threads < 1:
        raise ConfigError(f"--env-threads: needs at least 1, got {args.env_threads}")
    if args.resume is None:
        config = configure(args)
        folder = args.out or default_folder(config)
        run_folder.create(folder, config, run_folder.command_line())
    else:
        refuse_with_resume(args)
        folder = args.resume
        config = run_folder.open_run(folder)
    outcome = train(
        config,
        folder,
        resume=args.resume is not None,
        stop_at=args.stop_at,
        env_threads=args.env_threads,
    )
    print(json.dumps(outcome.to_json()) if args.json else outcome.to_text())
    return INTERRUPTED if outcome.interrupted else 0


def configure(args: argparse.Namespace) -> RunConfig:
    """The run's configuration from preset, file and options, the later above the earlier.

    Raises:
        ConfigError: An option or a setting is not usable.
    """
    if args.preset and args.config:
        raise ConfigError(f"got both a preset, {args.preset!r}, and --config {args.config}")
    overrides = list(args.set or [])
    for option in ("scenario", "host_kind", "objective"):
        value = getattr(args, option)
        if value is not None:
            overrides.append(f"{option}={json.dumps(value)}")
    training = load_training(args.config or args.preset or "default", overrides)
    seed = args.seed or 0
    if seed < 0:
        raise ConfigError(f"--seed: needs 0 or more, got {seed}")
    scenario = widened(load_scenario(training.scenario), training.widen_ratio)
    return RunConfig(training, scenario, load_objective(training.objective), seed)


def refuse_with_resume(args: argparse.Namespace) -> None:
    """A resumed run goes on as it was configured.

    Raises:
        ConfigError: An option would change it.
    """
    for option in NEW_RUN_OPTIONS:
        if getattr(args, option) is not None:
            shown = "PRESET" if option == "preset" else f"--{option.replace('_', '-')}"
            raise ConfigError(
                f"--resume: the run goes on as it was configured; {shown} would change it, "
                "start a new run for that"
            )


def default_folder(config: RunConfig) -> Path:
    """Where a run goes when ``--out`` does not say."""
    return Path("runs") / f"{config.training.name}-{config.scenario.name}-{config.seed}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a training run."""

    folder: Path
    rows: int
    total_rows: int
    best_score: float | None
    best_rows: int
    owner_score: float
    seconds: float
    interrupted: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__slots__} | {"folder": str(self.folder)}

    def to_text(self) -> str:
        """A few lines for people."""
        lines = [f"run folder        {self.folder}", f"rows              {self.rows:,}"]
        if self.best_score is not None:
            lines += [
                f"best score        {self.best_score:.4f} at {self.best_rows:,} rows",
                f"owner's settings  {self.owner_score:.4f}",
            ]
        if self.rows < self.total_rows:
            lines.append(f"go on with        memcg-gym train --resume {self.folder}")
        return "\n".join(lines)


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    env_threads: int = 1,
) -> Outcome:
    """Train into an existing run folder.

    Args:
        config: What to train.
        folder: From :func:`run_folder.create`.
        resume: Go on from the newest checkpoint in it.
        stop_at: Save and stop after this many rows.
        env_threads: Threads that step the hosts.
    """
    training = config.training
    th.set_num_threads(training.torch_threads)
    env = make_env(config, env_threads)
    try:
        model = make_ppo(env, training.ppo, config.seed)
        if resume:
            progress = load_checkpoint(newest_checkpoint(folder), model, env)
        else:
            model.policy.start_from(grow_start(config, folder))
            progress = RunProgress(
                next_validation=training.validate_every_rows,
                next_checkpoint=training.checkpoint_every_rows,
            )
        model.set_logger(run_folder.make_logger(folder, model.num_timesteps))
        conductor = Conductor(config, folder, env, progress, stop_at)
        began = time.monotonic()
        with conductor.bar, stopping(model) as stopped:
            left = training.total_rows - model.num_timesteps
            if left > 0:
                model.learn(left, callback=conductor, reset_num_timesteps=not resume)
            conductor.finish(model)
        model.logger.close()
        return Outcome(
            folder,
            model.num_timesteps,
            training.total_rows,
            progress.best_score,
            progress.best_rows,
            conductor.owner_score,
            time.monotonic() - began,
            stopped.is_set() and model.num_timesteps < training.total_rows,
        )
    finally:
        env.close()


def grow_start(config: RunConfig, folder: Path) -> Start | None:
    """The rules a run starts from, kept in the run folder; None where its preset grows none.

    Where every single step away from the owner's configuration hurts at first, exploration around
    it teaches PPO to do nothing; rules grown by trial are a better place to start.
    """
    budget = config.training.grow_cgroup_steps
    if budget == 0:
        return None
    world = World(
        scenario=config.scenario,
        objective=config.objective,
        host_kind=config.training.host_kind,
        seed=config.seed,
    )
    with Console(stderr=True).status("growing rules") as status:
        grown = grow(world, GrowConfig(budget=budget), lambda text: status.update(text))
    write_table(folder / run_folder.GROWN, grown.rules.table())
    run_folder.write_json(folder / "grown.json", grown.to_json())
    return Start(grown.rules, config.training.ppo.start_preference)


def make_env(config: RunConfig, threads: int = 1) -> CgroupVecEnv:
    """The training environment of a run."""
    training = config.training
    return CgroupVecEnv(
        config.scenario,
        config.objective,
        hosts=training.ppo.hosts,
        host_kind=training.host_kind,
        seed=config.seed,
        episode_ticks=training.train_episode_ticks,
        settle_ticks=training.settle_ticks,
        threads=threads,
    )


def make_validation(config: RunConfig) -> Validation:
    """The validation hosts of a run."""
    training = config.training
    return Validation(
        config.scenario,
        config.objective,
        host_kind=training.host_kind,
        hosts=training.validate_hosts,
        settle_ticks=training.settle_ticks,
        ticks=training.validate_ticks,
    )


class Conductor(BaseCallback):
    """Between two rollouts: log, validate, keep the best, save, stop.

    That is the moment when policy, optimiser, environment and counters agree, so a checkpoint
    taken there is a whole one.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        env: CgroupVecEnv,
        progress: RunProgress,
        stop_at: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.folder, self.env = config, folder, env
        self.progress, self.stop_at = progress, stop_at
        self.validation = make_validation(config)
        self.owner_score = float(self.validation.owner_scores().mean())
        self.bar = make_bar()
        self._task = self.bar.add_task("train", total=config.training.total_rows, score="", rate="")
        self._checkpointed = -1

    @property
    def ppo(self) -> CgroupPPO:
        """The model, by its own type."""
        model = self.model
        if not isinstance(model, CgroupPPO):
            raise TypeError(f"Conductor conducts a CgroupPPO, got {type(model).__name__}")
        return model

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.progress.iteration > 0:
            self._between(self.ppo)
        elif self.num_timesteps == 0:
            self._keep_owner(self.ppo)
            self._validate(self.ppo)

    def _on_rollout_end(self) -> None:
        self.progress.iteration += 1
        rate = self.ppo.rows_counted / max(sum(self.ppo.seconds.values()), 1e-9)
        self.bar.update(
            self._task, completed=self.num_timesteps, rate=f"{rate / 1000:.0f} k rows/s"
        )
        for name, value in self.env.statistics.take().items():
            self.ppo.logger.record(name, value)

    def finish(self, model: CgroupPPO) -> None:
        """Validate and save what is there at the end."""
        if self._checkpointed == model.num_timesteps:
            return
        if model.num_timesteps >= self.config.training.total_rows:
            self._validate(model)
        self._save(model)
        model.dump_logs()

    def _between(self, model: CgroupPPO) -> None:
        progress, training = self.progress, self.config.training
        rows = model.num_timesteps
        if rows >= progress.next_validation:
            self._validate(model)
            progress.next_validation += training.validate_every_rows
        if rows >= progress.next_checkpoint:
            progress.next_checkpoint += training.checkpoint_every_rows
            self._save(model)
        if self.stop_at is not None and rows >= self.stop_at:
            model.keep_going = False

    def _validate(self, model: CgroupPPO) -> None:
        score = float(self.validation.scores(to_learned(model.policy)).mean())
        model.logger.record("validate/score", score)
        model.logger.record("validate/owner_score", self.owner_score)
        best = self.progress.best_score
        if best is None or score > best:
            self.progress.best_score, self.progress.best_rows = score, model.num_timesteps
            save_policy(self.folder / "best", model.policy, self._describe(model, score))
        self.bar.update(self._task, score=f"score {score:.4f} (owner {self.owner_score:.4f})")

    def _keep_owner(self, model: CgroupPPO) -> None:
        """The owner's configuration is the policy to beat: nothing below it becomes the best."""
        owner = copy.deepcopy(model.policy)
        owner.always((0,) * N_HEADS)
        self.progress.best_score, self.progress.best_rows = self.owner_score, 0
        description = self._describe(model, self.owner_score, owner)
        save_policy(self.folder / "best", owner, description)

    def _save(self, model: CgroupPPO) -> None:
        description = self._describe(model, None)
        save_checkpoint(self.folder, model, self.env, self.progress, description)
        self._checkpointed = model.num_timesteps

    def _describe(
        self, model: CgroupPPO, score: float | None, policy: LevelsPolicy | None = None
    ) -> dict[str, Any]:
        config = self.config
        origin = {
            "scenario": config.scenario.name,
            "host_kind": config.training.host_kind,
            "objective": config.objective.name,
            "seed": config.seed,
            "rows": model.num_timesteps,
            "validation_score": score,
            "owner_score": self.owner_score,
        }
        return describe_policy(policy or model.policy, self.folder.resolve().name, origin)


def make_bar() -> Progress:
    """A bar on stderr, silent where nobody watches."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[score]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def stopping(model: CgroupPPO) -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into the end of the rollout; a second one ends at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        model.keep_going = False
        for known, handler in before.items():
            signal.signal(known, handler)

    for known in before:
        signal.signal(known, stop)
    try:
        yield stopped
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
