"""The folder of one training run: what was asked for, with what, and what came of it.

::

    config.json     training preset, scenario, objective and seed, resolved: enough to repeat it
    command.txt     the literal command
    versions.json   of this package and of what it stands on
    contract.json   what features and heads meant
    progress.jsonl  one object a line: what TensorBoard shows
    tensorboard/    the same for TensorBoard
    checkpoints/    to resume from
    grown.mrt, .json  the rules the policy started from, where the preset grows some
    best/           the policy with the best validation score so far

Units: rows (active cgroup-ticks).
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from memcg_gym import __version__
from memcg_gym.agents.learned import CONTRACT, check_contract, read_json
from memcg_gym.configs.loader import validate
from memcg_gym.configs.schema import ObjectiveConfig, ScenarioConfig, TrainingConfig
from memcg_gym.envs.contract.errors import CheckpointError, ConfigError
from memcg_gym.envs.contract.schema import canonical, contract_hash

CONFIG, COMMAND, VERSIONS, PROGRESS = (
    "config.json",
    "command.txt",
    "versions.json",
    "progress.jsonl",
)
GROWN = "grown.mrt"
PACKAGES = ("gymnasium", "numba", "numpy", "pydantic", "safetensors", "stable-baselines3", "torch")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything a run is made of."""

    training: TrainingConfig
    scenario: ScenarioConfig
    objective: ObjectiveConfig
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain data, see :meth:`from_json`."""
        return {
            "contract": contract_hash(),
            "seed": self.seed,
            "training": self.training.model_dump(mode="json"),
            "scenario": self.scenario.model_dump(mode="json"),
            "objective": self.objective.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], origin: str) -> RunConfig:
        """The configuration a run was started with.

        Raises:
            CheckpointError: A part is missing.
            ConfigError: A part is not valid.
        """
        for key in ("training", "scenario", "objective", "seed", "contract"):
            if key not in data:
                raise CheckpointError(f"{origin}: no {key!r}; the file is not complete")
        return cls(
            validate(TrainingConfig, data["training"], origin),
            validate(ScenarioConfig, data["scenario"], origin),
            validate(ObjectiveConfig, data["objective"], origin),
            int(data["seed"]),
        )


def create(folder: Path, config: RunConfig, command: Sequence[str]) -> None:
    """Start a run folder.

    Raises:
        ConfigError: It holds a run already, or cannot be written.
    """
    if (folder / CONFIG).exists():
        raise ConfigError(
            f"--out: {folder} holds a run already; choose another folder, or continue that run "
            f"with --resume {folder}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONTRACT, canonical())
        write_json(folder / VERSIONS, versions())
        (folder / COMMAND).write_text(shlex.join(command) + "\n", encoding="utf-8")
        write_json(folder / CONFIG, config.to_json())
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from error


def open_run(folder: Path) -> RunConfig:
    """The configuration of an existing run.

    Raises:
        CheckpointError: Not a run folder, or not complete.
        ContractMismatch: The run was made under another contract.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: not a run folder: no {CONFIG} in it")
    data = read_json(folder / CONFIG)
    config = RunConfig.from_json(data, str(folder / CONFIG))
    check_contract(folder, str(data["contract"]))
    return config


def make_logger(folder: Path, rows: int) -> Logger:
    """A logger into the run folder; what an earlier run wrote beyond ``rows`` is dropped."""
    trim_progress(folder / PROGRESS, rows)
    return Logger(
        str(folder),
        [TensorBoardOutputFormat(str(folder / "tensorboard")), JsonLines(folder / PROGRESS)],
    )


def trim_progress(path: Path, rows: int) -> None:
    """Drop lines of more than ``rows`` rows, and half a line at the end."""
    if not path.exists():
        return
    kept = [entry for entry in read_progress(path) if entry["rows"] <= rows]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def read_progress(path: Path) -> list[dict[str, float]]:
    """What was logged, oldest first; a last line cut short is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


class JsonLines(KVWriter):
    """Appends one JSON object a step."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Write what was recorded at ``step`` rows."""
        numbers = {
            key: float(value)
            for key, value in sorted(key_values.items())
            if isinstance(value, int | float | np.number)
        }
        self._file.write(json.dumps({"rows": step, **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def versions() -> dict[str, str]:
    """Versions of Python, this package, and what results depend on."""
    found = {"python": platform.python_version(), "memcg-gym": __version__}
    for name in PACKAGES:
        found[name] = metadata.version(name)
    return found


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def command_line() -> list[str]:
    """The command as it was typed, the program by its name."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
