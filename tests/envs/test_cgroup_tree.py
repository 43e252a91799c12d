"""The whole path from kernel text to features gives what the model computes itself."""

import numpy as np
import pytest

from memcg_gym.configs.loader import load_objective, load_scenario, names
from memcg_gym.enforcer.cgroupfs import CgroupReader
from memcg_gym.enforcer.features import fill_features, update_averages
from memcg_gym.enforcer.hostfs import HostReader, Roots, find_nodes
from memcg_gym.envs.cgroup_tree import write_tree
from memcg_gym.envs.contract.features import FEATURES, N_FEATURES, F
from memcg_gym.envs.contract.signals import HostSig, Sig
from memcg_gym.envs.core import HostBatch

# What a host cannot know from its files alone: facts come from configuration, the owner's limits
# from the first reading.
FROM_FACTS = (
    Sig.PRIORITY,
    Sig.KILL_RANK,
    Sig.MEMSW_CEILING_BYTES,
    Sig.OWNER_MIN_BYTES,
    Sig.OWNER_LOW_BYTES,
    Sig.OWNER_HIGH_BYTES,
    Sig.OWNER_MAX_BYTES,
    Sig.OWNER_SWAP_MAX_BYTES,
)


@pytest.mark.parametrize("scenario", names("scenarios"))
def test_features_read_from_files_are_the_model_s(scenario, tmp_path):
    batch = HostBatch(load_scenario(scenario), load_objective())
    batch.reset(3)
    batch.settle(120)
    averages = batch.averages[0].copy()
    write_tree(batch, 0, tmp_path)
    before = read(batch, tmp_path)
    batch.settle(1)
    write_tree(batch, 0, tmp_path)
    now = read(batch, tmp_path)

    for i, name in enumerate(batch.layout.names):
        vector = np.zeros(N_FEATURES, dtype=np.int32)
        update_averages(now[0][i], before[0][i], 1.0, averages[i])
        fill_features(
            now[0][i], before[0][i], now[1], before[1], averages[i], batch.guard[0, i], vector
        )
        for f in FEATURES:
            # /proc/meminfo is in KiB and /proc/stat in hundredths of a second
            slack = 700 if f.id in (F.HOST_CPU_IDLE, F.HOST_FREE_SLOPE) else 8
            assert abs(int(vector[f.id]) - int(batch.features[0, i, f.id])) <= slack, (
                f"{name}: {f.name}"
            )


def read(batch, root):
    """Every cgroup's signals and the host's, through the enforcer's own readers."""
    roots = Roots(
        cgroup=root / "cgroup",
        proc=root / "proc",
        sys=root / "sys",
        tags=root / "tags",
        page_bytes=4096,
        clock_ticks_per_s=100,
    )
    nodes = find_nodes(roots)
    host = HostReader(roots, nodes).read()
    host[HostSig.UPTIME_US] = batch.host_signals[0, HostSig.UPTIME_US]
    rows = []
    for i, name in enumerate(batch.layout.names):
        row = CgroupReader(roots, roots.cgroup / name, nodes).read().signals
        for sig in FROM_FACTS:
            row[sig] = batch.signals[0, i, sig]
        rows.append(row)
    return rows, host
