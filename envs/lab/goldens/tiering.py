"""Two tiers: demotion instead of eviction, promotion by hint faults.

Source of the numbers: mm/memory-tiers.c, mm/vmscan.c, kernel/sched/fair.c.

Units: pages.
"""

from __future__ import annotations

from memcg_gym.envs.lab.goldens.bench import Bench, Cgroup
from memcg_gym.envs.lab.goldens.formulas import PAGES_PER_MIB
from memcg_gym.envs.lab.goldens.golden import NO, Golden, about, at_least, between, exactly

DEMOTE = "mm/vmscan.c demote_folio_list"
PROMOTE = "kernel/sched/fair.c should_numa_migrate_memory"
SWITCH = "/sys/kernel/mm/numa/demotion_enabled"
PAGES = 64 * PAGES_PER_MIB
EAGAIN = 11


def check_defaults(bench: Bench) -> list[Golden]:
    """What a kernel with two tiers does before anybody tells it anything."""
    enabled, threshold = bench.read(
        SWITCH, "/sys/kernel/debug/sched/numa_balancing/hot_threshold_ms"
    )
    limit = bench.ask("get:/proc/sys/kernel/numa_balancing_promote_rate_limit_MBps").got[0]
    return [
        Golden("demotion_enabled", "mm/memory-tiers.c", NO, enabled.strip() not in ("0", "false")),
        Golden("hot_threshold_ms", "kernel/sched/core.c", exactly(1000), int(threshold), "ms"),
        Golden("promotion's rate limit", "kernel/sched/core.c", exactly(65536), limit, "MB/s"),
    ]


def check_demotion_and_promotion(bench: Bench) -> list[Golden]:
    """Demotion counts as reclaim and frees nothing of the cgroup; touched pages come back."""
    group = bench.cgroup()
    read = f"read:a:0:{PAGES}"
    words = (f"anon:a:{PAGES}", f"write:a:0:{PAGES}", "wait", "mark", read, "burn:5", "again:9999")
    probe = bench.probe(group, *words)
    probe.arrive()
    usage = group.usage_pages()
    off = group.reclaim(PAGES // 4)
    found = [
        Golden("errno of a reclaim with demotion off and no swap", DEMOTE, exactly(EAGAIN), off),
        Golden("pages demoted by it", DEMOTE, NO, sum(_demoted(group))),
    ]
    bench.write(SWITCH, "1")
    on = group.reclaim(PAGES // 2)
    demoted, stolen = _demoted(group)
    fell = usage - group.usage_pages()
    slow = _nodes(group)[1]
    found += [
        Golden("errno with demotion on", DEMOTE, NO, on),
        Golden("pages demoted", DEMOTE, about(PAGES // 2, 128), demoted, "pages"),
        Golden("pages counted as stolen", DEMOTE, exactly(demoted), stolen, "pages"),
        Golden(
            "pages by which memory.current falls",
            f"{DEMOTE}: counted in nr_reclaimed",
            between(-64, 64),
            fell,
            "pages",
            "a trimmer that trusts the write has moved memory, not freed it",
        ),
        Golden("pages on the slow node", "memory.numa_stat", exactly(demoted), slow, "pages"),
    ]
    bench.write("/proc/sys/kernel/numa_balancing", "2")
    probe.go("tick")
    ticks = 0
    while _nodes(group)[1] > 0 and ticks < 8:
        bench.tick()
        ticks += 1
    promoted, faults = group.stat("pgpromote_success", "numa_hint_faults")
    left = _nodes(group)[1]
    probe.end()
    bench.write("/proc/sys/kernel/numa_balancing", "0")
    bench.write(SWITCH, "0")
    return [
        *found,
        Golden("pages promoted, all being touched", PROMOTE, exactly(slow), promoted, "pages"),
        Golden("hint faults for that", PROMOTE, at_least(promoted), faults),
        Golden("pages left on the slow node", PROMOTE, NO, left, "pages"),
    ]


def _demoted(group: Cgroup) -> tuple[int, int]:
    names = ("pgdemote_proactive", "pgdemote_direct", "pgdemote_kswapd")
    stolen = group.stat("pgsteal_proactive", "pgsteal_direct", "pgsteal_kswapd")
    return sum(group.stat(*names)), sum(stolen)


def _nodes(group: Cgroup) -> tuple[int, int]:
    """Anonymous pages on each of the two nodes."""
    for line in group.text("memory.numa_stat").splitlines():
        words = line.split()
        if words[0] == "anon":
            fast, slow = (int(word.partition("=")[2]) // 4096 for word in words[1:3])
            return fast, slow
    return 0, 0
