"""Model and kernel over time, on top of each other: a picture for each family.

One column a policy, the first seed's run; rows are memory charged, refaults and memory pressure of
the whole host's cgroups together.  The kernel is drawn dark, the model light; nothing is averaged
over runs.

Units: MiB, pages per second, percent of time, seconds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from memcg_gym.training.fidelity import Series
from memcg_gym.training.fidelity_study import FamilyResult, Pair

MIB = float(1 << 20)
SHOWN = ("kernel-default", "senpai", "tmo", "constant:reclaim=3")
"""Policies that are drawn where they were recorded: the owner's limits, the two probing loops, and
the hardest trimming."""
DPI = 64
KERNEL, MODEL = "black", "tab:orange"


def family_png(family: FamilyResult, skip: int) -> bytes:
    """The picture of one family.

    Args:
        family: What was compared; at least one of its pairs is drawn.
        skip: Ticks before the scored ones, for the time axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = shown(family.pairs)
    figure = Figure(figsize=(0.6 + 2.5 * len(pairs), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(pairs), sharex=True, sharey="row", squeeze=False)
    for at, pair in enumerate(pairs):
        axes[0, at].set_title(f"{pair.recorded.policy}, seed {pair.recorded.seed}", fontsize=8)
        for world, colour, label in ((pair.kernel, KERNEL, "kernel"), (pair.model, MODEL, "model")):
            draw(axes[:, at], world, skip, colour, label)
        axes[2, at].set_xlabel("s", fontsize=7)
    for row, label in enumerate(("MiB", "refaults/s", "PSI some, %")):
        axes[row, 0].set_ylabel(label, fontsize=8)
        axes[row, 0].set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=7, loc="lower left")
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
        axis.grid(color="0.92", lw=0.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def shown(pairs: Sequence[Pair]) -> list[Pair]:
    """One run of each policy that is drawn; the first few there are where none of them is."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(pair.recorded.policy, pair)
    chosen = [first[policy] for policy in SHOWN if policy in first]
    return chosen or list(first.values())[: len(SHOWN)]


def draw(axes: Any, series: Series, skip: int, colour: str, label: str) -> None:
    """One world's lines in one column."""
    seconds = skip + np.arange(len(series.usage_bytes))
    width = 1.0 if colour == KERNEL else 1.4
    lines = (
        series.usage_bytes.sum(axis=1) / MIB,
        series.refaults_per_s.sum(axis=1),
        100.0 * series.psi_some.max(axis=1),
    )
    for axis, values in zip(axes, lines, strict=True):
        axis.plot(seconds, values, color=colour, lw=width, label=label)
