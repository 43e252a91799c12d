"""Memory that two cgroups use: who pays, who keeps it in memory.

Source of the numbers: mm/filemap.c, mm/shmem.c, mm/rmap.c.

Units: pages.
"""

from __future__ import annotations

from memcg_gym.envs.lab.goldens.bench import FILES, Bench, Cgroup
from memcg_gym.envs.lab.goldens.formulas import PAGES_PER_MIB
from memcg_gym.envs.lab.goldens.golden import NO, Golden, about, at_least, exactly

PAGES = 4 * PAGES_PER_MIB
CHARGE = "mm/filemap.c __filemap_add_folio: mem_cgroup_charge"


def check_owner(bench: Bench) -> list[Golden]:
    """The first to touch a page pays for it; after an eviction the next one does."""
    bench.drop_caches()
    words = (f"file:a:{FILES}:{PAGES}", "wait", "mark", f"read:a:0:{PAGES}", "wait", "again:3")
    first, second = bench.cgroup(), bench.cgroup()
    probes = [bench.probe(group, *words) for group in (first, second)]
    for probe in probes:
        probe.arrive()
    probes[0].run()
    probes[1].run()
    found = [
        Golden("pages the first to touch them pays for", CHARGE, exactly(PAGES), _cache(first)),
        Golden("pages the second one pays for", CHARGE, NO, _cache(second)),
    ]
    first.reclaim(PAGES // 2)
    evicted = PAGES - _cache(first)
    probes[1].run()
    moved, refaults = _cache(second), second.stat("workingset_refault_file")[0]
    found += [
        Golden(
            "pages it pays for after they were evicted and it came back",
            CHARGE,
            exactly(evicted),
            moved,
        ),
        Golden(
            "refaults that counts",
            "mm/workingset.c lru_gen_refault: another lruvec",
            NO,
            refaults + first.stat("workingset_refault_file")[0],
        ),
    ]
    for probe in probes:
        probe.end()
    return found


def check_swapped_owner(bench: Bench) -> list[Golden]:
    """Swapped shared memory comes back to whom it was charged, whoever touches it."""
    first, second = bench.cgroup(), bench.cgroup()
    words = (f"file:a:/tmp/shared:{PAGES}", f"noise:a:0:{PAGES}", "wait")
    owner = bench.probe(first, *words)
    owner.arrive()
    other = bench.probe(second, f"file:a:/tmp/shared:{PAGES}", "wait", f"read:a:0:{PAGES}", "wait")
    other.arrive()
    first.reclaim(PAGES // 2)
    swapped = first.number("memory.swap.current") // 4096
    other.run()
    owners = first.stat("shmem")[0] // 4096, second.stat("shmem")[0] // 4096
    owner.end()
    other.end()
    source = "mm/memcontrol.c mem_cgroup_swapin_charge_folio"
    return [
        Golden(
            "pages of shared memory that went to swap", source, at_least(PAGES // 2 - 64), swapped
        ),
        Golden(
            "pages the owner pays for after another cgroup touched them",
            source,
            exactly(PAGES),
            owners[0],
        ),
        Golden("pages the other one pays for", source, NO, owners[1]),
    ]


def check_heat_of_others(bench: Bench) -> list[Golden]:
    """Reclaim of a cgroup does not see that another one uses its pages."""
    bench.drop_caches()
    pages = 4 * PAGES
    owner, user = bench.cgroup(), bench.cgroup()
    idle = bench.probe(owner, f"file:a:{FILES}:{pages}", f"read:a:0:{pages}", "wait")
    idle.arrive()
    touch = f"read:a:0:{pages}"
    busy = bench.probe(
        user, f"file:a:{FILES}:{pages}", touch, "wait", "mark", touch, "wait", "again:9"
    )
    busy.arrive()
    for _ in range(3):
        bench.age(owner)
        busy.run()
    owner.reclaim(pages // 4)
    evicted = pages - _cache(owner)
    faults = user.stat("pgmajfault")[0]
    busy.run()
    again = user.stat("pgmajfault")[0] - faults
    idle.end()
    busy.end()
    return [
        Golden(
            "pages evicted from their owner, that another cgroup has just touched",
            "mm/rmap.c invalid_folio_referenced_vma",
            about(pages // 4, 64),
            evicted,
            note="a page hot only in another cgroup looks cold",
        ),
        Golden("faults that costs the other one", "mm/filemap.c", exactly(evicted), again),
    ]


def _cache(group: Cgroup) -> int:
    return group.stat("file")[0] // 4096
