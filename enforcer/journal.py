"""The owner's values on disk, so that no way of dying leaves a cgroup as the enforcer had it.

cgroup files outlive whoever wrote them.  Before a file is changed for the first time its owner's
text goes into a small JSON file; a clean end gives the values back and removes it, and the next
start, or ``memcg-gym enforce --restore`` in a service's ExecStopPost, does so for a run that could
not.  Power loss needs no care: cgroups do not survive it, and a journal of another boot is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memcg_gym.enforcer.cgroupfs import SETTING_FILES
from memcg_gym.enforcer.hostfs import Roots
from memcg_gym.enforcer.kernel_text import read_text
from memcg_gym.enforcer.writer import NONBLOCKING, errno_name, write_text
from memcg_gym.envs.contract.errors import CgroupError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Owned:
    """What one cgroup's owner had configured.

    Attributes:
        inode: Of the cgroup's folder: a cgroup of the same name made later is another one.
        files: Text by file name, of the files that were or are about to be changed.
    """

    inode: int
    files: dict[str, str]


class Journal:
    """The journal file and its lock: one enforcer a journal.

    Args:
        path: The JSON file; its folder is made, and ``.lock`` beside it.
        roots: Where cgroups and ``/proc`` are.

    Raises:
        CgroupError: The folder cannot be made, or another enforcer holds the lock.
    """

    def __init__(self, path: Path, roots: Roots) -> None:
        """Take the lock."""
        self.path = path
        self.roots = roots
        self._last: dict[str, Owned] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = f"{path}.lock"
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CgroupError(
                f"{path}: cannot be made: {error.strerror}; name another with --journal"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise CgroupError(
                f"{path}: another enforcer holds this journal; end it, or name another with "
                "--journal and manage other cgroups"
            ) from error

    def recover(self) -> list[str]:
        """Give back what a dead run left changed, then forget it.

        Returns:
            One line for each cgroup; empty where there was no journal.

        Raises:
            CgroupError: The file is not a journal, or a value could not be given back; the
                journal is kept.
        """
        owned = self._load()
        if owned is None:
            return []
        failures = [
            f"{name}/{failure}"
            for name, entry in owned.items()
            for failure in restore(self.roots.cgroup / name, entry)
        ]
        if failures:
            raise CgroupError(f"{self.path}: {'; '.join(failures)}")
        self.remove()
        return [f"{name}: restored {', '.join(entry.files)}" for name, entry in owned.items()]

    def record(self, owned: Mapping[str, Owned]) -> None:
        """Replace the journal's content, atomically, if it differs."""
        if owned == self._last:
            return
        entries = {n: {"inode": o.inode, "files": o.files} for n, o in owned.items()}
        data = {"version": VERSION, "boot_id": self._boot_id(), "cgroups": entries}
        temporary = f"{self.path}.new"
        try:
            with open(temporary, "w", encoding="ascii") as stream:
                json.dump(data, stream, indent=1, sort_keys=True)
            os.replace(temporary, self.path)
        except OSError as error:
            raise CgroupError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._last = {n: Owned(o.inode, dict(o.files)) for n, o in owned.items()}

    def remove(self) -> None:
        """Forget everything: all values are back."""
        self.path.unlink(missing_ok=True)
        self._last = {}

    def close(self) -> None:
        """Give the lock back; the lock file stays, so that nobody locks a file another removes."""
        os.close(self._lock)

    def _load(self) -> dict[str, Owned] | None:
        try:
            text = self.path.read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r}, expected {VERSION}")
            owned = {
                str(name): Owned(int(entry["inode"]), dict(entry["files"]))
                for name, entry in data["cgroups"].items()
            }
            _check(owned)
            same_boot = data["boot_id"] == self._boot_id()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CgroupError(
                f"{self.path}: not a journal of the enforcer ({error}); restore the cgroups by "
                "hand, then remove it"
            ) from error
        return owned if same_boot else {}

    def _boot_id(self) -> str:
        return (read_text(f"{self.roots.proc}/sys/kernel/random/boot_id") or "").strip()


def restore(path: Path, owned: Owned) -> list[str]:
    """Write the owner's values back; a cgroup that is gone needs none.

    Returns:
        What failed, one line a file.
    """
    failures: list[str] = []
    if not path.is_dir() or path.stat().st_ino != owned.inode:
        return failures
    for file, text in owned.files.items():
        try:
            write_text(f"{path}/{file}", text, file in NONBLOCKING)
        except OSError as error:
            if path.is_dir():
                failures.append(f"{file}={text} could not be restored: {errno_name(error)}")
    return failures


def _check(owned: Mapping[str, Owned]) -> None:
    for name, entry in owned.items():
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"cgroup {name!r}")
        for file, text in entry.files.items():
            if file not in SETTING_FILES or not isinstance(text, str):
                raise ValueError(f"file {file!r}")
