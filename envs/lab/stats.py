"""What a load generator counted: requests, latency, locks, from the agent's ``slot/N/stats``.

Counters are cumulative over restarts of the generator; a tick is a difference of two.

Units: microseconds, pages, requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from memcg_gym.envs.lab.protocol import GuestError

N_LATENCY_BINS = 256
BINS_PER_OCTAVE = 8  # bin k holds latencies from 2**(k / 8) us


@dataclass(slots=True)
class SlotStats:
    """One slot's counters.

    Attributes:
        values: Number by name.
        latency: Requests per latency bin, int64 ``[N_LATENCY_BINS]``.
    """

    values: dict[str, float] = field(default_factory=dict)
    latency: np.ndarray = field(default_factory=lambda: np.zeros(N_LATENCY_BINS, dtype=np.int64))

    def __getitem__(self, name: str) -> float:
        """A counter; 0 where the agent has not told it yet."""
        return self.values.get(name, 0.0)

    @property
    def alive(self) -> bool:
        """The generator runs."""
        return self["alive"] > 0


def parse_stats(text: str, origin: str) -> SlotStats:
    """Read a stats file.

    Raises:
        GuestError: A line is not ``key number`` or a latency bin is out of range.
    """
    stats = SlotStats()
    for line in text.splitlines():
        key, _, rest = line.partition(" ")
        try:
            if key == "latency":
                for word in rest.split():
                    at, _, count = word.partition(":")
                    stats.latency[int(at)] = int(count)
            else:
                stats.values[key] = float(rest)
        except (ValueError, IndexError):
            raise GuestError(f"{origin}: got {line[:60]!r}, expected a name and a number") from None
    return stats


def quantile_us(latency: np.ndarray, quantile: float) -> float:
    """A quantile of a latency histogram [us], interpolated in its bin; NaN where it is empty."""
    total = float(latency.sum())
    if total <= 0.0:
        return float("nan")
    below = np.cumsum(latency)
    at = int(np.searchsorted(below, quantile * total))
    before = float(below[at - 1]) if at else 0.0
    inside = (quantile * total - before) / float(latency[at])
    return float(2.0 ** ((at + inside) / BINS_PER_OCTAVE))
