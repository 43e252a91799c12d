"""What the kernel finds when it starts: the agent as PID 1, the load generator, a few modules.

An initramfs is built from the C sources beside this module and kept in the user's cache by the
digest of all that went into it.  It holds no distribution: no shell, no libraries.

Units: bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from memcg_gym.envs.lab.kernel_image import (
    KernelFiles,
    cache_dir,
    make_folder,
    need_programs,
    publish,
    run_program,
)
from memcg_gym.envs.lab.protocol import LabError

MODULES = ("null_blk", "mq_deadline", "virtio_blk", "zram", "brd", "ext4")
"""Loaded by the agent where the kernel has them as modules; it may have them built in."""

NEEDED = ("null_blk",)
"""Swap and file devices are made of these."""

COMPILER = "gcc"
FLAGS = ("-std=gnu11", "-O2", "-static", "-pthread")
PROGRAMS = {"init": "agent", "loadgen": "loadgen", "probe": "probe"}
"""Programs of the guest and how the names of their sources begin."""

IMAGE_FORMAT = "1"
"""Part of the digest: raise it when the same inputs make another image."""

NEED_MIB = 32
"""Disk that building takes; an image is some 3 MiB."""

FOLDERS = ("proc", "sys", "dev", "modules", "tmp")
SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A kernel and its initramfs.

    Attributes:
        kernel: bzImage.
        initrd: cpio archive.
        version: The kernel's, as ``uname -r`` prints it.
        digest: SHA-256 over the kernel, the C sources, how they are compiled, and the modules.
    """

    kernel: Path
    initrd: Path
    version: str
    digest: str


def build(kernel: KernelFiles, sources: Path | None = None) -> GuestImage:
    """The guest of a kernel; built where the cache does not have it.

    Args:
        kernel: From :func:`~memcg_gym.envs.lab.kernel_image.fetch` or ``from_paths``.
        sources: Folder of ``agent*.c``, ``loadgen*.c`` and ``probe*.c``; None = those that ship.

    Raises:
        LabError: No compiler or cpio, sources that do not compile, a module that is missing or
            belongs to another kernel.
    """
    with build_inputs(kernel, sources) as inputs:
        if not is_built(inputs):
            need_programs(COMPILER, "cpio")
            make_folder(inputs.home.parent, NEED_MIB)
            with tempfile.TemporaryDirectory(prefix=".build-", dir=inputs.home.parent) as name:
                build_image(Path(name), kernel, inputs)
                publish(Path(name) / "image", inputs.home)
        initrd = inputs.home / "initrd"
        return GuestImage(kernel.vmlinuz, initrd, kernel.version, inputs.digest)


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that an image is made of.

    Attributes:
        includes: Folders of C files; programs are made of the first one's.
        modules: Files of kernel modules, dependencies first.
        digest: Of everything, as :class:`GuestImage` has it.
        home: The image's folder in the cache.
    """

    includes: tuple[Path, ...]
    modules: tuple[Path, ...]
    digest: str
    home: Path


@contextlib.contextmanager
def build_inputs(kernel: KernelFiles, sources: Path | None = None) -> Iterator[Inputs]:
    """What :func:`build` would work from, without working.

    Raises:
        LabError: A module is missing or broken.
    """
    with as_file(files("memcg_gym.envs.lab") / "guest") as shipped:
        includes = (shipped,) if sources is None else (sources, shipped)
        modules = tuple(find_modules(kernel, MODULES))
        digest = image_digest(kernel, source_files(includes), modules)
        yield Inputs(includes, modules, digest, cache_dir() / "images" / digest[:32])


def is_built(inputs: Inputs) -> bool:
    """Whether the cache has the image."""
    return (inputs.home / "initrd").is_file()


def build_image(work: Path, kernel: KernelFiles, inputs: Inputs) -> None:
    """Make ``work/image/initrd``."""
    root, image = work / "root", work / "image"
    image.mkdir()
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
    for program, prefix in PROGRAMS.items():
        compile_program(root / program, prefix, inputs.includes)
    for path in inputs.modules:
        (root / "modules" / f"{module_name(path)}.ko").write_bytes(checked(path, kernel))
    order = "".join(f"{module_name(path)}\n" for path in inputs.modules)
    (root / "modules" / "order").write_text(order)
    pack(root, image / "initrd")


def source_files(includes: Iterable[Path]) -> list[Path]:
    """The C files of some folders, in a fixed order."""
    return [p for folder in includes for p in sorted(folder.glob("*.[ch]"))]


def image_digest(kernel: KernelFiles, sources: Iterable[Path], modules: Iterable[Path]) -> str:
    """SHA-256 over all that an image is made of."""
    total = hashlib.sha256()
    parts = [("format", IMAGE_FORMAT.encode()), ("flags", " ".join(FLAGS).encode())]
    parts += [("modules", " ".join(MODULES).encode()), ("kernel", _digest(kernel.vmlinuz))]
    parts += [(path.name, _digest(path)) for path in (*sources, *modules)]
    for name, content in parts:
        total.update(f"{name} {len(content)} ".encode() + content)
    return total.hexdigest()


def compile_program(target: Path, prefix: str, includes: Sequence[Path]) -> None:
    """Compile ``prefix*.c`` of the first folder into one static program, if there are any.

    Raises:
        LabError: It does not compile; with what the compiler said.
    """
    sources = sorted(includes[0].glob(f"{prefix}*.c"))
    if not sources:
        if target.name == "init":
            raise LabError(f"{includes[0]}: no {prefix}*.c; the guest cannot start without it")
        return
    search = [word for folder in includes for word in ("-I", str(folder))]
    command = [COMPILER, *FLAGS, *search, "-o", str(target), *map(str, sources), "-lm"]
    run_program(command, f"{COMPILER} {prefix}*.c")


def pack(root: Path, initrd: Path) -> None:
    """A folder as a cpio archive that depends on nothing but its contents.

    It is not compressed: unpacking costs the emulated guest more time than reading.
    """
    members = sorted(p.relative_to(root) for p in root.rglob("*"))
    for path in (*(root / m for m in members), root):
        path.chmod(0o755)
        os.utime(path, (0, 0))
    names = root.parent / "members"
    names.write_text("".join(f"{m}\n" for m in (Path("."), *members)))
    options = ["-o", "-H", "newc", "--quiet", "--reproducible", "-R", "0:0", "-F", str(initrd)]
    with names.open("rb") as file:
        run_program(["cpio", *options], "cpio", cwd=root, stdin=file)


def find_modules(kernel: KernelFiles, wanted: Iterable[str]) -> list[Path]:
    """The files of the wanted modules and of what they depend on, dependencies first.

    Modules the kernel has built in, or does not have at all, are left out.

    Raises:
        LabError: One without which the lab cannot work is neither a module nor built in.
    """
    have: dict[str, Path] = {}
    for path in sorted(kernel.modules_dir.rglob("*.ko*")):
        if path.name.endswith(SUFFIXES):
            have.setdefault(module_name(path), path)
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in have:
            return
        for other in dependencies(unpacked(have[name])):
            add(other)
        order.append(name)

    for name in wanted:
        add(name)
        if name in NEEDED and name not in have and not is_builtin(kernel, name):
            raise LabError(
                f"linux {kernel.version}: no module {name} below {kernel.modules_dir}; "
                "the lab needs a kernel that has it"
            )
    return [have[name] for name in order]


def is_builtin(kernel: KernelFiles, name: str) -> bool:
    """Whether the kernel says that it has a module built in."""
    path = kernel.modules_dir / "modules.builtin"
    lines = path.read_text().splitlines() if path.is_file() else []
    return any(module_name(Path(line)) == name for line in lines)


def module_name(path: Path) -> str:
    """The module in a file.

    Example:
        >>> module_name(Path("kernel/drivers/block/dm-delay.ko.xz"))
        'dm_delay'
    """
    return path.name.partition(".ko")[0].replace("-", "_")


def unpacked(path: Path) -> bytes:
    """A module's ELF file.

    Raises:
        LabError: It is packed in a way not known here, or broken.
    """
    content = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.decompress(content)
        if path.suffix == ".gz":
            return gzip.decompress(content)
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise LabError(f"{path}: cannot be unpacked: {error}") from error
    if not content.startswith(b"\x7fELF"):
        raise LabError(f"{path}: not an ELF file; unpack it first (unzstd {path.name})")
    return content


def modinfo(content: bytes, field: str) -> str:
    r"""A field of a module's ``.modinfo`` section; empty where it has none.

    The section is a list of ``field=text`` strings, each ended by a zero byte.

    Example:
        >>> modinfo(b"...\0depends=zsmalloc,lz4\0vermagic=7.1 SMP\0", "depends")
        'zsmalloc,lz4'
    """
    at = content.find(b"\0" + field.encode() + b"=")
    if at < 0:
        return ""
    text = content[at + len(field) + 2 :].split(b"\0", 1)[0]
    return text.decode("ascii", "replace")


def dependencies(content: bytes) -> list[str]:
    """The modules a module depends on; an unpacked package has no ``modules.dep`` to ask."""
    return [name.replace("-", "_") for name in modinfo(content, "depends").split(",") if name]


def checked(path: Path, kernel: KernelFiles) -> bytes:
    """A module's ELF file, if it is one of this kernel.

    Raises:
        LabError: It was built for another one, which would refuse to load it.
    """
    content = unpacked(path)
    magic = modinfo(content, "vermagic").partition(" ")[0]
    if magic != kernel.version:
        raise LabError(
            f"{path}: built for linux {magic or 'unknown'}, the kernel is {kernel.version}; "
            "give the modules of the same build"
        )
    return content


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
