from __future__ import annotations

import gzip
import lzma
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from memcg_gym.envs.lab import guest_image
from memcg_gym.envs.lab.guest_image import (
    COMPILER,
    FLAGS,
    PROGRAMS,
    build,
    build_inputs,
    checked,
    find_modules,
    image_digest,
    is_built,
    modinfo,
    module_name,
    pack,
    unpacked,
)
from memcg_gym.envs.lab.kernel_image import KernelFiles, need_programs
from memcg_gym.envs.lab.protocol import LabError

VERSION = "7.1.2-test"

AGENT = '#include "protocol.h"\nint main(void) { return PROTOCOL_VERSION; }\n'


def needs_compiler() -> None:
    try:
        need_programs(COMPILER, "cpio")
    except LabError as error:
        pytest.skip(str(error))


def module(depends: str = "", version: str = VERSION) -> bytes:
    """As much of a module as is looked at."""
    info = f"license=GPL\0depends={depends}\0name=x\0vermagic={version} SMP mod_unload \0"
    return b"\x7fELF" + bytes(60) + info.encode() + bytes(8)


@pytest.fixture
def kernel(tmp_path: Path) -> KernelFiles:
    """A kernel with modules packed in three ways."""
    folder = tmp_path / "modules"
    (folder / "kernel/fs").mkdir(parents=True)
    (folder / "kernel/fs/configfs.ko.xz").write_bytes(lzma.compress(module()))
    (folder / "null_blk.ko.gz").write_bytes(gzip.compress(module("configfs")))
    (folder / "zram.ko").write_bytes(module("lz4-compress,zsmalloc"))
    (folder / "zsmalloc.ko").write_bytes(module())
    (folder / "lz4_compress.ko").write_bytes(module("zsmalloc"))
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    return KernelFiles(VERSION, tmp_path / "vmlinuz", folder)


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """Sources of the smallest guest."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "agent.c").write_text(AGENT)
    return folder


# --- modules


def test_dependencies_come_first_and_once(kernel):
    order = [module_name(p) for p in find_modules(kernel, ("zram", "null_blk", "zram", "brd"))]

    assert order == ["zsmalloc", "lz4_compress", "zram", "configfs", "null_blk"]


def test_a_needed_module_that_is_missing_is_an_error_unless_built_in(kernel):
    (kernel.modules_dir / "null_blk.ko.gz").unlink()

    with pytest.raises(LabError, match="no module null_blk below"):
        find_modules(kernel, ("null_blk",))
    (kernel.modules_dir / "modules.builtin").write_text("kernel/drivers/block/null_blk.ko\n")
    assert find_modules(kernel, ("null_blk",)) == []


def test_a_module_is_unpacked_whatever_it_is_packed_with(kernel):
    for path in find_modules(kernel, ("zram", "null_blk")):
        assert unpacked(path).startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.ko.xz", b"nonsense", "cannot be unpacked"),
        ("a.ko.gz", gzip.compress(b"x" * 100, mtime=0)[:20], "cannot be unpacked"),
        ("a.ko.zst", b"\x28\xb5\x2f\xfd", "unzstd a.ko.zst"),
        ("a.ko", b"text", "not an ELF file"),
    ],
)
def test_a_broken_module_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(LabError, match=words):
        unpacked(tmp_path / name)


def test_a_module_of_another_kernel_is_refused(kernel):
    path = kernel.modules_dir / "zram.ko"
    path.write_bytes(module(version="6.1.0-other"))

    with pytest.raises(LabError, match=f"built for linux 6.1.0-other, the kernel is {VERSION}"):
        checked(path, kernel)


def test_modinfo_takes_whole_names_only():
    content = b"\0xdepends=wrong\0depends=right\0"

    assert modinfo(content, "depends") == "right"
    assert modinfo(content, "vermagic") == ""


# --- building


def members(initrd: Path) -> list[str]:
    with initrd.open("rb") as file:
        done = subprocess.run(["cpio", "-t", "--quiet"], stdin=file, capture_output=True, text=True)
    return sorted(done.stdout.split())


def test_an_image_has_the_agent_the_modules_and_their_order(home, kernel, agent):
    needs_compiler()
    image = build(kernel, agent)

    assert image.version == VERSION
    assert image.kernel == kernel.vmlinuz
    assert image.initrd.is_relative_to(home)
    held = members(image.initrd)
    assert {"init", "modules/null_blk.ko", "modules/configfs.ko", "modules/order"} <= set(held)
    assert "loadgen" not in held
    assert {"proc", "sys", "dev"} <= set(held)


def test_an_image_is_built_once(home, kernel, agent, monkeypatch):
    needs_compiler()
    image = build(kernel, agent)
    made_ns = image.initrd.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")

    assert build(kernel, agent) == image
    assert image.initrd.stat().st_mtime_ns == made_ns
    (agent / "agent.c").write_text(AGENT + "/* more */\n")
    with pytest.raises(LabError, match="gcc, cpio: not found"):
        build(kernel, agent)


def test_the_same_inputs_make_the_same_bytes(kernel, agent, monkeypatch, tmp_path):
    needs_compiler()
    contents = set()
    for name in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        contents.add(build(kernel, agent).initrd.read_bytes())

    assert len(contents) == 1


def test_sources_that_do_not_compile_say_so_and_leave_nothing(home, kernel, agent):
    needs_compiler()
    (agent / "agent_more.c").write_text("int broken(\n")

    with pytest.raises(LabError, match=r"(?s)gcc agent\*.c: exit status 1:.*agent_more.c"):
        build(kernel, agent)
    assert list((home / "images").iterdir()) == []


def test_a_guest_without_an_agent_is_refused(home, kernel, tmp_path):
    needs_compiler()
    (tmp_path / "empty").mkdir()

    with pytest.raises(LabError, match=r"no agent\*.c"):
        build(kernel, tmp_path / "empty")


def test_every_input_is_in_the_digest(home, kernel, agent, monkeypatch):
    def digest() -> str:
        with build_inputs(kernel, agent) as inputs:
            assert not is_built(inputs)
            return inputs.digest

    seen = {digest()}
    changes = [
        lambda: (agent / "agent.c").write_text(AGENT + "\n"),
        lambda: (agent / "agent.h").write_text("\n"),
        lambda: kernel.vmlinuz.write_bytes(b"another"),
        lambda: (kernel.modules_dir / "zram.ko").write_bytes(module("zsmalloc")),
        lambda: (kernel.modules_dir / "brd.ko").write_bytes(module()),
        lambda: monkeypatch.setattr(guest_image, "FLAGS", (*FLAGS, "-g")),
        lambda: monkeypatch.setattr(guest_image, "IMAGE_FORMAT", "next"),
    ]
    for change in changes:
        change()
        seen.add(digest())

    assert len(seen) == len(changes) + 1


def test_parts_of_the_digest_cannot_run_into_each_other(kernel, tmp_path):
    (tmp_path / "a").write_bytes(b"xy")
    (tmp_path / "b").write_bytes(b"xy")

    assert image_digest(kernel, [tmp_path / "a"], []) != image_digest(kernel, [tmp_path / "b"], [])


def test_a_packed_folder_does_not_tell_its_age_or_owner(tmp_path):
    needs_compiler()
    archives = []
    for n in (1, 2):
        root = tmp_path / f"{n}" / "root"
        (root / "b").mkdir(parents=True)
        (root / "a").write_text("text")
        (root / "a").chmod(0o600 if n == 1 else 0o640)
        pack(root, tmp_path / f"{n}.cpio")
        archives.append((tmp_path / f"{n}.cpio").read_bytes())

    assert archives[0] == archives[1]
    assert members(tmp_path / "1.cpio") == [".", "a", "b"]


@pytest.mark.parametrize("prefix", PROGRAMS.values())
def test_the_sources_that_ship_compile_without_a_warning(prefix, tmp_path):
    needs_compiler()
    folder = Path(str(files("memcg_gym.envs.lab") / "guest"))
    sources = sorted(str(p) for p in folder.glob(f"{prefix}*.c"))
    strict = ["-Wall", "-Wextra", "-Werror", "-o", str(tmp_path / prefix)]
    command = [COMPILER, *FLAGS, *strict, *sources, "-lm"]

    done = subprocess.run(command, capture_output=True, text=True)
    assert sources
    assert done.returncode == 0, done.stderr
