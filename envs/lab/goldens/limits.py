"""memory.high, memory.max and what comes after: penalties, retries, kills.

Source of the numbers: mm/memcontrol.c, mm/oom_kill.c.

Units: pages, milliseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from memcg_gym.envs.lab.goldens.bench import FILES, MIB, Bench, Cgroup, Probe
from memcg_gym.envs.lab.goldens.formulas import (
    CHARGE_BATCH_PAGES,
    MAX_RETRIES,
    PAGES_PER_MIB,
    high_delay_jiffies,
    slept,
)
from memcg_gym.envs.lab.goldens.golden import (
    NO,
    YES,
    Expected,
    Golden,
    at_least,
    at_most,
    between,
    exactly,
)

HANDLER = "mm/memcontrol.c mem_cgroup_handle_over_high"
CHARGE = "mm/memcontrol.c try_charge_memcg"
HIGH_MIB = 100
HUGE_PAGES = 512
RECLAIM_MS = 6.0
"""CPU time of a handler's attempts at reclaim in the guest, at most."""


def check_delay_of_a_batch(bench: Bench) -> list[Golden]:
    """What a task pays for a batch of 64 pages over memory.high, with nothing to reclaim."""
    levels = (101, 102, 103, 105, 107, 110, 115, 118, 121)
    rows = _over_high(bench, levels, "anon", "stalls", CHARGE_BATCH_PAGES)
    found = []
    for over, (usage, stalls_ms, _) in zip(levels, rows, strict=True):
        expected = _delay_ms(bench, usage, CHARGE_BATCH_PAGES)
        found.append(
            Golden(
                f"a batch charged at {over} % of memory.high sleeps",
                HANDLER,
                expected,
                max(stalls_ms, default=0.0),
                "ms",
                f"{usage} pages charged, {HIGH_MIB} MiB allowed",
            )
        )
    found.append(
        Golden(
            "attempts at reclaim before a sleep, each an event high",
            HANDLER,
            exactly(MAX_RETRIES + 1),
            rows[-1][2],
            note="one and 16 retries",
        )
    )
    return found


def check_huge_charge(bench: Bench) -> list[Golden]:
    """A huge page is one charge of 512 pages: eight times the penalty, in one sleep."""
    bench.write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")
    levels = (104, 108)
    found = []
    for usage, stalls_ms, attempts in _over_high(bench, levels, "huge", "stalls", HUGE_PAGES):
        over = 100.0 * usage / (HIGH_MIB * PAGES_PER_MIB)
        found += [
            Golden(
                f"a huge page charged at {over:.1f} % of memory.high sleeps",
                HANDLER,
                _delay_ms(bench, usage, HUGE_PAGES),
                max(stalls_ms, default=0.0),
                "ms",
            ),
            Golden("sleeps of a huge page", HANDLER, exactly(1), attempts / (MAX_RETRIES + 1)),
        ]
    bench.write("/sys/kernel/mm/transparent_hugepage/enabled", "never")
    return found


def check_long_system_call(bench: Bench) -> list[Golden]:
    """More than a batch charged inside one system call is paid for there, two batches at a time."""
    ((_, (took_ms,), attempts),) = _over_high(bench, (114,), "anon", "populate", HUGE_PAGES)
    sleeps = HUGE_PAGES // (2 * CHARGE_BATCH_PAGES)
    return [
        Golden(
            "sleeps of a system call that charges 512 pages",
            f"{CHARGE}: more than MEMCG_CHARGE_BATCH pages over high",
            exactly(sleeps),
            attempts / (MAX_RETRIES + 1),
            note="in the charge path, whatever locks the caller holds",
        ),
        Golden(
            "it is stopped for",
            CHARGE,
            between(2000.0 * sleeps, 2250.0 * sleeps + HUGE_PAGES * 0.1),
            took_ms,
            "ms",
            "the cap of 2 s holds for each sleep, not for the call",
        ),
    ]


def check_reclaimable_memory(bench: Bench) -> list[Golden]:
    """Over memory.high with clean page cache to give, a task reclaims and does not sleep."""
    pages = 24 * PAGES_PER_MIB
    group = bench.cgroup()
    group.set("memory.high", 16 * MIB)
    bench.drop_caches()
    probe = bench.probe(group, f"file:a:{FILES}:{pages}", "wait", f"read:a:0:{pages}", "wait")
    probe.arrive()
    probe.run()
    stalled_ms, events = group.stalled_us() / 1e3, group.table("memory.events")
    found = [
        Golden(
            "pages over memory.high that reads of 24 MiB at 16 MiB leave",
            HANDLER,
            at_most(CHARGE_BATCH_PAGES),
            group.usage_pages() - 16 * PAGES_PER_MIB,
            "pages",
        ),
        Golden("breaches of memory.high meanwhile", HANDLER, at_least(1), events["high"]),
        Golden(
            "stall of a breach that reclaims",
            HANDLER,
            at_most(4.0),
            stalled_ms / max(events["high"], 1),
            "ms",
            "its own reclaim, no sleep",
        ),
    ]
    probe.end()
    return found


def check_lowering_high(bench: Bench) -> list[Golden]:
    """Who lowers memory.high reclaims, unless the file is open for non-blocking writes."""
    group, probe = _filled(bench, 40)
    group.set("memory.high", 32 * MIB, nonblocking=True)
    untouched = group.usage_pages()
    group.set("memory.high", 24 * MIB)
    reclaimed = group.usage_pages()
    source = "mm/memcontrol.c memory_high_write"
    found = [
        Golden(
            "usage after a non-blocking write of memory.high = 32 MiB over 40 MiB",
            source,
            at_least(40 * PAGES_PER_MIB),
            untouched,
            "pages",
        ),
        Golden(
            "usage after a blocking write of memory.high = 24 MiB",
            source,
            at_most(24 * PAGES_PER_MIB),
            reclaimed,
            "pages",
        ),
        Golden("memory stall of the cgroup meanwhile", source, NO, group.stalled_us(), "us"),
        Golden("events high meanwhile", source, NO, group.table("memory.events")["high"]),
    ]
    probe.end()
    return found


def check_kill_of_a_sleeper(bench: Bench) -> list[Golden]:
    """The sleep over memory.high ends with the task."""
    group, probe = _filled(bench, 130, swap=False, then=("stalls:b:0:64:1000", "wait"))
    group.set("memory.high", HIGH_MIB * MIB, nonblocking=True)
    probe.go()
    group.set("cgroup.kill", 1)
    alive = probe.alive()
    for _ in range(2):
        bench.tick()
        alive = alive and probe.alive()
    probe.end()
    return [
        Golden(
            "alive two seconds after a kill that met a sleep of two seconds",
            f"{HANDLER}: schedule_timeout_killable",
            NO,
            alive,
        )
    ]


def check_lowering_max(bench: Bench) -> list[Golden]:
    """Who lowers memory.max reclaims, and kills where that does not do."""
    group, probe = _filled(bench, 40)
    group.set("memory.max", 24 * MIB)
    events = group.table("memory.events")
    source = "mm/memcontrol.c memory_max_write"
    found = [
        Golden(
            "usage after memory.max = 24 MiB over 40 MiB, with swap",
            source,
            at_most(24 * PAGES_PER_MIB),
            group.usage_pages(),
            "pages",
        ),
        Golden("kills by that", source, NO, events["oom_kill"]),
    ]
    probe.end()
    group, probe = _filled(bench, 40, swap=False)
    # by an ordinary task: the agent's priority would keep the victim from ending
    writer = bench.probe(bench.root, f"put:{group.path}/memory.max:{24 * MIB}", "wait")
    writer.arrive()
    found.append(
        Golden(
            "kills by memory.max = 24 MiB over 40 MiB, without swap",
            source,
            exactly(1),
            group.table("memory.events")["oom_kill"],
        )
    )
    probe.end()
    writer.end()
    return found


def check_attempts_before_a_kill(bench: Bench) -> list[Golden]:
    """A charge over memory.max that finds nothing to reclaim."""
    group = _limited(bench)
    probe = bench.probe(group, "anon:a:8192", "wait", "write:a:0:8192", "wait")
    probe.arrive()
    probe.go("tick")
    bench.tick()
    events, alive = group.table("memory.events"), probe.alive()
    probe.end()
    before = 2 + MAX_RETRIES
    return [
        Golden("the task is killed", CHARGE, NO, alive),
        Golden("kills", CHARGE, exactly(1), events["oom_kill"]),
        Golden(
            "attempts at reclaim by memory.max, each an event max",
            CHARGE,
            exactly(before + 1 + MAX_RETRIES),
            events["max"],
            note=f"{before} up to the kill: one that drains the stocks, one, 16 retries; "
            "then 17 by the victim, before its charge is let pass",
        ),
    ]


def check_who_is_killed(bench: Bench) -> list[Golden]:
    """The largest, whoever asks; none at an adjustment of -1000; all with memory.oom.group."""
    big, _ = _two_tasks(bench, [], [], group_kill=False)
    exempt, other = _two_tasks(bench, ["adj:-1000"], [], group_kill=False)
    first, second = _two_tasks(bench, [], [], group_kill=True)
    badness, whole = "mm/oom_kill.c oom_badness", "mm/memcontrol.c mem_cgroup_get_oom_group"
    return [
        Golden(
            "the largest task lives after a smaller one's breach",
            badness,
            NO,
            big,
            note="with one CPU the smaller one often follows: its charge is tried again between "
            "the victim's end as a victim and the release of its pages",
        ),
        Golden("a task of adjustment -1000 lives", badness, YES, exempt),
        Golden("the task beside it lives", badness, NO, other),
        Golden("of a cgroup with memory.oom.group lives", whole, NO, first + second),
    ]


def check_cgroup_kill(bench: Bench) -> list[Golden]:
    """cgroup.kill ends all."""
    group = bench.cgroup()
    probes = [bench.probe(group, "anon:a:64", "write:a:0:64", "wait") for _ in range(3)]
    for probe in probes:
        probe.arrive()
    group.set("cgroup.kill", 1)
    bench.tick()
    alive = sum(probe.alive() for probe in probes)
    for probe in probes:
        probe.end()
    return [Golden("tasks alive after cgroup.kill", "kernel/cgroup/cgroup.c", NO, alive)]


def check_charge_batch(bench: Bench) -> list[Golden]:
    """memory.current grows by whole batches, kept in a stock per CPU."""
    group = bench.cgroup()
    touches = [word for k in range(20) for word in (f"write:a:{16 * k}:16", "wait")]
    probe = bench.probe(group, "anon:a:512", "wait", *touches)
    probe.arrive()
    usages = [group.usage_pages()]
    for _ in range(20):
        probe.run()
        usages.append(group.usage_pages())
    probe.end()
    largest = max(b - a for a, b in itertools.pairwise(usages))
    return [
        Golden(
            "largest step of memory.current while pages are touched a few at a time",
            f"{CHARGE}: MEMCG_CHARGE_BATCH",
            exactly(CHARGE_BATCH_PAGES),
            largest,
            "pages",
        )
    ]


def _over_high(
    bench: Bench, levels: Sequence[int], kind: str, how: str, pages: int
) -> list[tuple[int, list[float], float]]:
    """Grow to each level [% of HIGH_MIB] without swap, then charge some pages over memory.high.

    Returns:
        For each level: usage that the penalty sees [pages], stalls over 2 ms, and how often
        reclaim was tried.
    """
    unit = HUGE_PAGES if kind == "huge" else 1
    starts = [(HIGH_MIB * level * PAGES_PER_MIB // 100 - 384) // unit * unit for level in levels]
    words = [f"{kind}:a:{starts[-1] + pages}", "wait"]
    at = 0
    for start in starts:
        charge = f"stalls:a:{start}:{pages}:2000" if how == "stalls" else f"{how}:a:{start}:{pages}"
        words += [f"write:a:{at}:{start - at}", "wait", charge, "wait"]
        at = start + pages
    group = bench.cgroup()
    group.set("memory.swap.max", 0)
    probe = bench.probe(group, *words)
    probe.arrive()
    found: list[tuple[int, list[float], float]] = []
    for _ in levels:
        probe.run()
        before = group.usage_pages()
        group.set("memory.high", HIGH_MIB * MIB, nonblocking=True)
        events = group.table("memory.events")["high"]
        said = probe.run()
        attempts = group.table("memory.events")["high"] - events
        group.set("memory.high", "max")
        stalls = [us / 1e3 for _, us in said.stalls] if how == "stalls" else [said.us[how] / 1e3]
        found.append((before + max(pages if unit > 1 else 64, 64), stalls, attempts))
    probe.end()
    return found


def _delay_ms(bench: Bench, usage: int, charged: int) -> Expected:
    """What a sleep may take: timers run in jiffies, long ones more coarsely (kernel/time/timer.c).

    A wheel's level above the first counts in eight jiffies, sixty-four, and so on: up to an eighth.
    """
    jiffy_ms = 1000.0 / bench.hz
    jiffies = high_delay_jiffies(usage, HIGH_MIB * PAGES_PER_MIB, charged, bench.hz)
    if not slept(jiffies, bench.hz):
        return NO
    return between((jiffies - 1) * jiffy_ms, (jiffies * 1.125 + 1) * jiffy_ms + RECLAIM_MS)


def _filled(
    bench: Bench, mib: int, *, swap: bool = True, then: Sequence[str] = ()
) -> tuple[Cgroup, Probe]:
    """A cgroup with some private memory and a probe that waits."""
    pages = mib * PAGES_PER_MIB
    group = bench.cgroup()
    if not swap:
        group.set("memory.swap.max", 0)
    words = (f"anon:a:{pages}", "anon:b:4096", f"write:a:0:{pages}", "wait", *then)
    probe = bench.probe(group, *words)
    probe.arrive()
    return group, probe


def _limited(bench: Bench) -> Cgroup:
    group = bench.cgroup()
    group.set("memory.swap.max", 0)
    group.set("memory.max", 16 * MIB)
    return group


def _two_tasks(
    bench: Bench, first: Sequence[str], second: Sequence[str], *, group_kill: bool
) -> tuple[bool, bool]:
    """One task takes 12 of 16 MiB, then another one 8: who lives?"""
    group = _limited(bench)
    if group_kill:
        group.set("memory.oom.group", 1)
    big = bench.probe(group, *first, "anon:a:3072", "write:a:0:3072", "wait")
    big.arrive()
    small = bench.probe(group, *second, "anon:a:2048", "wait", "write:a:0:2048", "wait")
    small.arrive()
    small.go("tick")
    bench.tick()
    alive = big.alive(), small.alive()
    big.end()
    small.end()
    return alive
