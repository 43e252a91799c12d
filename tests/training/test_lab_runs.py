from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.configs.loader import FAMILIES, load_lab_split, load_params, load_scenario, names
from memcg_gym.configs.schema import Spread
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import HostSig
from memcg_gym.envs.core import HostBatch, host_seed
from memcg_gym.envs.lab.stats import quantile_us
from memcg_gym.envs.recording import Recording, read_recording, write_recording
from memcg_gym.training.fidelity import compare_runs, series_of
from memcg_gym.training.lab_runs import (
    PAGES_PER_GIB,
    HostFacts,
    ModelLatency,
    RunSpec,
    narrowed,
    replay,
    run_in_model,
    scenario_text,
    spec_of,
)

SHORT = RunSpec(scenario="heap-zipf", policy="senpai", seed=3, ticks=25, world="model")


@pytest.fixture(scope="module")
def recording() -> Recording:
    return run_in_model(SHORT)


def test_a_run_is_repeated_to_the_bit(recording: Recording) -> None:
    again = run_in_model(SHORT)
    assert np.array_equal(again.memcg_signals, recording.memcg_signals)
    assert np.array_equal(again.knobs, recording.knobs)
    assert np.array_equal(again.latency_counts, recording.latency_counts)


def test_a_recording_knows_the_run_it_is_of(recording: Recording) -> None:
    text = scenario_text(SHORT.scaled_scenario())
    assert spec_of(recording) == replace(SHORT, scenario=text)


def test_a_recording_comes_back_from_its_file(recording: Recording, tmp_path: Path) -> None:
    write_recording(tmp_path / "run.npz", recording)
    again = read_recording(tmp_path / "run.npz")
    assert spec_of(again) == spec_of(recording)
    (errors,) = compare_runs(series_of(again, 5), series_of(recording, 5))
    assert (errors.refaults, errors.p99) == (0.0, 1.0)
    assert errors.throughput < 1e-6  # fractions of requests are kept as float32


def test_a_replay_under_the_recorded_writes_is_the_run(recording: Recording) -> None:
    again = replay(recording)
    # the latest tick's writes are all that a replay cannot know better than the recording
    assert np.array_equal(again.knobs, recording.knobs)
    assert np.allclose(again.memcg_signals, recording.memcg_signals, equal_nan=True)


def test_a_replay_of_other_writes_is_another_run(recording: Recording) -> None:
    knobs = recording.knobs.copy()
    knobs[..., Knob.RECLAIM_BYTES] = 4 << 20
    trimmed = replay(replace(recording, knobs=knobs))
    usage = [r.memcg("usage_bytes")[-1, 0] for r in (trimmed, recording)]
    assert usage[0] < 0.9 * usage[1]


@pytest.mark.parametrize("family", names(FAMILIES))
def test_every_family_survives_its_own_text(family: str) -> None:
    scenario = load_scenario(family)
    spec = RunSpec(scenario=scenario_text(scenario), policy="kernel-default")
    assert spec.scaled_scenario() == scenario
    assert tomllib.loads(spec.scenario)["name"] == family


def test_the_split_names_the_families_that_ship() -> None:
    split = load_lab_split()
    assert sorted(split.families) == names(FAMILIES)
    assert len(split.policies) >= 8
    for policy in split.policies:
        assert RunSpec(scenario="heap-zipf", policy=policy).make_policy().name == policy


def test_text_that_is_no_scenario_is_refused_as_the_recordings() -> None:
    with pytest.raises(ConfigError, match="recording's scenario"):
        RunSpec(scenario="name = \n", policy="kernel-default").scaled_scenario()


def test_host_facts_are_what_a_model_host_was_built_of(recording: Recording) -> None:
    scenario = SHORT.scaled_scenario()
    facts = HostFacts.of(recording)
    dram = scenario.host.dram_gib.train[0] * PAGES_PER_GIB
    assert facts.fast_pages == pytest.approx(dram, abs=1)
    assert facts.slow_pages == 0
    assert facts.reserved_pages == pytest.approx(scenario.host.reserved_ratio * dram, abs=2)


def test_a_host_of_a_guests_memory_draws_everything_else_as_before() -> None:
    facts = HostFacts(fast_pages=100_000, slow_pages=0, reserved_pages=9_000)
    scenario = load_scenario("burst")  # its DRAM is drawn, so a draw must not be left out
    other = facts.applied(scenario)
    hosts = []
    for one in (scenario, other):
        batch = HostBatch(one, SHORT.scaled_objective(), n_hosts=1)
        batch.reset_host(0, host_seed(1, 0))
        hosts.append(batch)
    plain, given = hosts
    assert given.hosts[0].total_pages == 100_000
    assert given.hosts[0].reserved_pages == pytest.approx(9_000)
    for name in ("owner_max", "requests_per_s", "burst_every_s", "trace_offset"):
        assert np.array_equal(given.memcgs[name], plain.memcgs[name])
    assert np.array_equal(given.regions["pages"], plain.regions["pages"])


def test_a_narrowed_spread_takes_a_draw_only_where_there_was_one() -> None:
    wide = narrowed(Spread(train=(1, 2), test=(3, 3)), 1.5)
    assert wide.train[0] < wide.train[1]
    assert wide.test == (1.5, 1.5)


def test_memory_that_does_not_add_up_is_refused(recording: Recording) -> None:
    host = recording.host_signals.copy()
    host[:, HostSig.FREE_BYTES] = 0.0
    with pytest.raises(ConfigError, match="neither free nor used"):
        HostFacts.of(replace(recording, host_signals=host))


def test_model_latencies_keep_their_number_and_their_tail() -> None:
    batch = HostBatch(SHORT.scaled_scenario(), SHORT.scaled_objective(), n_hosts=1)
    batch.reset_host(0, host_seed(1, 0))
    batch.settle(3)
    latency = ModelLatency(batch)
    assert latency.matrix.sum(axis=1) == pytest.approx(1.0)
    counts = batch.memcgs["latency"][0] @ latency.matrix
    assert counts.sum() == pytest.approx(batch.memcgs["latency"].sum())
    p99_us = quantile_us(counts[0], 0.99)
    assert p99_us == pytest.approx(float(batch.memcgs[0, 0].p99_us), rel=0.1)


def test_parameters_change_the_model_they_are_given_to(recording: Recording) -> None:
    params = dict(load_params()) | {"minor_fault_us": 500.0}
    slow = run_in_model(SHORT, params=params)
    assert not np.array_equal(slow.latency_counts, recording.latency_counts)
    assert slow.provenance.machine != recording.provenance.machine
    with pytest.raises(ConfigError, match=r"minor_fault_usd.*did you mean"):
        run_in_model(SHORT, params=params | {"minor_fault_usd": 1.0})
