from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from memcg_gym.agents.learned import Start, load_policy
from memcg_gym.agents.rules import Change, Rules
from memcg_gym.configs.loader import load_training, names
from memcg_gym.configs.widen import widened
from memcg_gym.enforcer.table import read_table
from memcg_gym.envs.contract.errors import CheckpointError, ContractMismatch
from memcg_gym.envs.contract.heads import Head
from memcg_gym.envs.contract.schema import contract_hash
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv
from memcg_gym.training import cli
from memcg_gym.training import train as train_verb
from memcg_gym.training.checkpoint import newest_checkpoint
from memcg_gym.training.run_folder import RunConfig, open_run, read_progress, trim_progress
from memcg_gym.training.train import make_validation
from memcg_gym.training.validation import Validation
from tests.envs.small import SMALL_TOML, objective, small_scenario

PRESET = """
name = "tiny"
scenario = "{scenario}"
total_rows = 400
train_episode_ticks = 12
settle_ticks = 4
validate_every_rows = 150
validate_hosts = 2
validate_ticks = 6
checkpoint_every_rows = 150

[ppo]
hosts = 2
n_steps = 16
batch_size = 32
n_epochs = 2
hidden = [8]
critic_hidden = [8]
"""


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    scenario = tmp_path / "small.toml"
    scenario.write_text(SMALL_TOML)
    path = tmp_path / "tiny.toml"
    path.write_text(PRESET.format(scenario=scenario))
    return path


def train(*argv: object) -> int:
    return cli.main(["train", *(str(a) for a in argv)])


def weights(run: Path) -> dict[str, bytes]:
    tensors = load_file(newest_checkpoint(run) / "weights.safetensors")
    return {name: array.tobytes() for name, array in tensors.items()}


def test_a_run_leaves_what_the_page_says(preset: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    assert train("--config", preset, "--seed", 4, "--out", run, "--json") == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["rows"] >= 400 and not outcome["interrupted"]
    assert {p.name for p in run.iterdir()} == {
        "best",
        "checkpoints",
        "command.txt",
        "config.json",
        "contract.json",
        "progress.jsonl",
        "tensorboard",
        "versions.json",
    }
    assert open_run(run).seed == 4
    assert open_run(run).scenario == small_scenario()
    assert load_policy(run).description["validation_score"] == outcome["best_score"]
    assert any((run / "tensorboard").iterdir())
    curve = read_progress(run / "progress.jsonl")
    scores = [entry["validate/score"] for entry in curve if "validate/score" in entry]
    assert max(scores) == pytest.approx(outcome["best_score"])
    for key in ("reward/slo", "shield/dwell", "time/env_share", "train/value_loss"):
        assert any(key in entry for entry in curve), key


def test_a_resumed_run_ends_with_the_same_bits(preset: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train("--config", preset, "--out", whole) == 0
    assert train("--config", preset, "--out", parts, "--stop-at", 100) == 0
    assert weights(parts) != weights(whole)
    assert train("--resume", parts, "--stop-at", 250) == 0
    assert train("--resume", parts, "--env-threads", 2) == 0
    assert newest_checkpoint(parts).name == newest_checkpoint(whole).name
    assert weights(parts) == weights(whole)
    rows = [entry["rows"] for entry in read_progress(parts / "progress.jsonl")]
    assert rows == sorted(rows)


def test_resuming_a_finished_run_changes_nothing(preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train("--config", preset, "--out", run) == 0
    before = weights(run)
    assert train("--resume", run) == 0
    assert weights(run) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(
    number: signal.Signals,
    preset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    step, done = CgroupVecEnv.step_wait, threading.Event()

    def interrupt_once(env: CgroupVecEnv) -> object:
        if not done.is_set():
            done.set()
            os.kill(os.getpid(), number)
        return step(env)

    handler = signal.getsignal(number)
    monkeypatch.setattr(CgroupVecEnv, "step_wait", interrupt_once)
    assert train("--config", preset, "--out", run) == 130
    assert signal.getsignal(number) is handler
    assert f"memcg-gym train --resume {run}" in capsys.readouterr().out
    assert train("--resume", run) == 0
    whole = tmp_path / "whole"
    assert train("--config", preset, "--out", whole) == 0
    assert weights(run) == weights(whole)


def test_settings_and_options_end_up_in_the_run(preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--set", "ppo.gamma=0.9", "--set", "total_rows=50", "--host-kind", "bpf")
    assert train("--config", preset, *options, "--out", run) == 0
    training = open_run(run).training
    assert (training.ppo.gamma, training.total_rows, training.host_kind) == (0.9, 50, "bpf")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nosuch"], "no training preset 'nosuch'"),
        (["demo", "--config", "x.toml"], "both a preset"),
        (["demo", "--set", "ppo.gama=1"], "did you mean 'gamma'"),
        (["demo", "--set", "ppo.gamma=7"], "ppo.gamma"),
        (["demo", "--scenario", "nosuch"], "no scenario 'nosuch'"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--env-threads", "0"], "--env-threads"),
        (["demo", "--resume", "x"], "PRESET would change it"),
        (["--resume", "x", "--seed", "1"], "--seed would change it"),
        (["--resume", "nosuch"], "not a run folder"),
    ],
)
def test_wrong_usage_is_named(argv: list[str], said: str, capsys) -> None:  # type: ignore[no-untyped-def]
    assert train(*argv) == 2
    assert said in capsys.readouterr().err


def test_a_run_folder_is_not_overwritten(preset: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert train("--config", preset, "--out", run) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_run_of_another_contract_is_refused(preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train("--config", preset, "--out", run, "--set", "total_rows=20") == 0
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(contract_hash(), "f" * 64))
    contract = json.loads((run / "contract.json").read_text())
    contract["heads"][0]["name"] = "squeeze"
    (run / "contract.json").write_text(json.dumps(contract))
    with pytest.raises(ContractMismatch, match=r"heads\[0\].*'squeeze' there"):
        open_run(run)


@pytest.mark.parametrize("missing", ["training", "scenario", "objective", "seed", "contract"])
def test_an_incomplete_run_is_refused(missing: str, preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train("--config", preset, "--out", run, "--set", "total_rows=20") == 0
    config = json.loads((run / "config.json").read_text())
    del config[missing]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=missing):
        open_run(run)


def test_progress_beyond_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"rows": 10}\n{"rows": 20}\n{"rows": 30}\n{"rows": 4')
    trim_progress(path, 20)
    assert read_progress(path) == [{"rows": 10}, {"rows": 20}]


@pytest.mark.parametrize("name", names("training"))
def test_shipped_presets_are_valid(name: str) -> None:
    training = load_training(name)
    assert training.name == name
    rollout = training.ppo.hosts * training.ppo.n_steps
    assert training.total_rows > rollout


def validation(seed_ticks: int = 6) -> Validation:
    return Validation(
        small_scenario(),
        objective(),
        host_kind="stock",
        hosts=2,
        settle_ticks=4,
        ticks=seed_ticks,
    )


def test_validation_starts_over_every_time() -> None:
    fixed = validation()
    first = fixed.owner_scores()
    assert np.array_equal(fixed.owner_scores(), first)
    assert np.array_equal(validation().owner_scores(), first)
    assert first.shape == (2,) and (first < 0.0).all()


def test_validation_hosts_are_no_training_hosts(preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train("--config", preset, "--out", run, "--set", "total_rows=20") == 0
    config = open_run(run)
    scored = set(make_validation(config).batch.hosts["seed"].tolist())
    env = CgroupVecEnv(config.scenario, config.objective, hosts=2, seed=config.seed)
    env.reset()
    assert scored.isdisjoint(env._the_pool.seeds.tolist())


GROWN = ("--set", "grow_cgroup_steps=30000", "--set", "ppo.start_preference=3.0")


def test_a_run_can_start_from_grown_rules(preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train("--config", preset, *GROWN, "--set", "total_rows=1", "--out", run) == 0

    grown = json.loads((run / "grown.json").read_text())
    assert read_table(run / "grown.mrt").n_rules <= len(grown["levels"])
    start = load_policy(newest_checkpoint(run)).start
    assert start is not None and start.preference == 3.0
    assert start.rules.to_json() == {key: grown[key] for key in ("splits", "levels")}

    table = tmp_path / "policy.mrt"
    few = "--rounds 1 --hosts 2 --settle-ticks 4 --ticks 6 --validate-hosts 2 --validate-ticks 6"
    assert cli.main(["export", str(run), "--out", str(table), *few.split()]) == 0
    report = json.loads(Path(f"{table}.export.json").read_text())
    assert set(report["others"]) == {"owner", "grown"}


def test_a_run_from_grown_rules_resumes_to_the_same_bits(preset: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train("--config", preset, *GROWN, "--out", whole) == 0
    assert train("--config", preset, *GROWN, "--out", parts, "--stop-at", 100) == 0
    assert train("--resume", parts) == 0
    assert weights(parts) == weights(whole)
    assert load_policy(newest_checkpoint(parts)).start is not None


def test_a_run_holds_actions_and_counts_every_tick(preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    held = ("--set", "ppo.hold_ticks=4", "--set", "ppo.n_steps=8")
    assert train("--config", preset, *held, "--out", run) == 0
    rows = [entry["rows"] for entry in read_progress(run / "progress.jsonl")]
    assert rows[-1] >= 400
    assert np.diff(rows).max() > 8 * 6  # more than a row for each decision


def test_training_hosts_can_be_drawn_from_wider_ranges(preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("--set", "widen_ratio=0.5", "--set", "total_rows=1")
    assert train("--config", preset, *settings, "--out", run) == 0
    assert open_run(run).scenario == widened(small_scenario(), 0.5)
    # Resuming does not widen them again.
    assert train("--resume", run) == 0
    assert open_run(run).scenario == widened(small_scenario(), 0.5)


def test_no_policy_below_the_owner_s_configuration_becomes_the_best(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def reclaiming(config: RunConfig, folder: Path) -> Start:
        return Start(Rules().changed(Change(0, -1, 0, False, ((Head.RECLAIM, 4),))), 12.0)

    def unbeatable(self: Validation) -> np.ndarray:
        return np.zeros(2)

    monkeypatch.setattr(train_verb, "grow_start", reclaiming)
    monkeypatch.setattr(Validation, "owner_scores", unbeatable)
    assert train("--config", preset, "--set", "total_rows=1", "--out", run) == 0

    assert load_policy(newest_checkpoint(run)).start is not None
    best = load_policy(run)
    assert best.start is None and best.description["validation_score"] == 0.0
    batch = HostBatch(small_scenario(), objective(), n_hosts=2)
    batch.reset(0)
    assert not best.decide(batch.features, batch.active).any()
