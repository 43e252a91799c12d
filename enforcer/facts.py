"""What the operator knows and the kernel does not: priorities, values, ceilings, exclusions.

Read from a TOML file with the standard library, because a host installs no more than numpy::

    tags = "/run/memcg-gym/tags"       # folder of tag files
    exclude = ["kubelet.service"]      # names of children that are never managed
    fast_nodes = [0]                   # where the host's own view is wrong
    lru_gen_aging = true               # walk page tables, so that working sets are known
    throttle_without_lock_signals = false  # true: throttle though nobody tells who holds locks

    [shield]                           # what counts as extreme pressure
    kill_psi_full_ratio = 0.2
    kill_util_ratio = 0.97
    kill_hold_ticks = 10

    [cgroup."work/batch"]              # path below the cgroup mount
    priority = 0                       # 0 = batch .. 3 = critical
    value = 1.0                        # lowest value is killed first; without it, never
    memsw_ceiling_bytes = 8589934592   # memory + swap together

Units: bytes, ratios, ticks, as named.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memcg_gym.envs.contract.errors import ConfigError, did_you_mean
from memcg_gym.envs.contract.shield_rules import ShieldLines

DEFAULT_EXCLUDE = ("init.scope", "system.slice", "kubelet.service")
"""Children that are left alone unless they are named: what a host needs to stay alive."""

MAX_PRIORITY = 3
MAX_RANK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupFacts:
    """What the operator says of one cgroup.

    Attributes:
        priority: 0 = batch .. 3 = critical; None = not said.
        value: Worth of keeping it alive, in any unit; ranks the cgroups.
        kill_rank: Rank given outright, 0 = killed first; wins over ``value``.
        memsw_ceiling_bytes: Combined memory and swap ceiling; 0 = none.
    """

    priority: int | None = None
    value: float | None = None
    kill_rank: int | None = None
    memsw_ceiling_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the operator says of a host.

    Attributes:
        cgroups: By path below the mount.
        exclude: Names of children that are never managed.
        lines: What counts as extreme pressure.
        tags: Folder of tag files.
        fast_nodes: NUMA nodes of the fast tier; None = as the host says.
        lru_gen_aging: Have the kernel walk page tables, so that generations have ages.
        throttle_without_lock_signals: Throttle cgroups of which nobody tells whether a thread
            holds a lock or is critical; the shield then cannot spare it.
    """

    cgroups: Mapping[str, CgroupFacts] = field(default_factory=dict)
    exclude: tuple[str, ...] = DEFAULT_EXCLUDE
    lines: ShieldLines = field(default_factory=ShieldLines)
    tags: Path | None = None
    fast_nodes: tuple[int, ...] | None = None
    lru_gen_aging: bool = True
    throttle_without_lock_signals: bool = False

    def facts(self, name: str) -> CgroupFacts:
        """What is said of the cgroup at this path below the mount."""
        return self.cgroups.get(name, CgroupFacts())


def read_site(path: Path) -> Site:
    """Read the operator's file.

    Raises:
        ConfigError: It is missing, not TOML, or a key or value is not usable; the message names
            the file, the key and what was got.
    """
    try:
        with open(path, "rb") as stream:
            data = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    flags = ("lru_gen_aging", "throttle_without_lock_signals")
    check_keys(data, ("tags", "exclude", "fast_nodes", "shield", "cgroup", *flags), f"{path}")
    cgroups = table(data, "cgroup", f"{path}")
    nodes = data.get("fast_nodes")
    return Site(
        cgroups={
            name.strip("/"): read_facts(table(cgroups, name, f"{path}: cgroup"), f"{path}: {name}")
            for name in cgroups
        },
        exclude=(*DEFAULT_EXCLUDE, *words(data.get("exclude", []), f"{path}: exclude")),
        lines=read_lines(table(data, "shield", f"{path}"), f"{path}: shield"),
        tags=None if "tags" not in data else Path(word(data["tags"], f"{path}: tags")),
        fast_nodes=None if nodes is None else integers(nodes, f"{path}: fast_nodes"),
        **{key: flag(data[key], f"{path}: {key}") for key in flags if key in data},
    )


def read_facts(data: Mapping[str, Any], origin: str) -> CgroupFacts:
    """One ``[cgroup."path"]`` table."""
    check_keys(data, CgroupFacts.__dataclass_fields__, origin)
    value = None if "value" not in data else number(data["value"], f"{origin}: value")
    priority, rank = (
        None if key not in data else integer(data[key], 0, high, f"{origin}: {key}")
        for key, high in (("priority", MAX_PRIORITY), ("kill_rank", MAX_RANK))
    )
    ceiling = integer(
        data.get("memsw_ceiling_bytes", 0), 0, 2**50, f"{origin}: memsw_ceiling_bytes"
    )
    return CgroupFacts(priority=priority, value=value, kill_rank=rank, memsw_ceiling_bytes=ceiling)


def read_lines(data: Mapping[str, Any], origin: str) -> ShieldLines:
    """The ``[shield]`` table."""
    check_keys(data, ShieldLines.__dataclass_fields__, origin)
    usual = ShieldLines()
    psi = number(
        data.get("kill_psi_full_ratio", usual.kill_psi_full_ratio), f"{origin}: kill_psi_full_ratio"
    )
    util = number(data.get("kill_util_ratio", usual.kill_util_ratio), f"{origin}: kill_util_ratio")
    hold = integer(
        data.get("kill_hold_ticks", usual.kill_hold_ticks), 1, 3600, f"{origin}: kill_hold_ticks"
    )
    for name, ratio in (("kill_psi_full_ratio", psi), ("kill_util_ratio", util)):
        if not 0.0 < ratio <= 1.0:
            raise ConfigError(f"{origin}: {name}: got {ratio!r}, expected a ratio in (0, 1]")
    return ShieldLines(psi, util, hold)


def check_keys(data: Mapping[str, Any], known: Any, origin: str) -> None:
    """Refuse a key nobody reads, offering the nearest one."""
    for key in data:
        if key not in known:
            raise ConfigError(f"{origin}: no setting {key!r}{did_you_mean(key, known)}")


def table(data: Mapping[str, Any], key: str, origin: str) -> Mapping[str, Any]:
    """A sub-table, empty where it is absent."""
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{origin}: {key}: got {value!r}, expected a table")
    return value


def number(value: object, origin: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{origin}: got {value!r}, expected a number")
    return float(value)


def integer(value: object, low: int, high: int, origin: str) -> int:
    """A whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{origin}: got {value!r}, expected a whole number in {low}..{high}")
    return value


def flag(value: object, origin: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{origin}: got {value!r}, expected true or false")
    return value


def integers(value: object, origin: str) -> tuple[int, ...]:
    """A list of node numbers."""
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{origin}: got {value!r}, expected a list of whole numbers")
    return tuple(integer(item, 0, 1023, origin) for item in value)


def words(value: object, origin: str) -> tuple[str, ...]:
    """A list of names."""
    if not isinstance(value, list):
        raise ConfigError(f"{origin}: got {value!r}, expected a list of names")
    return tuple(word(item, origin) for item in value)


def word(value: object, origin: str) -> str:
    """A name."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{origin}: got {value!r}, expected text")
    return value
