"""The two pictures of an evaluation: where every policy stands, and what the differences are.

Drawn without a display.  Intervals that are not known (too few hosts) are drawn as points.

Units: normalised scores, 0 = kernel-default, 1 = upper line.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memcg_gym.training.compare import DEFAULT, Aggregate, Comparison, ScenarioResult, Standing
from memcg_gym.training.files import write_whole
from memcg_gym.training.results import Evaluation, all_policies, short_names
from memcg_gym.training.stats import Interval

ROW_INCHES = 0.32
PANEL_INCHES = 3.4
COLOURS = {"better": "tab:green", "worse": "tab:red", "-": "tab:grey"}


def write_plots(folder: Path, evaluation: Evaluation) -> None:
    """Write ``scores.png`` and ``differences.png``; nothing where no scenario is usable.

    Raises:
        ConfigError: A file cannot be written.
    """
    found = evaluation.aggregate
    if found is None:
        return
    write_whole(folder / "scores.png", scores_png(evaluation, found))
    write_whole(folder / "differences.png", differences_png(evaluation, found))


def scores_png(evaluation: Evaluation, found: Aggregate) -> bytes:
    """Interquartile means with intervals and worst deciles: one panel over all, one a scenario."""
    panels: list[tuple[str, Sequence[Standing]]] = [("all", found.standings)]
    panels += [(r.name, r.standings) for r in usable(evaluation)]
    order = _order(found)
    figure, axes = _figure(len(panels), len(order))
    for axis, (title, standings) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=9)
        axis.axvline(0.0, color="0.6", lw=0.8)
        axis.axvline(1.0, color="0.6", lw=0.8, ls="--")
        for s in standings:
            if s.policy not in order:
                continue
            y = order.index(s.policy)
            _whisker(axis, y, s.iqm, "tab:blue")
            axis.plot(s.worst.estimate, y, "|", color="tab:orange", ms=9)
        axis.set_xlabel("normalised score")
    axes[0].plot([], [], "o", color="tab:blue", label="IQM, 95 %")
    axes[0].plot([], [], "|", color="tab:orange", label="worst decile")
    figure.legend(fontsize=7, loc="outside upper right", ncols=2)
    return _finish(figure, axes, order, evaluation)


def differences_png(evaluation: Evaluation, found: Aggregate) -> bytes:
    """Paired differences over all scenarios: against kernel-default and the best baseline."""
    references = list(dict.fromkeys([DEFAULT, found.best_baseline]))
    order = [p for p in _order(found) if p != DEFAULT]
    figure, axes = _figure(len(references), len(order))
    names = short_names(all_policies(evaluation))
    for axis, reference in zip(axes, references, strict=True):
        axis.set_title(f"minus {names[reference]}", fontsize=9)
        axis.axvline(0.0, color="0.6", lw=0.8)
        for c in found.comparisons:
            if c.reference == reference and c.policy in order:
                _whisker(axis, order.index(c.policy), _interval(c), COLOURS[c.claim])
        axis.set_xlabel("difference, normalised")
    return _finish(figure, axes, order, evaluation)


def usable(evaluation: Evaluation) -> list[ScenarioResult]:
    """Scenarios that have normalised scores."""
    return [r for r in evaluation.scenarios if r.upper.usable]


def _order(found: Aggregate) -> list[str]:
    """Contestants from the lowest row of a plot up: the best on top."""
    return [s.policy for s in reversed(found.standings)]


def _interval(comparison: Comparison) -> Interval:
    d = comparison.difference
    return Interval(d.estimate, d.low, d.high)


def _figure(n_panels: int, n_rows: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (1.5 + PANEL_INCHES * n_panels, 1.2 + ROW_INCHES * max(n_rows, 3))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, n_panels, sharey=True, squeeze=False)
    return figure, list(axes[0])


def _whisker(axis: Any, y: int, interval: Interval, colour: str) -> None:
    if not math.isnan(interval.low):
        axis.plot([interval.low, interval.high], [y, y], color=colour, lw=1.5)
    axis.plot(interval.estimate, y, "o", color=colour, ms=4)


def _finish(figure: Any, axes: list[Any], order: list[str], evaluation: Evaluation) -> bytes:
    names = short_names(all_policies(evaluation))
    axes[0].set_yticks(range(len(order)), [names[p] for p in order], fontsize=8)
    for axis in axes:
        axis.grid(axis="x", color="0.9", lw=0.5)
        axis.tick_params(axis="x", labelsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
