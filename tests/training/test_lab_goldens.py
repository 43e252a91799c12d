"""The page and the output of ``lab goldens``; the checks themselves are tested in envs/lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memcg_gym.envs.lab.goldens.golden import Golden, at_least, exactly
from memcg_gym.training import lab_goldens
from memcg_gym.training.cli import main

GOOD = Golden("batches", "mm/x.c f", exactly(64), 64, "pages")
CHANGED = Golden("stalls", "mm/y.c g", exactly(0), 0, "us", "a note", "one each")
BAD = Golden("errno", "mm/z.c h", at_least(1), 0)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Golden]]:
    """A suite that boots nothing and finds what the test puts in."""
    found: dict[str, list[Golden]] = {"One": [GOOD, CHANGED]}
    image = type("Image", (), {"version": "7.0"})()
    monkeypatch.setattr(lab_goldens, "chosen_kernel", lambda args: None)
    monkeypatch.setattr(lab_goldens, "build", lambda kernel: image)
    monkeypatch.setattr(lab_goldens, "run_suite", lambda image, wanted, tell: found)
    monkeypatch.setattr(lab_goldens, "qemu_version", lambda: "7.2")
    return found


def test_all_values_as_expected_is_success(
    checked: dict[str, list[Golden]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "goldens"]) == 0
    assert "ok: batches: expected 64, got 64 pages" in capsys.readouterr().out


def test_one_other_value_is_failure(checked: dict[str, list[Golden]]) -> None:
    checked["Two"] = [BAD]
    assert main(["lab", "goldens"]) == 1


def test_the_page_has_every_value_and_names_what_changed(
    checked: dict[str, list[Golden]], tmp_path: Path
) -> None:
    checked["Two"] = [BAD]
    out = tmp_path / "page.md"
    main(["lab", "goldens", "--out", str(out)])
    text = out.read_text(encoding="utf-8")
    assert "3 values, 1 of them not as expected" in text
    assert "| batches | 64 | 64 pages | ok | mm/x.c f |  |" in text
    assert "| errno | at least 1 | 0 | **differs** | mm/z.c h |  |" in text
    assert "| stalls | 0 us | one each |" in text


def test_json_is_for_programs(
    checked: dict[str, list[Golden]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["lab", "goldens", "--json"])
    rows = json.loads(capsys.readouterr().out)["One"]
    assert [row["name"] for row in rows] == ["batches", "stalls"]
    assert rows[1]["before"] == "one each"
