from __future__ import annotations

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from memcg_gym.training.buffer import MaskedRolloutBuffer

GAMMA, LAMBDA = 0.5, 0.5


def buffer(
    rewards: list[list[float]],
    values: list[list[float]],
    starts: list[list[int]],
    active: list[list[int]],
) -> MaskedRolloutBuffer:
    steps, rows = np.shape(rewards)
    made = MaskedRolloutBuffer(
        steps,
        spaces.Box(-1.0, 1.0, (2,)),
        spaces.MultiDiscrete(np.array([3, 2])),
        device="cpu",
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        n_envs=rows,
    )
    made.reset()
    for step in range(steps):
        made.add(
            np.full((rows, 2), step, dtype=np.float32),
            np.zeros((rows, 2), dtype=np.int64),
            np.array(rewards[step]),
            np.array(starts[step]),
            th.tensor(values[step]),
            th.zeros(rows),
            np.array(active[step]),
        )
    return made


def one_row(
    rewards: list[float],
    values: list[float],
    starts: list[int] | None = None,
    active: list[int] | None = None,
    last: float = 0.0,
    done: bool = False,
) -> MaskedRolloutBuffer:
    steps = len(rewards)
    made = buffer(
        [[r] for r in rewards],
        [[v] for v in values],
        [[s] for s in starts or [0] * steps],
        [[a] for a in active or [1] * steps],
    )
    made.compute_returns_and_advantage(th.tensor([last]), np.array([done]))
    return made


def test_plain_gae_by_hand() -> None:
    # deltas: 1 + .5*2 - 1 = 1;  1 + .5*4 - 2 = 1;  1 + .5*8 - 4 = 1
    made = one_row([1.0, 1.0, 1.0], [1.0, 2.0, 4.0], last=8.0)
    assert made.advantages[:, 0].tolist() == [1.3125, 1.25, 1.0]
    assert made.returns[:, 0].tolist() == [2.3125, 3.25, 5.0]


def test_a_truncation_cuts_and_bootstraps_from_the_terminal_observation() -> None:
    # Step 1 truncates; its reward already holds gamma * V(terminal) = .5 * 6.
    made = one_row([1.0, 1.0 + 3.0, 1.0], [1.0, 2.0, 4.0], starts=[0, 0, 1], last=8.0)
    # deltas: 1;  4 - 2 = 2 (no next value);  1 + 4 - 4 = 1
    assert made.advantages[:, 0].tolist() == [1.5, 2.0, 1.0]


def test_a_truncation_at_the_end_of_the_rollout_ignores_the_next_episode() -> None:
    made = one_row([1.0, 4.0], [1.0, 2.0], last=1000.0, done=True)
    assert made.advantages[:, 0].tolist() == [1.0 + 0.25 * 2.0, 2.0]


def test_a_leaving_tenant_bootstraps_from_its_own_last_observation() -> None:
    # Step 2 is the tick the tenant left in, steps 3 and 4 are empty, at 5 a new tenant is there.
    made = one_row(
        [1.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        [1.0, 2.0, 4.0, 100.0, 100.0, 3.0],
        starts=[0, 0, 0, 1, 0, 0],
        active=[1, 1, 0, 0, 0, 1],
        last=2.0,
    )
    # deltas: 1;  1 + .5 * 4 - 2 = 1, nothing carried back over the gap;  1 + .5 * 2 - 3 = -1
    assert made.advantages[:, 0].tolist() == [1.25, 1.0, 0.0, 0.0, 0.0, -1.0]


def test_a_birth_starts_clean() -> None:
    made = one_row([0.0, 0.0, 1.0], [50.0, 50.0, 1.0], active=[0, 0, 1], last=2.0)
    assert made.advantages[:, 0].tolist() == [0.0, 0.0, 1.0]


def test_a_kill_is_a_reward_like_any_other() -> None:
    # The row goes on: the cost of the kill flows back to the decisions before it.
    made = one_row([0.0, -5.0, 0.0], [0.0, 0.0, 0.0])
    assert made.advantages[:, 0].tolist() == [-1.25, -5.0, 0.0]


def test_rows_do_not_touch_each_other() -> None:
    made = buffer(
        [[1.0, 0.0], [1.0, 0.0]], [[1.0, 9.0], [2.0, 9.0]], [[0, 0], [0, 0]], [[1, 0], [1, 0]]
    )
    made.compute_returns_and_advantage(th.tensor([4.0, 9.0]), np.array([False, False]))
    assert made.advantages[:, 0].tolist() == [1.25, 1.0]
    assert made.advantages[:, 1].tolist() == [0.0, 0.0]


def test_normalising_takes_active_rows_only() -> None:
    made = buffer([[1.0, 7.0], [3.0, 7.0]], [[0.0, 0.0]] * 2, [[1, 1], [1, 1]], [[1, 0], [1, 1]])
    made.compute_returns_and_advantage(th.zeros(2), np.array([True, True]))
    made.normalize_advantages()
    counted = made.advantages[made.active > 0]
    assert counted.mean() == pytest.approx(0.0, abs=1e-6)
    assert counted.std() == pytest.approx(1.0, abs=1e-6)
    assert made.advantages[0, 1] == 0.0


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [7]), (3, [4, 3]), (2, [2, 2, 2, 1])])
def test_minibatches_hold_every_active_transition_once(
    batch_size: int | None, sizes: list[int]
) -> None:
    active = [[1, 0], [1, 1], [0, 1], [1, 1], [0, 1]]
    made = buffer([[0.0, 0.0]] * 5, [[0.0, 0.0]] * 5, [[0, 0]] * 5, active)
    made.advantages[...] = np.arange(10).reshape(5, 2)
    batches = list(made.get(batch_size))
    assert [len(b.advantages) for b in batches] == sizes
    seen = sorted(float(a) for b in batches for a in b.advantages)
    assert seen == [0.0, 2.0, 3.0, 5.0, 6.0, 7.0, 9.0]


def test_a_rollout_of_empty_slots_gives_no_minibatch() -> None:
    made = buffer([[0.0]], [[0.0]], [[0]], [[0]])
    made.compute_returns_and_advantage(th.zeros(1), np.array([False]))
    made.normalize_advantages()
    assert list(made.get(4)) == []
