"""Userspace OOM killers: oomd's rules, and systemd-oomd's.

::

    pressure rule: host some avg10 > threshold for `duration` and pages reclaimed in the last 10 s
        oomd:    kill the largest (current - low) if it has over half of all; else, of the top 20 %
                 by size, the one that grew fastest if above 1.25 x its average; else the largest
        systemd: kill who reclaimed most (pgscan) since the last interval
    swap rule: free swap below threshold -> kill the largest swap user
    after a kill: nothing for `post_action_delay`, while the rules go on watching

Source: facebookincubator/oomd core plugins and its desktop preset; systemd-oomd's defaults.  A
cgroup is killed whole (``cgroup.kill``).  Value and restart cost are unknown to these rules.
The host's pressure stands for the slice the rules watch, and ``some`` for the pressure type.

Units: percent, ratios, seconds, bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, KnobPolicy, View
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import HostSig, Sig

RECLAIM_SEEN_S = 10


@dataclass(frozen=True, slots=True)
class Preset:
    """The numbers of one rule set."""

    pressure_percent: float
    duration_s: int
    swap_free_ratio: float
    victim: str = "size"
    swap_victim_ratio: float = 0.0  # smallest share of the swap in use that makes a victim


PRESETS = {
    "desktop": Preset(60.0, 30, 0.10),
    "system": Preset(80.0, 60, 0.10),
    "resctl": Preset(50.0, 30, 0.10),
    "systemd": Preset(60.0, 30, 0.10, "pgscan", 0.05),  # swap used >= 90 %, victims above 5 %
}
"""oomd: user sessions, system services, resctl-demo; and systemd-oomd."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OomdConfig:
    """A rule set and what both killers share."""

    preset: str = "desktop"
    size_threshold_ratio: float = 0.5  # of all candidates' memory
    growing_size_percentile: float = 80.0
    min_growth_ratio: float = 1.25
    average_size_decay: float = 4.0  # ticks; oomd's default
    post_action_delay_s: int = 15

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.preset not in PRESETS:
            raise ConfigError(
                f"oomd: preset must be one of {', '.join(PRESETS)}, got {self.preset!r}"
            )
        if not 0.0 <= self.growing_size_percentile <= 100.0:
            raise ConfigError(
                "oomd: growing_size_percentile must be in [0, 100], "
                f"got {self.growing_size_percentile!r}"
            )
        if self.average_size_decay < 1.0:
            raise ConfigError(
                f"oomd: average_size_decay must be at least 1, got {self.average_size_decay!r}"
            )


class Oomd(KnobPolicy):
    """Kills one cgroup of a host at a time."""

    owns = (Knob.KILL,)

    def __init__(self, config: OomdConfig = OomdConfig()) -> None:
        self.name = "oomd"
        self.config = config
        self.rules = PRESETS[config.preset]

    def start(self, shape: tuple[int, int]) -> None:
        """Nothing seen yet."""
        self.average_bytes = np.zeros(shape)
        self.pressed_ticks = np.zeros(shape[0], dtype=np.int64)
        self.since_reclaim_ticks = np.full(shape[0], RECLAIM_SEEN_S + 1, dtype=np.int64)
        self.pause_ticks = np.zeros(shape[0], dtype=np.int64)

    def forget(self, rows: Array, view: View) -> None:
        """A new cgroup has always been as large as it is."""
        self.average_bytes[rows] = view.now(Sig.USAGE_BYTES)[rows]

    def write(self, view: View, knobs: Array) -> None:
        """One second of the rules on every host."""
        decay = self.config.average_size_decay
        self.average_bytes += (view.now(Sig.USAGE_BYTES) - self.average_bytes) / decay
        self.watch(view)
        for host in np.flatnonzero(self.pause_ticks == 0):
            victim = self.victim_of(view, int(host))
            if victim >= 0:
                knobs[host, victim, Knob.KILL] = 1.0
                self.pause_ticks[host] = self.config.post_action_delay_s
        self.pause_ticks = np.maximum(self.pause_ticks - 1, 0)

    def watch(self, view: View) -> None:
        """Count how long pressure has lasted and how long ago pages were reclaimed."""
        pressed = view.host_signals[:, HostSig.PSI_MEM_SOME_AVG10] > self.rules.pressure_percent
        self.pressed_ticks = np.where(pressed, self.pressed_ticks + 1, 0)
        reclaimed = (pages_scanned(view) > 0).any(axis=1)
        self.since_reclaim_ticks = np.where(reclaimed, 0, self.since_reclaim_ticks + 1)

    def victim_of(self, view: View, host: int) -> int:
        """Slot to kill on a host, or -1."""
        # A cgroup without processes has no anonymous memory left, only page cache.
        alive = view.active[host] & (view.now(Sig.ANON_BYTES)[host] > 0)
        if not alive.any():
            return -1
        lasting = self.pressed_ticks[host] >= self.rules.duration_s
        if lasting and self.since_reclaim_ticks[host] <= RECLAIM_SEEN_S:
            if self.rules.victim == "pgscan":
                return largest(pages_scanned(view)[host], alive)
            usage = view.now(Sig.USAGE_BYTES)[host]
            effective = usage - np.minimum(usage, view.now(Sig.LOW_BYTES)[host])
            return self.by_size_or_growth(effective, usage, self.average_bytes[host], alive)
        total, free = view.host_signals[host, [HostSig.SWAP_TOTAL_BYTES, HostSig.SWAP_FREE_BYTES]]
        if total > 0 and free < self.rules.swap_free_ratio * total:
            swap = view.now(Sig.SWAP_BYTES)[host]
            at_least = max(self.rules.swap_victim_ratio * (total - free), 1.0)
            return largest(swap, alive & (swap >= at_least))
        return -1

    def by_size_or_growth(
        self, effective_bytes: Array, usage_bytes: Array, average_bytes: Array, alive: Array
    ) -> int:
        """Rule ``kill_by_memory_size_or_growth``: size, else growth, else size regardless.

        Args:
            effective_bytes: memory.current above memory.low, shape ``(N,)``.
            usage_bytes: memory.current.
            average_bytes: Its moving average.
            alive: Candidates.
        """
        biggest = largest(effective_bytes, alive)
        share = effective_bytes[biggest] / max(float(usage_bytes[alive].sum()), 1.0)
        if share > self.config.size_threshold_ratio:
            return biggest
        top_share = 1.0 - 0.01 * self.config.growing_size_percentile
        top = max(math.ceil(alive.sum() * top_share - 1e-9), 1)
        line = np.sort(effective_bytes[alive])[-top]
        growth = usage_bytes / np.maximum(average_bytes, 1.0)
        candidates = alive & (effective_bytes >= line) & (growth > self.config.min_growth_ratio)
        fastest = largest(growth, candidates)
        return fastest if fastest >= 0 else biggest


def pages_scanned(view: View) -> Array:
    """Pages reclaim looked at over the tick, whoever asked for it, ``[H, N]``."""
    direct = view.delta(Sig.PGSCAN_DIRECT) + view.delta(Sig.PGSCAN_KSWAPD)
    return direct + view.delta(Sig.PGSCAN_PROACTIVE)


def largest(values: Array, candidates: Array) -> int:
    """Index of the largest candidate, the first of equals; -1 where there is none."""
    if not candidates.any():
        return -1
    return int(np.argmax(np.where(candidates, values, -np.inf)))
