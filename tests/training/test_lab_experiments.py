"""The experiments of both worlds: the model's side, the tables, and one short run on the kernel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from memcg_gym.configs.schema import ScenarioConfig
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.training.lab_experiments import (
    EXPERIMENTS,
    Column,
    Experiment,
    choose,
    error_of,
    in_model,
    median_of,
    on_kernel,
    section,
    summarise,
)
from memcg_gym.training.lab_runs import HostFacts

FALLING, INVERSION, TIERED = EXPERIMENTS
FACTS = HostFacts(131_072.0, 0.0, 6_000.0)


def shortened(experiment: Experiment, *phases: tuple[str, int]) -> Experiment:
    return replace(experiment, phases=phases, tail=2)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.title)
def test_an_experiment_is_a_scenario_of_one_cpu(experiment: Experiment) -> None:
    scenario = ScenarioConfig.model_validate(dict(experiment.scenario))
    assert scenario.host.cpus == 1
    assert sum(seconds for _, seconds in experiment.phases) <= 60


def test_a_lower_limit_costs_refaults_and_stalls_in_the_model() -> None:
    short = shortened(FALLING, ("300 MiB", 3), ("160 MiB", 6))
    rows = in_model(short, 0, FACTS)
    high, low = (summarise(short, rows)[phase] for phase in ("300 MiB", "160 MiB"))
    refaults = [column.key for column in FALLING.columns].index("refaults")
    usage = [column.key for column in FALLING.columns].index("usage_mib")
    assert high[refaults] == 0.0
    assert low[refaults] > 100.0
    assert low[usage] < 200.0 < high[usage]


def test_the_limit_stalls_who_holds_the_lock_and_the_trimmer_does_not_in_the_model() -> None:
    rows = in_model(shortened(INVERSION, ("memory.high", 12), ("trimmer", 12)), 0, FACTS)
    lost = {phase: np.mean([row["inversion"] for row in rows[phase][2:]]) for phase in rows}
    assert lost["memory.high"] > 10.0 > 5.0 > lost["trimmer"]


def test_reclaim_demotes_in_the_model() -> None:
    facts = HostFacts(98_304.0, 98_304.0, 5_000.0)
    rows = in_model(shortened(TIERED, ("first 10 s", 2), ("100 MiB reclaimed", 3)), 0, facts)
    demoted = sum(row["demoted"] for row in rows["100 MiB reclaimed"])
    assert demoted > 5_000.0
    assert rows["first 10 s"][-1]["slow_mib"] < rows["100 MiB reclaimed"][-1]["slow_mib"]


@pytest.mark.parametrize(
    ("column", "kernel", "model", "text"),
    [
        (Column("touches", "touches"), 200.0, 250.0, "+25 %"),
        (Column("touches", "touches"), 0.0, 0.0, "-"),
        (Column("touches", "touches"), 0.0, 30.0, "+30"),
        (Column("stall", "memory_some", digits=1, relative=False), 10.0, 7.5, "-2.5"),
    ],
)
def test_an_error_is_a_share_where_the_kernel_has_a_value(
    column: Column, kernel: float, model: float, text: str
) -> None:
    assert error_of(column, kernel, model) == text


def test_values_are_medians_over_seeds() -> None:
    tables = [{"phase": [1.0, 9.0]}, {"phase": [5.0, 3.0]}, {"phase": [2.0, 4.0]}]
    assert median_of(tables) == {"phase": [2.0, 4.0]}


def test_each_world_has_its_own_table() -> None:
    short = shortened(FALLING, ("300 MiB", 3))
    values = {"300 MiB": [float(k) for k in range(len(FALLING.columns))]}
    text = section(short, values, values)
    assert text.index("### The kernel") < text.index("### The model\n")
    assert text.count("| 300 MiB |") == 3
    assert "touches/s" in text


@pytest.mark.parametrize(("only", "seeds"), [([4], 1), ([0], 1), (None, 0)])
def test_what_is_no_experiment_is_an_error(only: list[int] | None, seeds: int) -> None:
    with pytest.raises(ConfigError, match=r"--only|--seeds"):
        choose(only, seeds)


def test_all_experiments_are_chosen_by_default() -> None:
    assert choose(None, 1) == list(EXPERIMENTS)
    assert choose([2], 1) == [INVERSION]


@pytest.mark.lab
def test_a_lower_limit_costs_refaults_and_stalls_on_the_kernel(guest_image: GuestImage) -> None:
    # what is over the limit goes to a device of 31 MiB/s, and the one thread waits for it
    short = shortened(FALLING, ("300 MiB", 2), ("200 MiB", 7))
    rows, facts = on_kernel(short, guest_image, 0)
    last = rows["200 MiB"][-1]
    assert facts.fast_pages > facts.reserved_pages > 0.0
    assert rows["300 MiB"][-1]["refaults"] == 0.0
    assert last["refaults"] > 200.0
    assert last["memory_some"] > 1.0
    assert last["touches"] > 0.0
