"""The shield's constants and reason codes.

The shield is evaluated after every decision, whoever made it: alike in the model, in Python, in C
and in BPF.  The rules themselves are ``enforcer/shield.py``; the lines that depend on the
objective (what counts as extreme pressure) are :class:`ShieldLines`.

Units: ticks of one second; ratios.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

LEASE_TICKS = 5
"""Default lease: an action expires after this many ticks unless it is renewed."""

KILL_TOKEN_TICKS = 60
"""A host earns one kill token in this many ticks (assumption: a killed cgroup's memory is back and
its effect on pressure visible within a minute; oomd's post-action delay is 15 s)."""


class Shielded(IntFlag):
    """Why the shield changed a decision; bits, so that several can hold."""

    STALE = 1
    """An observation is missing, stale or out of range: the default action."""
    HOLDER = 2
    """A lock holder or a critical thread would have been throttled."""
    BELOW_MIN = 4
    """Background reclaim would have gone below memory.min."""
    KILL_PRESSURE = 8
    """No extreme pressure, or not for long enough."""
    KILL_RANK = 16
    """Not the lowest value on the host."""
    KILL_TOKEN = 32
    """No kill token left."""
    DWELL = 64
    """The level in force has not been held long enough."""
    DUTY = 128
    """The head has used its share of the window."""
    UNSUPPORTED = 256
    """The host has no knob for this head."""
    LEVEL = 512
    """The level does not exist."""


@dataclass(frozen=True, slots=True)
class ShieldLines:
    """What the objective calls extreme pressure.

    Attributes:
        kill_psi_full_ratio: Host memory PSI full over the tick at or above which killing is
            thinkable.
        kill_util_ratio: Host memory utilisation at or above which it is.
        kill_hold_ticks: How long both must hold (oomd's presets hold 30 s).
    """

    kill_psi_full_ratio: float = 0.20
    kill_util_ratio: float = 0.97
    kill_hold_ticks: int = 10
