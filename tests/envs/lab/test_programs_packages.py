"""Programs out of packages, without a network: the index is text, packages are folders."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from memcg_gym.envs.lab import programs_packages
from memcg_gym.envs.lab.programs_packages import (
    LIBRARY_FOLDER,
    collect,
    fetch_programs,
    field,
    folder_name,
    inside,
    library_packages,
    needs,
    resolve,
)
from memcg_gym.envs.lab.protocol import LabError

needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("readelf") is None, reason="needs gcc and readelf"
)

INDEX = {
    "tool": "Package: tool\nVersion: 2\nDepends: libone1 (>= 1), adduser\nPre-Depends: zlib1g:any",
    "libone1": "Package: libone1\nVersion: 1\nDepends: libtwo | libother",
    "zlib1g": "Package: zlib1g\nVersion: 1.3\nDepends: libtwo (= 1)",
    "libtwo": "Package: libtwo\nVersion: 1\nDepends: libone1",
}


class FakeApt:
    """Knows the index and how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def cache(self, *words: str) -> str:
        self.asked.append(words)
        return "\n\n".join(INDEX[name] for name in words[2:] if name in INDEX) + "\n\n"


def test_libraries_are_found_through_all_that_a_package_depends_on() -> None:
    assert sorted(resolve(FakeApt(), ["tool"])) == ["libone1", "libtwo", "tool", "zlib1g"]  # type: ignore[arg-type]


def test_a_package_that_is_not_in_the_index_is_named() -> None:
    with pytest.raises(LabError, match="no package nosuch in the index"):
        resolve(FakeApt(), ["tool", "nosuch"])  # type: ignore[arg-type]


def test_only_libraries_are_followed_and_alternatives_give_their_first() -> None:
    assert list(library_packages(INDEX.values())) == [
        *("libone1", "zlib1g"),
        *("libtwo", "libtwo", "libone1"),
    ]


def test_a_field_is_a_whole_line() -> None:
    assert field("Package: a\nVersion: 1:2.0-3 \n", "Version") == "1:2.0-3"
    assert field("Package: a\nX-Version: 3\n", "Version") == ""


def test_another_choice_of_files_is_another_folder() -> None:
    first = folder_name(["a", "b"], ["/x", "/y"])
    assert first == folder_name(["a", "b"], ["/y", "/x"])
    assert first != folder_name(["a", "b"], ["/x"])


def test_an_absolute_link_stays_in_the_tree(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/real").write_text("here")
    (tmp_path / "usr/lib/near").symlink_to("real")
    (tmp_path / "far").symlink_to("/usr/lib/near")
    assert inside(tmp_path, tmp_path / "far") == tmp_path / "usr/lib/real"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Unpacked packages: a program, the library it needs behind a link, and a linker."""
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / LIBRARY_FOLDER).mkdir(parents=True)
    (root / "usr/share").mkdir()
    (root / "usr/share/words").write_text("a\nb\n")
    (tmp_path / "lib.c").write_text("int answer(void) { return 42; }")
    (tmp_path / "main.c").write_text("int answer(void); int main(void) { return answer(); }")
    library = root / LIBRARY_FOLDER / "libanswer.so.1.2"
    gcc = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libanswer.so.1", "-o", str(library)]
    subprocess.run([*gcc, str(tmp_path / "lib.c")], check=True)
    subprocess.run(
        ["gcc", "-o", str(root / "usr/bin/tool"), str(tmp_path / "main.c"), str(library)],
        check=True,
    )
    (root / LIBRARY_FOLDER / "libanswer.so.1").symlink_to("libanswer.so.1.2")
    for name in needs(root / "usr/bin/tool"):
        if "answer" not in name:
            (root / LIBRARY_FOLDER / Path(name).name).write_text("not looked into")
    return root


@needs_compiler
def test_a_program_comes_with_its_libraries_and_its_linker(tree: Path, tmp_path: Path) -> None:
    collect(tree, ["/usr/bin/tool", "/usr/share/words"], tmp_path / "root")

    found = {str(p.relative_to(tmp_path / "root")) for p in (tmp_path / "root").rglob("*")}
    assert {"usr/bin/tool", "usr/share/words", f"{LIBRARY_FOLDER}/libanswer.so.1"} <= found
    assert f"{LIBRARY_FOLDER}/libc.so.6" in found
    assert any(name.startswith("lib64/ld-") for name in found)
    assert not any((tmp_path / "root" / name).is_symlink() for name in found)


@needs_compiler
def test_a_library_that_no_package_has_is_named(tree: Path, tmp_path: Path) -> None:
    (tree / LIBRARY_FOLDER / "libanswer.so.1").unlink()
    with pytest.raises(LabError, match=r"/usr/bin/tool: needs libanswer\.so\.1"):
        collect(tree, ["/usr/bin/tool"], tmp_path / "root")


def test_a_file_that_no_package_has_is_named(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(LabError, match="/usr/bin/gone: in none of the packages"):
        collect(tmp_path / "tree", ["/usr/bin/gone"], tmp_path / "root")


def test_no_network_is_said_by_apts_own_words(
    home: Path, programs: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("apt-cache", "dpkg", "readelf"):
        programs(name, "#!/bin/sh\nexit 0\n")
    programs("apt-get", "#!/bin/sh\necho 'E: Could not resolve the mirror' >&2\nexit 100\n")
    keyring = home / "keyring.gpg"
    keyring.parent.mkdir(parents=True)
    keyring.touch()
    monkeypatch.setattr(programs_packages, "KEYRING", keyring)
    monkeypatch.setattr(programs_packages, "find_mirror", lambda folder: "http://gone/debian")

    with pytest.raises(LabError, match="Could not resolve the mirror"):
        fetch_programs(["tool"], ["/usr/bin/tool"])
    assert not list((home / "programs").iterdir())


def test_what_the_cache_has_is_not_fetched_again(
    home: Path, programs: Callable[[str, str], Path]
) -> None:
    programs("apt-get", "#!/bin/sh\nexit 100\n")
    folder = home / "programs" / folder_name(["tool"], ["/usr/bin/tool"])
    (folder / "root").mkdir(parents=True)
    (folder / "versions.json").write_text('{"tool": "2"}')

    assert fetch_programs(["tool"], ["/usr/bin/tool"]).versions == {"tool": "2"}
