"""Which Linux the lab boots: the distribution's newest packaged kernel, or one the user names.

The packages are downloaded through apt from the machine's own mirror and unpacked into the user's
cache folder; nothing is installed, no right beyond a user's is needed, and apt checks every file
against the signed index.  A private sources list reaches the suite, so the machine's own lists
stay as they are.  It knows Debian's packages only; elsewhere a kernel is named by its paths.

Units: bytes; MiB of disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from memcg_gym.envs.lab.protocol import LabError

SUITE = "trixie-backports"
"""Debian's newest packaged stable kernels; main of a release lags behind by years."""

META_PACKAGE = "linux-image-cloud-amd64"
"""Names the current version; the cloud flavour is small and boots without firmware."""

PARTS = ("base", "binary", "modules")
"""Of a kernel's packages: its configuration, its image, its modules."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_SOURCES = Path("/etc/apt")

HOW_ELSE = "or name a kernel: --kernel VMLINUZ --modules DIR"

# Documentation/arch/x86/boot.rst: "HdrS" at 0x202, offset of the version text at 0x20e.
BOOT_MAGIC_OFFSET, BOOT_MAGIC = 0x202, b"HdrS"
VERSION_POINTER_OFFSET, VERSION_BASE, VERSION_BYTES = 0x20E, 0x200, 256

ERROR_LINES = 12
"""Of what a program said last, shown with its failure."""

NEED_MIB = 120
"""Disk that a download takes: 41 MB unpacked, as much packed, and the index; assumption: some more
for what is to come."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A kernel to boot.

    Attributes:
        version: As ``uname -r`` prints it.
        vmlinuz: The compressed image (bzImage).
        modules_dir: The folder that holds its ``*.ko`` files, at any depth.
        config: Its build configuration, where known.
    """

    version: str
    vmlinuz: Path
    modules_dir: Path
    config: Path | None = None


def cache_dir() -> Path:
    """The lab's folder in the user's cache; it may be deleted at any time and is made again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "memcg-gym" / "lab"


def fetch(progress: Progress = lambda text: None, *, refresh: bool = False) -> KernelFiles:
    """The lab's kernel: the one in use, or else the distribution's newest, downloaded once.

    Args:
        progress: Told what is being done, a line at a time.
        refresh: Look for the distribution's newest although there is one in use.

    Raises:
        LabError: No apt, no Debian mirror, no network, or a file that is not what its index says.
    """
    found = None if refresh else cached()
    if found is not None:
        return found
    need_programs("apt-get", "apt-cache", "dpkg")
    mirror = find_mirror(APT_SOURCES)
    if not KEYRING.exists():
        raise LabError(f"{KEYRING}: not found; apt-get install debian-archive-keyring, {HOW_ELSE}")
    kernels = cache_dir() / "kernels"
    make_folder(kernels, NEED_MIB)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=kernels) as name:
        apt = Apt(Path(name), mirror)
        progress(f"{mirror} {SUITE}: reading the index")
        apt.update()
        version = resolve_version(apt.cache("depends", META_PACKAGE))
        packages = [f"linux-{part}-{version}" for part in PARTS]
        shown = apt.cache("show", "--no-all-versions", *packages)
        home = kernels / folder_name(version, shown)
        if not home.exists():
            progress(f"linux {version}: downloading {len(packages)} packages")
            unpack(apt, packages, shown, Path(name) / "tree")
            publish(Path(name) / "tree", home)
    return use(find_kernel(home, version))


def find_kernel(home: Path, version: str) -> KernelFiles:
    """The kernel among the unpacked files of its packages.

    Raises:
        LabError: It is not where it should be.
    """
    for modules in (home / "usr/lib/modules" / version, home / "lib/modules" / version):
        for vmlinuz in (modules / "vmlinuz", home / f"boot/vmlinuz-{version}"):
            if vmlinuz.is_file() and modules.is_dir():
                return from_paths(vmlinuz, modules)
    raise LabError(f"{home}: no vmlinuz of {version} in the packages; {HOW_ELSE}")


def use(kernel: KernelFiles) -> KernelFiles:
    """Make a kernel the one that :func:`fetch` gives from now on."""
    folder = cache_dir() / "kernels"
    make_folder(folder)
    paths = {key: str(getattr(kernel, key).resolve()) for key in ("vmlinuz", "modules_dir")}
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".current-", delete=False) as file:
        file.write(json.dumps({"version": kernel.version, **paths}, indent=2) + "\n")
    os.replace(file.name, folder / "current.json")
    return kernel


def cached() -> KernelFiles | None:
    """The kernel in use; None where there is none, or its files have gone."""
    try:
        current = json.loads((cache_dir() / "kernels/current.json").read_text())
        return from_paths(Path(current["vmlinuz"]), Path(current["modules_dir"]))
    except (OSError, ValueError, KeyError, TypeError, LabError):
        return None


def from_paths(kernel: Path, modules: Path) -> KernelFiles:
    """A kernel the user has.

    Args:
        kernel: A bzImage.
        modules: A folder with its modules, such as ``/lib/modules/VERSION``.

    Raises:
        LabError: One of them is missing or not what it should be.
    """
    if not modules.is_dir():
        raise LabError(f"--modules: {modules}: not a folder; expected /lib/modules/VERSION")
    config = next((p for p in (modules / "config", modules / "build/.config") if p.is_file()), None)
    return KernelFiles(image_version(kernel), kernel, modules, config)


def image_version(kernel: Path) -> str:
    """The version a bzImage carries in its setup header.

    Raises:
        LabError: It cannot be read or is no bzImage.

    Source:
        Linux ``Documentation/arch/x86/boot.rst``, field ``kernel_version``.
    """
    try:
        with kernel.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise LabError(f"--kernel: {kernel}: {error.strerror}") from error
    if head[BOOT_MAGIC_OFFSET : BOOT_MAGIC_OFFSET + 4] != BOOT_MAGIC:
        raise LabError(f"--kernel: {kernel}: not an x86 bzImage (vmlinuz)")
    pointer = head[VERSION_POINTER_OFFSET : VERSION_POINTER_OFFSET + 2]
    start = VERSION_BASE + int.from_bytes(pointer, "little")
    words = head[start : start + VERSION_BYTES].split(b"\0")[0].split()
    if not words:
        raise LabError(f"--kernel: {kernel}: the image does not say its version")
    return words[0].decode("ascii", "replace")


class Apt:
    """apt with a private sources list, index and cache below ``home``, and no installed packages.

    The machine's proxies and authentication stay in force.
    """

    def __init__(self, home: Path, mirror: str, suite: str = SUITE) -> None:
        self.home = home
        for folder in ("lists/partial", "archives/partial", "download"):
            (home / folder).mkdir(parents=True)
        (home / "status").touch()
        source = f"deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"
        (home / "sources.list").write_text(source)
        options = {
            "Dir::Etc::sourcelist": home / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::State::Lists": home / "lists",
            "Dir::State::status": home / "status",
            "Dir::Cache": home,
            "APT::Architecture": "amd64",
            "APT::Update::Post-Invoke": "",
            "Acquire::Languages": "none",
            # The cache folder is the user's own, which apt's own user could not enter.
            "APT::Sandbox::User": "root",
        }
        self.options = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Read the suite's signed index."""
        # Without Error-Mode a mirror that cannot be reached is a warning and status 0.
        self._run("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")

    def cache(self, *words: str) -> str:
        """What ``apt-cache`` prints."""
        return self._run("apt-cache", *words)

    def download(self, packages: list[str]) -> list[Path]:
        """The packages' files."""
        self._run("apt-get", "-q", "download", *packages, cwd=self.home / "download")
        return sorted((self.home / "download").glob("*.deb"))

    def _run(self, program: str, *words: str, cwd: Path | None = None) -> str:
        command = [program, *self.options, *words]
        return run_program(command, f"{program} {' '.join(words)}", cwd=cwd)


def run_program(
    command: list[str], what: str, cwd: Path | None = None, stdin: BinaryIO | None = None
) -> str:
    """Run a program for its output, in no language but C's.

    Raises:
        LabError: It failed; with the last lines it said.
    """
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=cwd,
        env=env,
    )
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-ERROR_LINES:])
        raise LabError(f"{what}: exit status {done.returncode}:\n{tail}")
    return done.stdout


def make_folder(path: Path, need_mib: int = 0) -> None:
    """A folder, on a disk that has room for what is to go there.

    Raises:
        LabError: It cannot be made, or the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        free_mib = shutil.disk_usage(path).free >> 20
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}; set XDG_CACHE_HOME to another disk") from error
    if free_mib < need_mib:
        raise LabError(
            f"{path}: {free_mib} MiB free, {need_mib} MiB are needed; "
            "make room or set XDG_CACHE_HOME to another disk"
        )


def need_programs(*names: str) -> None:
    """Say which of the programs is not there.

    Raises:
        LabError: One is not.
    """
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise LabError(f"{', '.join(missing)}: not found; see memcg-gym lab doctor, {HOW_ELSE}")


def find_mirror(folder: Path) -> str:
    """The mirror that the machine itself takes Debian's packages from.

    Args:
        folder: ``/etc/apt``: ``sources.list`` and ``sources.list.d/*.{list,sources}``.

    Raises:
        LabError: It has none.
    """
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    for path in files:
        if not path.is_file() or path.suffix not in (".list", ".sources"):
            continue
        text = path.read_text(errors="replace")
        for uri, suites in deb822(text) if path.suffix == ".sources" else one_line(text):
            if is_debian(uri) and not all(suite.endswith("-security") for suite in suites):
                return uri
    raise LabError(f"{folder}: no Debian mirror in the apt sources; use Debian, {HOW_ELSE}")


def is_debian(uri: str) -> bool:
    """Whether a mirror is one of the whole distribution, by its path: ``.../debian``.

    Example:
        >>> [is_debian(f"http://deb.debian.org/{name}") for name in ("debian", "debian-security")]
        [True, False]
    """
    # Debian's cloud images name a file of mirrors instead: mirror+file:/etc/apt/mirrors/debian.list
    return uri.rstrip("/").rpartition("/")[2] in ("debian", "debian.list")


def one_line(text: str) -> Iterator[tuple[str, list[str]]]:
    """Mirror and suite of each binary entry of a one-line sources file (``*.list``).

    Example:
        >>> list(one_line("deb [arch=amd64] http://deb.debian.org/debian bookworm main"))
        [('http://deb.debian.org/debian', ['bookworm'])]
    """
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", line)
        if match:
            yield match[1], [match[2]]


def deb822(text: str) -> Iterator[tuple[str, list[str]]]:
    """Mirrors and suites of each enabled binary entry of a deb822 sources file (``*.sources``)."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, list[str]] = {}
        last: list[str] = []
        for line in stanza.splitlines():
            if not line[:1].isspace():
                key, _, line = line.partition(":")
                last = fields.setdefault(key.strip().lower(), [])
            last.extend(line.split())
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
            for uri in fields.get("uris", []):
                yield uri, fields.get("suites", [])


def resolve_version(depends: str) -> str:
    """The kernel that the meta package stands for.

    Args:
        depends: What ``apt-cache depends`` prints of it.

    Raises:
        LabError: It names none, or more than one.
    """
    found = re.findall(r"^\s*Depends: linux-image-(\d\S*)$", depends, re.MULTILINE)
    if len(set(found)) != 1:
        raise LabError(
            f"{META_PACKAGE} of {SUITE}: expected one kernel among what it depends on, "
            f"got {sorted(set(found))}; {HOW_ELSE}"
        )
    return str(found[0])


def folder_name(version: str, shown: str) -> str:
    """A folder for one build of one kernel: the same version is packaged more than once."""
    packaged = sorted(set(re.findall(r"^Version: (\S+)$", shown, re.MULTILINE)))
    return re.sub(r"[^\w.+~-]", "_", f"{version}_{'_'.join(packaged)}")


def unpack(apt: Apt, packages: list[str], shown: str, tree: Path) -> None:
    """Download packages, check them against the index, unpack them.

    Raises:
        LabError: A file is missing or not the one of the index.
    """
    wanted = set(re.findall(r"^SHA256: ([0-9a-f]{64})$", shown, re.MULTILINE))
    files = apt.download(packages)
    if len(files) != len(packages):
        raise LabError(f"apt-get download: got {len(files)} files, expected {len(packages)}")
    for path in files:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got not in wanted:
            raise LabError(f"{path.name}: SHA256 {got} is not in the index; try again")
        run_program(["dpkg", "-x", str(path), str(tree)], f"dpkg -x {path.name}")


def publish(tree: Path, home: Path) -> None:
    """Put a finished folder in its place; whoever comes second finds it there."""
    try:
        tree.rename(home)
    except OSError:
        if not home.is_dir():
            raise
