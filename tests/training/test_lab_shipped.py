"""The recordings and the preset that ship."""

from __future__ import annotations

from functools import cache

import pytest

from memcg_gym.configs.loader import FAMILIES, load_lab_split, load_params, load_scenario, names
from memcg_gym.training.lab_runs import HostFacts
from memcg_gym.training.lab_set import Recorded, chosen_set, families_of


@cache
def shipped() -> list[Recorded]:
    return chosen_set(None)


def test_every_family_ships_with_several_policies() -> None:
    assert families_of(shipped()) == names(FAMILIES)
    for family in names(FAMILIES):
        assert len({one.policy for one in shipped() if one.family == family}) >= 3


@pytest.mark.parametrize("family", names(FAMILIES))
def test_recordings_are_of_the_families_as_they_are(family: str) -> None:
    """A family that was changed must be recorded again."""
    for one in shipped():
        if one.family == family:
            assert one.spec.scaled_scenario() == load_scenario(family), one.path.name


def test_recordings_are_whole_runs_that_settled_and_were_scored() -> None:
    settle = load_lab_split().settle_ticks
    for one in shipped():
        assert one.recording.n_ticks >= settle + 60
        assert one.recording.active.all(), one.path.name
        assert HostFacts.of(one.recording).reserved_pages > 0


def test_a_small_set_ships() -> None:
    assert sum(one.path.stat().st_size for one in shipped()) < 5 << 20


def test_the_fitted_parameters_are_a_whole_set() -> None:
    assert load_params("params-lab").keys() == load_params().keys()
