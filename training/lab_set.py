"""A set of recordings of the kernel in a folder: found, read, and told apart by what they are of.

Units: ticks of one second.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from memcg_gym.configs.schema import LabSplitConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.recording import Recording, read_recording
from memcg_gym.training.lab_runs import RunSpec, spec_of


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recording of a set.

    Attributes:
        path: Where it is.
        recording: What it holds.
        spec: What it is of.
        family: Name of its scenario.
        digest: SHA-256 of the file.
    """

    path: Path
    recording: Recording
    spec: RunSpec
    family: str
    digest: str

    @property
    def policy(self) -> str:
        """What decided."""
        return self.spec.policy

    @property
    def seed(self) -> int:
        """What its host was drawn from."""
        return self.spec.seed


def add_recordings_argument(parser: argparse.ArgumentParser) -> None:
    """Declare where recordings are."""
    parser.add_argument(
        "--recordings", type=Path, metavar="DIR", help="made by lab record [those that ship]"
    )


def chosen_set(folder: Path | None) -> list[Recorded]:
    """The recordings below a folder, or those that ship.

    Raises:
        ConfigError: There are none.
        RecordingError: One is broken.
    """
    if folder is not None:
        return read_set(folder)
    with as_file(files("memcg_gym.configs") / "lab" / "recordings") as shipped:
        return read_set(shipped)


def read_set(folder: Path) -> list[Recorded]:
    """Every recording of the kernel below a folder, in order of family, policy and seed.

    Raises:
        ConfigError: There is none, or two are of the same run.
        RecordingError: One is broken.
    """
    found = [one for path in sorted(folder.rglob("*.npz")) if (one := read_one(path)) is not None]
    if not found:
        raise ConfigError(f"{folder}: no recordings of the kernel; memcg-gym lab record makes some")
    found.sort(key=lambda r: (r.family, r.policy, r.spec.split, r.seed))
    seen: dict[tuple[str, str, str, int], Path] = {}
    for one in found:
        key = (one.family, one.policy, one.spec.split, one.seed)
        if key in seen:
            raise ConfigError(f"{one.path}: the same run as {seen[key]}; keep one of them")
        seen[key] = one.path
    return found


def read_one(path: Path) -> Recorded | None:
    """A recording of the kernel; None where it is of the model."""
    recording = read_recording(path)
    if recording.provenance.world != "kernel":
        return None
    spec = spec_of(recording)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Recorded(path, recording, spec, spec.scaled_scenario().name, digest)


def families_of(recorded: Iterable[Recorded]) -> list[str]:
    """Names of the families, sorted."""
    return sorted({one.family for one in recorded})


def fitting(
    recorded: Sequence[Recorded], split: LabSplitConfig, leave_out: str = ""
) -> list[Recorded]:
    """What a calibration may look at.

    Args:
        recorded: A set.
        split: What may be fitted.
        leave_out: A family that may not, besides.

    Raises:
        ConfigError: The family is not in the set, or nothing is left.
    """
    known = families_of(recorded)
    if leave_out and leave_out not in known:
        raise ConfigError(f"no recordings of {leave_out!r} to leave out; there are {known}")
    chosen = [
        one
        for one in recorded
        if one.family in split.families
        and one.family != leave_out
        and one.policy in split.fitting_policies
        and one.seed in split.fitting_seeds
    ]
    if not chosen:
        raise ConfigError(f"nothing to fit: none of {len(recorded)} recordings is in {split.name}")
    return chosen


def digest_of_set(recorded: Iterable[Recorded]) -> str:
    """One digest over what files hold, whatever they are called."""
    return hashlib.sha256("".join(sorted(r.digest for r in recorded)).encode()).hexdigest()
