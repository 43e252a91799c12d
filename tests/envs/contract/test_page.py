from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memcg_gym.envs.contract.features import FEATURES
from memcg_gym.envs.contract.heads import HEADS
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.page import COMMAND, render_page
from memcg_gym.envs.contract.schema import contract_hash
from memcg_gym.envs.contract.shield_rules import Shielded
from memcg_gym.envs.contract.signals import HOST_SIGNALS, MEMCG_SIGNALS

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "contract.md"


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text() == render_page(), f"the contract changed; run: {COMMAND}"


def test_the_command_on_the_page_makes_the_page() -> None:
    found = subprocess.run(
        [sys.executable, *COMMAND.split(" > ")[0].split()[1:]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert COMMAND in found.stdout
    assert found.stdout == render_page()


@pytest.mark.parametrize(
    "name",
    [f.name for f in FEATURES]
    + [h.name for h in HEADS]
    + [s.name for s in (*MEMCG_SIGNALS, *HOST_SIGNALS)]
    + [k.name.lower() for k in Knob]
    + [r.name for r in Shielded if r.name],
)
def test_everything_in_the_contract_is_on_the_page(name: str) -> None:
    assert f"| `{name}` |" in render_page()


def test_the_page_names_the_hash() -> None:
    assert contract_hash() in render_page()


def test_every_table_is_rectangular() -> None:
    columns = 0
    for line in render_page().splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = line.replace("\\|", "").count("|") - 1
        columns = columns or cells
        assert cells == columns, line
