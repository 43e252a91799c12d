"""Proactive and global reclaim, watermarks, dirty pages, generations.

Source of the numbers: mm/vmscan.c, mm/page_alloc.c, mm/page-writeback.c, mm/khugepaged.c.

Units: pages, KiB, milliseconds as named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from memcg_gym.envs.lab.goldens.bench import FILES, Bench, Cgroup, Probe, numbers
from memcg_gym.envs.lab.goldens.formulas import (
    PAGES_PER_MIB,
    dirty_limits,
    huge_page_min_free_kib,
    min_free_kib,
    watermarks,
)
from memcg_gym.envs.lab.goldens.golden import (
    NO,
    Golden,
    about,
    at_least,
    at_most,
    between,
    exactly,
)

PROACTIVE = "mm/vmscan.c user_proactive_reclaim"
MARKS = "mm/page_alloc.c __setup_per_zone_wmarks"
EAGAIN = 11


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone of /proc/zoneinfo, in pages."""

    free: int
    managed: int
    marks: tuple[int, int, int, int]
    reserves: tuple[int, ...]


def check_proactive_reclaim(bench: Bench) -> list[Golden]:
    """memory.reclaim: how much, which memory, what errno, whose stall."""
    found = _proactive_amounts(bench)
    group, probe = _loaded(bench, anon_mib=16, file_mib=16)
    anon, file = group.stat("anon", "file")
    _reclaim(bench, group, 4 * PAGES_PER_MIB, " swappiness=0")
    anon_after, file_after = group.stat("anon", "file")
    found += [
        Golden("anonymous bytes that swappiness=0 takes", PROACTIVE, NO, anon - anon_after),
        Golden("page cache that it takes", PROACTIVE, at_least(4 << 20), file - file_after, "B"),
    ]
    _reclaim(bench, group, 4 * PAGES_PER_MIB, " swappiness=max")
    anon, file = group.stat("anon", "file")
    found += [
        Golden("page cache that swappiness=max takes", PROACTIVE, NO, file_after - file),
        Golden(
            "anonymous memory that it takes", PROACTIVE, at_least(4 << 20), anon_after - anon, "B"
        ),
    ]
    probe.end()
    return found


def check_writers_stall(bench: Bench) -> list[Golden]:
    """Reclaim asked for through a cgroup is no stall of who asks; through a node it is."""
    pages = 24 * PAGES_PER_MIB
    bench.drop_caches()
    group = bench.cgroup()
    # only pages that nothing maps make a node worth reclaiming
    words = (f"file:a:{FILES}:{pages}", f"read:a:0:{pages}", f"drop:a:0:{pages}", "wait")
    probe = bench.probe(group, *words)
    probe.arrive()
    asking = bench.cgroup()
    seen = []
    for path in (group.path / "memory.reclaim", "/sys/devices/system/node/node0/reclaim"):
        before = asking.stalled_us()
        writer = bench.probe(asking, f"put:{path}:4194304", "wait")
        errno = int(writer.arrive().values["errno"])
        seen.append((errno, asking.stalled_us() - before))
        writer.end()
    bench.drop_caches()
    node = bench.probe(asking, "put:/sys/devices/system/node/node0/reclaim:4194304", "wait")
    refused = int(node.arrive().values["errno"])
    node.end()
    probe.end()
    whole = "mm/vmscan.c __node_reclaim"
    return [
        Golden("errno of memory.reclaim", PROACTIVE, NO, seen[0][0]),
        Golden("memory stall of the writer of memory.reclaim", PROACTIVE, NO, seen[0][1], "us"),
        Golden("errno of node0/reclaim", whole, NO, seen[1][0]),
        Golden(
            "memory stall of the writer of node0/reclaim",
            whole,
            NO,
            seen[1][1],
            "us",
            before="enters psi_memstall there",
        ),
        Golden(
            "errno of node0/reclaim where the node has little unmapped page cache",
            f"{whole}: min_unmapped_pages",
            exactly(EAGAIN),
            refused,
            note="whatever anonymous memory it has",
        ),
    ]


def check_watermarks(bench: Bench) -> list[Golden]:
    """min, low, high and promo of every zone, from min_free_kbytes and watermark_scale_factor."""
    zones = _zones(bench)
    scale = int(bench.ask("get:/proc/sys/vm/watermark_scale_factor").got[0])
    min_free = int(bench.ask("get:/proc/sys/vm/min_free_kbytes").got[0])
    expected = watermarks(min_free // 4, [zone.managed for zone in zones], scale)
    return [
        Golden(
            f"watermark {name} of zone {k}, {zone.managed} pages",
            MARKS,
            about(mark, 1),
            seen,
            "pages",
        )
        for k, (zone, marks) in enumerate(zip(zones, expected, strict=True))
        for name, mark, seen in zip(("min", "low", "high", "promo"), marks, zone.marks, strict=True)
    ]


def check_min_free(bench: Bench) -> list[Golden]:
    """min_free_kbytes, with and without huge pages."""
    huge = "/sys/kernel/mm/transparent_hugepage/enabled"
    setting = "get:/proc/sys/vm/min_free_kbytes"
    found = []
    for mode in ("never", "always", "never"):
        lowmem = sum(zone.managed - zone.marks[2] for zone in _zones(bench))
        bench.write(huge, mode)
        seen = bench.ask(setting).got[0]
        wanted = min_free_kib(4 * lowmem)
        if mode == "always":
            wanted = max(wanted, huge_page_min_free_kib(len(_zones(bench)), lowmem))
        found.append((wanted, seen))
    _, on, off = found
    return [
        Golden(
            "min_free_kbytes without huge pages",
            "mm/page_alloc.c calculate_min_free_kbytes",
            about(off[0], 0.03 * off[0]),
            off[1],
            "KiB",
            "lowmem is what lies above the high watermarks that held before",
        ),
        Golden(
            "min_free_kbytes with transparent_hugepage = always",
            "mm/khugepaged.c set_recommended_min_free_kbytes",
            about(on[0], 0.03 * on[0]),
            on[1],
            "KiB",
            "the square root alone would be "
            f"{min_free_kib(4 * sum(zone.managed for zone in _zones(bench)))}",
        ),
    ]


def check_background_reclaim(bench: Bench) -> list[Golden]:
    """Kswapd keeps a stream of page cache off the low watermark, and stops at the high one."""
    bench.drop_caches()
    bench.write(f"/sys/block/{FILES.name}/queue/read_ahead_kb", "128")
    pages = 480 * PAGES_PER_MIB
    group = bench.cgroup()
    probe = bench.probe(group, f"file:a:{FILES}:{pages}", f"read:a:0:{pages}", "wait")
    probe.arrive()
    bench.tick()
    steals = group.stat("pgsteal_kswapd", "pgsteal_direct")
    zones = _zones(bench)
    free = sum(zone.free for zone in zones[1:])
    low, high = (sum(zone.marks[k] for zone in zones[1:]) for k in (1, 2))
    probe.end()
    bench.write(f"/sys/block/{FILES.name}/queue/read_ahead_kb", "0")
    bench.drop_caches()
    return [
        Golden("pages kswapd took", "mm/vmscan.c balance_pgdat", at_least(1000), steals[0]),
        Golden(
            "pages the reader had to take itself",
            "mm/page_alloc.c __alloc_pages_slowpath",
            at_most(0.25 * steals[0]),
            steals[1],
        ),
        Golden(
            "free pages when it is over",
            "mm/vmscan.c pgdat_balanced",
            between(low, high + 2048),
            free,
            "pages",
            f"low {low}, high {high}",
        ),
    ]


def check_dirty_limits(bench: Bench) -> list[Golden]:
    """Dirty thresholds as an ordinary task meets them."""
    names = ("nr_dirty_threshold", "nr_dirty_background_threshold", "nr_free_pages")
    lists = ("nr_inactive_file", "nr_active_file")
    got = bench.ask(*(f"get:/proc/vmstat:{name}" for name in names + lists)).got
    reserved = sum(
        min(max(zone.reserves, default=0) + zone.marks[2], zone.managed) for zone in _zones(bench)
    )
    expected = dirty_limits(int(sum(got[2:])) - reserved)
    source = "mm/page-writeback.c domain_dirty_limits"
    settings = ("dirty_writeback_centisecs", "dirty_expire_centisecs")
    times = bench.ask(*(f"get:/proc/sys/vm/{name}" for name in settings)).got
    return [
        Golden("dirty threshold", source, about(expected[0], 32), got[0], "pages"),
        Golden("background threshold", source, about(expected[1], 32), got[1], "pages"),
        Golden("interval of the flusher", "mm/page-writeback.c", exactly(500), times[0], "cs"),
        Golden("age at which it writes", "mm/page-writeback.c", exactly(3000), times[1], "cs"),
    ]


def check_dirty_reclaim(bench: Bench) -> list[Golden]:
    """Reclaim does not write file pages: it wakes the flusher, and takes them once clean."""
    bench.drop_caches()
    group = bench.cgroup()
    pages = 16 * PAGES_PER_MIB
    probe = bench.probe(group, f"file:a:{FILES}:{pages}", f"write:a:0:{pages}", "wait")
    probe.arrive()
    dirty = group.stat("file_dirty")[0] // 4096
    before = numbers(bench.read("/proc/vmstat")[0])
    group.reclaim(pages // 2)
    bench.tick(2)
    after = numbers(bench.read("/proc/vmstat")[0])
    errno = group.reclaim(pages // 4)
    probe.end()
    source = "mm/vmscan.c shrink_folio_list"
    rise = {name: after[name] - before[name] for name in after}
    return [
        Golden("dirty pages written to", "mm/page-writeback.c", about(pages, 64), dirty, "pages"),
        Golden("file pages that reclaim wrote", source, NO, rise["nr_vmscan_write"]),
        Golden(
            "marked to be taken as soon as they are clean",
            source,
            at_least(1),
            rise["nr_vmscan_immediate_reclaim"],
        ),
        Golden(
            "pages the flusher wrote because of it, long before they expire",
            "mm/vmscan.c wakeup_flusher_threads",
            at_least(pages // 2),
            rise["nr_written"],
        ),
        Golden("errno of a reclaim after that", PROACTIVE, NO, errno),
    ]


def check_generations(bench: Bench) -> list[Golden]:
    """lru_gen: two to four generations; a walk makes one, and moves what was touched to it."""
    group, probe = _loaded(bench, anon_mib=16, file_mib=0, touch_mib=4)
    seen = [bench.generations(group)]
    for _ in range(3):
        bench.age(group)
        seen.append(bench.generations(group))
    probe.run()
    bench.age(group)
    seen.append(bench.generations(group))
    probe.end()
    counts = [len(generations) for generations in seen]
    youngest, rest = seen[-1][-1], seen[-1][:-1]
    total = sum(row.anon_pages for row in seen[-1])
    source = "mm/vmscan.c lru_gen_change_state, walk_mm"
    ttl = int(bench.read("/sys/kernel/mm/lru_gen/min_ttl_ms")[0])
    return [
        Golden("fewest generations seen", "MIN_NR_GENS", at_least(2), min(counts)),
        Golden("most generations seen", "MAX_NR_GENS", at_most(4), max(counts)),
        Golden(
            "generations a walk adds to the youngest's number",
            source,
            exactly(1),
            seen[2][-1].number - seen[1][-1].number,
        ),
        Golden(
            "pages the first walk promotes, all touched once",
            "mm/vmscan.c folio_update_gen",
            about(16 * PAGES_PER_MIB, 256),
            seen[1][-2].anon_pages,
            "pages",
            "to what was the youngest generation; a fault marks a page as referenced already "
            "(mm/mglru: use folio_mark_accessed to replace folio_set_active)",
            "none: the first sighting only marks them as referenced",
        ),
        Golden(
            "pages in the second youngest after a walk that saw 4 MiB touched",
            source,
            about(4 * PAGES_PER_MIB, 128),
            max(youngest.anon_pages, rest[-1].anon_pages),
            "pages",
        ),
        Golden(
            "pages in all generations",
            source,
            about(16 * PAGES_PER_MIB, 256),
            total,
            "pages",
        ),
        Golden("min_ttl_ms", "mm/vmscan.c lru_gen_min_ttl", NO, ttl),
    ]


def _proactive_amounts(bench: Bench) -> list[Golden]:
    group, probe = _loaded(bench, anon_mib=24, file_mib=0)
    before = group.usage_pages()
    asked = 6 * PAGES_PER_MIB
    errno = group.reclaim(asked)
    taken = before - group.usage_pages()
    group.set("memory.swap.max", 0)
    nothing = group.reclaim(asked)
    again = before - taken - group.usage_pages()
    probe.end()
    return [
        Golden("errno of memory.reclaim", PROACTIVE, NO, errno),
        Golden(
            "pages it takes of 1536",
            PROACTIVE,
            between(asked - 64, 1.25 * asked),
            taken,
            "pages",
            "the last batch may take too much",
        ),
        Golden("errno where nothing can be had", PROACTIVE, exactly(EAGAIN), nothing),
        Golden("pages taken then", PROACTIVE, at_most(64), again, "pages"),
    ]


def _loaded(
    bench: Bench, *, anon_mib: int, file_mib: int, touch_mib: int = 0
) -> tuple[Cgroup, Probe]:
    """A cgroup with private memory and clean page cache, touched once."""
    bench.drop_caches()
    anon, file = anon_mib * PAGES_PER_MIB, file_mib * PAGES_PER_MIB
    words = [f"anon:a:{anon}", f"write:a:0:{anon}"] if anon else []
    if file:
        words += [f"file:b:{FILES}:{file}", f"read:b:0:{file}"]
    group = bench.cgroup()
    touch = f"read:a:0:{touch_mib * PAGES_PER_MIB}"
    probe = bench.probe(group, *words, "wait", touch, "wait")
    probe.arrive()
    return group, probe


def _reclaim(bench: Bench, group: Cgroup, pages: int, options: str = "") -> int:
    """memory.reclaim by the agent, for options have a space in them."""
    return bench.write_errno(group.path / "memory.reclaim", f"{pages * 4096}{options}")


def _zones(bench: Bench) -> list[Zone]:
    """Zones that have pages."""
    text = bench.read("/proc/zoneinfo")[0]
    zones = []
    for part in re.split(r"^Node \d+, zone +\w+$", text, flags=re.MULTILINE)[1:]:
        values = {
            name: int(value)
            for name, value in re.findall(
                r"^ +(?:pages )?(free|min|low|high|promo|managed) +(\d+)$", part, re.MULTILINE
            )
        }
        if not values["managed"]:
            continue
        reserves = re.search(r"protection: \(([\d, ]+)\)", part)
        words = reserves[1].split(", ") if reserves else []
        marks = (values["min"], values["low"], values["high"], values["promo"])
        zones.append(Zone(values["free"], values["managed"], marks, tuple(map(int, words))))
    return zones
