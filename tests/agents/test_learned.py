from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch as th
from safetensors.numpy import load_file, save_file

from memcg_gym.agents.inputs import scale_inputs
from memcg_gym.agents.learned import POLICY, WEIGHTS, LearnedPolicy, load_policy
from memcg_gym.agents.policy import Policy
from memcg_gym.agents.rollout import rollout
from memcg_gym.envs.contract.errors import CheckpointError, ContractMismatch
from memcg_gym.envs.contract.features import FEATURES, MISSING_FIXED, N_FEATURES, F
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS, Head
from memcg_gym.envs.core import HostBatch
from memcg_gym.training.checkpoint import describe_policy, save_policy, to_learned
from memcg_gym.training.policies import LevelsPolicy
from tests.envs.small import objective, small_scenario
from tests.training.test_ppo import SUPPORTED, policy

ACTIVE = np.ones((4, 8), dtype=np.bool_)


def vectors(seed: int = 0) -> np.ndarray:
    low = np.array([f.low_fixed for f in FEATURES])
    high = np.array([f.high_fixed for f in FEATURES])
    rng = np.random.default_rng(seed)
    return rng.integers(low, high + 1, (4, 8, N_FEATURES)).astype(np.int32)


@pytest.fixture
def network() -> LevelsPolicy:
    return policy()


@pytest.fixture
def folder(network: LevelsPolicy, tmp_path: Path) -> Path:
    save_policy(tmp_path / "run" / "best", network, describe_policy(network, "mine", {"seed": 3}))
    return tmp_path / "run"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "best" / POLICY
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_decides_as_the_trained_network_does(network: LevelsPolicy) -> None:
    features = vectors()
    observation = th.from_numpy(features.reshape(-1, N_FEATURES) / np.float32(1 << 16)).float()
    with th.no_grad():
        expected = network.best(network.scale(observation)).numpy()
    decided = to_learned(network).decide(features, ACTIVE)
    assert np.array_equal(decided.reshape(-1, N_HEADS), expected)
    assert len(np.unique(decided)) > 2


def test_a_saved_policy_decides_the_same(network: LevelsPolicy, folder: Path) -> None:
    loaded = load_policy(folder)
    assert isinstance(loaded, Policy)
    assert loaded.name == "mine" and loaded.shielded and loaded.speaks == "levels"
    assert np.array_equal(
        loaded.decide(vectors(), ACTIVE), to_learned(network).decide(vectors(), ACTIVE)
    )


def test_heads_it_was_not_trained_for_stay_at_level_0(network: LevelsPolicy) -> None:
    decided = to_learned(network).decide(vectors(), ACTIVE)
    unsupported = np.array(SUPPORTED) == 0
    assert not decided[..., unsupported].any()
    assert (decided < np.array(LEVEL_COUNTS)).all()


def test_heads_the_scenario_lacks_stay_at_level_0(network: LevelsPolicy) -> None:
    learned = to_learned(network)
    supported = np.array(SUPPORTED)
    assert learned.decide(vectors(), ACTIVE)[..., Head.RECLAIM].any()
    supported[Head.RECLAIM] = 0
    learned.reset((4, 8), supported, seed=0)
    assert not learned.decide(vectors(), ACTIVE)[..., Head.RECLAIM].any()


def test_empty_slots_get_level_0(network: LevelsPolicy) -> None:
    active = ACTIVE.copy()
    active[1, 2] = False
    assert not to_learned(network).decide(vectors(), active)[1, 2].any()


def test_missing_readings_give_a_decision_and_no_nan(network: LevelsPolicy) -> None:
    features = np.full((4, 8, N_FEATURES), MISSING_FIXED, dtype=np.int32)
    learned = to_learned(network)
    assert np.isfinite(learned.logits(features)).all()
    assert (learned.decide(features, ACTIVE) < np.array(LEVEL_COUNTS)).all()


def test_runs_in_the_model() -> None:
    batch = HostBatch(small_scenario(), objective(), n_hosts=2)
    batch.reset(1)
    assert np.isfinite(rollout(batch, to_learned(policy()), 5).score).all()


@pytest.mark.parametrize("feature", list(F), ids=lambda f: f.name.lower())
def test_inputs_keep_order_and_stay_near_1(feature: F) -> None:
    spec = FEATURES[feature]
    raw = np.zeros((101, N_FEATURES), dtype=np.float32)
    raw[:, feature] = np.linspace(spec.low, spec.high, 101)
    scaled = scale_inputs(raw)[:, feature]
    assert (np.diff(scaled) > 0).all()
    assert np.abs(scaled).max() <= 4.0
    assert scale_inputs(np.zeros(N_FEATURES, np.float32))[feature] == 0.0


def test_small_pressure_is_visible() -> None:
    raw = np.zeros(N_FEATURES, dtype=np.float32)
    raw[F.PSI_MEM_SOME] = 0.002
    assert scale_inputs(raw)[F.PSI_MEM_SOME] > 0.05


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"format": "zip"}, CheckpointError, "format 'zip'"),
        ({"version": 9}, CheckpointError, "version 9"),
        ({"contract": "0" * 64}, ContractMismatch, "contract 0000"),
        ({"hidden": [16, 16]}, CheckpointError, "must have shape"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(
    folder: Path, changes: dict[str, object], error: type[Exception], said: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(error, match=said):
        load_policy(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    path = folder / "best" / WEIGHTS
    tensors = load_file(path)
    del tensors["actor.2.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"actor\.2\.bias"):
        load_policy(folder)


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no trained policy here"):
        load_policy(tmp_path)


def test_deploying_needs_no_torch() -> None:
    import subprocess
    import sys

    script = "import sys, memcg_gym.agents.learned\nsys.exit('torch' in sys.modules)\n"
    root = Path(__file__).parents[2] / "src"
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == 0


def test_the_interface_takes_a_view() -> None:
    learned: LearnedPolicy = to_learned(policy())
    batch = HostBatch(small_scenario(), objective(), n_hosts=1)
    batch.reset(1)
    from memcg_gym.agents.rollout import view_of

    assert np.array_equal(learned.act(view_of(batch)), learned.decide(batch.features, batch.active))
