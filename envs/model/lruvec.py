"""Sums over a bin's or a cgroup's generations, written out: they are the model's inner loop.

Units: pages.
"""

from __future__ import annotations

from memcg_gym.envs.model.jit import compiled
from memcg_gym.envs.model.records import Rec


@compiled
def on_node(region: Rec, b: int, node: int) -> float:
    """Resident pages of one bin on one node."""
    pages = region.resident
    return pages[b, node, 0] + pages[b, node, 1] + pages[b, node, 2] + pages[b, node, 3]


@compiled
def of_type(memcg: Rec, node: int, kind_type: int) -> float:
    """Pages of one type on one node's lruvec."""
    gen = memcg.gen
    return (
        gen[node, kind_type, 0]
        + gen[node, kind_type, 1]
        + gen[node, kind_type, 2]
        + gen[node, kind_type, 3]
    )


@compiled
def missing(region: Rec, b: int) -> float:
    """Pages of one bin that are not resident: never touched, or evicted."""
    gone = region.evicted
    return (
        region.absent[b] + region.evicted_old[b] + gone[b, 0] + gone[b, 1] + gone[b, 2] + gone[b, 3]
    )
