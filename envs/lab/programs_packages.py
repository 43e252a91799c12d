"""Programs of the distribution, taken out of its packages: files asked for, and their libraries.

Packages are downloaded, checked and unpacked as the kernel's are, and nothing is installed.  All
are of one release, so that programs find the C library they were linked with whatever runs on this
machine.  Libraries are looked for among the packages that the programs' packages depend on.

Units: bytes; MiB of disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memcg_gym.envs.lab.kernel_image import (
    APT_SOURCES,
    KEYRING,
    Apt,
    cache_dir,
    find_mirror,
    make_folder,
    need_programs,
    publish,
    run_program,
    unpack,
)
from memcg_gym.envs.lab.protocol import LabError

SUITE = "trixie"
"""The release the lab's kernel is packaged for."""

ELF_MAGIC = b"\x7fELF"
LIBRARY_FOLDER = "usr/lib/x86_64-linux-gnu"
LIBRARY_PACKAGE = re.compile(r"^(lib|zlib1g$)")
"""Packages that may hold a library by Debian's rules of naming."""

NEED_MIB = 300
"""Disk that a download takes; assumption, some 60 MB were used."""

FORMAT = "1"
"""Part of what a folder in the cache is named for."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ProgramFiles:
    """Programs ready to be packed.

    Attributes:
        root: Folder that is the guest's root: the files asked for, their libraries, the linker.
        versions: Version by package.
    """

    root: Path
    versions: dict[str, str]


def fetch_programs(
    packages: Sequence[str],
    files: Sequence[str],
    progress: Progress = lambda text: None,
    *,
    refresh: bool = False,
) -> ProgramFiles:
    """Files of packages and what they need to run; downloaded once.

    Args:
        packages: Names in the distribution.
        files: Paths in the packages.
        progress: Told what is being done, a line at a time.
        refresh: Download them again although they are there.

    Raises:
        LabError: No apt, no mirror, no network, no such package, no such file in it, or a library
            that none of them has.
    """
    home = cache_dir() / "programs" / folder_name(packages, files)
    if refresh and home.is_dir():
        shutil.rmtree(home)
    if not (home / "versions.json").is_file():
        need_programs("apt-get", "apt-cache", "dpkg", "readelf")
        if not KEYRING.exists():
            raise LabError(f"{KEYRING}: not found; apt-get install debian-archive-keyring")
        make_folder(home.parent, NEED_MIB)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home.parent) as name:
            apt = Apt(Path(name), find_mirror(APT_SOURCES), SUITE)
            download(apt, packages, files, progress)
            publish(Path(name) / "out", home)
    versions = json.loads((home / "versions.json").read_text())
    return ProgramFiles(home / "root", versions)


def folder_name(packages: Sequence[str], files: Sequence[str]) -> str:
    """A folder for one choice of files."""
    content = json.dumps([FORMAT, SUITE, sorted(packages), sorted(files)])
    return f"{packages[0]}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def download(apt: Apt, packages: Sequence[str], files: Sequence[str], progress: Progress) -> None:
    """Make ``out/root`` and ``out/versions.json`` below apt's folder."""
    progress(f"{SUITE}: reading the index")
    apt.update()
    shown = resolve(apt, packages)
    progress(f"{', '.join(packages)}: downloading {len(shown)} packages")
    unpack(apt, sorted(shown), "\n".join(shown.values()), apt.home / "tree")
    collect(apt.home / "tree", files, apt.home / "out/root")
    versions = {name: field(text, "Version") for name, text in sorted(shown.items())}
    (apt.home / "out/versions.json").write_text(json.dumps(versions, indent=2) + "\n")


def resolve(apt: Apt, packages: Sequence[str]) -> dict[str, str]:
    """What the index says of the packages and of all libraries they depend on, by name.

    Raises:
        LabError: A package is not in the index.
    """
    shown: dict[str, str] = {}
    wanted = list(packages)
    while wanted:
        text = apt.cache("show", "--no-all-versions", *wanted)
        stanzas = {field(stanza, "Package"): stanza for stanza in text.split("\n\n")}
        stanzas.pop("", None)
        missing = sorted(set(wanted) - set(stanzas))
        if missing:
            raise LabError(f"{SUITE}: no package {', '.join(missing)} in the index")
        shown |= stanzas
        wanted = sorted(set(library_packages(stanzas.values())) - set(shown))
    return shown


def library_packages(stanzas: Iterable[str]) -> Iterator[str]:
    """Packages with libraries that some packages depend on; of alternatives the first.

    Example:
        >>> list(library_packages(["Depends: libc6 (>= 2.38), adduser, libb1 | libb0"]))
        ['libc6', 'libb1']
    """
    for stanza in stanzas:
        for key in ("Depends", "Pre-Depends"):
            for word in field(stanza, key).split(","):
                name = word.partition("|")[0].partition("(")[0].strip().partition(":")[0]
                if LIBRARY_PACKAGE.match(name):
                    yield name


def field(stanza: str, key: str) -> str:
    """A field of an index's entry; empty where it has none.

    Example:
        >>> field("Version: 3.46.1-7", "Version")
        '3.46.1-7'
    """
    match = re.search(rf"^{key}: (.*)$", stanza, re.MULTILINE)
    return match[1].strip() if match else ""


def collect(tree: Path, files: Sequence[str], root: Path) -> None:
    """Copy files out of unpacked packages, with the libraries they need and the linker.

    Raises:
        LabError: A file or a library is in none of the packages.
    """
    libraries: dict[str, Path] = {}
    for path in sorted(tree.rglob("*.so*")):
        libraries.setdefault(path.name, path)
    pending = [(name.lstrip("/"), inside(tree, tree / name.lstrip("/"))) for name in files]
    done: set[str] = set()
    while pending:
        name, path = pending.pop()
        if name in done:
            continue
        done.add(name)
        if not path.is_file():
            raise LabError(f"/{name}: in none of the packages")
        copy(path, root / name)
        for wanted in needs(path):
            if wanted.rpartition("/")[2] not in libraries:
                raise LabError(f"/{name}: needs {wanted}, which none of the packages has")
            library = inside(tree, libraries[wanted.rpartition("/")[2]])
            # The linker is named by its path, a library by its name alone.
            place = wanted.lstrip("/") if "/" in wanted else f"{LIBRARY_FOLDER}/{wanted}"
            pending.append((place, library))


def inside(tree: Path, path: Path) -> Path:
    """Where a path of unpacked packages leads: absolute links are links within the tree."""
    for _ in range(8):
        if not path.is_symlink():
            break
        target = path.readlink()
        path = tree / target.relative_to("/") if target.is_absolute() else path.parent / target
    return path


def copy(path: Path, to: Path) -> None:
    """Copy a file's content."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)
    to.chmod(0o755)


def needs(path: Path) -> list[str]:
    """Libraries and the linker that an ELF file asks for; none where it is no such file."""
    with path.open("rb") as file:
        if file.read(4) != ELF_MAGIC:
            return []
    text = run_program(["readelf", "-W", "-l", "-d", str(path)], f"readelf {path.name}")
    libraries = re.findall(r"\(NEEDED\).*\[([^\]]+)\]", text)
    linkers = re.findall(r"\[Requesting program interpreter: ([^\]]+)\]", text)
    return libraries + linkers
