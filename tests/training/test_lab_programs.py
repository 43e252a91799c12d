"""Programs under policies: what is told of a run, and that a guest repeats it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.envs.contract.signals import N_MEMCG_SIGNALS, Sig
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.programs_figures import Figures
from memcg_gym.envs.lab.programs_image import ProgramImage
from memcg_gym.envs.lab.protocol import GuestError
from memcg_gym.training import cli, lab_programs
from memcg_gym.training.lab_programs import (
    MIB,
    NO_LIMIT,
    Outcome,
    ProgramRun,
    cells,
    kept,
    measure,
    outcome_of,
    table,
)
from tests.lab_program import tiny_image, tiny_program

SECOND_US = 1e6


def spec(policy: str = "tmo", *, limit_mib: int = 16, ticks: int = 4, **changes) -> ProgramRun:
    return ProgramRun(
        program=tiny_program(**changes),
        policy=policy,
        limit_bytes=limit_mib * MIB,
        seed=3,
        settle=1,
        ticks=ticks,
    )


# --- what is told


def signals(ticks: int) -> np.ndarray:
    """Memory grows by a MiB a tick, 20 pages refault, a tenth of the time stalls."""
    rows = np.zeros((ticks + 1, N_MEMCG_SIGNALS))
    at = np.arange(ticks + 1)
    rows[:, Sig.USAGE_BYTES] = (10 + at) * MIB
    rows[:, Sig.REFAULT_ANON] = 15 * at
    rows[:, Sig.REFAULT_FILE] = 5 * at
    rows[:, Sig.PSI_MEM_SOME_US] = 0.1 * SECOND_US * at
    return rows


def test_means_are_of_the_ticks_that_count() -> None:
    outcome = outcome_of(spec(ticks=4), "tmo", signals(5), Figures(3, 12.5, math.nan), "")
    assert outcome.usage_mib == np.mean([12, 13, 14, 15])
    assert outcome.peak_mib == 15
    assert outcome.refaults_per_s == pytest.approx(20)
    assert outcome.psi_some == pytest.approx(0.1)
    assert (outcome.operations_per_s, outcome.p99_ms) == (12.5, None)
    assert (outcome.limit_mib, outcome.oom_kills) == (16, 0)


def test_a_program_that_was_killed_early_is_told_with_its_last_tick() -> None:
    rows = signals(1)
    rows[-1, Sig.EVENTS_OOM_KILL] = 1
    outcome = outcome_of(spec(), "tmo", rows, Figures(0, math.nan, math.nan), "was killed")
    assert (outcome.usage_mib, outcome.oom_kills) == (11, 1)
    assert cells(outcome)[4:6] == ["-", "-"]
    assert cells(outcome)[-1] == "1 (was killed)"


def made_up(**changes) -> Outcome:
    values = {
        "program": "tiny",
        "policy": NO_LIMIT,
        "seed": 3,
        "limit_mib": 0.0,
        "unit": "MB",
        "rounds": 2,
        "operations_per_s": 10.0,
        "p99_ms": None,
        "usage_mib": 20.0,
        "peak_mib": 40.0,
        "refaults_per_s": 0.0,
        "psi_some": 0.0,
        "oom_kills": 0,
    }
    return Outcome(**values | changes)


def test_every_row_of_the_table_has_a_cell_for_every_column() -> None:
    lines = table([made_up(), made_up(policy="tmo", limit_mib=28.0, p99_ms=0.25)])
    assert len({line.count("|") for line in lines}) == 1
    assert "| tiny | tmo | 28.0 | 20.0 | 10.00 MB/s | 0.25 |" in lines[-1]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[ProgramRun]:
    """Runs that would have booted a guest; each has had 40 MiB."""
    runs: list[ProgramRun] = []

    def fake(run: ProgramRun, image: ProgramImage, policy: str) -> Outcome:
        runs.append(run)
        return made_up(policy=policy, limit_mib=run.limit_bytes / MIB)

    monkeypatch.setattr(lab_programs, "measure", fake)
    monkeypatch.setattr(lab_programs, "qemu_version", lambda: "7.2")
    return runs


IMAGE = ProgramImage(GuestImage(Path("vmlinuz"), Path("initrd"), "7.0", "d1"), 5 * MIB)


def test_a_kept_run_is_not_made_again(measured: list[ProgramRun], tmp_path: Path) -> None:
    first = kept(spec(), IMAGE, tmp_path, "tmo")
    assert kept(spec(), IMAGE, tmp_path, "tmo") == first
    assert len(measured) == 1

    kept(spec(limit_mib=20), IMAGE, tmp_path, "tmo")  # another run of the same name
    assert len(measured) == 2
    (path,) = (tmp_path / "tiny").iterdir()
    path.write_text("{")
    kept(spec(limit_mib=20), IMAGE, tmp_path, "tmo")
    assert len(measured) == 3


def test_the_limit_is_a_share_of_what_the_program_had_without_one(
    measured: list[ProgramRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lab_programs, "image_of", lambda program: IMAGE)
    monkeypatch.setattr(lab_programs, "guest_image", lambda: IMAGE.image)
    page = tmp_path / "page.md"
    words = "lab programs --programs compress --policies senpai,constant:reclaim=2 --json"
    status = cli.main([*words.split(), "--limit-ratio", "0.5", "--page", str(page)])

    assert status == 0
    assert [(run.policy, run.limit_bytes / MIB) for run in measured] == [
        ("kernel-default", 0.0),
        ("senpai", 20.0),
        ("constant:reclaim=2", 20.0),
    ]
    printed = json.loads(capsys.readouterr().out)
    assert [outcome["policy"] for outcome in printed] == [
        *(NO_LIMIT, "senpai", "constant:reclaim=2")
    ]
    assert "--policies senpai,constant:reclaim=2 --limit-ratio 0.5" in page.read_text()
    assert "| compress |" not in page.read_text()  # rows tell what the runs said
    assert page.read_text().count("| tiny |") == 3


@pytest.mark.parametrize(
    "words", ["--programs nosuch", "--policies nosuch", "--programs /gone/mine.toml"]
)
def test_what_nobody_knows_is_refused_before_anything_is_fetched(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_programs, "image_of", lambda program: pytest.fail("fetched"))
    assert cli.main(["lab", "programs", *words.split()]) != 0


@pytest.mark.parametrize("ratio", ["0", "3", "much"])
def test_a_limit_that_is_none_is_refused(ratio: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["lab", "programs", "--limit-ratio", ratio])


# --- in a guest


@pytest.fixture(scope="module")
def image(guest_image: GuestImage) -> ProgramImage:
    return tiny_image(guest_image)


@pytest.mark.lab
def test_a_limited_program_refaults_and_a_second_run_says_the_same(image: ProgramImage) -> None:
    first, second = (measure(spec("senpai"), image) for _ in range(2))

    assert (first.rounds, first.oom_kills) == (second.rounds, second.oom_kills)
    for name in ("operations_per_s", "usage_mib", "peak_mib", "refaults_per_s", "psi_some"):
        # not to the byte: now and then a program that computes is some 80 instructions late
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=0.01), name
    assert first.rounds >= 1
    assert first.operations_per_s is not None
    assert first.usage_mib <= 16
    assert first.refaults_per_s > 100  # a file of 20 MiB passes through 16


@pytest.mark.lab
def test_a_program_that_fails_ends_the_run_with_its_own_words(image: ProgramImage) -> None:
    command = {"command": "/usr/bin/zstd -q /data/missing", "operations": 1, "unit": "MB"}
    with pytest.raises(GuestError, match=r"tiny: the measure ended with status 1[^$]*missing"):
        measure(spec(measure=command, load=[]), image)
