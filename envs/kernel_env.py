"""``memcg_gym/Kernel-v0``: the contract as a Gymnasium environment on a real Linux kernel.

The same spaces, rewards and infos as ``Host-v0``, the same scenario files, another world: every
reset boots a guest, and a step is one second of its time.

Units: as in ``Host-v0``.
"""

from __future__ import annotations

from typing import Literal

from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.configs.schema import ObjectiveConfig, ScenarioConfig, Split
from memcg_gym.envs.host_env import HostEnv
from memcg_gym.envs.kernel_batch import KernelBatch
from memcg_gym.envs.lab.guest_image import GuestImage, build
from memcg_gym.envs.lab.kernel_image import fetch
from memcg_gym.envs.lab.qemu import Accel
from memcg_gym.envs.lab.scale import scale_objective, scale_scenario

DEFAULT_SCALE = 16.0
"""A host of 8 GiB becomes one of 512 MiB."""
DEFAULT_SETTLE_TICKS = 60
DEFAULT_EPISODE_TICKS = 60
"""Guest seconds cost wall time: a minute each unless more is asked for."""


class KernelEnv(HostEnv):
    """One host of a scenario on a real kernel, in a guest that stands still between steps.

    Args:
        scenario, objective: As for ``Host-v0``.
        scale: How much smaller the host is made, every ratio kept; 1 for scenarios made for it.
        split: ``"train"`` or the held-out ``"test"`` ranges.
        settle_ticks, episode_ticks: Seconds of guest time.
        shield: False lets every decision through.
        accel: ``"tcg"`` repeats to the byte, ``"kvm"`` is fast; ``"auto"``: KVM where it works.
        image: Kernel and programs of the guest; None = fetched once and kept in the user's cache.
        render_mode: ``"rgb_array"``, ``"ansi"`` or None.

    Raises:
        LabError: A guest cannot be had on this machine; ``memcg-gym lab doctor`` says what to do.

    Example::

        env = gymnasium.make("memcg_gym/Kernel-v0", scenario="burst")
    """

    def __init__(
        self,
        scenario: str | ScenarioConfig = "host-mix",
        objective: str | ObjectiveConfig = "default",
        *,
        scale: float = DEFAULT_SCALE,
        split: Split = "train",
        settle_ticks: int = DEFAULT_SETTLE_TICKS,
        episode_ticks: int = DEFAULT_EPISODE_TICKS,
        shield: bool = True,
        accel: Accel | Literal["auto"] = "auto",
        image: GuestImage | None = None,
        render_mode: str | None = None,
    ) -> None:
        loaded = load_scenario(scenario) if isinstance(scenario, str) else scenario
        goal = load_objective(objective) if isinstance(objective, str) else objective
        guest = KernelBatch(
            scale_scenario(loaded, scale) if scale != 1.0 else loaded,
            scale_objective(goal, scale),
            build(fetch()) if image is None else image,
            shield=shield,
            accel=accel,
        )
        self._conduct(guest, split, settle_ticks, episode_ticks, render_mode)

    def close(self) -> None:
        """End the guest."""
        batch = self.batch
        if isinstance(batch, KernelBatch):
            batch.close()
        super().close()
