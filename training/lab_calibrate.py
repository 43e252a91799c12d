"""The sub-verb ``lab calibrate``: fit the model's costs to recordings of the kernel.

One global set for all families.  What may be fitted is said by a split that was committed before;
the rest is for ``lab validate``.

Units: as each parameter's name says.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from memcg_gym.configs.loader import load_lab_split, load_params
from memcg_gym.configs.schema import LabSplitConfig
from memcg_gym.training.calibration import FREE, MAX_ROUNDS, Case, Fit, fit
from memcg_gym.training.evaluate import positive
from memcg_gym.training.files import write_whole
from memcg_gym.training.lab_set import (
    Recorded,
    add_recordings_argument,
    chosen_set,
    digest_of_set,
    families_of,
    fitting,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    add_recordings_argument(parser)
    parser.add_argument("--split", default="split", metavar="NAME", help="what may be fitted")
    parser.add_argument(
        "--leave-out", default="", metavar="FAMILY", help="a family that may not, besides"
    )
    parser.add_argument(
        "--start", default="params", metavar="NAME", help="parameters to begin with [params]"
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=MAX_ROUNDS,
        metavar="N",
        help=f"steps of the optimiser at most [{MAX_ROUNDS}]",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where the set goes [printed]; TOML"
    )


def run(args: argparse.Namespace) -> int:
    """Fit, and keep or print the set.

    Raises:
        ConfigError: Nothing to fit, or unknown names.
        RecordingError: A recording is broken.
    """
    split = load_lab_split(args.split)
    chosen = fitting(chosen_set(args.recordings), split, args.leave_out)
    found = fit_shown(chosen, split, load_params(args.start), args.rounds, "fitting")
    text = params_text(found, chosen, split, args.start)
    if args.out:
        write_whole(args.out, text.encode())
        print(f"loss {found.before:.4f} before, {found.after:.4f} after: {args.out}")
    else:
        print(text, end="")
    return 0


def fit_shown(
    chosen: Sequence[Recorded],
    split: LabSplitConfig,
    start: Mapping[str, float],
    rounds: int,
    title: str,
) -> Fit:
    """Fit under a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        # differences are taken for each free parameter, and one step is tried
        task = progress.add_task(title, total=rounds * (len(FREE) + 1))
        best = float("inf")

        def report(evaluations: int, loss: float) -> None:
            nonlocal best
            best = min(best, loss)
            progress.update(task, completed=evaluations, description=f"{title}: loss {best:.4f}")

        cases = [Case(one.recording, split.settle_ticks) for one in chosen]
        return fit(cases, start, max_rounds=rounds, report=report)


def params_text(found: Fit, chosen: Sequence[Recorded], split: LabSplitConfig, start: str) -> str:
    """The fitted set as TOML, and where it is from."""
    from scipy import __version__ as scipy_version

    kernels = sorted({one.recording.provenance.kernel for one in chosen})
    machines = sorted({one.recording.provenance.machine.split(",")[0] for one in chosen})
    policies = [p for p in split.fitting_policies if any(one.policy == p for one in chosen)]
    seeds = sorted({one.seed for one in chosen})
    bounds = {p.name: p for p in FREE}
    lines = [
        "# Costs of the model, fitted to a real kernel by `memcg-gym lab calibrate`.",
        f"# Kernel: Linux {', '.join(kernels)}; {', '.join(machines)}.",
        f"# Recordings: {len(chosen)}, of hosts {', '.join(map(str, seeds))}.",
        *wrapped("Families", families_of(chosen)),
        *wrapped("Policies", policies),
        f"# SHA-256 over their digests: {digest_of_set(chosen)}.",
        f"# Optimiser: scipy {scipy_version} least_squares (trf, soft_l1) over logarithms, begun",
        f"#   at {start}.toml, {found.evaluations} evaluations; nothing in it is random.",
        f"# Loss {found.before:.4f} before, {found.after:.4f} after (1 = about one allowed error).",
    ]
    if found.at_bounds:
        lines.append(f"# At a bound, so not to be believed: {', '.join(found.at_bounds)}.")
    lines.append("")
    for name, value in found.params.items():
        if name in found.fitted:
            free = bounds[name]
            lines.append(f"{name} = {value:.6g}  # fitted in {free.low:g}..{free.high:g}")
        else:
            lines.append(f"{name} = {float(value)!r}  # kept from {start}.toml")
    return "\n".join(lines) + "\n"


def wrapped(title: str, words: Sequence[str]) -> list[str]:
    """Comment lines of some words."""
    text = f"{title}: {', '.join(words)}."
    return textwrap.wrap(
        text, 100, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
    )
