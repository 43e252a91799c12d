"""All golden checks, and the two machines they run on.

Each machine is booted once; each check has its own cgroups.

Units: MiB of guest memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from memcg_gym.envs.lab.goldens import (
    limits,
    pressure,
    protection,
    reclaim,
    sharing,
    swap,
    tiering,
    workingset,
)
from memcg_gym.envs.lab.goldens.bench import Bench
from memcg_gym.envs.lab.goldens.golden import Golden
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.machine import Machine
from memcg_gym.envs.lab.protocol import LabError
from memcg_gym.envs.lab.qemu import Hardware

Check = Callable[[Bench], list[Golden]]
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Group:
    """Checks that share a machine.

    Attributes:
        hardware: The machine.
        devices: Whether it has swap and files.
        sections: Checks by the name of their section.
    """

    hardware: Hardware
    devices: bool
    sections: MappingProxyType[str, tuple[Check, ...]]


GROUPS = (
    Group(
        Hardware(memory_mib=640, accel="tcg"),
        True,
        MappingProxyType(
            {
                "memory.high": (
                    limits.check_delay_of_a_batch,
                    limits.check_huge_charge,
                    limits.check_long_system_call,
                    limits.check_reclaimable_memory,
                    limits.check_lowering_high,
                    limits.check_kill_of_a_sleeper,
                ),
                "memory.max and kills": (
                    limits.check_lowering_max,
                    limits.check_attempts_before_a_kill,
                    limits.check_who_is_killed,
                    limits.check_cgroup_kill,
                ),
                "Protection": (
                    protection.check_shares_with_recursion,
                    protection.check_shares_without_recursion,
                    protection.check_minimum,
                    protection.check_low_override,
                    protection.check_proportion_of_low,
                ),
                "Reclaim": (
                    reclaim.check_proactive_reclaim,
                    reclaim.check_writers_stall,
                    reclaim.check_generations,
                    reclaim.check_watermarks,
                    reclaim.check_min_free,
                    reclaim.check_background_reclaim,
                ),
                "Dirty pages": (reclaim.check_dirty_limits, reclaim.check_dirty_reclaim),
                "Pressure": (pressure.check_averages, pressure.check_some_and_full),
                "What statistics show": (limits.check_charge_batch, pressure.check_staleness),
                "Refaults": (
                    workingset.check_file_refault,
                    workingset.check_page_that_was_never_active,
                    workingset.check_anon_refault,
                    workingset.check_old_eviction,
                    workingset.check_entry,
                    workingset.check_generations_of_a_reclaim,
                    workingset.check_loop,
                ),
                "Swap": (swap.check_swap_max, swap.check_combined_limit, swap.check_swap_high),
                "zswap": (swap.check_zswap,),
                "Shared memory": (
                    sharing.check_owner,
                    sharing.check_swapped_owner,
                    sharing.check_heat_of_others,
                ),
            }
        ),
    ),
    Group(
        Hardware(memory_mib=320, slow_mib=256, accel="tcg"),
        False,
        MappingProxyType({"Tiers": (tiering.check_defaults, tiering.check_demotion_and_promotion)}),
    ),
)


def sections() -> list[str]:
    """Names of all sections, in order."""
    return [name for group in GROUPS for name in group.sections]


def run(
    image: GuestImage, wanted: Sequence[str] = (), tell: Told = lambda text: None
) -> dict[str, list[Golden]]:
    """Check the kernel of an image.

    Args:
        image: With the probe in it.
        wanted: Sections; empty = all.
        tell: Told what is checked now.

    Returns:
        Goldens by section.

    Raises:
        LabError: No such section, or a machine cannot be had.
        GuestError: A guest did not do what it should.
    """
    unknown = set(wanted) - set(sections())
    if unknown:
        names = ", ".join(sections())
        raise LabError(f"goldens: no section {sorted(unknown)[0]!r}; there are {names}")
    found: dict[str, list[Golden]] = {}
    for group in GROUPS:
        chosen = {k: v for k, v in group.sections.items() if not wanted or k in wanted}
        if not chosen:
            continue
        with Machine(image, group.hardware, step_timeout_s=120.0) as machine:
            machine.start()
            bench = Bench(machine)
            if group.devices:
                bench.add_devices()
            for section, checks in chosen.items():
                tell(section)
                found[section] = [golden for check in checks for golden in check(bench)]
    return found
