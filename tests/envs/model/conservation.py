"""The bookkeeping every state of a batch must obey, whatever was done to it.

Units: pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.model.state import ANON, FAST, FILE, Kind

FloatArray = npt.NDArray[np.float64]
DRIFT_PAGES = 1e-3  # rounding of millions of additions to counters of a million pages
NEGATIVE_PAGES = 1e-6


def problems(batch: HostBatch) -> list[str]:
    """Every law that a host of the batch breaks, in words; empty when all is well."""
    found: list[str] = []
    for h in range(batch.n_hosts):
        host, memcgs, regions = batch.hosts[h], batch.memcgs[h], batch.regions[h]
        told = [
            *_of_nodes(host, memcgs),
            *_of_swap(host, memcgs, regions),
            *_of_lruvecs(memcgs, regions),
            *_of_regions(regions),
            *_of_rings(regions),
        ]
        found += [f"host {h}: {line}" for line in told]
    return found


def _differ(what: str, left: Any, right: Any) -> list[str]:
    gap = np.abs(np.asarray(left) - np.asarray(right))
    worst = float(gap.max(initial=0.0))
    if worst <= DRIFT_PAGES:
        return []
    at = np.unravel_index(int(gap.argmax()), gap.shape)
    return [f"{what} at {tuple(map(int, at))}: {worst:g} pages apart"]


def _negative(what: str, values: Any) -> list[str]:
    least = float(np.asarray(values).min(initial=0.0))
    return [] if least >= -NEGATIVE_PAGES else [f"{what} is negative: {least:g} pages"]


def _of_nodes(host: Any, memcgs: Any) -> list[str]:
    capacity = np.array(host["node_pages"])
    capacity[FAST] -= host["reserved_pages"]
    held = memcgs["node"].sum(axis=0)
    held[FAST] += host["zswap_pages"]
    nodes = int(host["n_nodes"])
    charged = memcgs["node"].sum(axis=1) + memcgs["zswap"]
    free = host["node_free"]
    return [
        *_differ("free, charged and compressed pages are the node", free + held, capacity),
        *_differ("usage is what is on nodes and in zswap", memcgs["usage"], charged),
        *_differ("a host of one node has nothing on the other", memcgs["node"][:, nodes:], 0.0),
        *_negative("charge", memcgs["node"]),
        *_negative("usage", memcgs["usage"]),
    ]


def _of_swap(host: Any, memcgs: Any, regions: Any) -> list[str]:
    anon = regions["used"].astype(bool) & (regions["type"] == ANON)
    evicted = regions["evicted"].sum(axis=(2, 3)) + regions["evicted_old"].sum(axis=2)
    swapped = np.where(anon, evicted, 0.0).sum(axis=1)
    stored = memcgs["zswapped_pages"] + memcgs["disked_pages"]
    return [
        *_differ("swap holds the evicted anonymous pages", memcgs["swap"], swapped),
        *_differ("swap is compressed or on the device", memcgs["swap"], stored),
        *_differ("used slots are the cgroups' swap", host["swap_used"], memcgs["swap"].sum()),
        *_differ("the pool is the cgroups' zswap", host["zswap_pages"], memcgs["zswap"].sum()),
        *_negative("swap", memcgs["swap"]),
        *_negative("zswap", memcgs["zswap"]),
        *_negative("free swap", host["swap_pages"] - host["swap_used"]),
    ]


def _of_lruvecs(memcgs: Any, regions: Any) -> list[str]:
    found: list[str] = []
    by_slot = regions["resident"].sum(axis=2)  # [N, R, nodes, slots]
    for kind_type, counter in ((ANON, "anon"), (FILE, "file")):
        own = (regions["used"].astype(bool) & (regions["type"] == kind_type))[..., None, None]
        pages = np.where(own, by_slot, 0.0).sum(axis=1)
        found += _differ(f"{counter} generations", memcgs["gen"][:, :, kind_type], pages)
        found += _differ(f"memory.stat {counter}", memcgs[counter], pages.sum(axis=(1, 2)))
    file = regions["used"].astype(bool) & (regions["type"] == FILE)
    found += _differ("node counts", memcgs["node"], memcgs["gen"].sum(axis=(2, 3)))
    found += _differ("dirty", memcgs["dirty"], np.where(file, regions["dirty"], 0.0).sum(axis=1))
    found += _negative("generation", memcgs["gen"])
    return found


def _of_regions(regions: Any) -> list[str]:
    missing = regions["absent"] + regions["evicted"].sum(axis=3) + regions["evicted_old"]
    resident = regions["resident"].sum(axis=(3, 4))
    fresh = regions["fresh"].sum(axis=(3, 4))
    private = regions["used"].astype(bool) & (regions["kind"] != Kind.SHARED)
    bins = np.where(private[..., None], resident + missing - regions["bin_pages"], 0.0)
    flagged = regions["referenced"] + regions["workingset"]
    found = [
        *_differ("resident, evicted and untouched pages are the bin", bins, 0.0),
        *_differ("resident_pages", regions["resident_pages"], resident.sum(axis=2)),
        *_differ("gone_pages", regions["gone_pages"], missing.sum(axis=2)),
        *_negative("room for accessed pages", resident - fresh),
        *_negative("clean pages", regions["resident_pages"] - regions["dirty"]),
    ]
    for name in ("absent", "evicted", "evicted_old", "evicted_workingset", "resident", "fresh"):
        found += _negative(name, regions[name])
    found += _negative("referenced", regions["referenced"])
    found += _negative("workingset", regions["workingset"])
    found += _negative("room for flagged pages", resident - flagged)
    return found


def _of_rings(regions: Any) -> list[str]:
    """A shared object's pages are held once, by one of the records of its ring."""
    found: list[str] = []
    for i, r in zip(*np.nonzero(regions["used"] & (regions["kind"] == Kind.SHARED)), strict=True):
        total = np.zeros(regions["absent"].shape[-1])
        at = (int(i), int(r))
        for _ in range(regions.size):
            region = regions[at]
            total += region["absent"] + region["evicted_old"]
            total += region["evicted"].sum(axis=1) + region["resident"].sum(axis=(1, 2))
            at = (int(region["ring_memcg"]), int(region["ring_region"]))
            if at == (i, r):
                break
        found += _differ("a shared object's pages", total, regions[i, r]["bin_pages"])
    return found
