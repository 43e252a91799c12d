"""The same host in both worlds, once for real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.recording import Recording, read_recording, write_recording
from memcg_gym.training import kernel_cells
from memcg_gym.training.fidelity import compare_runs, series_of
from memcg_gym.training.lab_runs import HostFacts, RunSpec, replay, run_in_model, run_on_kernel

pytestmark = pytest.mark.lab

TINY = """
name = "tiny"
summary = "A heap a little larger than its limit."
heads = ["throttle", "reclaim", "protect"]

[host]
cpus = 1
dram_gib = 0.2
swap_gib = 0.0625
zswap_max_ratio = 0
disk = { iops = 25600 }

[[cgroups]]
name = "service"
max_mib = 36
[cgroups.workload]
requests_per_s = 50
cpu_us_per_request = 300
threads_tolerant = 2
[[cgroups.workload.regions]]
name = "heap"
popularity = "zipf:1.1"
size_mib = 40
touches_per_request = 40
write_share = 0.3
"""
TICKS = 20


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    path = tmp_path_factory.mktemp("scenario") / "tiny.toml"
    path.write_text(TINY)
    return RunSpec(scenario=str(path), policy="constant:reclaim=2", seed=5, ticks=TICKS)


@pytest.fixture(scope="module")
def recording(spec: RunSpec, guest_image: GuestImage) -> Recording:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_cells, "guest_image", lambda: guest_image)
        return run_on_kernel(spec)


def test_a_run_on_the_kernel_is_a_recording_that_says_what_it_ran_on(
    recording: Recording, guest_image: GuestImage, tmp_path: Path
) -> None:
    write_recording(tmp_path / "run.npz", recording)
    again = read_recording(tmp_path / "run.npz")
    about = again.provenance
    assert (about.world, about.kernel) == ("kernel", guest_image.version)
    assert guest_image.digest[:16] in about.machine
    assert again.n_ticks == TICKS
    assert again.memcg("refault_anon")[-1, 0] > 0


def test_both_worlds_want_the_same_and_stand_on_the_same_memory(
    spec: RunSpec, recording: Recording
) -> None:
    facts = HostFacts.of(recording)
    modelled = run_in_model(spec, facts=facts)
    assert np.allclose(modelled.demands, recording.demands)
    assert HostFacts.of(modelled).fast_pages == facts.fast_pages
    total = recording.host("total_bytes")[0]
    assert modelled.host("total_bytes")[0] == pytest.approx(total, rel=1e-6)


def test_the_model_is_near_the_kernel_under_the_same_writes(recording: Recording) -> None:
    (errors,) = compare_runs(series_of(recording, 5), series_of(replay(recording), 5))
    assert errors.throughput < 0.15
    assert errors.psi_some < 0.05
