"""From a word on a command line to a policy.

A *spec* is a registered name (``senpai``), a name with settings (``senpai:max_probe=0.02``), parts
joined by ``+`` (``senpai+oomd+tpp``), the folder of a training run, or a rule table ``*.mrt``.
Modules are imported when a spec names them, so that listing names stays cheap.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from memcg_gym.agents.policy import Policy
from memcg_gym.envs.contract.errors import ConfigError, did_you_mean


class Entry(NamedTuple):
    """Where a registered policy lives, and what its name presets.

    Attributes:
        module: Below ``memcg_gym.agents``.
        policy: Class that takes one configuration object.
        config: Frozen dataclass of its settings.
        summary: One line.
        preset: Settings this name stands for, beside the dataclass defaults.
    """

    module: str
    policy: str
    config: str
    summary: str
    preset: tuple[tuple[str, Any], ...] = ()


POLICIES: dict[str, Entry] = {
    "kernel-default": Entry(
        "kernel_default",
        "KernelDefault",
        "KernelDefaultConfig",
        "the owner's limits and the kernel's own reclaim, demotion and OOM killer",
    ),
    "static-high": Entry(
        "static_high",
        "StaticHigh",
        "StaticHighConfig",
        "memory.high between request and limit (Kubernetes MemoryQoS)",
    ),
    "static-high-katalyst": Entry(
        "static_high",
        "StaticHigh",
        "StaticHighConfig",
        "memory.high at 0.95 of memory.max (Katalyst memory guard)",
        (("formula", "katalyst"),),
    ),
    "senpai": Entry(
        "senpai", "Senpai", "SenpaiConfig", "memory.high probed down until pressure answers"
    ),
    "tmo": Entry(
        "tmo", "Tmo", "TmoConfig", "memory.reclaim while pressure is low (oomd Senpai, TMO)"
    ),
    "oomd": Entry(
        "oomd", "Oomd", "OomdConfig", "kill by size or growth under pressure, by swap when it ends"
    ),
    "oomd-system": Entry(
        "oomd",
        "Oomd",
        "OomdConfig",
        "the same with the thresholds of system services",
        (("preset", "system"),),
    ),
    "systemd-oomd": Entry(
        "oomd",
        "Oomd",
        "OomdConfig",
        "systemd-oomd: kill who reclaims most under pressure, swaps most when swap ends",
        (("preset", "systemd"),),
    ),
    "tpp": Entry(
        "tpp", "Tpp", "TppConfig", "demote cold pages below a raised watermark, promote freely"
    ),
    "trim-tpp": Entry(
        "trim_tpp", "TrimTpp", "TrimTppConfig", "background trim by pressure, and TPP"
    ),
    "agentcgroup": Entry(
        "agentcgroup",
        "AgentCgroup",
        "AgentCgroupConfig",
        "protect the important and squeeze the rest for a second after a trigger",
    ),
    "random": Entry("random_policy", "RandomPolicy", "RandomConfig", "levels drawn uniformly"),
    "constant": Entry("constant", "Constant", "ConstantConfig", "the same levels always"),
    "host-aware": Entry(
        "host_aware", "HostAware", "HostAwareConfig", "a short rule over features, by hand"
    ),
    "clairvoyant": Entry(
        "clairvoyant",
        "Clairvoyant",
        "ClairvoyantConfig",
        "receding-horizon search on a cloned model with the true future",
    ),
}


def policy_names() -> list[str]:
    """Registered names."""
    return sorted(POLICIES)


def policy_summary(name: str) -> str:
    """One line about a registered policy."""
    return POLICIES[name].summary


def make_policy(spec: str, **context: Any) -> Policy:
    """The policy a spec names.

    Args:
        spec: See the module's first lines.  In a combination each part writes the knobs it owns,
            and where two want the same knob the one named first has it.
        context: Settings every part takes that has them, e.g. ``host_kind="bpf"``; what the spec
            itself says wins.

    Raises:
        ConfigError: Unknown name or setting, or a value that does not fit.
        CheckpointError: A run folder that cannot be read.
        TableError: A rule table that is refused.

    Example:
        >>> make_policy("senpai:max_probe=0.02").name
        'senpai:max_probe=0.02'
    """
    if spec.endswith(".mrt"):
        from memcg_gym.agents.table import TablePolicy

        return TablePolicy.from_file(spec)
    if spec and spec not in POLICIES and Path(spec).is_dir():
        learned = importlib.import_module("memcg_gym.agents.learned")
        policy: Policy = learned.load_policy(spec)
        return policy
    parts = re.split(r"\+(?=[a-z])", spec)  # a letter must follow: 1e+5 is a number
    if len(parts) > 1:
        from memcg_gym.agents.combine import Combined

        return Combined(spec, [_registered(part, context) for part in parts])
    return _registered(spec, context)


def _registered(spec: str, context: dict[str, Any]) -> Policy:
    name, _, text = spec.partition(":")
    if name not in POLICIES:
        raise ConfigError(
            f"no policy {name!r}{did_you_mean(name, policy_names())}; "
            "or the folder of a run, or a rule table *.mrt"
        )
    entry = POLICIES[name]
    module = importlib.import_module(f"memcg_gym.agents.{entry.module}")
    config = getattr(module, entry.config)
    fields = {f.name: f.default for f in dataclasses.fields(config)}
    settings = {key: value for key, value in context.items() if key in fields}
    settings |= dict(entry.preset) | parse_settings(name, text, fields)
    policy: Policy = getattr(module, entry.policy)(config(**settings))
    policy.name = spec
    return policy


def parse_settings(name: str, text: str, fields: dict[str, Any]) -> dict[str, Any]:
    """``a=1,b=x`` as typed settings; the default's type says what a value must be.

    Raises:
        ConfigError: No such setting, or another type.
    """
    settings = {}
    for item in filter(None, text.split(",")):
        key, found, value = item.partition("=")
        if not found:
            raise ConfigError(f"policy {name}: expected setting=value, got {item!r}")
        if key not in fields:
            raise ConfigError(f"policy {name}: no setting {key!r}{did_you_mean(key, fields)}")
        settings[key] = _typed(f"policy {name}: {key}", value, fields[key])
    return settings


def _typed(origin: str, text: str, default: object) -> object:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ConfigError(f"{origin}: expected true or false, got {text!r}")
        return text == "true"
    kind = int if isinstance(default, int) else float
    try:
        number = kind(text)
    except ValueError:
        raise ConfigError(f"{origin}: expected {kind.__name__}, got {text!r}") from None
    if not math.isfinite(number):
        raise ConfigError(f"{origin}: must be finite, got {text!r}")
    return number
