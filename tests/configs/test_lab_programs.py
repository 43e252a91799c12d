from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

import pytest

from memcg_gym.configs.lab_programs import (
    PROGRAMS,
    ProgramConfig,
    ProgramText,
    load_program,
    program_names,
)
from memcg_gym.configs.loader import validate
from memcg_gym.envs.contract.errors import ConfigError


def description() -> dict[str, Any]:
    """The compressor's, as plain data."""
    path = resources.files("memcg_gym.configs").joinpath(PROGRAMS, "compress.toml")
    return tomllib.loads(path.read_text())


@pytest.mark.parametrize("name", program_names())
def test_a_program_that_ships_is_described_under_its_own_name(name: str) -> None:
    assert load_program(name).name == name


def test_there_are_a_server_a_database_and_a_compressor() -> None:
    assert {"redis", "sqlite", "compress"} <= set(program_names())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": ["/usr/bin/dd"]}, "/usr/bin/zstd is run and not among them"),
        ({"heads": ["throttel"]}, "throttle"),
        ({"packages": []}, "packages"),
        ({"name": "Two Words"}, "name"),
        ({"measure": {"command": "zstd", "operations": 1, "unit": "MB"}}, "absolute path"),
        ({"measure": {"command": "/a  b", "operations": 1, "unit": "MB"}}, "single blanks"),
        ({"measure": {"command": "/a\tb", "operations": 1, "unit": "MB"}}, "printable"),
        ({"measure": {"command": "/a" + " b" * 60, "operations": 1, "unit": "M"}}, "at most"),
        ({"measure": {"command": "/a", "operations": 0, "unit": "MB"}}, "operations"),
        ({"sevrice": {}}, "did you mean"),
    ],
)
def test_what_a_guest_could_not_run_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(ProgramConfig, description() | change, "mine.toml")


def test_a_repeated_block_follows_the_text() -> None:
    assert ProgramText(path="/lab/a", text="head\n", block="x\n", times=3).content == (
        "head\nx\nx\nx\n"
    )


def test_an_unknown_program_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"no program 'sqlit'.*sqlite"):
        load_program("sqlit")


def test_a_description_by_path_that_is_not_toml_says_where(tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = ")
    with pytest.raises(ConfigError, match=r"mine\.toml: not valid TOML"):
        load_program(str(path))
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read"):
        load_program(str(tmp_path / "gone.toml"))
