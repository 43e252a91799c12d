"""Swap, zswap and their limits.

Source of the numbers: mm/swap.c, mm/page_io.c, mm/zswap.c, mm/memcontrol.c.

Units: pages, bytes, milliseconds.
"""

from __future__ import annotations

from memcg_gym.envs.lab.goldens.bench import MIB, Bench, Cgroup, Probe
from memcg_gym.envs.lab.goldens.formulas import PAGES_PER_MIB, high_delay_jiffies
from memcg_gym.envs.lab.goldens.golden import (
    NO,
    Golden,
    about,
    at_least,
    at_most,
    between,
    exactly,
)

ZSWAP = "/sys/module/zswap/parameters"
PAGES = 16 * PAGES_PER_MIB
EAGAIN = 11


def check_swap_max(bench: Bench) -> list[Golden]:
    """memory.swap.max: what does not fit stays in memory."""
    group, probe = _filled(bench, "write")
    group.set("memory.swap.max", 4 * MIB)
    errno = group.reclaim(PAGES // 2)
    swapped, usage = group.number("memory.swap.current") // 4096, group.usage_pages()
    probe.end()
    source = "mm/memcontrol.c mem_cgroup_get_nr_swap_pages"
    note = "generations leave swap alone once less than 64 pages of it are free (MIN_LRU_BATCH)"
    return [
        Golden(
            "pages swapped of 2048 at memory.swap.max = 1024",
            "mm/vmscan.c get_swappiness",
            between(1024 - 64, 1024),
            swapped,
            "pages",
            note,
        ),
        Golden("errno of the reclaim that wanted more", source, exactly(EAGAIN), errno),
        Golden("pages left in memory", source, at_least(PAGES - 1024), usage, "pages"),
    ]


def check_combined_limit(bench: Bench) -> list[Golden]:
    """swap.max = C - current, rewritten: memory and swap together stay below C."""
    group, probe = _filled(bench, "write")
    limit = group.usage_pages() + 64
    worst = 0
    for _ in range(4):
        group.set("memory.swap.max", (limit - group.usage_pages()) * 4096)
        group.reclaim(PAGES // 8)
        worst = max(worst, group.usage_pages() + group.number("memory.swap.current") // 4096)
    probe.end()
    return [
        Golden(
            "pages of memory and swap above the sum that is emulated",
            "mm/memcontrol.c",
            at_most(64),
            worst - limit,
            "pages",
            "a cgroup without room in swap is not reclaimed any further",
        )
    ]


def check_swap_high(bench: Bench) -> list[Golden]:
    """memory.swap.high throttles who charges memory, by the same square."""
    high_mib, over_mib = 8, 1
    group = bench.cgroup()
    pages = 24 * PAGES_PER_MIB
    words = (f"anon:a:{pages}", f"write:a:0:{pages - 128}", "wait")
    probe = bench.probe(group, *words, f"stalls:a:{pages - 128}:64:2000", "wait")
    probe.arrive()
    group.reclaim((high_mib + over_mib) * PAGES_PER_MIB)
    swapped = group.number("memory.swap.current") // 4096
    group.set("memory.swap.high", high_mib * MIB)
    said = probe.run()
    probe.end()
    jiffies = high_delay_jiffies(swapped, high_mib * PAGES_PER_MIB, 64, bench.hz)
    expected_ms = 1000.0 * jiffies / bench.hz
    over = 100.0 * swapped / high_mib / PAGES_PER_MIB
    return [
        Golden(
            f"a batch charged at {over:.1f} % of swap.high sleeps",
            "mm/memcontrol.c swap_find_max_overage",
            between(expected_ms - 4.0, 1.125 * expected_ms + 10.0),
            max((us / 1e3 for _, us in said.stalls), default=0.0),
            "ms",
        )
    ]


def check_zswap(bench: Bench) -> list[Golden]:
    """What compressed pages cost, by what is in them."""
    bench.write(f"{ZSWAP}/max_pool_percent", "20")
    bench.write(f"{ZSWAP}/enabled", "Y")
    found = []
    for fill in ("partly", "same", "zero", "noise"):
        found += _compressed(bench, fill)
    found += _bounded(bench)
    bench.write(f"{ZSWAP}/enabled", "N")
    return found


def _compressed(bench: Bench, fill: str) -> list[Golden]:
    group, probe = _filled(bench, fill)
    before = group.usage_pages()
    group.reclaim(PAGES // 2)
    fell = before - group.usage_pages()
    pool, stored, incomp, written = group.stat("zswap", "zswapped", "zswap_incomp", "pswpout")
    zeroes = group.stat("swpout_zero")[0]
    swapped = group.number("memory.swap.current") // 4096
    current = group.number("memory.zswap.current")
    stalls = group.stalled_us(), group.stalled_us("io")
    probe.run()
    stalled, waited = group.stalled_us() - stalls[0], group.stalled_us("io") - stalls[1]
    back = group.stat("zswpin", "swpin_zero", "pswpin")
    probe.end()
    store, zero = "mm/zswap.c zswap_store", "mm/page_io.c swap_writeout"
    what = f"zswap, {fill} pages"
    found = [Golden(f"{what}: pages written to the device", store, NO, written)]
    if fill == "zero":
        return [
            *found,
            Golden(
                f"{what}: remembered in a bit, of those swapped", zero, exactly(swapped), zeroes
            ),
            Golden(f"{what}: bytes they take", zero, NO, pool),
            Golden(f"{what}: usage falls by", zero, about(swapped, 64), fell, "pages"),
        ]
    paid = -(-pool // 4096)
    found += [
        Golden(f"{what}: bytes stored", store, exactly(swapped * 4096), stored),
        Golden(f"{what}: memory.zswap.current", store, exactly(pool), current, "B"),
        Golden(
            f"{what}: usage falls by what is swapped less what the pool takes",
            "mm/memcontrol.c obj_cgroup_charge_zswap",
            about(swapped - paid, 96),
            fell,
            "pages",
        ),
        Golden(f"{what}: come back from zswap", store, exactly(swapped), back[0], "pages"),
        Golden(f"{what}: I/O stall of that", store, NO, waited, "us"),
    ]
    if fill == "partly":
        ratio = stored / max(pool, 1)
        found.append(Golden(f"{what}: compression", store, between(1.5, 5.0), ratio))
        found.append(
            Golden(f"{what}: memory stall of that", "mm/page_io.c", at_least(1), stalled, "us")
        )
    if fill == "same":
        each = pool / max(swapped, 1)
        note = "compressed as any other page; a byte's repetition has no path of its own"
        found.append(Golden(f"{what}: bytes of each", store, between(16, 64), each, "B", note))
    if fill == "noise":
        found.append(
            Golden(
                f"{what}: kept though they do not compress",
                store,
                exactly(stored),
                incomp,
                "B",
                "as they are and charged in full: reclaim succeeds and usage does not fall",
                "go on to the device",
            )
        )
    return found


def _bounded(bench: Bench) -> list[Golden]:
    """memory.zswap.max = 0 sends pages to the device, with writeback = 0 nowhere."""
    group, probe = _filled(bench, "same")
    group.set("memory.zswap.max", 0)
    group.reclaim(PAGES // 4)
    stored, written = group.stat("zswpout", "pswpout")
    probe.end()
    source = "mm/zswap.c zswap_store: obj_cgroup_may_zswap"
    found = [
        Golden("pages stored at memory.zswap.max = 0", source, NO, stored),
        Golden("pages written to the device instead", source, at_least(PAGES // 4), written),
    ]
    group, probe = _filled(bench, "same")
    group.set("memory.zswap.max", 0)
    group.set("memory.zswap.writeback", 0)
    before = group.usage_pages()
    errno = group.reclaim(PAGES // 4)
    found += [
        Golden("errno with memory.zswap.writeback = 0 too", source, exactly(EAGAIN), errno),
        Golden("pages that leave memory", source, NO, before - group.usage_pages()),
    ]
    probe.end()
    return found


def _filled(bench: Bench, fill: str) -> tuple[Cgroup, Probe]:
    """A cgroup with private memory of some content, and a probe that can read all of it."""
    group = bench.cgroup()
    read = f"read:a:0:{PAGES}"
    probe = bench.probe(group, f"anon:a:{PAGES}", f"{fill}:a:0:{PAGES}", "wait", read, "wait")
    probe.arrive()
    return group, probe
