from __future__ import annotations

from typing import Any

import pytest

from memcg_gym.agents.agentcgroup import AgentCgroup, AgentCgroupConfig
from memcg_gym.agents.policy import Array
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import UNLIMITED_BYTES, HostSig, Sig
from tests.agents.views import ALL_HEADS, GIB, view

PRIORITIES = {Sig.PRIORITY: [3, 0, 1]}


def knobs_of(host_kind: str = "stock", **rest: Any) -> Array:
    policy = AgentCgroup(AgentCgroupConfig(host_kind=host_kind))
    policy.reset((1, 3), ALL_HEADS, 0)
    rest["now"] = PRIORITIES | rest.get("now", {})
    knobs: Array = policy.act(view(3, **rest))[0]
    return knobs


TRIGGERS: list[dict[str, Any]] = [
    {"delta": {Sig.EVENTS_HIGH: [0, 1, 0]}},
    {"host_delta": {HostSig.PSI_MEM_SOME_US: 1.0}},
    {"host": {HostSig.FREE_BYTES: 0.15 * 16 * GIB}},
]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=["events", "pressure", "usage"])
def test_a_trigger_protects_high_and_squeezes_low(trigger: dict[str, Any]) -> None:
    knobs = knobs_of(**trigger)
    assert knobs[:, Knob.LOW_BYTES] == pytest.approx([0.8 * 16 * GIB, 0.0, 0.0])
    assert knobs[:, Knob.HIGH_BYTES] == pytest.approx([UNLIMITED_BYTES, 8 * GIB, 8 * GIB])


def test_without_a_trigger_the_owners_values_stand() -> None:
    knobs = knobs_of(host={HostSig.FREE_BYTES: 0.16 * 16 * GIB})
    assert not knobs[:, Knob.LOW_BYTES].any()
    assert (knobs[:, Knob.HIGH_BYTES] == UNLIMITED_BYTES).all()


def test_several_high_share_the_protection_and_a_smaller_memory_high_stands() -> None:
    now = {Sig.PRIORITY: [2, 2, 0], Sig.OWNER_HIGH_BYTES: [UNLIMITED_BYTES] * 2 + [GIB]}
    knobs = knobs_of(now=now, **TRIGGERS[0])
    assert knobs[:, Knob.LOW_BYTES] == pytest.approx([0.4 * 16 * GIB, 0.4 * 16 * GIB, 0.0])
    assert knobs[2, Knob.HIGH_BYTES] == GIB


def test_where_all_are_alike_nobody_is_squeezed() -> None:
    knobs = knobs_of(now={Sig.PRIORITY: 1}, **TRIGGERS[0])
    assert (knobs[:, Knob.HIGH_BYTES] == UNLIMITED_BYTES).all()
    assert not knobs[:, Knob.LOW_BYTES].any()


def test_on_a_bpf_host_faults_of_high_delay_low_by_fifty_milliseconds() -> None:
    knobs = knobs_of("bpf", delta={Sig.PGFAULT: [2, 0, 0]})
    assert knobs[:, Knob.STALL_CEILING_US].tolist() == [0.0, 50_000.0, 50_000.0]
    assert knobs[:, Knob.LOW_BYTES].tolist() == [GIB, 0.0, 0.0]
    calm = knobs_of("bpf", delta={Sig.PGFAULT: [1, 99, 99]})
    assert not calm[:, [Knob.STALL_CEILING_US, Knob.LOW_BYTES]].any()


def test_an_unknown_host_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="host_kind"):
        AgentCgroupConfig(host_kind="windows")
