from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from memcg_gym.agents.combine import Combined
from memcg_gym.agents.policy import Policy
from memcg_gym.agents.registry import POLICIES, make_policy, policy_names, policy_summary
from memcg_gym.agents.table import TablePolicy
from memcg_gym.enforcer.table import write_table
from memcg_gym.envs.contract.errors import ConfigError, MemcgGymError, TableError
from tests.enforcer.sample_tables import small_table


@pytest.mark.parametrize("name", policy_names())
def test_every_registered_name_makes_a_policy_of_that_name(name: str) -> None:
    policy = make_policy(name)
    assert isinstance(policy, Policy)
    assert policy.name == name
    assert policy.speaks in ("levels", "knobs")
    assert policy.shielded == (policy.speaks == "levels")
    assert policy_summary(name)


@pytest.mark.parametrize("name", policy_names())
def test_configurations_are_frozen(name: str) -> None:
    entry = POLICIES[name]
    config = getattr(importlib.import_module(f"memcg_gym.agents.{entry.module}"), entry.config)()
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, 1)


def test_settings_reach_the_policy_with_their_types() -> None:
    policy = make_policy("senpai:max_probe=0.02,interval_s=3")
    config = policy.config  # type: ignore[attr-defined]
    assert (config.max_probe, config.interval_s) == (0.02, 3)
    assert policy.name == "senpai:max_probe=0.02,interval_s=3"


def test_a_name_presets_settings_and_the_spec_overrides_context() -> None:
    assert make_policy("oomd-system").config.preset == "system"  # type: ignore[attr-defined]
    bpf = make_policy("agentcgroup", host_kind="bpf")
    assert bpf.config.host_kind == "bpf"  # type: ignore[attr-defined]
    stock = make_policy("agentcgroup:host_kind=stock", host_kind="bpf")
    assert stock.config.host_kind == "stock"  # type: ignore[attr-defined]
    assert make_policy("senpai", host_kind="bpf").name == "senpai"  # has no use for it


def test_a_plus_combines_and_a_number_with_a_plus_does_not() -> None:
    combined = make_policy("senpai:max_probe=0.02+oomd+tpp")
    assert isinstance(combined, Combined)
    assert [part.name for part in combined.parts] == ["senpai:max_probe=0.02", "oomd", "tpp"]
    alone = make_policy("senpai:pressure_us=1e+5")
    assert alone.config.pressure_us == 1e5  # type: ignore[attr-defined]


def test_a_table_file_makes_a_table_policy(tmp_path: Path) -> None:
    write_table(tmp_path / "small.mrt", small_table())
    policy = make_policy(str(tmp_path / "small.mrt"))
    assert isinstance(policy, TablePolicy)
    assert policy.name == "small.mrt"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("senpi", "did you mean 'senpai'"),
        ("", "no policy ''"),
        ("senpai:max_prob=1", "did you mean 'max_probe'"),
        ("senpai:max_probe", "expected setting=value"),
        ("senpai:max_probe=much", "expected float, got 'much'"),
        ("senpai:max_probe=nan", "must be finite"),
        ("senpai:interval_s=1.5", "expected int, got '1.5'"),
        ("constant:reclaim=9", "reclaim must be a level from 0 to 4"),
        ("senpai+nobody", "no policy 'nobody'"),
        ("senpai+random", "cannot be combined"),
    ],
)
def test_a_bad_spec_is_refused_with_what_would_do(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_policy(spec)


def test_a_missing_table_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="E_READ"):
        make_policy(str(tmp_path / "no.mrt"))
    with pytest.raises(MemcgGymError, match=tmp_path.name):
        make_policy(str(tmp_path))


def test_listing_policies_imports_neither_torch_nor_numba() -> None:
    code = (
        "import sys; from memcg_gym.agents.registry import policy_names; policy_names(); "
        "print([m for m in ('torch', 'numba', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert done.stdout.strip() == "[]"
