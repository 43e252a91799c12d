from __future__ import annotations

import json

import pytest

from memcg_gym.agents.registry import policy_names
from memcg_gym.configs.loader import names
from memcg_gym.envs.contract.heads import HEADS
from memcg_gym.training import cli
from memcg_gym.training.list import KINDS


def test_list_shows_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    wanted = [*names("scenarios"), *names("objectives"), *names("training"), *policy_names()]
    wanted += [head.name for head in HEADS]
    lines = out.splitlines()
    for name in wanted:
        assert any(line.startswith(f"  {name} ") for line in lines), name
    assert all(len(line) <= 100 for line in lines)


def test_list_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert tuple(content) == KINDS
    assert [s["name"] for s in content["scenarios"]] == names("scenarios")
    throttle = content["heads"][0]
    assert throttle["levels"] == [None, 0.0, 10.0, 100.0, 2000.0]


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_alone(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", kind, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [kind]


def test_an_unknown_kind_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["list", "nosuch"])
    assert caught.value.code == 2
    assert "nosuch" in capsys.readouterr().err
