"""A short rule over features, by hand: what a careful engineer writes in an afternoon.

::

    reclaim: gently where cold and calm; more when the host is full, most from the unimportant
    protect: the working set of the important where their owner protects less
    throttle: lift memory.high off who holds a lock; slow who grows and matters least, at the brim
    demote: the cold of the unimportant when the fast tier runs out; prefer promoting what is hot
    shed, kill: only when the host suffers, the least important; flush: for who has dirty pages

It reads the contract's features and nothing else, so a rule table can hold it.  Its lines are
judgement: assumptions, set by eye on a few hosts of the train ranges.

Units: the features' own; ratios unless named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, Speech, View
from memcg_gym.envs.contract.features import SHIFT, F
from memcg_gym.envs.contract.heads import LIFT_LEVEL, N_HEADS, PROMOTE_LEVEL, Head


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAwareConfig:
    """The rule's lines."""

    full_util_ratio: float = 0.90
    brim_util_ratio: float = 0.96
    cold_wss_ratio: float = 0.97  # working set over usage below which there is cold memory
    calm_psi_ratio: float = 0.01
    calm_refault_per_s: float = 0.004
    slack_ratio: float = 0.7  # to the service objective, where the workload tells it
    idle_load_ratio: float = 0.15
    bare_protection_ratio: float = 0.5  # memory.low over usage below which an owner protects little
    growth_per_s: float = 0.02
    fast_free_ratio: float = 0.05
    cold_fast_ratio: float = 0.10
    hot_slow_ratio: float = 0.05  # of usage, hot and on the slow tier
    suffering_psi_ratio: float = 0.20  # host, full
    dirty_ratio: float = 0.20


class HostAware:
    """The rule, over all rows at once."""

    speaks: Speech = "levels"
    shielded = True

    def __init__(self, config: HostAwareConfig = HostAwareConfig()) -> None:
        self.name = "host-aware"
        self.config = config

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Take note of the heads that there are; the rule itself has no memory."""
        self.supported = (np.asarray(supported) > 0).astype(np.int64)

    def act(self, view: View) -> Array:
        """Levels for every cgroup, ``[H, N, N_HEADS]``."""
        values = np.moveaxis(view.features, -1, 0) / float(1 << SHIFT)
        return self.levels_of(values) * self.supported * view.active[..., None]

    def levels_of(self, f: Array) -> Array:
        """The rule.

        Args:
            f: Features in their own units, shape ``(N_FEATURES, ...)``.

        Returns:
            Levels, int64 ``(..., N_HEADS)``.
        """
        c = self.config
        important, least = f[F.PRIORITY] >= 2, f[F.PRIORITY] < 1
        asleep = f[F.LOAD] < c.idle_load_ratio
        full, brim = f[F.HOST_UTIL] > c.full_util_ratio, f[F.HOST_UTIL] > c.brim_util_ratio
        suffering = f[F.HOST_PSI_MEM_FULL] > c.suffering_psi_ratio
        calm = (f[F.PSI_MEM_SLOW] < c.calm_psi_ratio) & (f[F.REFAULT_SLOW] < c.calm_refault_per_s)
        content = (f[F.SLACK_VALID] < 1) | (f[F.SLACK] > c.slack_ratio)
        cold = calm & content & ~asleep & (f[F.WSS_RATIO] < c.cold_wss_ratio)
        holder = f[F.LOCK_KERNEL_SHARE] + f[F.LOCK_USER_SHARE] > 0
        fast_short = f[F.HOST_FAST_FREE] < c.fast_free_ratio
        hot_slow = f[F.HOT_SLOW_SHARE] * f[F.SLOW_SHARE] > c.hot_slow_ratio
        cold_fast = f[F.COLD_FAST_SHARE] > c.cold_fast_ratio

        levels = np.zeros((*f.shape[1:], N_HEADS), dtype=np.int64)
        grows = f[F.GROWTH] > c.growth_per_s
        levels[least & grows & brim & ~holder, Head.THROTTLE] = 3
        levels[holder & (f[F.EVENTS_HIGH] > 0) & ~full, Head.THROTTLE] = LIFT_LEVEL
        levels[cold, Head.RECLAIM] = 1
        levels[cold & full & ~important, Head.RECLAIM] = 2
        levels[cold & brim & least, Head.RECLAIM] = 3
        bare = (f[F.LEVEL_PROTECT] < 1) & (f[F.PROTECTION] < c.bare_protection_ratio)
        levels[important & (bare | (f[F.LEVEL_PROTECT] > 1)), Head.PROTECT] = 4
        levels[asleep & full & ~important, Head.PROTECT] = 1
        levels[fast_short & cold_fast & ~important, Head.DEMOTE] = 2
        levels[hot_slow & important, Head.DEMOTE] = PROMOTE_LEVEL
        levels[suffering & brim & ~important, Head.SHED] = 2
        levels[(f[F.FLUSHER_BACKLOG] > 0) & (f[F.DIRTY_SHARE] > c.dirty_ratio), Head.FLUSH] = 1
        levels[suffering & brim & (f[F.KILL_RANK] < 1), Head.KILL] = 1
        return levels
