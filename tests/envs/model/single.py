"""One cgroup of the mean-field model under the twins' touches, for comparison with the twins.

The driver calls the model's own fault and charge paths, sub-step by sub-step, with a limit and
touch rates from outside: no requests, no CPU, a device that costs nothing, swap without end.

Units: pages of 4 KiB; touches per second; a sub-step is 100 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memcg_gym.configs.heat import HeatBins, cut_bins, uniform_heat
from memcg_gym.configs.loader import load_params
from memcg_gym.envs.model.faults import add_to_lru, touch_region
from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.memcontrol import charge_limits
from memcg_gym.envs.model.records import Rec
from memcg_gym.envs.model.state import (
    ANON,
    FILE,
    HOST_DTYPE,
    MEMCG_DTYPE,
    N_BINS,
    PARAMS_DTYPE,
    REGION_DTYPE,
    SUBSTEPS,
    UNLIMITED_PAGES,
    Kind,
    Lru,
    Pattern,
)
from memcg_gym.envs.model.workload import remix
from tests.twins import TwinRegion

FloatArray = npt.NDArray[np.float64]
KINDS = {"anon": Kind.ANON, "mapped": Kind.FILE, "read": Kind.FILE_READ}
PREFAULT_STEPS = 64
PLENTY_PAGES = 1e8


@dataclass(frozen=True)
class ModelResult:
    """Touches and misses by second and region, shape ``(n_seconds, n_regions)``."""

    touches: FloatArray
    misses: FloatArray

    def miss_ratio(self, from_s: int, to_s: int | None = None) -> float:
        """Share of the touches in seconds ``[from_s, to_s)`` that missed."""
        return float(self.misses[from_s:to_s].sum() / self.touches[from_s:to_s].sum())

    def region_miss_ratio(self, region: int, from_s: int, to_s: int | None = None) -> float:
        """The same for one region."""
        touches = self.touches[from_s:to_s, region].sum()
        return float(self.misses[from_s:to_s, region].sum() / touches) if touches else 0.0


def heat_bins(region: TwinRegion) -> HeatBins:
    """The twin's heat, cut into the model's bins where the law is smooth."""
    if region.pattern == "bins":
        return HeatBins(np.array(region.share_of_pages), np.array(region.share_of_touches))
    if region.pattern != "zipf":
        return uniform_heat(N_BINS)
    # touches.zipf_ranks draws from the continuous law on [1, n): this page's integral of it
    edges = np.arange(1, region.n_pages + 1, dtype=np.float64) ** (1.0 - region.zipf_exponent)
    touches = np.abs(np.diff(edges))
    pages = np.full(touches.size, 1.0 / touches.size)
    return cut_bins(pages, touches / touches.sum(), N_BINS)


def records(regions: Sequence[TwinRegion], lru: str, swappiness: int) -> tuple[Any, Any, Any, Any]:
    """Parameters, host, memcg and regions for one cgroup without limits."""
    params = np.zeros(1, dtype=PARAMS_DTYPE)
    for name, value in load_params().items():
        params[name] = value
    hosts = np.zeros(1, dtype=HOST_DTYPE)
    memcgs = np.zeros(1, dtype=MEMCG_DTYPE)
    rows = np.zeros(len(regions), dtype=REGION_DTYPE)
    host, memcg = hosts[0], memcgs[0]
    host.lru = Lru.MGLRU if lru == "mglru" else Lru.CLASSIC
    host.cpus, host.n_memcgs, host.n_nodes, host.cpu_slowdown = 8.0, 1, 1, 1.0
    host.total_pages = host.node_pages[0] = host.node_free[0] = PLENTY_PAGES
    host.swappiness, host.swap_pages = swappiness, PLENTY_PAGES if swappiness else 0.0
    host.disk_iops, host.zswap_compression = 1e9, 2.8
    memcg.used = memcg.present = memcg.alive = 1
    memcg.threads = 8.0
    memcg.max_seq[:] = 3  # MIN_NR_GENS + 1, as lru_gen_init_lruvec has it
    memcg.node_share[0] = 1.0
    memcg.limit_high = memcg.limit_max = memcg.swap_max = UNLIMITED_PAGES
    for at, (row, region) in enumerate(zip(rows, regions, strict=True)):
        heat = heat_bins(region)
        n_bins = heat.share_of_pages.size
        row.used, row.kind = 1, KINDS[region.kind]
        row.type = ANON if region.kind == "anon" else FILE
        sweeps = region.pattern in ("loop", "stream")
        row.pattern = Pattern.SWEEP if sweeps else Pattern.HEAT
        row.pages = row.gone_pages = region.n_pages
        row.bin_pages[:n_bins] = heat.share_of_pages * region.n_pages
        row.bin_heat[:n_bins] = heat.share_of_touches
        row.rate[:] = row.bin_heat / np.maximum(row.bin_pages, 1e-9)
        row.absent[:] = row.bin_pages
        row.ring_region = at
    return params[0], host, memcg, rows


def run_model(
    regions: Sequence[TwinRegion],
    limit_pages: npt.NDArray[np.integer[Any]],
    lru: str,
    swappiness: int = 60,
) -> ModelResult:
    """Play the twins' scenario against the model; rates, limits and phases as the twins have them.

    Args:
        regions: The cgroup's memory.
        limit_pages: The limit in each sub-step, shape ``(n_substeps,)`` [pages].
        lru: ``mglru`` or ``classic``.
        swappiness: As ``vm.swappiness``; 0 means that there is no swap.
    """
    limits = np.asarray(limit_pages, dtype=np.float64)
    n_substeps = limits.size
    at_s = np.arange(n_substeps) / SUBSTEPS
    rates = np.zeros((n_substeps, len(regions)))
    overlaps = np.ones((n_substeps, len(regions)))
    for r, region in enumerate(regions):
        end_s = np.inf if region.active_to_s is None else region.active_to_s
        rates[:, r] = region.rate_per_s * ((at_s >= region.active_from_s) & (at_s < end_s))
        for second, overlap in region.phase_changes:
            overlaps[second * SUBSTEPS, r] = overlap
    params, host, memcg, rows = records(regions, lru, swappiness)
    filled = np.array([region.prefault and region.pattern != "stream" for region in regions])
    prefault(params, host, memcg, rows, filled, limits[0])
    touches = np.zeros((n_substeps // SUBSTEPS, len(regions)))
    misses = np.zeros_like(touches)
    play(params, host, memcg, rows, limits, rates, overlaps, touches, misses)
    if memcg.oom_kill:
        raise RuntimeError(f"the model's cgroup was killed {memcg.oom_kill:g} times")
    return ModelResult(touches, misses)


@compiled
def prefault(
    params: Rec, host: Rec, memcg: Rec, regions: Rec, filled: npt.NDArray[np.bool_], limit: float
) -> None:
    """Touch every page once, whatever its heat, under the limit."""
    memcg.limit_max = limit
    for r in range(regions.shape[0]):
        region = regions[r]
        if not filled[r]:
            continue
        for step in range(PREFAULT_STEPS):
            memcg.charged = 0.0
            for b in range(N_BINS):
                pages = region.absent[b] / (PREFAULT_STEPS - step)
                region.absent[b] -= pages
                region.gone_pages -= pages
                region.resident_pages += pages
                memcg.usage += pages
                memcg.charged += pages
                if region.type == ANON:
                    memcg.anon += pages
                else:
                    memcg.file += pages
                add_to_lru(host, memcg, region, b, pages, 0.0)
            charge_limits(params, host, memcg, regions)


@compiled
def play(
    params: Rec,
    host: Rec,
    memcg: Rec,
    regions: Rec,
    limits: FloatArray,
    rates: FloatArray,
    overlaps: FloatArray,
    touches: FloatArray,
    misses: FloatArray,
) -> None:
    """All sub-steps: the limit in force, a phase change if one is due, then the touches."""
    for step in range(limits.shape[0]):
        memcg.limit_max = limits[step]
        memcg.charged = 0.0
        host.substep = step % SUBSTEPS
        charge_limits(params, host, memcg, regions)
        for r in range(regions.shape[0]):
            region = regions[r]
            remix(host, region, overlaps[step, r])
            region.touches_per_s = rates[step, r]
            before = region.gone_pages
            touch_region(params, host, memcg, region, 1.0)
            misses[step // SUBSTEPS, r] += before - region.gone_pages
            touches[step // SUBSTEPS, r] += rates[step, r] / SUBSTEPS
        charge_limits(params, host, memcg, regions)
