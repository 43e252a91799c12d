from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch as th

from memcg_gym.agents.learned import CONTRACT, POLICY, WEIGHTS, load_policy, sorted_checkpoints
from memcg_gym.configs.schema import PpoConfig
from memcg_gym.envs.contract.errors import CheckpointError, ContractMismatch
from memcg_gym.envs.contract.schema import canonical
from memcg_gym.training.checkpoint import (
    ENV,
    KEEP,
    OPTIMIZER,
    STATE,
    Progress,
    describe_policy,
    load_checkpoint,
    newest_checkpoint,
    replacing,
    save_checkpoint,
    to_learned,
)
from memcg_gym.training.ppo import CgroupPPO, make_ppo
from tests.envs.small import small_env
from tests.training.test_ppo import SMALL, Nothing, quiet


def trained(config: PpoConfig = SMALL, rows: int = 200) -> CgroupPPO:
    model = quiet(make_ppo(small_env(hosts=config.hosts), config, seed=3))
    model.learn(rows, callback=Nothing())
    return model


def save(model: CgroupPPO, run: Path, progress: Progress | None = None) -> Path:
    description = describe_policy(model.policy, "test", {})
    return save_checkpoint(run, model, model.env, progress or Progress(), description)  # type: ignore[arg-type]


def load(folder: Path, config: PpoConfig = SMALL) -> tuple[CgroupPPO, Progress]:
    model = quiet(make_ppo(small_env(hosts=config.hosts, seed=99), config, seed=99))
    return model, load_checkpoint(folder, model, model.env)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[CgroupPPO, Path]:
    run = tmp_path_factory.mktemp("run")
    model = trained()
    return model, save(model, run, Progress(3, 10, 20, -0.25, 7))


@pytest.fixture
def copy(made: tuple[CgroupPPO, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "checkpoint"))


def test_everything_comes_back(made: tuple[CgroupPPO, Path]) -> None:
    model, folder = made
    again, progress = load(folder)
    assert progress == Progress(3, 10, 20, -0.25, 7)
    assert again.num_timesteps == model.num_timesteps
    assert again._n_updates == model._n_updates
    for (name, ours), theirs in zip(
        model.policy.state_dict().items(), again.policy.state_dict().values(), strict=True
    ):
        assert th.equal(ours, theirs), name
    ours_state = model.policy.optimizer.state_dict()
    theirs_state = again.policy.optimizer.state_dict()
    assert ours_state["param_groups"][0]["lr"] == theirs_state["param_groups"][0]["lr"]
    for at, entry in ours_state["state"].items():
        for name, value in entry.items():
            assert th.equal(th.as_tensor(value), theirs_state["state"][at][name])
    assert th.equal(model.generator.get_state(), again.generator.get_state())
    assert np.array_equal(model._last_obs, again._last_obs)  # type: ignore[arg-type]
    assert np.array_equal(model._last_episode_starts, again._last_episode_starts)  # type: ignore[arg-type]


def test_the_checkpoint_is_a_policy_too(made: tuple[CgroupPPO, Path]) -> None:
    model, folder = made
    features = np.random.default_rng(0).integers(0, 1 << 16, (2, 3, 64)).astype(np.int32)
    active = np.ones((2, 3), dtype=np.bool_)
    expected = to_learned(model.policy).decide(features, active)
    assert np.array_equal(load_policy(folder).decide(features, active), expected)


def test_nothing_in_it_can_run_code(made: tuple[CgroupPPO, Path]) -> None:
    _, folder = made
    assert {p.name for p in folder.iterdir()} == {WEIGHTS, POLICY, OPTIMIZER, STATE, ENV}
    with np.load(folder / ENV, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind != "O" for name in arrays.files)


def test_old_checkpoints_go(tmp_path: Path) -> None:
    model = trained()
    for rows in (5, 40, 300, 2000):
        model.num_timesteps = rows
        save(model, tmp_path)
    names = [p.name for p in sorted_checkpoints(tmp_path)]
    assert names == ["rows-000000000300", "rows-000000002000"]
    assert len(names) == KEEP
    assert newest_checkpoint(tmp_path).name == "rows-000000002000"


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model = trained()
    save(model, tmp_path)
    before = newest_checkpoint(tmp_path)
    model.num_timesteps += 1

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(model, tmp_path)
    assert newest_checkpoint(tmp_path) == before


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"


def test_another_contract_is_refused_naming_the_first_difference(copy: Path) -> None:
    other = json.loads(json.dumps(canonical()))
    other["features"][3]["high"] = 1
    (copy / CONTRACT).write_text(json.dumps(other))
    description = json.loads((copy / POLICY).read_text())
    (copy / POLICY).write_text(json.dumps(description | {"contract": "0" * 64}))
    with pytest.raises(ContractMismatch, match=r"features\[3\] \(growth_slow\)\.high: 1 there"):
        load(copy)
    with pytest.raises(ContractMismatch, match=r"features\[3\]"):
        load_policy(copy)


@pytest.mark.parametrize("name", [WEIGHTS, POLICY, OPTIMIZER, STATE, ENV])
@pytest.mark.parametrize("harm", ["missing", "garbage", "cut"])
def test_a_damaged_checkpoint_is_refused(copy: Path, name: str, harm: str) -> None:
    path = copy / name
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"garbage" if harm == "garbage" else content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        load(copy)


def test_a_checkpoint_of_other_networks_is_refused(copy: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        load(copy, SMALL.model_copy(update={"hidden": (8,)}))


def test_a_checkpoint_of_another_batch_is_refused(copy: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        load(copy, SMALL.model_copy(update={"hosts": 3}))


def test_a_run_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        newest_checkpoint(tmp_path)
