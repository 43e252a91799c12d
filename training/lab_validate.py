"""The sub-verb ``lab validate``: how far the model is from the kernel, as a page with pictures.

Fits the parameters once for every family left out and once for all, runs the model beside every
recording, and writes tables and plots.  Fits are kept in the user's cache folder and made anew
when recordings or the model change.

Units: ticks of one second.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from memcg_gym.configs.loader import load_lab_split, load_params
from memcg_gym.configs.schema import LabSplitConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.lab.kernel_image import cache_dir
from memcg_gym.training.calibration import FREE, MAX_ROUNDS, Fit
from memcg_gym.training.evaluate import positive
from memcg_gym.training.fidelity_page import Study, page
from memcg_gym.training.fidelity_plots import family_png
from memcg_gym.training.fidelity_study import FamilyResult, compare_family
from memcg_gym.training.files import digest_of, safe_name, write_whole
from memcg_gym.training.lab_calibrate import fit_shown, params_text
from memcg_gym.training.lab_set import (
    Recorded,
    add_recordings_argument,
    chosen_set,
    digest_of_set,
    families_of,
    fitting,
)

LEFT_OUT_ROUNDS = 8
"""A fit without one family begins at the fit to all, so it has not far to go."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    add_recordings_argument(parser)
    parser.add_argument("--split", default="split", metavar="NAME", help="what may be fitted")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/validation.md"),
        metavar="FILE",
        help="the page; pictures go to a folder of its name [docs/validation.md]",
    )
    parser.add_argument(
        "--preset", type=Path, metavar="FILE", help="also keep the parameters fitted to all here"
    )
    parser.add_argument("--rounds", type=positive, default=MAX_ROUNDS, metavar="N", help="of a fit")
    parser.add_argument("--force", action="store_true", help="fit anew what is kept")


def run(args: argparse.Namespace) -> int:
    """Fit, compare, write.

    Raises:
        ConfigError: No recordings, or unknown names.
        RecordingError: A recording is broken.
    """
    split = load_lab_split(args.split)
    recorded = [one for one in chosen_set(args.recordings) if one.family in split.families]
    families = families_of(recorded)
    if len(families) < 2:
        raise ConfigError(
            f"{args.recordings or 'shipped'}: recordings of {', '.join(families) or 'no family'}; "
            "leaving one family out takes two at least"
        )
    whole, fits = all_fits(recorded, split, args)
    if args.preset:
        text = params_text(whole, fitting(recorded, split), split, "params")
        write_whole(args.preset, text.encode())
    shipped = load_params()
    before = compared(recorded, split, lambda family: shipped, "before")
    after = compared(recorded, split, lambda family: fits[family].params, "after")
    folder = args.out.with_suffix("")
    pictures = {f.name: f"{folder.name}/{safe_name(f.name)}.png" for f in after}
    study = Study(
        shlex.join(["memcg-gym", *sys.argv[1:]]),
        sorted({one.recording.provenance.kernel for one in recorded}),
        sorted({machine_of(one) for one in recorded}),
        before,
        after,
        fits,
        whole,
        split.settle_ticks,
        pictures,
    )
    for family in after:
        write_whole(args.out.parent / pictures[family.name], family_png(family, split.settle_ticks))
    write_whole(args.out, page(study).encode())
    print(f"{len(recorded)} recordings of {len(after)} families: {args.out}")
    return 0


def machine_of(one: Recorded) -> str:
    """What it ran on, without what differs from host to host."""
    first, cpus, *_ = one.recording.provenance.machine.split(", ")
    return f"{first}, {one.recording.provenance.accel}, {cpus}"


def all_fits(
    recorded: Sequence[Recorded], split: LabSplitConfig, args: argparse.Namespace
) -> tuple[Fit, dict[str, Fit]]:
    """The fit to all families, and one for each that is left out."""
    keep = cache_dir() / "fits"
    whole = kept_fit(keep, recorded, split, "", load_params(), args.rounds, args.force)
    fits = {
        family: kept_fit(
            keep,
            recorded,
            split,
            family,
            whole.params,
            min(args.rounds, LEFT_OUT_ROUNDS),
            args.force,
        )
        for family in families_of(recorded)
    }
    return whole, fits


def kept_fit(
    folder: Path,
    recorded: Sequence[Recorded],
    split: LabSplitConfig,
    leave_out: str,
    start: Mapping[str, float],
    rounds: int,
    force: bool,
) -> Fit:
    """A fit, from its file where that was made of the same recordings and the same model."""
    chosen = fitting(recorded, split, leave_out)
    identity = json.dumps(
        [digest_of_set(chosen), model_digest(), rounds, dict(start), [asdict(p) for p in FREE]]
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()
    path = folder / f"{digest}.json"
    if not force and (found := read_fit(path)) is not None:
        return found
    title = f"fit without {leave_out}" if leave_out else "fit to all"
    fitted = fit_shown(chosen, split, start, rounds, title)
    write_whole(path, json.dumps(asdict(fitted), indent=2).encode())
    return fitted


@functools.cache
def model_digest() -> str:
    """SHA-256 of the code that a replay runs through."""
    root = Path(str(files("memcg_gym")))
    folders = [root / "envs", root / "enforcer", root / "training"]
    paths = [path for folder in folders[:2] for path in folder.rglob("*.py")]
    return digest_of([*paths, folders[2] / "calibration.py"], root)


def read_fit(path: Path) -> Fit | None:
    """A kept fit; None where there is none, or it is broken."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return Fit(**found | {name: tuple(found[name]) for name in ("fitted", "at_bounds")})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def compared(
    recorded: Sequence[Recorded],
    split: LabSplitConfig,
    params_of: Callable[[str], Mapping[str, float]],
    title: str,
) -> list[FamilyResult]:
    """Every family's comparison, under a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(f"model runs {title} the fit", total=len(recorded))
        return [
            compare_family(
                [one for one in recorded if one.family == family],
                split,
                params_of(family),
                lambda runs: progress.advance(task, runs),
            )
            for family in families_of(recorded)
        ]
