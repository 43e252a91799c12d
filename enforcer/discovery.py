"""Which cgroups may be managed: below the mount, with memory accounting, and never our own.

A process that throttles or kills the cgroup it lives in takes itself down with it, and what a host
needs to stay alive is left alone unless it is named.
"""

from __future__ import annotations

import os
from pathlib import Path

from memcg_gym.enforcer.facts import Site
from memcg_gym.enforcer.hostfs import Roots
from memcg_gym.enforcer.kernel_text import read_text
from memcg_gym.envs.contract.errors import CgroupError


def find_cgroup(roots: Roots, path: Path) -> Path:
    """The folder of a cgroup given as a folder, or as a path below the mount.

    Raises:
        CgroupError: There is none, or it is outside the mount.
    """
    inside = path.is_absolute() and path.is_relative_to(roots.cgroup)
    folder = path if inside else roots.cgroup / str(path).lstrip("/")
    if ".." in folder.parts or not folder.is_dir():
        raise CgroupError(f"{folder}: no such cgroup; a path below {roots.cgroup} is expected")
    return folder


def own_cgroup(roots: Roots) -> Path | None:
    """The folder of this process's cgroup, None where the host does not say."""
    for line in (read_text(f"{roots.proc}/self/cgroup") or "").splitlines():
        if line.startswith("0::/"):
            return roots.cgroup / line[4:]
    return None


def contains(path: Path, own: Path | None) -> bool:
    """Whether a cgroup is ours or above ours."""
    return own is not None and own.is_relative_to(path)


def inode_of(path: Path) -> int | None:
    """Inode of a cgroup's folder; None where it is gone."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def children_of(parent: Path) -> list[Path]:
    """Folders of a cgroup's children by name; empty where it is gone."""
    try:
        return sorted(parent / entry.name for entry in os.scandir(parent) if entry.is_dir())
    except OSError:
        return []


def why_left_alone(path: Path, site: Site, own: Path | None) -> str:
    """Why a child is not managed, or ``""`` where it is."""
    if path.name in site.exclude:
        return "excluded"
    if contains(path, own):
        return "holds this process"
    if not (path / "memory.current").exists():
        return "no memory.current"
    return ""


def refuse_unmanageable(path: Path, roots: Roots, own: Path | None) -> None:
    """Refuse a cgroup that was named and cannot or must not be managed.

    Raises:
        CgroupError: It is the root, holds this process, or has no memory controller.
    """
    if path == roots.cgroup:
        raise CgroupError(f"{path}: the root cgroup has no limits; name others or use --children")
    if contains(path, own):
        raise CgroupError(f"{path}: holds this process; manage its children, or others")
    if not (path / "memory.current").exists():
        raise CgroupError(
            f"{path}: no memory.current; enable the memory controller: "
            f"echo +memory > {path.parent}/cgroup.subtree_control"
        )
