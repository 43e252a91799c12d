from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.schema import contract_hash
from memcg_gym.training.compare import DEFAULT, compare
from memcg_gym.training.files import safe_name, write_whole
from memcg_gym.training.plots import write_plots
from memcg_gym.training.results import (
    Evaluation,
    short_names,
    to_csv,
    to_dict,
    to_markdown,
    write_results,
)
from tests.training.synthetic import make_cell

COMMAND = ["memcg-gym", "evaluate", "--policies", "tmo,a table.mrt"]
BASE = np.linspace(-3.0, -1.0, 8)


@pytest.fixture(autouse=True)
def a_table(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file for the table's digest; what is in it matters to nobody here."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "a table.mrt").write_bytes(b"MRT1")
    monkeypatch.chdir(folder)


def evaluation(gain: float = 0.5, upper: str | None = None) -> Evaluation:
    wobble = 0.01 * np.cos(np.arange(8))
    row = {
        DEFAULT: make_cell(DEFAULT, BASE.tolist()),
        "tmo": make_cell("tmo", (BASE + gain + wobble).tolist()),
        "a table.mrt": make_cell("tmo", (BASE + 1.5 * gain - wobble).tolist()),
    }
    if upper:
        row[upper] = make_cell(upper, (BASE[:2] + 4 * gain).tolist(), seeds=[0, 1])
    scenarios, aggregate = compare({"burst": row}, upper)
    return Evaluation(COMMAND, {"burst": row}, upper, scenarios, aggregate)


def test_results_are_written_whole(tmp_path: Path) -> None:
    write_results(tmp_path, evaluation())
    write_plots(tmp_path, evaluation())
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "results.json", "results.md", "per_seed.csv", "scores.png", "differences.png"
    }  # fmt: skip
    for name in ("scores.png", "differences.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_json_says_how_the_numbers_were_made() -> None:
    content = to_dict(evaluation(upper="clairvoyant"))
    made = content["provenance"]
    assert made["command"] == "memcg-gym evaluate --policies 'tmo,a table.mrt'"
    assert made["contract"] == contract_hash()
    assert made["seeds"] == list(range(8)) and made["split"] == "test"
    assert made["upper"] == {"policy": "clairvoyant", "seeds": [0, 1], "own_settle_ticks": 10}
    assert made["objective"]["name"] == "default"
    assert made["scenarios"]["burst"]["name"] == "burst"
    assert {"memcg-gym", "python", "numpy"} <= set(made["versions"])
    assert content["world"] == "model"


def test_json_has_no_number_that_json_does_not_know() -> None:
    content = to_dict(evaluation(gain=-0.5))
    assert content["aggregate"] is None
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text) == content


def test_json_gives_every_host_s_scores() -> None:
    policies = to_dict(evaluation())["scenarios"]["burst"]["policies"]
    assert policies[DEFAULT]["score"] == BASE.tolist()
    assert policies[DEFAULT]["normalised"] == [0.0] * 8
    assert np.mean(policies["a table.mrt"]["normalised"]) == pytest.approx(1.0)


def test_csv_has_a_line_a_policy_and_seed() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(evaluation()))))
    assert len(rows) == 3 * 8
    first = rows[0]
    assert (first["scenario"], first["policy"], first["seed"]) == ("burst", DEFAULT, "0")
    assert float(first["score"]) == -3.0 and float(first["normalised"]) == 0.0
    assert "oom_kills [1/h]" in first and "term_slo" in first and "shield_dwell [1/h]" in first


def test_markdown_names_what_is_left_out_and_why() -> None:
    text = to_markdown(evaluation(gain=-0.5))
    assert "Left out: **burst** (gap 0.0000" in text
    assert "no aggregate" in text
    assert "The gap is too small: raw scores below." in text


def test_markdown_gives_command_claims_and_the_upper_line_s_hosts() -> None:
    text = to_markdown(evaluation(upper="clairvoyant"))
    assert "Made by `memcg-gym evaluate --policies 'tmo,a table.mrt'`" in text
    assert "clairvoyant ran on 2 of the hosts" in text
    assert "**better**" in text
    assert "best baseline: tmo" in text


def test_every_table_of_the_markdown_is_rectangular() -> None:
    widths = []
    for block in to_markdown(evaluation(upper="clairvoyant")).split("\n\n"):
        lines = [line for line in block.split("\n") if line.startswith("|")]
        counts = {line.count("|") for line in lines}
        assert len(counts) <= 1, block
        widths += list(counts)
    assert len(widths) == 3


def test_paths_are_shortened_only_where_that_is_unambiguous() -> None:
    assert short_names(["tmo", "runs/a", "old/b"]) == {"tmo": "tmo", "runs/a": "a", "old/b": "b"}
    assert short_names(["runs/a", "old/a"]) == {"runs/a": "runs/a", "old/a": "old/a"}


def test_names_of_files_stay_apart() -> None:
    assert safe_name("host-aware") == "host-aware"
    assert safe_name("runs/a") != safe_name("runs_a") != safe_name("runs:a")
    assert "/" not in safe_name("../x")


def test_a_file_that_cannot_be_written_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_whole(tmp_path / "file" / "below", b"")


def test_nothing_is_left_beside_a_written_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "deep" / "a", b"1")
    write_whole(tmp_path / "deep" / "a", b"2")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a"]
    assert (tmp_path / "deep" / "a").read_bytes() == b"2"
