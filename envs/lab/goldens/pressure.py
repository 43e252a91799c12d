"""Pressure stall information: what counts as a stall, how totals become averages.

Source of the numbers: kernel/sched/psi.c.

Units: microseconds, percent.
"""

from __future__ import annotations

import itertools

from memcg_gym.envs.lab.goldens.bench import MIB, Bench, Cgroup, Probe, stall_total_us
from memcg_gym.envs.lab.goldens.formulas import DECAY, FIXED_ONE, PAGES_PER_MIB, next_average
from memcg_gym.envs.lab.goldens.golden import NO, Golden, about, at_least, between

STATE = "kernel/sched/psi.c psi_group_change, test_states"
AVERAGES = "kernel/sched/psi.c update_averages, calc_avgs"
TICKS = 12


def check_averages(bench: Bench) -> list[Golden]:
    """avg10, avg60 and avg300 follow from the totals, every two seconds."""
    group, probe = _sleeper(bench)
    probe.go("tick")
    samples = []
    for _ in range(TICKS):
        time_ns = bench.tick().time_ns
        samples.append((time_ns / 1e9, *_averages(group)))
    probe.end()
    moved = [k for k in range(1, TICKS) if samples[k][2] != samples[k - 1][2]]
    found = [
        Golden(
            "time between two changes of an average",
            f"{AVERAGES}: PSI_FREQ = 2 * HZ + 1",
            about(2.0, 0.05),
            (samples[moved[-1]][0] - samples[moved[0]][0]) / (len(moved) - 1),
            "s",
        )
    ]
    for index, window_s in enumerate(DECAY):
        worst = 0.0
        for before, now in itertools.pairwise(moved):
            seconds = samples[now][0] - samples[before][0]
            stalled = (samples[now][1] - samples[before][1]) / 1e6 / seconds
            fixed = round(samples[before][2 + index] * FIXED_ONE)
            expected = next_average(fixed, window_s, min(stalled, 1.0)) / FIXED_ONE
            worst = max(worst, abs(samples[now][2 + index] - expected))
        found.append(
            Golden(
                f"largest error of calc_avgs for avg{window_s}, from totals read once a second",
                AVERAGES,
                between(0.0, 0.5),
                worst,
                "points",
            )
        )
    return found


def check_some_and_full(bench: Bench) -> list[Golden]:
    """One CPU: a stalled task is SOME whatever runs; FULL only while nothing else does."""
    family = bench.cgroup(controllers="+memory")
    group, probe = _sleeper(bench, parent=family)
    probe.go("tick")
    alone = _rates(bench, family)
    other = bench.cgroup(parent=family)
    burner = bench.probe(other, "wait", "burn:20000", "wait")
    burner.arrive()
    burner.go("tick")
    beside = _rates(bench, family)
    own = _rates(bench, group)
    burner.end()
    probe.end()
    return [
        Golden(
            "SOME of a cgroup whose only task sleeps over high", STATE, at_least(95), alone[0], "%"
        ),
        Golden("FULL of it", STATE, about(alone[0], 1.0), alone[1], "%"),
        Golden("SOME with a busy task beside it", STATE, about(alone[0], 3.0), beside[0], "%"),
        Golden("FULL with a busy task beside it", STATE, between(0.0, 3.0), beside[1], "%"),
        Golden("SOME of the sleeper's own cgroup then", STATE, about(alone[0], 3.0), own[0], "%"),
        Golden(
            "FULL of the sleeper's own cgroup then",
            STATE,
            about(own[0], 3.0),
            own[1],
            "%",
            "the busy task is none of its own",
        ),
    ]


def check_staleness(bench: Bench) -> list[Golden]:
    """memory.stat lags by a batch for each CPU, for two seconds at most; see mm/memcontrol.c."""
    group = bench.cgroup()
    step, count = 7, 30
    words = [w for k in range(count) for w in (f"write:a:{step * (k + 1)}:{step}", "wait")]
    probe = bench.probe(group, "anon:a:1024", f"write:a:0:{step}", "wait", *words[:56])
    probe.arrive()
    bench.tick(3)
    base = group.stat("anon")[0] // 4096
    lags = []
    for k in range(28):
        probe.run()
        lags.append(base + step * (k + 1) - group.stat("anon")[0] // 4096)
    bench.tick(3)
    settled = base + step * 28 - group.stat("anon")[0] // 4096
    probe.end()
    source = "mm/memcontrol.c memcg_vmstats_needs_flush, flush_memcg_stats_dwork"
    return [
        Golden(
            "pages that memory.stat lags behind",
            source,
            between(1, 64 + step),
            max(lags),
            "pages",
            "one CPU",
        ),
        Golden("fewest it lags, right after a flush", source, NO, min(lags), "pages"),
        Golden("after three seconds", source, NO, settled, "pages"),
    ]


def _sleeper(bench: Bench, parent: Cgroup | None = None) -> tuple[Cgroup, Probe]:
    """A cgroup whose one task sleeps over memory.high nearly all the time, once it may go on."""
    pages = 110 * PAGES_PER_MIB
    group = bench.cgroup(parent=parent)
    group.set("memory.swap.max", 0)
    words = (f"anon:a:{pages + 64}", f"write:a:0:{pages}", "wait", "mark")
    again = (f"write:a:{pages}:64", f"drop:a:{pages}:64", "again:1000")
    probe = bench.probe(group, *words, *again)
    probe.arrive()
    group.set("memory.high", 100 * MIB, nonblocking=True)
    return group, probe


def _averages(group: Cgroup) -> tuple[int, float, float, float]:
    """Total and the three averages of SOME."""
    words = group.text("memory.pressure").split("\n")[0].split()
    averages = [float(word.partition("=")[2]) for word in words[1:4]]
    return int(words[4].partition("=")[2]), averages[0], averages[1], averages[2]


def _rates(bench: Bench, group: Cgroup) -> tuple[float, float]:
    """SOME and FULL over the next three seconds [%]."""

    def totals() -> tuple[float, int, int]:
        text = group.text("memory.pressure")
        some, full = (stall_total_us(text, kind) for kind in ("some", "full"))
        return bench.do().time_ns / 1e3, some, full

    before = totals()
    bench.tick(3)
    after = totals()
    span_us = after[0] - before[0]
    return 100.0 * (after[1] - before[1]) / span_us, 100.0 * (after[2] - before[2]) / span_us
