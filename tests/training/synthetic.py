"""Cells with chosen scores, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memcg_gym.envs.reward import N_TERMS, Term
from memcg_gym.training.cells import Cell, CellSpec
from memcg_gym.training.metrics import HOST_METRICS, REASONS


def make_cell(
    policy: str,
    scores: Sequence[float],
    *,
    scenario: str = "burst",
    seeds: Sequence[int] | None = None,
    terms: dict[Term, Sequence[float]] | None = None,
) -> Cell:
    """A cell whose score is one term, unless ``terms`` says how it comes about."""
    n = len(scores)
    hosts = tuple(range(n)) if seeds is None else tuple(seeds)
    spec = CellSpec(policy, scenario, "default", hosts, "test", "stock", 10, 10, 5, "default")
    split = np.zeros((n, N_TERMS))
    for term, values in ({Term.SLO: scores} if terms is None else terms).items():
        split[:, term] = values
    return Cell(
        spec,
        "levels",
        True,
        15 * n,
        np.array(scores, dtype=np.float64),
        split,
        np.zeros((n, len(HOST_METRICS))),
        np.zeros((n, len(REASONS))),
    )
