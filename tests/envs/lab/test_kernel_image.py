from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path

import pytest

from memcg_gym.envs.lab import kernel_image
from memcg_gym.envs.lab.kernel_image import (
    cache_dir,
    cached,
    deb822,
    fetch,
    find_mirror,
    folder_name,
    from_paths,
    image_version,
    make_folder,
    one_line,
    resolve_version,
    use,
)
from memcg_gym.envs.lab.protocol import LabError

VERSION = "7.1.2+deb13-cloud-amd64"


def bzimage(path: Path, version: str = VERSION) -> Path:
    """A file with a boot header that says this version."""
    head = bytearray(0x2000)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x1000 - 0x200)
    text = f"{version} (builder@example) #1 SMP".encode()
    head[0x1000 : 0x1000 + len(text)] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(head))
    return path


# --- where packages come from


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("deb http://m/debian bookworm main", [("http://m/debian", ["bookworm"])]),
        ("deb [arch=amd64 trusted=yes] http://m/debian sid main", [("http://m/debian", ["sid"])]),
        ("# deb http://m/debian bookworm main", []),
        ("deb-src http://m/debian bookworm main", []),
        ("", []),
    ],
)
def test_one_line_sources_are_read(line, expected):
    assert list(one_line(line)) == expected


STANZA = """\
Types: deb
# a note
URIs: http://a/debian http://b/debian
Suites: bookworm bookworm-updates
Components: main
"""


def test_deb822_sources_are_read():
    assert list(deb822(STANZA)) == [
        ("http://a/debian", ["bookworm", "bookworm-updates"]),
        ("http://b/debian", ["bookworm", "bookworm-updates"]),
    ]
    folded = STANZA.replace(" bookworm bookworm-updates", "\n bookworm\n bookworm-updates")
    assert list(deb822(folded)) == list(deb822(STANZA))


@pytest.mark.parametrize(
    "change", [("Types: deb", "Types: deb-src"), ("URIs", "Enabled: no\nURIs")]
)
def test_deb822_entries_that_give_no_packages_are_left_out(change):
    assert list(deb822(STANZA.replace(*change))) == []


def sources(folder: Path, **files: str) -> Path:
    (folder / "sources.list.d").mkdir()
    for name, text in files.items():
        at = folder if name == "sources_list" else folder / "sources.list.d"
        (at / name.replace("_", ".")).write_text(text)
    return folder


def test_the_mirror_is_the_machines_own(tmp_path):
    folder = sources(
        tmp_path,
        a_list="deb https://packages.example/apt tools main",
        debian_sources="Types: deb\nURIs: http://s/debian-security\nSuites: bookworm-security\n\n"
        "Types: deb\nURIs: http://near/mirror/debian/\nSuites: bookworm\n",
    )

    assert find_mirror(folder) == "http://near/mirror/debian/"


def test_a_mirror_list_counts_and_a_security_mirror_does_not(tmp_path):
    folder = sources(
        tmp_path,
        sources_list="deb http://s/debian bookworm-security main\n"
        "deb mirror+file:/etc/apt/mirrors/debian.list bookworm main\n",
    )

    assert find_mirror(folder) == "mirror+file:/etc/apt/mirrors/debian.list"


def test_without_a_debian_mirror_the_error_says_what_else(tmp_path):
    folder = sources(tmp_path, a_list="deb http://archive.ubuntu.com/ubuntu noble main")

    with pytest.raises(LabError, match=r"no Debian mirror.*--kernel VMLINUZ --modules DIR"):
        find_mirror(folder)


# --- which version


DEPENDS = f"""\
linux-image-cloud-amd64
  Depends: linux-base-cloud-amd64
  Depends: linux-image-{VERSION}
  Depends: linux-modules-cloud-amd64
"""


def test_the_meta_package_names_the_version():
    assert resolve_version(DEPENDS) == VERSION


@pytest.mark.parametrize("text", ["", DEPENDS + "  Depends: linux-image-7.2.0-cloud-amd64\n"])
def test_no_version_or_two_are_refused(text):
    with pytest.raises(LabError, match="expected one kernel"):
        resolve_version(text)


def test_two_builds_of_a_version_have_two_folders():
    first, second = (folder_name("7.1", f"Version: 7.1-{n}~bpo13+1\n") for n in (1, 2))

    assert first != second
    assert "/" not in folder_name("7.1", "Version: 1:7/1\n")


def test_a_bzimage_says_its_version(tmp_path):
    assert image_version(bzimage(tmp_path / "vmlinuz")) == VERSION


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(5000), bytes(0x210)])
def test_what_is_no_bzimage_is_refused(tmp_path, content):
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)

    with pytest.raises(LabError, match="not an x86 bzImage"):
        image_version(path)


def test_missing_paths_are_named(tmp_path):
    kernel = bzimage(tmp_path / "vmlinuz")

    with pytest.raises(LabError, match=r"--modules: .*none: not a folder"):
        from_paths(kernel, tmp_path / "none")
    with pytest.raises(LabError, match=r"--kernel: .*gone: No such file"):
        from_paths(tmp_path / "gone", tmp_path)


# --- the cache


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "memcg-gym" / "lab"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path.home() / ".cache" / "memcg-gym" / "lab"


def test_a_kernel_in_use_is_fetched_without_any_program(home, tmp_path, monkeypatch):
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "config").touch()
    kernel = use(from_paths(bzimage(tmp_path / "vmlinuz"), modules))
    monkeypatch.setenv("PATH", "")

    assert fetch() == kernel
    assert kernel.config == modules / "config"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"vmlinuz": 3}', '{"vmlinuz": "/none"}'])
def test_a_broken_note_of_the_kernel_in_use_is_none(home, text):
    (home / "kernels").mkdir(parents=True)
    (home / "kernels" / "current.json").write_text(text)

    assert cached() is None


def test_a_full_disk_is_said_beforehand(tmp_path):
    with pytest.raises(LabError, match=r"MiB free, .* MiB are needed"):
        make_folder(tmp_path / "here", 1 << 40)
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match="set XDG_CACHE_HOME"):
        make_folder(tmp_path / "file" / "below")


# --- fetching, from a distribution of shell scripts


def package(folder: Path, name: str, version: str) -> str:
    """A package file, and the index's stanza of it."""
    content = f"{name} {version}".encode()
    (folder / f"{name}_1_amd64.deb").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return f"Package: {name}\nVersion: {version}\nSHA256: {digest}\n\n"


@pytest.fixture
def distribution(home, tmp_path, programs, monkeypatch):
    """apt and dpkg that offer a kernel; returns the folder that says what they do."""
    told = tmp_path / "told"
    (told / "debs").mkdir(parents=True)
    apt = sources(tmp_path, a_list="deb http://m/debian bookworm main")
    monkeypatch.setattr(kernel_image, "APT_SOURCES", apt)
    (tmp_path / "keyring").touch()
    monkeypatch.setattr(kernel_image, "KEYRING", tmp_path / "keyring")
    offer(told, VERSION)
    says = f'echo "$0 $*" >> {told}/calls'
    programs(
        "apt-get",
        f"#!/bin/sh\n{says}\ncase $* in\n"
        f"*update) [ ! -e {told}/offline ] || {{ echo 'E: cannot reach m' >&2; exit 100; }};;\n"
        f"*download*) cp {told}/debs/*.deb .;;\nesac\n",
    )
    programs(
        "apt-cache",
        f"#!/bin/sh\ncase $* in *depends*) cat {told}/depends;; *) cat {told}/show;; esac\n",
    )
    programs(
        "dpkg",
        f"#!/bin/sh\n[ ! -e {told}/broken ] || {{ echo 'dpkg: broken' >&2; exit 2; }}\n"
        f'mkdir -p "$3" && cp -r {told}/tree/. "$3"\n',
    )
    return told


def offer(told: Path, version: str) -> None:
    """Let the distribution have this kernel."""
    shutil.rmtree(told / "debs")
    (told / "debs").mkdir()
    names = [f"linux-{part}-{version}" for part in ("base", "binary", "modules")]
    (told / "show").write_text("".join(package(told / "debs", n, f"{version}-1") for n in names))
    (told / "depends").write_text(DEPENDS.replace(VERSION, version))
    shutil.rmtree(told / "tree", ignore_errors=True)
    bzimage(told / "tree/usr/lib/modules" / version / "vmlinuz", version)


def leftovers(home: Path) -> list[str]:
    return sorted(p.name for p in (home / "kernels").iterdir() if p.name != "current.json")


def test_a_kernel_is_fetched_once(distribution, home):
    said: list[str] = []
    kernel = fetch(said.append)
    calls = (distribution / "calls").read_text()

    assert kernel.version == VERSION
    assert kernel.vmlinuz.is_file()
    assert kernel.modules_dir.is_relative_to(home)
    assert any("downloading 3 packages" in line for line in said)
    assert leftovers(home) == [f"{VERSION}_{VERSION}-1"]
    assert fetch() == kernel
    assert (distribution / "calls").read_text() == calls


def test_refresh_finds_a_newer_kernel_and_keeps_the_older(distribution, home):
    fetch()
    offer(distribution, "7.2.0+deb13-cloud-amd64")

    assert fetch().version == VERSION
    assert fetch(refresh=True).version == "7.2.0+deb13-cloud-amd64"
    assert fetch().version == "7.2.0+deb13-cloud-amd64"
    assert len(leftovers(home)) == 2


def test_apt_looks_at_nothing_of_the_machine_but_its_mirror(distribution):
    fetch()
    update = (distribution / "calls").read_text().splitlines()[0]

    for option in ("Dir::Etc::sourceparts=-", "Dir::State::Lists=", "Dir::State::status="):
        assert option in update
    assert "Dir::Etc::sourcelist=" in update


def test_without_network_apts_own_words_are_shown_and_nothing_is_left(distribution, home):
    (distribution / "offline").touch()

    with pytest.raises(LabError, match=r"(?s)apt-get .*update: exit status 100.*cannot reach m"):
        fetch()
    assert leftovers(home) == []
    assert cached() is None


def test_a_package_that_is_not_the_indexs_is_refused(distribution, home):
    next((distribution / "debs").iterdir()).write_bytes(b"something else")

    with pytest.raises(LabError, match=r"SHA256 .* is not in the index"):
        fetch()
    assert leftovers(home) == []


def test_a_missing_package_is_noticed(distribution):
    next((distribution / "debs").iterdir()).unlink()

    with pytest.raises(LabError, match="got 2 files, expected 3"):
        fetch()


def test_a_failed_unpacking_leaves_nothing(distribution, home):
    (distribution / "broken").touch()

    with pytest.raises(LabError, match="dpkg: broken"):
        fetch()
    assert leftovers(home) == []


def test_packages_without_an_image_are_refused(distribution):
    shutil.rmtree(distribution / "tree")
    (distribution / "tree").mkdir()

    with pytest.raises(LabError, match="no vmlinuz of"):
        fetch()


def test_an_older_layout_of_the_packages_is_understood(distribution):
    tree = distribution / "tree"
    shutil.rmtree(tree)
    bzimage(tree / f"boot/vmlinuz-{VERSION}")
    (tree / "lib/modules" / VERSION).mkdir(parents=True)

    assert fetch().vmlinuz.name == f"vmlinuz-{VERSION}"


def test_without_the_keyring_nothing_is_trusted(distribution, monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_image, "KEYRING", tmp_path / "none")

    with pytest.raises(LabError, match="apt-get install debian-archive-keyring"):
        fetch()


def test_without_apt_the_error_names_it(home, monkeypatch):
    monkeypatch.setenv("PATH", "")

    with pytest.raises(LabError, match="apt-get, apt-cache, dpkg: not found"):
        fetch()


@pytest.mark.lab
def test_the_distributions_kernel_says_the_version_of_its_package(kernel):
    note = json.loads((cache_dir() / "kernels" / "current.json").read_text())

    assert note["version"] == kernel.version == image_version(kernel.vmlinuz)
    assert any(kernel.modules_dir.rglob("null_blk.ko*"))
