"""A trained network as a policy: argmax over its masked heads, in plain NumPy.

Loads a run folder, its ``best/`` or a checkpoint: ``weights.safetensors`` and ``policy.json``.
What was trained under another contract is refused, naming the first field that differs.

Units: features in fixed point, as ``envs/contract/features.py`` says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memcg_gym.agents.inputs import scale_inputs
from memcg_gym.agents.rules import Rules
from memcg_gym.envs.contract.errors import CheckpointError, ContractMismatch
from memcg_gym.envs.contract.features import N_FEATURES, SHIFT
from memcg_gym.envs.contract.heads import HEADS, LEVEL_COUNTS, N_HEADS
from memcg_gym.envs.contract.schema import contract_hash, first_difference

if TYPE_CHECKING:
    from memcg_gym.agents.policy import View

Array = np.ndarray[Any, np.dtype[Any]]

WEIGHTS, POLICY, CONTRACT = "weights.safetensors", "policy.json", "contract.json"
FORMAT = "memcg-gym policy"
FORMAT_VERSION = 1
MASKED = -1e9
"""Logit of a level that cannot be chosen: its probability is 0 and its entropy exactly 0."""
WIDTH = max(LEVEL_COUNTS)
LOGIT_BOUND = 15.0
"""Bound on logits: odds of e**30 are as good as certain."""
TO_FLOAT = np.float32(1.0 / (1 << SHIFT))


def level_mask(supported: Array) -> Array:
    """0 for levels that may be chosen, ``MASKED`` for the others, float32 ``(N_HEADS, WIDTH)``."""
    mask = np.full((N_HEADS, WIDTH), MASKED, dtype=np.float32)
    for head, n_levels in enumerate(LEVEL_COUNTS):
        mask[head, : n_levels if supported[head] else 1] = 0.0
    return mask


@dataclass(frozen=True, slots=True)
class Network:
    """The actor's layers: ``(weight, bias)`` each, weight ``(out, in)``, float32."""

    layers: tuple[tuple[Array, Array], ...]
    activation: str

    def logits(self, observation: Array) -> Array:
        """Logits before masking, float32 ``(rows, N_HEADS, WIDTH)``, of ``(rows, N_FEATURES)``."""
        hidden = scale_inputs(observation)
        *inner, (weight, bias) = self.layers
        for inner_weight, inner_bias in inner:
            hidden = hidden @ inner_weight.T + inner_bias
            hidden = np.maximum(hidden, 0.0) if self.activation == "relu" else np.tanh(hidden)
        flat: Array = hidden @ weight.T + bias
        return flat.reshape(-1, N_HEADS, WIDTH)


@dataclass(frozen=True, slots=True)
class Start:
    """Rules whose levels are preferred, by this much, before the network has its say."""

    rules: Rules
    preference: float

    def logits(self, features: Array) -> Array:
        """What is added to the network's logits, float32 ``(rows, N_HEADS, WIDTH)``."""
        added: Array = self.rule_logits().reshape(-1, N_HEADS, WIDTH)[self.rules.rule_of(features)]
        return added

    def rule_logits(self) -> Array:
        """The same for each rule, float32 ``(rules, N_HEADS * WIDTH)``."""
        chosen = self.rules.levels[..., None] == np.arange(WIDTH)
        flat: Array = (np.float32(self.preference) * chosen).reshape(len(chosen), -1)
        return flat

    def to_json(self) -> dict[str, Any]:
        """Plain data, see :meth:`from_json`."""
        return {"preference": self.preference, **self.rules.to_json()}

    @classmethod
    def from_json(cls, data: Any, origin: str) -> Start | None:
        """The reverse; None stays None.

        Raises:
            CheckpointError: It is something else.
        """
        if data is None:
            return None
        rules = Rules.from_json(data, origin)
        preference = data.get("preference")
        if not isinstance(preference, int | float) or not 0.0 <= preference <= LOGIT_BOUND:
            raise CheckpointError(
                f"{origin}: preference must be a number from 0 to {LOGIT_BOUND:g}, "
                f"got {preference!r}"
            )
        return cls(rules, float(preference))


@dataclass(slots=True)
class LearnedPolicy:
    """A network behind the interface every policy has.

    Attributes:
        network: The actor.
        trained: 1 where the head was supported in training; other heads stay at level 0.
        name: What tables and plots call it.
        supported: 1 where the scenario at hand has a knob for the head.
        start: Rules the network started from and corrects; their levels' logits are raised.
        description: The content of ``policy.json``.
    """

    network: Network
    trained: Array
    name: str = "learned"
    description: dict[str, Any] = field(default_factory=dict)
    speaks: Literal["levels", "knobs"] = "levels"
    shielded: bool = True
    supported: Array = field(default_factory=lambda: np.ones(N_HEADS, dtype=np.int64))
    start: Start | None = None

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Take over which heads the scenario supports; nothing else is kept between ticks."""
        self.supported = np.asarray(supported)

    def act(self, view: View) -> Array:
        """Levels for every row, int64 ``(H, N, N_HEADS)``; empty slots get level 0."""
        return self.decide(view.features, view.active)

    def decide(self, features: Array, active: Array) -> Array:
        """Levels from fixed-point features ``(H, N, N_FEATURES)`` alone."""
        levels: Array = self.logits(features).argmax(axis=-1)
        levels[~active] = 0
        return levels

    def logits(self, features: Array) -> Array:
        """Masked logits, float32 ``(..., N_HEADS, WIDTH)``: what a table is distilled from."""
        shape = features.shape[:-1]
        observation = features.reshape(-1, N_FEATURES) * TO_FLOAT
        logits = np.clip(self.network.logits(observation), -LOGIT_BOUND, LOGIT_BOUND)
        if self.start is not None:
            logits += self.start.logits(features.reshape(-1, N_FEATURES))
        masked: Array = logits + level_mask(self.trained * self.supported)
        return masked.reshape(*shape, N_HEADS, WIDTH)


def load_policy(path: str | Path) -> LearnedPolicy:
    """A learned policy from a run folder, its ``best/``, or a checkpoint.

    Raises:
        CheckpointError: Something is missing, malformed, or of another shape.
        ContractMismatch: It was trained under another contract.
    """
    folder = policy_folder(Path(path))
    description = read_json(folder / POLICY)
    check_description(folder, description)
    network = Network(read_layers(folder, description), str(description["activation"]))
    heads = description["heads"]
    trained = np.array([h.name in heads for h in HEADS], dtype=np.int64)
    return LearnedPolicy(
        network,
        trained,
        name=str(description.get("name", "learned")),
        description=description,
        start=Start.from_json(description.get("start"), f"{folder / POLICY}: start"),
    )


def policy_folder(path: Path) -> Path:
    """Where the weights are: the folder itself, ``best/`` in it, or its newest checkpoint.

    Raises:
        CheckpointError: There are none.
    """
    candidates = [path / "best", path, *reversed(sorted_checkpoints(path))]
    for folder in candidates:
        if (folder / WEIGHTS).is_file() and (folder / POLICY).is_file():
            return folder
    raise CheckpointError(
        f"{path}: no trained policy here; a run folder, its best/ or a checkpoint holds "
        f"{WEIGHTS} and {POLICY}"
    )


def sorted_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("rows-*") if p.is_dir())


def check_description(folder: Path, description: dict[str, Any]) -> None:
    """Refuse another format or another contract.

    Raises:
        CheckpointError: Not a policy of this format, or a key is missing.
        ContractMismatch: Another contract.
    """
    origin = folder / POLICY
    if description.get("format") != FORMAT or description.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{origin}: got format {description.get('format')!r} version "
            f"{description.get('version')!r}, needs {FORMAT!r} version {FORMAT_VERSION}"
        )
    for key in ("contract", "activation", "hidden", "heads"):
        if key not in description:
            raise CheckpointError(f"{origin}: no {key!r}; the file is not complete")
    check_contract(folder, str(description["contract"]))


def check_contract(folder: Path, theirs: str) -> None:
    """Refuse another contract's hash, naming the first difference where the text is at hand.

    Raises:
        ContractMismatch: The hashes differ.
    """
    ours = contract_hash()
    if theirs == ours:
        return
    difference = "its contract.json is not beside it"
    for near in (folder, folder.parent, folder.parent.parent):
        if (near / CONTRACT).is_file():
            difference = first_difference(read_json(near / CONTRACT)) or "the texts agree"
            break
    raise ContractMismatch(
        f"{folder}: made under contract {theirs[:12]}, this is {ours[:12]}: {difference}; "
        "train again, or use the release that made it"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: The file cannot be read or is something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def read_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: The file cannot be read or is malformed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, Array] = load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    return tensors


def read_layers(folder: Path, description: dict[str, Any]) -> tuple[tuple[Array, Array], ...]:
    """The actor's layers, checked for shape.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    tensors = read_tensors(folder / WEIGHTS)
    widths: Sequence[int] = [N_FEATURES, *description["hidden"], N_HEADS * WIDTH]
    layers = []
    for at, (width, outputs) in enumerate(pairwise(widths)):
        # An activation stands between two linear layers, so these have even numbers.
        name = f"actor.{2 * at}"
        for part, shape in (("weight", (outputs, width)), ("bias", (outputs,))):
            got = tensors.get(f"{name}.{part}")
            if got is None or got.shape != shape:
                have = "nothing" if got is None else str(got.shape)
                raise CheckpointError(
                    f"{folder / WEIGHTS}: {name}.{part} must have shape {shape}, got {have}"
                )
        layers.append((tensors[f"{name}.weight"], tensors[f"{name}.bias"]))
    return tuple(layers)
