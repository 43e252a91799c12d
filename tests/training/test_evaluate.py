from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.agents.registry import make_policy
from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.enforcer.table import table_from_tree, write_table
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.core import HostBatch, host_seed
from memcg_gym.envs.reward import SCORE_TERMS
from memcg_gym.training import cli, evaluate
from memcg_gym.training.cells import (
    CHUNK_TICKS,
    CellSpec,
    identity,
    load_cell,
    run_cell,
    save_cell,
    stands_behind,
)
from memcg_gym.training.evaluate import cell_path, plan, seeds, split_specs

SPEC = CellSpec(
    "constant:reclaim=1", "burst", "default", (3, 5), "test", "stock", 4, 4, 6, "default"
)
SMALL = ["--scenarios", "burst", "--seeds", "0:2", "--settle", "4", "--ticks", "3"]


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args(list(argv))


@pytest.fixture
def count_cells(monkeypatch: pytest.MonkeyPatch) -> list[CellSpec]:
    """Specs of the cells that were really run."""
    ran: list[CellSpec] = []

    def counted(spec: CellSpec, report: Callable[[int], None]) -> object:
        ran.append(spec)
        return run_cell(spec, report)

    monkeypatch.setattr(evaluate, "run_cell", counted)
    return ran


def test_seeds_are_ranges_or_lists() -> None:
    assert seeds("0:3") == (0, 1, 2)
    assert seeds("7") == (7,)
    assert seeds("9,0:2") == (9, 0, 1)


@pytest.mark.parametrize("text", ["", "3:3", "a", "1,1", "-1", "0:2,1", "1:2:3"])
def test_seeds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="seeds are like"):
        seeds(text)


def test_commas_of_settings_do_not_split_policies() -> None:
    assert split_specs("tmo:a=1,b=2,senpai,constant:shed=1+oomd,runs/x") == [
        "tmo:a=1,b=2", "senpai", "constant:shed=1+oomd", "runs/x"
    ]  # fmt: skip


def test_a_plan_has_kernel_default_once_and_the_upper_line_last(tmp_path: Path) -> None:
    args = arguments(
        "--policies", "tmo,kernel-default,clairvoyant", "--scenarios", "burst,host-mix",
        "--seeds", "0:4", "--upper", "clairvoyant", "--upper-seeds", "1:3",
        "--upper-settle", "60", "--out", str(tmp_path),
    )  # fmt: skip
    specs = plan(args)
    assert [(s.scenario, s.policy) for s in specs] == [
        (scenario, policy)
        for scenario in ("burst", "host-mix")
        for policy in ("kernel-default", "tmo", "clairvoyant")
    ]
    assert {s.seeds for s in specs if s.policy != "clairvoyant"} == {(0, 1, 2, 3)}
    upper = specs[2]
    assert (upper.seeds, upper.settle_ticks, upper.own_ticks) == ((1, 2), 1800, 60)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--upper", "clairvoyant", "--upper-seeds", "1:9"], "must be among --seeds"),
        (["--upper", "kernel-default"], "cannot be score 1"),
        (["--scenarios", "brust"], "did you mean 'burst'"),
    ],
)
def test_a_plan_that_cannot_be_paired_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(arguments("--policies", "tmo", "--out", "x", "--seeds", "0:4", *argv))


def test_a_cell_s_score_is_the_mean_of_the_score_terms() -> None:
    cell = run_cell(SPEC)
    policy = make_policy(SPEC.policy)
    batch = HostBatch(load_scenario("burst"), load_objective(), n_hosts=1)
    batch.reset_host(0, host_seed(5, 0), "test")
    policy.reset((1, batch.n_cgroups), batch.supported, 0)
    total = 0.0
    for tick in range(SPEC.total_ticks):
        levels = np.zeros((1, batch.n_cgroups, 7), dtype=np.int64)
        levels[..., 1] = 1
        batch.step_levels(levels)
        if tick >= SPEC.settle_ticks:
            total += batch.terms[..., SCORE_TERMS].sum()
    assert cell.score[1] == pytest.approx(total / SPEC.ticks / batch.n_cgroups, rel=1e-12)
    assert cell.score == pytest.approx(cell.terms[:, SCORE_TERMS].sum(axis=1))
    assert cell.cgroup_steps == 2 * 4 * 10


def test_every_host_is_the_same_alone_or_among_others() -> None:
    together = run_cell(SPEC)
    alone = run_cell(replace(SPEC, seeds=(5,)))
    assert together.score[1] == alone.score[0]
    assert np.array_equal(together.metrics[1], alone.metrics[0])


def test_pieces_of_a_rollout_add_up() -> None:
    ticks: list[int] = []
    long = replace(SPEC, policy="tmo", settle_ticks=CHUNK_TICKS + 7, own_ticks=CHUNK_TICKS + 3)
    run_cell(long, ticks.append)
    assert sum(ticks) == long.total_ticks
    assert max(ticks) == CHUNK_TICKS


def test_settling_before_own_control_is_the_owner_s() -> None:
    """A policy that is in charge of no settling tick starts where kernel-default would."""
    owner = run_cell(replace(SPEC, policy="kernel-default"))
    late = run_cell(replace(SPEC, policy="constant", own_ticks=0))
    assert late.score == pytest.approx(owner.score)


@pytest.mark.parametrize(
    ("policy", "mode", "expected"),
    [
        ("constant", "default", True),
        ("constant", "off", False),
        ("tmo", "default", False),
        ("tmo", "on", False),
    ],
)
def test_the_shield_stands_behind_levels_only(policy: str, mode: str, expected: bool) -> None:
    assert stands_behind(make_policy(policy), mode) is expected  # type: ignore[arg-type]


def test_without_the_shield_nothing_intervenes() -> None:
    wild = replace(SPEC, policy="random", settle_ticks=0, own_ticks=0, ticks=20)
    assert run_cell(wild).interventions.sum() > 0
    assert run_cell(replace(wild, shield="off")).interventions.sum() == 0


def test_a_kept_cell_comes_back_the_same(tmp_path: Path) -> None:
    cell = run_cell(SPEC)
    path = tmp_path / "cell.npz"
    save_cell(path, cell, identity(SPEC))
    back = load_cell(path, SPEC, identity(SPEC))
    assert back is not None
    for name in ("score", "terms", "metrics", "interventions"):
        assert np.array_equal(getattr(back, name), getattr(cell, name))
    assert (back.speaks, back.shielded, back.cgroup_steps) == ("levels", True, 80)


@pytest.mark.parametrize(
    "change", [{"ticks": 7}, {"seeds": (3, 6)}, {"shield": "off"}, {"host_kind": "bpf"}]
)
def test_a_cell_made_from_other_things_does_not_hold(tmp_path: Path, change: dict) -> None:  # type: ignore[type-arg]
    path = tmp_path / "cell.npz"
    save_cell(path, run_cell(SPEC), identity(SPEC))
    other = replace(SPEC, **change)
    assert load_cell(path, other, identity(other)) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_cell_does_not_hold(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "cell.npz"
    save_cell(path, run_cell(SPEC), identity(SPEC))
    data = path.read_bytes()
    path.write_bytes({"cut": data[:200], "empty": b"", "text": b"not a cell"}[damage])
    assert load_cell(path, SPEC, identity(SPEC)) is None


def test_another_table_under_the_same_name_is_another_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.mrt"
    spec = replace(SPEC, policy=str(path))
    write_table(path, table_from_tree([-1], [-1], [0], [0], [[0, 1, 0, 0, 0, 0, 0]]))
    before = identity(spec)
    write_table(path, table_from_tree([-1], [-1], [0], [0], [[0, 2, 0, 0, 0, 0, 0]]))
    assert identity(spec) != before


def test_evaluate_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count_cells: list[CellSpec]
) -> None:
    out = tmp_path / "results"
    argv = ["evaluate", "--policies", "constant:reclaim=2,tmo", *SMALL, "--out", str(out)]
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    assert "kernel-default" in shown and "constant:reclaim=2" in shown
    assert len(count_cells) == 3
    content = json.loads((out / "results.json").read_text())
    assert list(content["scenarios"]["burst"]["policies"]) == [
        "kernel-default", "constant:reclaim=2", "tmo"
    ]  # fmt: skip
    assert (out / "results.md").is_file() and (out / "per_seed.csv").is_file()


def test_what_is_finished_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count_cells: list[CellSpec]
) -> None:
    argv = ["evaluate", "--policies", "tmo", *SMALL, "--out", str(tmp_path), "--json"]
    assert cli.main(argv) == 0
    first = json.loads(capsys.readouterr().out)
    assert cli.main(argv) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert len(count_cells) == 2
    spec = plan(arguments(*argv[1:]))[1]
    cell_path(tmp_path, spec).unlink()
    assert cli.main(argv) == 0
    assert [s.policy for s in count_cells[2:]] == ["tmo"]
    assert cli.main([*argv, "--force"]) == 0
    assert len(count_cells) == 5
    capsys.readouterr()


def test_processes_give_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        argv = ["evaluate", "--policies", "random", *SMALL, "--jobs", jobs, "--out", str(out)]
        assert cli.main(argv) == 0
        capsys.readouterr()
        results.append(json.loads((out / "results.json").read_text())["scenarios"])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--policies", "senpia"], "did you mean 'senpai'"),
        (["--policies", "nosuch.mrt"], "nosuch.mrt"),
        (["--policies", "tmo", "--objective", "defalt"], "did you mean 'default'"),
    ],
)
def test_wrong_names_end_before_anything_runs(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *SMALL, *argv, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_worker_s_error_is_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of kept cells cannot be made, which only the worker finds out."""
    (tmp_path / "cells").write_text("in the way")
    argv = ["evaluate", "--policies", "tmo", *SMALL, "--jobs", "2", "--out", str(tmp_path)]
    assert cli.main(argv) == 2
    assert "cannot be written" in capsys.readouterr().err
