"""Training hosts beyond the ranges a scenario describes: every train range made wider.

A policy that has only seen hosts inside a box learns what pays on the average of that box; where
memory is a little shorter or the disk a little slower, that may cost.  Widening every range on
both sides by one share, without knowing which end is the hard one, gives training hosts under
pressure that the plain ranges hardly contain.  Plain numbers and test ranges stay as they are.

It knows nothing of which combinations occur on real hosts: ranges are drawn independently.
"""

from __future__ import annotations

from typing import Any

from memcg_gym.configs.schema import Frozen, ScenarioConfig, Spread
from memcg_gym.envs.contract.errors import ConfigError


def widened(scenario: ScenarioConfig, ratio: float) -> ScenarioConfig:
    """The scenario with train ranges ``[low * (1 - ratio), high * (1 + ratio)]``.

    Args:
        scenario: Left as it is.
        ratio: From 0 (the same scenario) to below 1.

    Raises:
        ConfigError: The ratio is out of range, or some host would not fit its limits.

    Example:
        >>> from memcg_gym.configs.loader import load_scenario
        >>> widened(load_scenario("burst"), 0.5).host.dram_gib.train
        (5.0, 18.0)
    """
    if not 0.0 <= ratio < 1.0:
        raise ConfigError(f"widen_ratio: must be from 0 to below 1, got {ratio:g}")
    if ratio == 0.0:
        return scenario
    try:
        return ScenarioConfig.model_validate(_widen(scenario, ratio).model_dump())
    except ValueError as error:
        raise ConfigError(
            f"widen_ratio: {ratio:g} is too much for {scenario.name}: {error}"
        ) from None


def _widen(value: Any, ratio: float) -> Any:
    if isinstance(value, Spread):
        low, high = value.train
        if low == high:
            return value
        return Spread(train=(low * (1.0 - ratio), high * (1.0 + ratio)), test=value.test)
    if isinstance(value, Frozen):
        changed = {name: _widen(getattr(value, name), ratio) for name in type(value).model_fields}
        return value.model_copy(update=changed)
    if isinstance(value, tuple):
        return tuple(_widen(item, ratio) for item in value)
    return value
