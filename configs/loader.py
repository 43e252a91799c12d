"""Reading configuration: TOML presets by name or by path, and ``--set key=value`` on top.

A mistyped key names the file, the key, what was got and the nearest known key.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from memcg_gym.configs.schema import (
    LabSplitConfig,
    ObjectiveConfig,
    ScenarioConfig,
    TrainingConfig,
)
from memcg_gym.envs.contract.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)
KINDS = {
    "scenarios": "scenario",
    "objectives": "objective",
    "training": "training preset",
    "lab": "split of lab recordings",
}
FAMILIES = "lab/families"
"""Scenarios of a size that a virtual machine runs as they are; found by name like any other."""
FOLDERS = {"scenarios": ("scenarios", FAMILIES)}


def load_scenario(name: str, overrides: Sequence[str] = ()) -> ScenarioConfig:
    """A shipped scenario or lab family by name, or a TOML file by path."""
    return _load(ScenarioConfig, "scenarios", name, overrides)


def load_objective(name: str = "default", overrides: Sequence[str] = ()) -> ObjectiveConfig:
    """A shipped objective by name, or a TOML file by path."""
    return _load(ObjectiveConfig, "objectives", name, overrides)


def load_training(name: str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """A shipped training preset by name, or a TOML file by path."""
    return _load(TrainingConfig, "training", name, overrides)


def load_lab_split(name: str = "split") -> LabSplitConfig:
    """The shipped split of lab recordings, or a TOML file by path."""
    return _load(LabSplitConfig, "lab", name, ())


@functools.cache
def load_params(name: str = "params") -> MappingProxyType[str, float]:
    """The model's cost parameters.

    Args:
        name: A shipped set, ``params`` or ``params-lab``, or a TOML file by path.

    Raises:
        ConfigError: There is no such set, or it is not a table of numbers.
    """
    if name.endswith(".toml") or "/" in name:
        origin, text = name, _read_file(name)
    else:
        root = resources.files("memcg_gym.configs")
        known = sorted(
            p.name.removesuffix(".toml") for p in root.iterdir() if p.name.startswith("params")
        )
        if name not in known:
            raise ConfigError(f"no parameters {name!r}{did_you_mean(name, known)}")
        origin, text = f"{name}.toml", root.joinpath(f"{name}.toml").read_text()
    try:
        data = tomllib.loads(text)
        return MappingProxyType({key: float(value) for key, value in data.items()})
    except (tomllib.TOMLDecodeError, TypeError, ValueError) as e:
        raise ConfigError(f"{origin}: expected lines of name = number: {e}") from None


def names(folder: str) -> list[str]:
    """Shipped presets of one folder: ``scenarios``, ``objectives``, ``training``, FAMILIES."""
    root = resources.files("memcg_gym.configs").joinpath(folder)
    return sorted(p.name.removesuffix(".toml") for p in root.iterdir() if p.name.endswith(".toml"))


def validate(model: type[Model], data: dict[str, Any], origin: str) -> Model:
    """Check plain data against a configuration class.

    Raises:
        ConfigError: First problem, as one line that names the origin and the key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise ConfigError(f"{origin}: {_first_problem(model, e)}") from None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay ``a.b=value`` settings over plain data; values follow TOML's rules.

    Example:
        >>> apply_overrides({"ppo": {"gamma": 0.9}}, ["ppo.gamma=0.5", "name='x'"])
        {'ppo': {'gamma': 0.5}, 'name': 'x'}
    """
    for text in overrides:
        key, found, value = text.partition("=")
        if not found or not key.strip():
            raise ConfigError(f"--set: expected key=value, got {text!r}")
        target = data
        *path, last = key.strip().split(".")
        for part in path:
            step = target.setdefault(part, {})
            if not isinstance(step, dict):
                raise ConfigError(f"--set {key}: {part!r} is not a table")
            target = step
        target[last] = _toml_value(key, value)
    return data


def _toml_value(key: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text.strip().replace("-", "").replace("_", "").isalnum():
            return text.strip()
        raise ConfigError(
            f"--set {key}: {text!r} is not a TOML value; quote text as '\"text\"'"
        ) from None


def _load(model: type[Model], folder: str, name: str, overrides: Sequence[str]) -> Model:
    origin, text = _read(folder, name)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{origin}: not valid TOML: {e}") from None
    if overrides:
        origin = f"{origin} with --set {' '.join(overrides)}"
    return validate(model, apply_overrides(data, overrides), origin)


def _read(folder: str, name: str) -> tuple[str, str]:
    if name.endswith(".toml") or "/" in name:
        return name, _read_file(name)
    root = resources.files("memcg_gym.configs")
    folders = FOLDERS.get(folder, (folder,))
    for place in folders:
        if name in names(place):
            return f"{name}.toml", root.joinpath(place).joinpath(f"{name}.toml").read_text()
    known = sorted(known for place in folders for known in names(place))
    raise ConfigError(f"no {KINDS[folder]} {name!r}{did_you_mean(name, known)}")


def _read_file(name: str) -> str:
    try:
        return Path(name).read_text()
    except OSError as e:
        raise ConfigError(f"{name}: cannot be read: {e.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: is not text; a TOML file would do") from None


def _first_problem(model: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        return f"no setting {where!r}{did_you_mean(key, _keys_at(model, problem['loc'][:-1]))}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    got = problem.get("input")
    shown = repr(got) if not isinstance(got, dict | list) else type(got).__name__
    return f"{where}: {message}, got {shown}"


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Known keys of the table a path leads to, found by walking the annotations."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = _model_in(field.annotation)
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
