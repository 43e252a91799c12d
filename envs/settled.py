"""Hosts that have settled: where episodes start.

A freshly built host has cold caches and no history, and says nothing about any policy.  A start is
a host built from its seed and run for ``settle_ticks`` under its owner's configuration.  That
costs more than a short episode, so training draws its starts from a pool and renews the pool bit
by bit; a host from the pool is bit for bit the host that its seed gives anywhere else.

Units: ticks of one second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from memcg_gym.configs.schema import Split
from memcg_gym.envs.core import STATE_ARRAYS, HostBatch, host_seed

Array = np.ndarray[Any, np.dtype[Any]]

POOL_STREAM = 0x5E771ED
"""Keeps the seeds of pool hosts apart from those of a batch that is reset with the same seed."""


def like(batch: HostBatch, n_hosts: int) -> HostBatch:
    """An empty batch of the same scenario, objective and host kind."""
    return HostBatch(
        batch.scenario,
        batch.objective,
        n_hosts=n_hosts,
        host_kind=batch.host_kind,
        shield=batch.shield,
        params=batch.params,
    )


def settle_host(scratch: HostBatch, seed: int, split: Split, settle_ticks: int) -> None:
    """Make the one host of ``scratch`` the settled host of a seed."""
    scratch.reset_host(0, seed, split)
    scratch.settle(settle_ticks)


@dataclass(slots=True)
class Draws:
    """How far the pool's own sequence has come."""

    taken: int = 0
    built: int = 0


class SettledPool:
    """Settled hosts to copy from.

    Args:
        batch: Gives scenario, objective and host kind.
        seed: Decides every host the pool will ever hold, and the order they are taken in.
        split: Ranges to draw from.
        settle_ticks: How long each host ran before it entered.
        size: Hosts in the pool.
        renew_every: Every so many starts, the pool host just taken is replaced by a new one.
    """

    def __init__(
        self,
        batch: HostBatch,
        *,
        seed: int,
        split: Split,
        settle_ticks: int,
        size: int,
        renew_every: int = 8,
    ) -> None:
        self.seed, self.split, self.settle_ticks = seed, split, settle_ticks
        self.size, self.renew_every = size, renew_every
        self.hosts = like(batch, size)
        self._scratch = like(batch, 1)
        self.seeds = np.zeros(size, dtype=np.uint64)
        self.draws = Draws()

    def fill(self) -> None:
        """Build and settle every host; they settle together, in one compiled call a tick."""
        self.draws = Draws(built=self.size)
        for at in range(self.size):
            self.seeds[at] = self._seed_of(at)
            self.hosts.reset_host(at, int(self.seeds[at]), self.split)
        self.hosts.settle(self.settle_ticks)

    def start(self, batch: HostBatch, at: int) -> int:
        """Overwrite host ``at`` of a batch with a settled host; returns that host's seed."""
        pick = host_seed(self.seed, POOL_STREAM, self.draws.taken) % self.size
        self.draws.taken += 1
        seed = int(self.seeds[pick])
        batch.copy_host(self.hosts, pick, at)
        if self.draws.taken % self.renew_every == 0:
            self._renew(pick)
        return seed

    def state(self) -> dict[str, Array]:
        """Everything :meth:`restore` needs, as arrays."""
        arrays = {name: getattr(self.hosts, name) for name in STATE_ARRAYS}
        arrays["seeds"] = self.seeds
        arrays["draws"] = np.array([self.draws.taken, self.draws.built], dtype=np.int64)
        return arrays

    def restore(self, arrays: dict[str, Array]) -> None:
        """Continue where another pool of the same arguments stood."""
        for name in STATE_ARRAYS:
            getattr(self.hosts, name)[...] = arrays[name]
        self.seeds[...] = arrays["seeds"]
        self.draws = Draws(*(int(n) for n in arrays["draws"]))

    def _renew(self, at: int) -> None:
        seed = self._seed_of(self.draws.built)
        self.draws.built += 1
        settle_host(self._scratch, seed, self.split, self.settle_ticks)
        self.hosts.copy_host(self._scratch, 0, at)
        self.seeds[at] = seed

    def _seed_of(self, number: int) -> int:
        # 63 bits: what a scalar environment takes as options["host_seed"].
        return host_seed(self.seed ^ POOL_STREAM, number) >> 1
