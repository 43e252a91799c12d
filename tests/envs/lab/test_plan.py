from __future__ import annotations

import itertools

import numpy as np
import pytest

from memcg_gym.configs.loader import load_objective, load_scenario, names
from memcg_gym.enforcer.btf import Btf
from memcg_gym.enforcer.lock_trace import OFFSETS, probes
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.guest_plan import plan_of
from memcg_gym.envs.lab.plan import (
    FILE_DEVICE,
    Demand,
    HostPlan,
    cgroup_commands,
    demand_command,
    device_commands,
    start_commands,
    trace_commands,
)
from memcg_gym.envs.lab.protocol import Report, State
from memcg_gym.envs.lab.scale import scale_scenario
from memcg_gym.envs.lab.session import command_heads
from tests.enforcer.test_btf import kernel


def plan(name: str) -> HostPlan:
    scenario = scale_scenario(load_scenario(name), 16)
    batch = HostBatch(scenario, load_objective())
    batch.reset_host(0, 5, "test")
    return plan_of(scenario, batch.hosts[0], batch.memcgs[0], batch.regions[0], batch.layout)


@pytest.mark.parametrize("name", names("scenarios"))
def test_every_scenario_has_a_plan_whose_commands_are_whole(name: str) -> None:
    made = plan(name)
    heads = command_heads(device_commands(made))
    for slot, cgroup in enumerate(made.cgroups):
        heads += command_heads(cgroup_commands(slot, cgroup))
    heads += command_heads(start_commands(made.cgroups))
    words = {head.split()[0] for head in heads}
    assert words <= {
        "write", "mkdir", "watch", "fill", "mkswap", "swapon", "slot", "region", "lock",
        "launch", "await",
    }  # fmt: skip


@pytest.mark.parametrize("name", names("scenarios"))
def test_bins_cover_a_region_and_all_of_its_touches(name: str) -> None:
    for cgroup in plan(name).cgroups:
        for region in cgroup.regions:
            assert sum(region.bin_pages) == pytest.approx(region.pages)
            assert sum(region.bin_heat) == pytest.approx(1.0)


def test_file_regions_lie_apart_on_the_device_and_fit_it() -> None:
    made = plan("host-mix")
    spans = sorted(
        {
            (r.offset_pages, r.offset_pages + r.pages, r.object)
            for c in made.cgroups
            for r in c.regions
            if r.kind in ("file", "file_read")
        }
    )
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] <= made.devices.file_mib * 256


def test_sharers_of_an_object_map_the_same_pages_of_a_file() -> None:
    shared = [r for c in plan("shared").cgroups for r in c.regions if r.object]
    apart = [r for c in plan("shared").cgroups for r in c.regions if not r.object]
    assert len(shared) > 1
    assert len({(r.kind, r.offset_pages, r.pages) for r in shared}) == 1
    assert shared[0].kind == "file"
    end = shared[0].offset_pages + shared[0].pages
    assert all(r.offset_pages >= end for r in apart if r.kind != "anon")


def test_swap_is_filled_before_it_is_used_and_files_store_nothing() -> None:
    text = device_commands(plan("burst")).decode()
    assert text.index("fill /dev/labswap") < text.index("swapon")
    at = text.index(f"/{FILE_DEVICE}/memory_backed")
    assert text[at:].splitlines()[1] == "0"


def test_limits_are_set_after_the_workload_was_loaded() -> None:
    made = plan("burst")
    heads = command_heads(start_commands(made.cgroups))
    kinds = [head.split()[0] for head in heads]
    assert kinds == sorted(kinds, key=("launch", "await", "write").index)
    assert kinds.count("write") == sum(len(c.limits) for c in made.cgroups) > 0


def test_a_demand_reads_back_to_nine_digits() -> None:
    load = float(np.pi)
    line = demand_command(
        3,
        Demand(load=load, shed=0.1, burst_on=True, burst_pages_per_s=800.0, burst_target_pages=0.0),
    ).decode()
    words = dict(word.split("=") for word in line.split()[2:])
    assert line.startswith("demand 3 ")
    assert float(words["load"]) == pytest.approx(load, rel=1e-8)
    assert words["burst_on"] == "1"


@pytest.mark.parametrize("kind", ["user", "kernel"])
def test_a_lock_of_either_kind_is_declared_to_the_agent(kind: str) -> None:
    scenario = load_scenario("lock")
    data = scenario.model_dump()
    for cgroup in data["cgroups"]:
        cgroup["workload"]["lock"]["kind"] = kind
    batch = HostBatch(type(scenario).model_validate(data), load_objective())
    batch.reset_host(0, 5, "test")
    made = plan_of(batch.scenario, batch.hosts[0], batch.memcgs[0], batch.regions[0], batch.layout)
    heads = [
        h for slot, c in enumerate(made.cgroups) for h in command_heads(cgroup_commands(slot, c))
    ]
    locks = [head.split() for head in heads if head.startswith("lock ")]
    assert [f"kind={kind}" in words for words in locks] == [True, True]


def test_a_guest_is_told_all_probes_in_one_write_and_events_come_on_last() -> None:
    made = plan("lock")
    files = {
        "trace/btf": kernel().data(),
        "trace/events": b"lock:contention_begin\nlock:contention_end\nsyscalls:sys_enter_futex\n",
    }
    block = trace_commands(Report(State.PAUSED, 0, 0, 0, files), made.cgroups)
    heads = command_heads(block)
    assert [h for h in heads if h.endswith("/dynamic_events")] == [
        f"write - {len(text)} /sys/kernel/tracing/dynamic_events"
        for text in [
            probes(
                Btf(kernel().data(), "").offsets(OFFSETS), files["trace/events"].decode().split()
            )
        ]
    ]
    at = heads.index("mkdir /sys/kernel/tracing/instances/memcg-gym")
    enable = [i for i, h in enumerate(heads) if h.endswith("events/memcg_gym/enable")]
    assert enable[0] > at
    assert all(not h.startswith("write") for h in heads[enable[0] + 1 :])
    watched = [h for h in heads if h.startswith("watch")]
    assert len(watched) == 1 + len(made.cgroups)
