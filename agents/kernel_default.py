"""The kernel as the owner configured it: nobody writes anything.

::

    every tick: leave memory.min, low, high, max and swap.max at the owner's values

On tiered hosts the kernel's own demotion and NUMA-balancing promotion run, because the scenario's
host has them on (``demotion_enabled``, ``numa_balancing=2``).  Score 0 of every comparison.

Units: bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from memcg_gym.agents.policy import Array, KnobPolicy, View


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDefaultConfig:
    """The kernel has no settings here; the owner's limits are the scenario's."""


class KernelDefault(KnobPolicy):
    """Writes nothing."""

    def __init__(self, config: KernelDefaultConfig = KernelDefaultConfig()) -> None:
        self.name = "kernel-default"
        self.config = config

    def write(self, view: View, knobs: Array) -> None:
        """Leave every knob where the owner put it."""
