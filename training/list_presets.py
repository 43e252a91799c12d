"""What there is to choose from: shipped presets, policies and the contract's heads.

Reads configuration and registries; runs nothing.
"""

from __future__ import annotations

import math
from typing import Any

from memcg_gym.agents.registry import policy_names, policy_summary
from memcg_gym.configs.loader import load_objective, load_scenario, load_training, names
from memcg_gym.envs.contract.heads import HEADS

Entry = dict[str, Any]


def everything() -> dict[str, list[Entry]]:
    """All kinds by name, in the order in which they are shown."""
    return {
        "scenarios": scenarios(),
        "objectives": objectives(),
        "presets": presets(),
        "policies": policies(),
        "heads": heads(),
    }


def scenarios() -> list[Entry]:
    """Shipped scenarios."""
    found = []
    for name in names("scenarios"):
        scenario = load_scenario(name)
        found.append(
            {
                "name": name,
                "cgroups": scenario.n_cgroups,
                "heads": list(scenario.heads),
                "summary": scenario.summary,
            }
        )
    return found


def objectives() -> list[Entry]:
    """Shipped objectives."""
    return [{"name": n, "summary": load_objective(n).summary} for n in names("objectives")]


def presets() -> list[Entry]:
    """Shipped training presets."""
    found = []
    for name in names("training"):
        preset = load_training(name)
        found.append(
            {
                "name": name,
                "scenario": preset.scenario,
                "objective": preset.objective,
                "host_kind": preset.host_kind,
                "total_rows": preset.total_rows,
            }
        )
    return found


def policies() -> list[Entry]:
    """Registered policies."""
    return [{"name": name, "summary": policy_summary(name)} for name in policy_names()]


def heads() -> list[Entry]:
    """The contract's action heads; null is the owner's value."""
    return [
        {
            "name": head.name,
            "unit": head.unit,
            "levels": [None if math.isnan(level) else level for level in head.levels],
            "summary": head.meaning,
        }
        for head in HEADS
    ]
