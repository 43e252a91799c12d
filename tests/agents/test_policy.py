from __future__ import annotations

import numpy as np
import pytest

from memcg_gym.agents.policy import HEAD_KNOBS, Array, KnobPolicy, View, owner_knobs_from
from memcg_gym.enforcer.adapter import owner_knobs
from memcg_gym.envs.contract.heads import Head
from memcg_gym.envs.contract.knobs import N_KNOBS, Knob
from memcg_gym.envs.contract.signals import N_MEMCG_SIGNALS, Sig
from tests.agents.views import ALL_HEADS, GIB, view


class Greedy(KnobPolicy):
    """Wants everything at 7 and counts how often each row was forgotten."""

    owns = (Knob.HIGH_BYTES, Knob.RECLAIM_BYTES, Knob.KILL)

    def __init__(self, kill: bool = False) -> None:
        self.name = "greedy"
        self.kill = kill

    def start(self, shape: tuple[int, int]) -> None:
        self.forgotten = np.zeros(shape, dtype=np.int64)

    def forget(self, rows: Array, view: View) -> None:
        self.forgotten[rows] += 1

    def write(self, view: View, knobs: Array) -> None:
        knobs[...] = 7.0
        knobs[..., Knob.KILL] = float(self.kill)


def begun(policy: KnobPolicy, n: int = 2, supported: Array = ALL_HEADS) -> KnobPolicy:
    policy.reset((1, n), supported, 0)
    return policy


def test_owner_knobs_are_those_of_the_enforcer() -> None:
    rng = np.random.default_rng(3)
    looked_at = view(50)
    looked_at.signals[...] = rng.uniform(0.0, 8 * GIB, (1, 50, N_MEMCG_SIGNALS))
    looked_at.signals[0, ::3, Sig.MEMSW_CEILING_BYTES] = 0.0
    looked_at.signals[0, 1, Sig.USAGE_BYTES] = np.nan
    expected = np.zeros((50, N_KNOBS))
    for signals, knobs in zip(looked_at.signals[0], expected, strict=True):
        owner_knobs(signals, knobs)
    assert np.array_equal(owner_knobs_from(looked_at)[0], expected)


def test_a_policy_writes_only_what_it_owns() -> None:
    looked_at = view(2)
    knobs, owner = begun(Greedy()).act(looked_at), owner_knobs_from(looked_at)
    changed = (knobs != owner).any(axis=(0, 1))
    assert set(np.flatnonzero(changed)) == {Knob.HIGH_BYTES, Knob.RECLAIM_BYTES}


@pytest.mark.parametrize("head", list(Head))
def test_a_head_the_host_lacks_takes_its_knobs_away(head: Head) -> None:
    supported = ALL_HEADS.copy()
    supported[head] = 0
    looked_at = view(2)
    knobs = begun(Greedy(kill=True), supported=supported).act(looked_at)
    mine = [int(k) for k in HEAD_KNOBS[head]]
    assert np.array_equal(knobs[..., mine], owner_knobs_from(looked_at)[..., mine])


def test_no_knob_stands_behind_two_heads_and_hard_limits_behind_none() -> None:
    listed = [knob for knobs in HEAD_KNOBS.values() for knob in knobs]
    assert len(listed) == len(set(listed))
    assert not {Knob.MAX_BYTES, Knob.SWAP_MAX_BYTES, Knob.TAGGED} & set(listed)


def test_empty_slots_keep_the_owners_knobs() -> None:
    looked_at = view(2, active=[True, False])
    knobs = begun(Greedy()).act(looked_at)
    assert knobs[0, 0, Knob.RECLAIM_BYTES] == 7.0
    assert np.array_equal(knobs[0, 1], owner_knobs_from(looked_at)[0, 1])


def test_state_is_forgotten_when_a_tenant_moves_in() -> None:
    policy = Greedy()
    begun(policy)
    for present in ([True, True], [True, True], [True, False], [True, True]):
        policy.act(view(2, active=present))
    assert policy.forgotten.tolist() == [[1, 2]]


def test_state_is_forgotten_after_an_oom_kill_and_after_its_own_kill() -> None:
    policy = Greedy()
    begun(policy)
    policy.act(view(2))
    policy.act(view(2, delta={Sig.EVENTS_OOM_KILL: [0, 1]}))
    assert policy.forgotten.tolist() == [[1, 2]]
    policy.kill = True
    policy.act(view(2))
    policy.act(view(2))
    assert policy.forgotten.tolist() == [[2, 3]]
