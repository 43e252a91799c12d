from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.agents.policy import Policy
from memcg_gym.agents.table import TablePolicy
from memcg_gym.enforcer.render import read_support
from memcg_gym.enforcer.table import read_table
from memcg_gym.envs.contract.schema import contract_hash
from memcg_gym.training import cli
from memcg_gym.training import distil as distil_module
from memcg_gym.training import export as export_verb
from memcg_gym.training.distil import DistilConfig, World

SMALL = [
    "--scenario", "burst", "--leaves", "8", "--rounds", "1", "--hosts", "2", "--settle-ticks", "10",
    "--ticks", "15", "--validate-hosts", "2", "--validate-ticks", "8",
]  # fmt: skip


def test_export_writes_a_table_that_loads_with_its_support(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy.mrt"
    assert cli.main(["export", "host-aware", *SMALL, "--out", str(out), "--version", "4"]) == 0
    table = read_table(out)
    assert 1 <= table.n_rules <= 8 and not table.signed and table.version == 4
    assert any(table.policy_id)
    assert sum(read_support(out, table)) > 0
    report = json.loads((tmp_path / "policy.mrt.export.json").read_text())
    assert report["table"]["bytes"] == out.stat().st_size
    assert report["table"]["rules"] == table.n_rules
    assert report["policy_id"] == table.policy_id.hex()
    assert report["contract"] == contract_hash()
    assert 0.0 <= report["agreement"] <= 1.0
    lost = report["policy_score"] - report["table_score"]
    assert report["score_lost"]["estimate"] == pytest.approx(lost)
    assert report["score_lost"]["low"] is None  # two hosts give no interval
    shown = capsys.readouterr().out
    assert f"policy.mrt: {table.n_rules} rules" in shown and "lost" in shown


def test_export_polishes_and_speaks_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy.mrt"
    argv = ["export", "constant:reclaim=4", *SMALL, "--out", str(out), "--json", "--polish"]
    assert cli.main([*argv, "--polish-budget", "20000"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["polish"]["trials"] > 0
    assert report["polish"]["cgroup_steps"] <= 20000
    assert read_table(out).n_rules == report["table"]["rules"]


def test_the_same_policy_has_the_same_name_and_another_one_another(tmp_path: Path) -> None:
    ids = []
    for policy in ("constant:reclaim=1", "constant:reclaim=1", "constant:reclaim=2"):
        out = tmp_path / "policy.mrt"
        assert cli.main(["export", policy, *SMALL, "--out", str(out)]) == 0
        ids.append(read_table(out).policy_id)
    assert ids[0] == ids[1] != ids[2]


def test_a_table_that_loses_too_much_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy.mrt"
    argv = ["export", "host-aware", *SMALL, "--out", str(out), "--max-loss", "-100"]
    assert cli.main(argv) == 1
    assert "not written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_owner_s_configuration_is_written_where_no_table_beats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(policy: Policy, world: World, config: DistilConfig, purpose: int) -> np.ndarray:
        owner = isinstance(policy, TablePolicy) and not policy.table.levels.any()
        return np.full(config.validate_hosts, 0.0 if owner else -1.0)

    for module in (export_verb, distil_module):
        monkeypatch.setattr(module, "score_hosts", scored)
    out = tmp_path / "policy.mrt"
    assert cli.main(["export", "host-aware", *SMALL, "--out", str(out)]) == 0

    table = read_table(out)
    assert table.n_rules == 1 and not table.levels.any() and any(table.policy_id)
    report = json.loads((tmp_path / "policy.mrt.export.json").read_text())
    assert report["instead"] == "owner" and report["others"] == {"owner": 0.0}
    assert "the owner's configuration" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["host-aware"], "--scenario is needed"),
        (["tmo", *SMALL], "sets knobs"),
        (["nosuch", *SMALL], "no policy 'nosuch'"),
        (["host-aware", *SMALL, "--leaves", "1"], "at least 2 leaves"),
        (["host-aware", *SMALL, "--weights", "gap"], "has no logits"),
    ],
)
def test_what_cannot_be_exported_is_wrong_usage(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", *argv, "--out", str(tmp_path / "policy.mrt")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
