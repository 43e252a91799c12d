from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from memcg_gym.configs.loader import load_lab_split, load_params
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.recording import Recording, write_recording
from memcg_gym.training.cli import main
from memcg_gym.training.lab_record import Work, holds, make, missing, record, recording_path
from memcg_gym.training.lab_runs import RunSpec, run_in_model
from memcg_gym.training.lab_set import fitting, read_set

FAMILIES = ("heap-phase", "heap-zipf")
POLICIES = ("kernel-default", "constant:reclaim=2", "constant:reclaim=3")
TICKS = 45
TRUE = dict(load_params()) | {"zswap_store_us": 60.0}


def as_if_of_a_kernel(recording: Recording) -> Recording:
    """A recording of the model that says it is of a kernel: what to fit and compare with."""
    about = replace(
        recording.provenance, world="kernel", kernel="0.0-model", machine="QEMU 0, 1 CPU, -"
    )
    return replace(recording, provenance=about)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of recordings: two families, three policies, two hosts."""
    folder = tmp_path_factory.mktemp("recordings")
    for family in FAMILIES:
        for policy in POLICIES:
            for seed in (1, 2):
                spec = RunSpec(scenario=family, policy=policy, seed=seed, ticks=TICKS)
                path = recording_path(folder, spec)
                path.parent.mkdir(exist_ok=True)
                write_recording(path, as_if_of_a_kernel(run_in_model(spec, params=TRUE)))
    return folder


def test_run_shows_every_cgroup_and_keeps_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "run.npz"
    words = f"lab run --world model --scenario burst-small --ticks 12 --settle 3 --out {out}"
    assert main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "bursty (model)" in shown
    assert "neighbour (model)" in shown
    assert "15 s in" in shown
    assert out.is_file()


def test_run_makes_a_scenario_of_a_real_host_small(capsys: pytest.CaptureFixture[str]) -> None:
    words = "lab run --world model --scenario burst --ticks 5 --settle 0 --json"
    assert main(words.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["cgroups"]) == 4
    assert all(c["usage_mib"] < 300 for c in found["cgroups"].values())


def test_run_takes_a_host_like_a_recordings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like = recording_path(folder, RunSpec(scenario="heap-zipf", policy="kernel-default", seed=1))
    words = f"lab run --world model --ticks 5 --settle 0 --seed 1 --json --like {like}"
    assert main(words.split()) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 1
    assert main(f"lab run --world kernel --like {like}".split()) == 2
    assert "--world model" in capsys.readouterr().err


def test_record_makes_what_is_missing_and_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "lab record --world model --families heap-zipf --policies kernel-default,tmo "
        f"--seeds 1 --ticks 8 --out {tmp_path}"
    )
    assert main(words.split()) == 0
    assert "2 of 2 recordings" in capsys.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert len(files) == 2
    assert main(words.split()) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == files


def test_a_recording_that_is_broken_or_of_other_settings_is_made_anew(tmp_path: Path) -> None:
    spec = RunSpec(scenario="heap-zipf", policy="kernel-default", ticks=6, world="model")
    work = Work(spec, recording_path(tmp_path, spec))
    assert missing([spec], tmp_path) == [work]
    make(work, lambda ticks: None)
    assert missing([spec], tmp_path) == []
    assert not holds(work.path, replace(spec, ticks=7))
    assert not holds(work.path, replace(spec, policy="tmo"))
    work.path.write_bytes(work.path.read_bytes()[:-10])
    assert missing([spec], tmp_path) == [work]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_is_named_and_the_rest_goes_on(jobs: int, tmp_path: Path) -> None:
    good = RunSpec(scenario="heap-zipf", policy="kernel-default", ticks=4, world="model")
    bad = replace(good, policy="no-such-policy")
    work = [Work(spec, recording_path(tmp_path, spec)) for spec in (bad, good)]
    (failure,) = record(work, jobs, keep_going=True)
    assert "heap-zipf: no-such-policy: seed 0" in failure
    assert missing([good], tmp_path) == []


def test_a_set_is_read_whole_and_told_apart(folder: Path) -> None:
    recorded = read_set(folder)
    assert len(recorded) == 12
    assert {one.family for one in recorded} == set(FAMILIES)
    split = load_lab_split()
    chosen = fitting(recorded, split)
    assert {(one.policy, one.seed) for one in chosen} == {
        ("kernel-default", 1),
        ("constant:reclaim=3", 1),
    }
    assert {one.family for one in fitting(recorded, split, "heap-zipf")} == {"heap-phase"}
    with pytest.raises(ConfigError, match="leave out"):
        fitting(recorded, split, "loop")


def test_a_set_without_recordings_or_with_one_twice_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="lab record"):
        read_set(tmp_path)
    spec = RunSpec(scenario="heap-zipf", policy="kernel-default", seed=1)
    content = recording_path(folder, spec).read_bytes()
    (tmp_path / "a.npz").write_bytes(content)
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="same run"):
        read_set(tmp_path)


def test_calibrate_keeps_a_set_the_model_takes_with_where_it_is_from(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fitted.toml"
    words = f"lab calibrate --recordings {folder} --rounds 3 --out {out}"
    assert main(words.split()) == 0
    assert "before" in capsys.readouterr().out
    params = load_params(str(out))
    assert params["zswap_store_us"] > 1.5 * load_params()["zswap_store_us"]
    text = out.read_text()
    for part in ("0.0-model", "heap-phase, heap-zipf", "least_squares", "SHA-256", "Loss"):
        assert part in text
    words = f"lab run --world model --ticks 3 --settle 0 --json --params {out}"
    assert main(words.split()) == 0


def test_validate_writes_the_page_its_pictures_and_the_preset(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, preset = tmp_path / "validation.md", tmp_path / "params.toml"
    words = f"lab validate --recordings {folder} --rounds 2 --out {out} --preset {preset}"
    assert main(words.split()) == 0
    assert "12 recordings of 2 families" in capsys.readouterr().out
    text = out.read_text()
    for family in FAMILIES:
        assert f"| {family} |" in text
        assert (tmp_path / "validation" / f"{family}.png").stat().st_size > 5000
    assert "Kendall" in text
    assert "refaults/s, kernel | refaults/s, model" in text
    assert load_params(str(preset))
    fits = tmp_path / "cache" / "memcg-gym" / "lab" / "fits"
    kept = {p: p.stat().st_mtime_ns for p in fits.iterdir()}
    assert len(kept) == 3
    assert main(words.split()) == 0
    assert {p: p.stat().st_mtime_ns for p in fits.iterdir()} == kept
    assert out.read_text() == text


def test_validate_needs_two_families(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = RunSpec(scenario="heap-zipf", policy="kernel-default", ticks=4)
    write_recording(tmp_path / "a.npz", as_if_of_a_kernel(run_in_model(spec)))
    assert main(f"lab validate --recordings {tmp_path} --out {tmp_path}/v.md".split()) == 2
    assert "two at least" in capsys.readouterr().err
