"""Refaults: what is counted, what activates, what is a memory stall.

Source of the numbers: mm/workingset.c, mm/filemap.c, mm/page_io.c.

Units: pages, microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from memcg_gym.envs.lab.goldens.bench import FILES, MIB, Bench, Cgroup, Probe
from memcg_gym.envs.lab.goldens.formulas import PAGES_PER_MIB
from memcg_gym.envs.lab.goldens.golden import NO, YES, Golden, about, at_least, at_most, exactly

REFAULT = "mm/workingset.c lru_gen_refault"
STALL = "mm/filemap.c folio_wait_bit_common"
PAGES = 16 * PAGES_PER_MIB
COUNTERS = ("refault", "activate", "restore")


def check_file_refault(bench: Bench) -> list[Golden]:
    """A mapped file page that comes back: counted, recent, and a stall once it was active."""
    group, probe = _cached(bench)
    before = _counters(group, "file")
    first, gone = _evict_and_read(group, probe)
    once = _counters(group, "file")
    second, again = _evict_and_read(group, probe)
    twice = _counters(group, "file")
    probe.end()
    refaults, activations, restores = (b - a for a, b in zip(before, once, strict=True))
    return [
        Golden("refaults of the evicted pages", REFAULT, exactly(gone), refaults, "pages"),
        Golden("they activate", REFAULT, about(refaults, 0.02 * gone), activations),
        Golden(
            "they carry the workingset flag, though touched once",
            REFAULT,
            about(refaults, 0.02 * gone),
            restores,
            note="a fault is the first reference, a walk that finds them young the second",
            before="a page touched once is marked as referenced, and no more",
        ),
        Golden("memory stall, of the I/O's", STALL, at_least(0.9), first[0] / max(first[1], 1)),
        Golden("refaults at the second time", REFAULT, exactly(again), twice[0] - once[0], "pages"),
        Golden("I/O stall of a page", STALL, about(80.0, 40.0), second[1] / max(again, 1), "us"),
    ]


def check_page_that_was_never_active(bench: Bench) -> list[Golden]:
    """Evicted without having been referenced again, a page costs I/O and no memory stall."""
    touch, drop = f"read:a:0:{PAGES}", f"drop:a:0:{PAGES}"
    found = []
    for what, words, advice in (
        ("read through a descriptor", (f"pread:{FILES}:{PAGES}",), ()),
        ("of a mapping that says random", (touch,), ("random:a",)),
        ("mapped, touched once and unmapped", (touch, drop), ()),
    ):
        group, probe = _cached(bench, words, advice)
        before = _counters(group, "file")
        (memory_us, io_us), _ = _evict_and_read(group, probe)
        refaults, activations, _ = (
            b - a for a, b in zip(before, _counters(group, "file"), strict=True)
        )
        probe.end()
        io = "block/blk-core.c submit_bio_wait, folio locks"
        activated = Golden(
            f"activations of pages {what}",
            REFAULT,
            NO,
            activations,
            "pages",
            before="each recent refault by a fault counts as one" if drop in words else "",
        )
        found += [
            Golden(f"refaults of pages {what}", REFAULT, at_least(PAGES // 5), refaults, "pages"),
            activated,
            Golden(f"memory stall of pages {what}", STALL, NO, memory_us, "us"),
            Golden(f"I/O stall of pages {what}", io, at_least(40.0 * refaults), io_us, "us"),
        ]
    return found


def check_entry(bench: Bench) -> list[Golden]:
    """Where a page that is touched for the first time enters the generations 0 to 3."""
    bench.drop_caches()
    group = bench.cgroup()
    words = (
        f"file:a:{FILES}:{PAGES}",
        f"read:a:0:{PAGES}",
        f"anon:b:{PAGES}",
        f"write:b:0:{PAGES}",
    )
    probe = bench.probe(group, *words, "wait")
    probe.arrive()
    rows = bench.generations(group)
    probe.end()
    source = "include/linux/mm_inline.h lru_gen_folio_seq"
    files = max(rows, key=lambda row: row.file_pages)
    anons = max(rows, key=lambda row: row.anon_pages)
    return [
        Golden(
            "generations that a new anonymous page is behind the youngest",
            source,
            exactly(1),
            rows[-1].number - anons.number,
        ),
        Golden(
            "generations a new mapped file page is behind the youngest",
            source,
            exactly(2),
            rows[-1].number - files.number,
            before="1, as an anonymous one: a fault sets PG_active",
        ),
    ]


def check_loop(bench: Bench) -> list[Golden]:
    """A mapped file of 24 MiB read round and round under 16 MiB."""
    pages = 24 * PAGES_PER_MIB
    bench.drop_caches()
    group = bench.cgroup()
    group.set("memory.high", 16 * MIB)
    touch = f"read:a:0:{pages}"
    words = (f"file:a:{FILES}:{pages}", touch, "wait", "mark", touch, "wait", "again:9")
    probe = bench.probe(group, *words)
    probe.arrive()
    probe.run()
    before, youngest = _counters(group, "file"), bench.generations(group)[-1].number
    probe.run()
    probe.run()
    refaults, _, restores = (b - a for a, b in zip(before, _counters(group, "file"), strict=True))
    made = bench.generations(group)[-1].number - youngest
    probe.end()
    return [
        Golden("refaults of a round", REFAULT, about(pages, 64), refaults / 2, "pages"),
        Golden(
            "generations a round makes",
            "mm/vmscan.c should_run_aging",
            at_least(3),
            made / 2,
            note="so many that the round before is no longer recent",
        ),
        Golden("refaults that restore a working set", REFAULT, at_most(0.1), restores / refaults),
    ]


def check_anon_refault(bench: Bench) -> list[Golden]:
    """A swapped page that comes back by a fault."""
    group = bench.cgroup()
    probe = bench.probe(
        group, f"anon:a:{PAGES}", f"write:a:0:{PAGES}", "wait", f"read:a:0:{PAGES}", "wait"
    )
    probe.arrive()
    before = _counters(group, "anon")
    (memory_us, io_us), gone = _evict_and_read(group, probe)
    after = _counters(group, "anon")
    probe.end()
    names = ("refaults", "activations", "restorations")
    otherwise = ("", "", "none: a page touched once is marked as referenced, and no more")
    found = [
        Golden(f"{name} of swapped pages", REFAULT, exactly(gone), b - a, "pages", before=then)
        for name, a, b, then in zip(names, before, after, otherwise, strict=True)
    ]
    swap_in = "mm/page_io.c swap_read_folio"
    return [*found, Golden("memory stall, of the I/O's", swap_in, at_least(1.0), memory_us / io_us)]


def check_old_eviction(bench: Bench) -> list[Golden]:
    """After four generations an eviction is no longer recent: counted, not activated."""
    found = []
    for walks, recent in ((0, True), (4, False)):
        group, probe = _cached(bench)
        before = _counters(group, "file")
        group.reclaim(PAGES // 4)
        for _ in range(walks):
            bench.age(group)
        faults = group.stat("pgmajfault")[0]
        probe.run()
        gone = group.stat("pgmajfault")[0] - faults
        refaults, activations, _ = (
            b - a for a, b in zip(before, _counters(group, "file"), strict=True)
        )
        probe.end()
        found += [
            Golden(f"refaults {walks} walks later", REFAULT, exactly(gone), refaults, "pages"),
            Golden(
                f"activations {walks} walks later",
                f"{REFAULT}: MAX_NR_GENS",
                about(gone, 0.05 * gone) if recent else at_most(0.05 * gone),
                activations,
                "pages",
            ),
        ]
    return found


def check_generations_of_a_reclaim(bench: Bench) -> list[Golden]:
    """Reclaim that finds pages in use makes generations until it has what it wants."""
    group, probe = _cached(bench)
    before = bench.generations(group)[-1].number
    group.reclaim(PAGES // 8)
    made = bench.generations(group)[-1].number - before
    probe.end()
    return [
        Golden(
            "generations one reclaim makes where all pages have been touched",
            "mm/vmscan.c lru_gen_shrink_lruvec, should_run_aging",
            at_least(1),
            made,
            note="each makes earlier evictions older: after four they are no longer recent",
        ),
        Golden("it makes at least the MIN_NR_GENS it needs", "mm/vmscan.c", YES, made >= 2),
    ]


def _cached(
    bench: Bench,
    read: Sequence[str] = (f"read:a:0:{PAGES}",),
    advice: Sequence[str] = (),
) -> tuple[Cgroup, Probe]:
    """A cgroup with clean page cache, read once; each further run reads all of it again."""
    bench.drop_caches()
    group = bench.cgroup()
    words = (f"file:a:{FILES}:{PAGES}", *advice, *read, "wait", "mark", *read, "wait", "again:9")
    probe = bench.probe(group, *words)
    probe.arrive()
    return group, probe


def _evict_and_read(group: Cgroup, probe: Probe) -> tuple[tuple[float, float], int]:
    """Reclaim a quarter, then touch all: memory and I/O stall [us], and how many faults waited."""
    group.reclaim(PAGES // 4)
    stalls = group.stalled_us(), group.stalled_us("io")
    faults = group.stat("pgmajfault")[0]
    probe.run()
    rise = group.stalled_us() - stalls[0], group.stalled_us("io") - stalls[1]
    return rise, group.stat("pgmajfault")[0] - faults


def _counters(group: Cgroup, kind: str) -> list[int]:
    return group.stat(*(f"workingset_{name}_{kind}" for name in COUNTERS))
