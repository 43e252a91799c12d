"""One policy on one host of a scenario on a real kernel: a cell whose batch is a guest.

Units: ticks of one second of guest time.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from memcg_gym.envs.core import host_seed
from memcg_gym.envs.kernel_batch import KernelBatch
from memcg_gym.envs.lab.guest_image import GuestImage, build
from memcg_gym.envs.lab.kernel_image import fetch
from memcg_gym.training.cells import (
    Cell,
    CellSpec,
    Report,
    merge_cells,
    scaled_policy,
    scaled_world,
    settle_and_score,
    stands_behind,
)


@functools.cache
def guest_image() -> GuestImage:
    """The guest of this machine's cache, fetched and built where it is not there yet.

    Raises:
        LabError: A kernel or a tool to build the guest with cannot be had; see ``lab doctor``.
    """
    return build(fetch())


def run_kernel_cell(spec: CellSpec, report: Report = lambda ticks: None) -> Cell:
    """Boot a guest for every host, settle it under the policy's own control, score it.

    Raises:
        LabError, GuestError: A guest cannot be had, or died.
    """
    return merge_cells([_run_host(spec, seed, report) for seed in spec.seeds])


def _run_host(spec: CellSpec, seed: int, report: Report) -> Cell:
    policy = scaled_policy(spec)
    shielded = stands_behind(policy, spec.shield)
    scenario, objective = scaled_world(spec)
    batch = KernelBatch(scenario, objective, guest_image(), shield=shielded)
    try:
        batch.reset_host(0, host_seed(seed, 0), spec.split)
        return settle_and_score(replace(spec, seeds=(seed,)), batch, policy, shielded, report)
    finally:
        batch.close()
