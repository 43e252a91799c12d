"""Environment ids; importing this module registers them and imports no environment."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

HOST_ID = "memcg_gym/Host-v0"
KERNEL_ID = "memcg_gym/Kernel-v0"


def register_environments() -> None:
    """Register every environment of this package; calling it again changes nothing.

    Example:
        >>> import gymnasium
        >>> register_environments()
        >>> env = gymnasium.make("memcg_gym/Host-v0", scenario="burst")
    """
    if HOST_ID not in registry:
        register(
            id=HOST_ID,
            entry_point="memcg_gym.envs.host_env:HostEnv",
            vector_entry_point="memcg_gym.envs.vector_env:HostVectorEnv",
        )
    if KERNEL_ID not in registry:
        register(id=KERNEL_ID, entry_point="memcg_gym.envs.kernel_env:KernelEnv")


register_environments()
