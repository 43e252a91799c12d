from __future__ import annotations

import numpy as np
import pytest

from memcg_gym.envs.core import STATE_ARRAYS, HostBatch
from memcg_gym.envs.settled import SettledPool, like, settle_host
from tests.envs.small import objective, small_scenario


def batch(n_hosts: int = 2) -> HostBatch:
    return HostBatch(small_scenario(), objective(), n_hosts=n_hosts)


def pool(seed: int = 3, renew_every: int = 2) -> SettledPool:
    made = SettledPool(
        batch(), seed=seed, split="train", settle_ticks=8, size=4, renew_every=renew_every
    )
    made.fill()
    return made


def test_a_pool_host_is_the_host_its_seed_gives_anywhere() -> None:
    target, starts = batch(), pool()
    for _ in range(6):  # renewed ones among them
        seed = starts.start(target, 1)
        alone = like(target, 1)
        settle_host(alone, seed, "train", 8)
        for name in STATE_ARRAYS:
            assert np.array_equal(getattr(target, name)[1], getattr(alone, name)[0]), name


def test_the_pool_renews_itself() -> None:
    target, starts = batch(), pool()
    first = set(starts.seeds.tolist())
    for _ in range(16):
        starts.start(target, 0)
    assert starts.draws.built == 4 + 8
    assert first != set(starts.seeds.tolist())


@pytest.mark.parametrize(("seed", "alike"), [(3, True), (4, False)])
def test_a_seed_decides_the_order_of_starts(seed: int, alike: bool) -> None:
    target = batch()
    one, two = pool(3), pool(seed)
    starts = [(one.start(target, 0), two.start(target, 1)) for _ in range(8)]
    assert all(a == b for a, b in starts) is alike


def test_a_restored_pool_goes_on_with_the_same_starts() -> None:
    target, one = batch(), pool()
    for _ in range(3):
        one.start(target, 0)
    saved = {name: array.copy() for name, array in one.state().items()}
    two = pool(3)
    two.restore(saved)
    assert [one.start(target, 0) for _ in range(6)] == [two.start(target, 1) for _ in range(6)]
