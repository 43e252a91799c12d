"""A real program on a real kernel, with the face of :class:`HostBatch`.

Decisions, shield, planner and readers are those of :class:`KernelBatch`; only the workload is
another.  The model's records describe a host with one idle workload, so that what needs demand or
latency of a model (objective, score) says nothing about a program.

Units: MiB, bytes, as named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from memcg_gym.configs.lab_programs import ProgramConfig
from memcg_gym.configs.loader import validate
from memcg_gym.configs.schema import ObjectiveConfig, ScenarioConfig, Split
from memcg_gym.enforcer.lru_gen import AgingSchedule
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.guest_plan import guest_mib, plan_of
from memcg_gym.envs.kernel_batch import SEED_MASK, KernelBatch
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.machine import Hardware, Machine
from memcg_gym.envs.lab.plan import HostPlan
from memcg_gym.envs.lab.programs_image import ProgramImage
from memcg_gym.envs.lab.programs_session import ProgramSession
from memcg_gym.envs.lab.protocol import LabError
from memcg_gym.envs.lab.session import SlotOrder
from memcg_gym.envs.lab.stats import SlotStats

MIB = 1 << 20
MIB_PER_GIB = 1024
IDLE_REGION_MIB = 1
"""The model's record of a cgroup needs a region; nothing ever looks at it."""


class ProgramBatch(KernelBatch):
    """One program in one cgroup of a guest.

    Args:
        program: What runs.
        objective: What the shield's lines are taken from.
        image: A guest that has the program.
        limit_bytes: Its memory.max; 0 = none.
        shield: False lets every decision through.
        make_machine: Makes what is stepped, from an image and its hardware.

    Raises:
        LabError, GuestError: The guest cannot be had or died, or a program failed.
    """

    def __init__(
        self,
        program: ProgramConfig,
        objective: ObjectiveConfig,
        image: ProgramImage,
        *,
        limit_bytes: int = 0,
        shield: bool = True,
        make_machine: Callable[[GuestImage, Hardware], Machine] = Machine,
    ) -> None:
        super().__init__(
            scenario_of(program, limit_bytes),
            objective,
            image.image,
            shield=shield,
            make_machine=make_machine,
        )
        self.program = program
        self.added_bytes = image.added_bytes

    @property
    def running(self) -> ProgramSession:
        """The session with the program.

        Raises:
            LabError: No guest is running.
        """
        if not isinstance(self.session, ProgramSession):
            raise LabError("program batch: no guest is running; call reset first")
        return self.session

    def reset_host(self, at: int, seed: int, split: Split = "train") -> None:
        """Boot a fresh guest and load the program."""
        self.close()
        HostBatch.reset_host(self, at, seed, split)
        plan = plan_of(self.scenario, self.hosts[0], self.memcgs[0], self.regions[0], self.layout)
        self._stats, self._aging = [SlotStats()], AgingSchedule()
        host = self.program.host
        wanted_mib = host.memory_mib + host.swap_mib + host.data_mib + self.added_bytes / MIB
        hardware = Hardware(
            memory_mib=math.ceil(guest_mib(wanted_mib)), seed=seed & SEED_MASK, accel=self.accel
        )
        machine = self.make_machine(self.image, hardware)
        devices = with_read_ahead(plan, self.program)
        self.session = ProgramSession(machine, devices, self.program, seed)
        try:
            self._begin(self.session.start())
        except BaseException:
            self.close()
            raise

    def _order(self, i: int, mode: int) -> SlotOrder:
        """What enforcement writes; a program wants what it wants."""
        order = super()._order(i, mode)
        return SlotOrder(writes=order.writes)


def scenario_of(program: ProgramConfig, limit_bytes: int) -> ScenarioConfig:
    """The host of a program, as every host is described; its workload does nothing."""
    host = program.host
    idle = {"name": "program", "pattern": "idle", "size_mib": IDLE_REGION_MIB}
    workload = {"requests_per_s": 1, "threads_tolerant": 1, "regions": [idle]}
    cgroup = {
        "name": program.name,
        "priority": 2,
        "max_mib": limit_bytes / MIB,
        "workload": workload | {"arrival": {"kind": "constant"}},
    }
    data = {
        "name": program.name,
        "summary": program.summary,
        "heads": program.heads,
        "host": {
            "cpus": 1,
            "dram_gib": host.memory_mib / MIB_PER_GIB,
            "swap_gib": host.swap_mib / MIB_PER_GIB,
            "zswap_max_ratio": host.zswap_max_ratio,
            "reserved_ratio": 0,
            "disk": {"iops": host.iops, "latency_us": host.latency_us},
        },
        "cgroups": [cgroup],
    }
    return validate(ScenarioConfig, data, f"program {program.name}")


def with_read_ahead(plan: HostPlan, program: ProgramConfig) -> HostPlan:
    """The plan with the file device as fast as the program's host says."""
    devices = plan.devices
    speed = devices.swap_mib_per_s * program.host.read_ahead_pages
    return replace(plan, devices=replace(devices, file_mib_per_s=speed))
