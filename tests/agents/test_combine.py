from __future__ import annotations

import numpy as np
import pytest

from memcg_gym.agents.combine import Combined
from memcg_gym.agents.policy import Array, KnobPolicy, View, owner_knobs_from
from memcg_gym.agents.random_policy import RandomPolicy
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import Sig
from tests.agents.views import ALL_HEADS, GIB, view


class Setter(KnobPolicy):
    """Sets one knob of every cgroup."""

    def __init__(self, knob: Knob, value: float) -> None:
        self.name = f"set-{value:g}"
        self.owns = (knob,)  # type: ignore[misc]
        self.knob, self.value = knob, value

    def write(self, view: View, knobs: Array) -> None:
        knobs[..., self.knob] = self.value


def act(*parts: KnobPolicy) -> tuple[Array, Array]:
    policy = Combined("parts", parts)
    policy.reset((1, 2), ALL_HEADS, 0)
    looked_at = view(2, now={Sig.OWNER_LOW_BYTES: GIB})
    return policy.act(looked_at), owner_knobs_from(looked_at)


def test_each_part_sets_what_it_owns() -> None:
    knobs, owner = act(Setter(Knob.HIGH_BYTES, 1.0), Setter(Knob.RECLAIM_BYTES, 2.0))
    owner[..., Knob.HIGH_BYTES] = 1.0
    owner[..., Knob.RECLAIM_BYTES] = 2.0
    assert np.array_equal(knobs, owner)


@pytest.mark.parametrize(("values", "kept"), [((1.0, 2.0), 1.0), ((2.0, 1.0), 2.0)])
def test_the_part_named_first_wins(values: tuple[float, float], kept: float) -> None:
    knobs, _ = act(*(Setter(Knob.LOW_BYTES, value) for value in values))
    assert (knobs[..., Knob.LOW_BYTES] == kept).all()


def test_a_part_that_leaves_the_owners_value_lets_the_next_one_have_it() -> None:
    knobs, _ = act(Setter(Knob.LOW_BYTES, GIB), Setter(Knob.LOW_BYTES, 5.0))
    assert (knobs[..., Knob.LOW_BYTES] == 5.0).all()


def test_a_part_that_speaks_in_levels_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be combined"):
        Combined("parts", [RandomPolicy()])
