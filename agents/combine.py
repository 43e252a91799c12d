"""Several hand policies at once, as fleets run them: ``senpai+oomd+tpp``.

::

    every second: each part decides on its own
        a knob goes to the first part named that owns it and moved it from the owner's value

Parts do not know of each other: two loops on the same signal may fight, as they do on hosts.

Units: bytes and ratios, as each knob names them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memcg_gym.agents.policy import Array, KnobPolicy, Policy, Speech, View, owner_knobs_from
from memcg_gym.envs.contract.errors import ConfigError


class Combined:
    """Hand policies side by side; the order of naming decides conflicts.

    Raises:
        ConfigError: A part speaks in levels: it would own every head.
    """

    speaks: Speech = "knobs"
    shielded = False

    def __init__(self, name: str, parts: Sequence[Policy]) -> None:
        self.name = name
        self.parts: list[KnobPolicy] = []
        for part in parts:
            if not isinstance(part, KnobPolicy):
                raise ConfigError(
                    f"policy {name}: {part.name!r} decides on every head and cannot be combined; "
                    "parts must be hand policies that set knobs"
                )
            self.parts.append(part)

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Reset every part."""
        for part in self.parts:
            part.reset(batch_shape, supported, seed)

    def act(self, view: View) -> Array:
        """The parts' knobs laid over the owner's, the first named on top."""
        owner = owner_knobs_from(view)
        knobs = owner.copy()
        for part in reversed(self.parts):
            wanted = part.act(view)
            knobs = np.where(wanted != owner, wanted, knobs)
        return knobs
