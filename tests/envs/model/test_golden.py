"""Golden rollouts: the numbers of every scenario, so that a change of the model is a decision.

``python -m tests.envs.model.test_golden --accept`` writes the file anew after a change that is
meant; the difference of the file then says what changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.configs.loader import load_objective, load_scenario, names
from memcg_gym.envs.contract.signals import HostSig, Sig
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.reward import Metric

GOLDEN = Path(__file__).parents[2] / "golden" / "rollouts.json"
ACCEPT = "python -m tests.envs.model.test_golden --accept"
SEED = 0
TICKS = 200
EVERY = 50
MEMCG_SIGNALS = (
    Sig.USAGE_BYTES,
    Sig.SWAP_BYTES,
    Sig.ZSWAP_BYTES,
    Sig.FAST_BYTES,
    Sig.DIRTY_BYTES,
    Sig.PSI_MEM_SOME_US,
    Sig.PSI_IO_SOME_US,
    Sig.REFAULT_ANON,
    Sig.REFAULT_FILE,
    Sig.PGSCAN_DIRECT,
    Sig.PGDEMOTE,
    Sig.PGPROMOTE,
    Sig.CHARGE_PAGES,
    Sig.EVENTS_HIGH,
    Sig.EVENTS_MAX,
    Sig.LOCK_WAIT_US,
)
HOST_SIGNALS = (
    HostSig.FREE_BYTES,
    HostSig.SWAP_FREE_BYTES,
    HostSig.PSI_MEM_FULL_US,
    HostSig.CPU_IDLE_US,
)
METRICS = (Metric.P99_US, Metric.REQUESTS, Metric.INVERSION_S)

Rows = dict[str, list[float]]


def rollout(name: str) -> dict[str, Rows]:
    """Signals of one host under its owner's configuration, by tick and name."""
    batch = HostBatch(load_scenario(name), load_objective(), n_hosts=1)
    batch.reset(SEED)
    nothing = np.zeros_like(batch.levels)
    ticks: dict[str, Rows] = {}
    for tick in range(1, TICKS + 1):
        batch.step_levels(nothing)
        if tick % EVERY == 0:
            rows: Rows = {s.name: batch.signals[0, :, s].tolist() for s in MEMCG_SIGNALS}
            rows |= {f"HOST_{s.name}": [float(batch.host_signals[0, s])] for s in HOST_SIGNALS}
            rows |= {m.name: batch.metrics[0, :, m].tolist() for m in METRICS}
            rows["REWARD"] = batch.reward[0].tolist()
            ticks[str(tick)] = rows
    return ticks


@pytest.mark.parametrize("name", names("scenarios"))
def test_a_rollout_is_the_one_on_record(name: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert name in golden, f"no golden rollout of {name}; to record it: {ACCEPT}"
    for tick, rows in rollout(name).items():
        for signal, values in rows.items():
            np.testing.assert_allclose(
                values,
                golden[name][tick][signal],
                rtol=1e-9,
                atol=1e-9,
                err_msg=f"{name}, tick {tick}, {signal} by cgroup; if this is meant: {ACCEPT}",
            )


def test_the_record_has_no_scenario_that_is_gone() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert sorted(golden) == sorted(names("scenarios")), f"to bring it up to date: {ACCEPT}"


def accept() -> None:
    """Record what the model does now."""
    golden = {name: rollout(name) for name in sorted(names("scenarios"))}
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--accept"]:
        sys.exit(f"usage: {ACCEPT}")
    accept()
