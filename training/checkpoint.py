"""Checkpoints: everything a run needs to go on, in formats that cannot run code.

A checkpoint is a folder ``checkpoints/rows-NNNNNNNNNNNN`` with the network
(``weights.safetensors``, ``policy.json``), the optimiser (``optimizer.safetensors``, numbers in
``state.json``), random generators, counters, and the environment (``env.npz``, loaded without
pickle).  It is written beside its place and renamed, so that what has the name is complete.  A run
that is resumed from one goes on to the same bits as one that never stopped.

Units: rows (active cgroup-ticks).
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from safetensors.torch import save_file

from memcg_gym.agents.learned import (
    FORMAT,
    FORMAT_VERSION,
    POLICY,
    WEIGHTS,
    LearnedPolicy,
    Network,
    Start,
    check_description,
    read_json,
    read_tensors,
    sorted_checkpoints,
)
from memcg_gym.envs.contract.errors import CheckpointError
from memcg_gym.envs.contract.heads import HEADS
from memcg_gym.envs.contract.schema import contract_hash
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv
from memcg_gym.training.policies import LevelsPolicy
from memcg_gym.training.ppo import CgroupPPO

Array = np.ndarray[Any, np.dtype[Any]]

OPTIMIZER, STATE, ENV = "optimizer.safetensors", "state.json", "env.npz"
KEEP = 2
"""Checkpoints that stay: the newest, and the one before in case its disk was failing."""


@dataclass(slots=True)
class Progress:
    """What a run remembers besides the networks and the environment.

    Attributes:
        iteration: Rollouts made.
        next_validation, next_checkpoint: Rows at which the next is due.
        best_score: Best validation score; None before the first.
        best_rows: Rows at which it was reached.
    """

    iteration: int = 0
    next_validation: int = 0
    next_checkpoint: int = 0
    best_score: float | None = None
    best_rows: int = 0


def describe_policy(policy: LevelsPolicy, name: str, origin: dict[str, Any]) -> dict[str, Any]:
    """The content of ``policy.json``."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "name": name,
        "contract": contract_hash(),
        "heads": [h.name for h, on in zip(HEADS, policy.supported, strict=True) if on],
        "hidden": list(policy.hidden),
        "critic_hidden": list(policy.critic_hidden),
        "activation": policy.activation,
        "start": None if policy.start is None else policy.start.to_json(),
        **origin,
    }


def to_learned(policy: LevelsPolicy, name: str = "learned") -> LearnedPolicy:
    """The actor as it will be deployed: NumPy, argmax."""
    linear = [layer for layer in policy.actor if isinstance(layer, th.nn.Linear)]
    layers = tuple(
        (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
        for layer in linear
    )
    network = Network(layers, policy.activation)
    return LearnedPolicy(network, np.array(policy.supported), name, start=policy.start)


def save_policy(folder: Path, policy: LevelsPolicy, description: dict[str, Any]) -> None:
    """Write ``weights.safetensors`` and ``policy.json`` into a folder, each in one piece."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as path:
        tensors = {k: v.contiguous() for k, v in policy.state_dict().items()}
        save_file(tensors, path, metadata={"contract": contract_hash()})
    with replacing(folder / POLICY) as path:
        path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def save_checkpoint(
    run: Path,
    model: CgroupPPO,
    env: CgroupVecEnv,
    progress: Progress,
    description: dict[str, Any],
) -> Path:
    """Write a checkpoint of this moment; returns its folder.

    Raises:
        CheckpointError: The disk refused.
    """
    place = run / "checkpoints" / f"rows-{model.num_timesteps:012d}"
    partial = place.with_name(f".{place.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_policy(partial, model.policy, description)
        _save_state(partial, model, progress)
        starts = model._last_episode_starts
        with (partial / ENV).open("wb") as file:
            arrays: dict[str, Any] = {"episode_starts": np.asarray(starts), **env.state()}
            np.savez(file, **arrays)
        _sync(partial)
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be written: {error.strerror}") from error
    for old in sorted_checkpoints(run)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def load_checkpoint(folder: Path, model: CgroupPPO, env: CgroupVecEnv) -> Progress:
    """Put model and environment where the checkpoint was taken.

    Raises:
        CheckpointError: Something is missing, malformed, or of another shape.
        ContractMismatch: It was made under another contract.
    """
    description = read_json(folder / POLICY)
    check_description(folder, description)
    state = read_json(folder / STATE)
    try:
        weights = {k: th.from_numpy(v) for k, v in read_tensors(folder / WEIGHTS).items()}
        model.policy.start_from(Start.from_json(description.get("start"), f"{folder / POLICY}"))
        model.policy.load_state_dict(weights)
        _load_optimizer(folder, model, state["optimizer"])
        model.num_timesteps = int(state["rows"])
        model._n_updates = int(state["n_updates"])
        model.generator.set_state(th.from_numpy(read_tensors(folder / OPTIMIZER)["generator"]))
        model.rollout_buffer.rng.bit_generator.state = state["shuffler"]
        with np.load(folder / ENV, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        model._last_episode_starts = arrays.pop("episode_starts")
        model._last_obs = env.restore(arrays)
        return Progress(**state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{folder}: does not fit this run: {type(error).__name__}: {error}"
        ) from error


def newest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run folder.

    Raises:
        CheckpointError: There is none.
    """
    found = sorted_checkpoints(run)
    if not found:
        raise CheckpointError(f"{run}: no checkpoint here to resume from; a run folder has some")
    return found[-1]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of ``path`` in one step when the block is done."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    partial.replace(path)


def _save_state(folder: Path, model: CgroupPPO, progress: Progress) -> None:
    optimizer = model.policy.optimizer.state_dict()
    tensors = {
        f"{at}.{name}": th.as_tensor(value).contiguous()
        for at, entry in optimizer["state"].items()
        for name, value in entry.items()
    }
    tensors["generator"] = model.generator.get_state()
    save_file(tensors, folder / OPTIMIZER, metadata={"contract": contract_hash()})
    state = {
        "rows": model.num_timesteps,
        "n_updates": model._n_updates,
        "optimizer": optimizer["param_groups"],
        "shuffler": model.rollout_buffer.rng.bit_generator.state,
        "progress": {name: getattr(progress, name) for name in Progress.__slots__},
    }
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _load_optimizer(folder: Path, model: CgroupPPO, groups: list[dict[str, Any]]) -> None:
    state: dict[int, dict[str, th.Tensor]] = {}
    for key, value in read_tensors(folder / OPTIMIZER).items():
        at, dot, name = key.partition(".")
        if dot:
            state.setdefault(int(at), {})[name] = th.from_numpy(value)
    model.policy.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _sync(folder: Path) -> None:
    """Have the files on the disk before the folder gets its name."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
