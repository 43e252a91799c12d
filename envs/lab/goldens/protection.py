"""memory.min and memory.low of cgroups under a parent's reclaim: mm/page_counter.c, mm/vmscan.c.

Units: pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memcg_gym.envs.lab.goldens.bench import MIB, Bench, Cgroup, Probe
from memcg_gym.envs.lab.goldens.formulas import PAGES_PER_MIB, effective_protection
from memcg_gym.envs.lab.goldens.golden import (
    NO,
    YES,
    Golden,
    about,
    at_least,
    at_most,
    between,
    exactly,
)

FORMULA = "mm/page_counter.c effective_protection"
SHARE = "mm/vmscan.c apply_proportional_protection"
SLACK_PAGES = 128
"""A reclaim batch of 32 and what a cgroup's own stock and tables come to."""
EAGAIN = 11


@dataclass(frozen=True, slots=True)
class Family:
    """A reclaimed cgroup, its only child, and that one's children with a probe each."""

    top: Cgroup
    parent: Cgroup
    children: Sequence[Cgroup]
    probes: Sequence[Probe]

    def end(self) -> None:
        """End all probes."""
        for probe in self.probes:
            probe.end()


def check_shares_with_recursion(bench: Bench) -> list[Golden]:
    """What is left of two children once their grandparent has nothing more to give."""
    bench.mount_cgroups(recursive=True)  # as systemd does; the agent's own mount is not
    found = []
    for settings in ((30, 30, 15, 40, 40), (30, 20, 0, 40, 40), (30, 0, 0, 40, 20)):
        found += _exhausted(bench, *settings, recursive=True)
    return found


def check_shares_without_recursion(bench: Bench) -> list[Golden]:
    """The same under cgroup2 mounted without memory_recursiveprot."""
    bench.mount_cgroups(recursive=False)
    found = []
    for settings in ((30, 20, 0, 40, 40), (30, 30, 15, 40, 40)):
        found += _exhausted(bench, *settings, recursive=False)
    bench.mount_cgroups(recursive=True)
    return found


def check_minimum(bench: Bench) -> list[Golden]:
    """memory.min is not reclaimed by an ancestor, and nothing else is a target's protection."""
    family = _family(bench, "memory.min", 64, (32, 0), (24, 8))
    kept, other = family.children
    before = kept.usage_pages()
    errno = family.parent.reclaim(64 * PAGES_PER_MIB)
    lost = before - kept.usage_pages()
    found = [
        Golden(
            "errno of a reclaim that memory.min leaves too little to", SHARE, exactly(EAGAIN), errno
        ),
        Golden("pages of a cgroup below its memory.min that its parent takes", SHARE, NO, lost),
        Golden(
            "pages left to a sibling without",
            SHARE,
            at_most(2 * SLACK_PAGES),
            other.stat("anon")[0] / 4096 - _own_pages(bench),
        ),
    ]
    errno = kept.reclaim(4 * PAGES_PER_MIB)
    taken = before - kept.usage_pages()
    found.append(
        Golden(
            "pages a reclaim of 4 MiB takes from its very target, whatever its memory.min",
            "mm/page_counter.c page_counter_calculate_protection: the target has none",
            between(4 * PAGES_PER_MIB - SLACK_PAGES, 8 * PAGES_PER_MIB),
            taken,
            "pages",
        )
    )
    family.end()
    return found


def check_low_override(bench: Bench) -> list[Golden]:
    """memory.low is respected while there is anything else, and overridden then."""
    family = _family(bench, "memory.low", 64, (24, 0), (20, 20))
    kept = family.children[0]
    before = kept.usage_pages()
    family.parent.reclaim(8 * PAGES_PER_MIB)
    lost, events = before - kept.usage_pages(), kept.table("memory.events")["low"]
    found = [
        Golden(
            "pages of a cgroup below its memory.low that a first reclaim takes", SHARE, NO, lost
        ),
        Golden("events low meanwhile", SHARE, NO, events),
    ]
    errno = family.parent.reclaim(20 * PAGES_PER_MIB)
    found += [
        Golden("errno of one that must go below memory.low", SHARE, NO, errno),
        Golden(
            "pages it takes from the protected cgroup",
            "mm/vmscan.c do_try_to_free_pages: memcg_low_reclaim",
            at_least(1),
            before - kept.usage_pages(),
            "pages",
        ),
        Golden(
            "events low, once it is overridden",
            "mm/vmscan.c shrink_node_memcgs",
            at_least(1),
            kept.table("memory.events")["low"],
        ),
    ]
    family.end()
    return found


def check_proportion_of_low(bench: Bench) -> list[Golden]:
    """A cgroup over its memory.low is scanned less, in proportion to what is protected of it."""
    taken = []
    for low_mib in (0, 24):
        family = _family(bench, "memory.low", 64, (low_mib, 0), (32, 32))
        before = [child.usage_pages() for child in family.children]
        for _ in range(8):
            family.parent.reclaim(PAGES_PER_MIB)
        taken.append(
            [b - child.usage_pages() for b, child in zip(before, family.children, strict=True)]
        )
        family.end()
    (even, other), (protected, rest) = taken
    return [
        Golden(
            "share of 8 MiB that one of two equal siblings gives",
            SHARE,
            about(0.5, 0.15),
            even / (even + other),
        ),
        Golden(
            "the same with three quarters of it under memory.low",
            SHARE,
            between(0.0, 0.3),
            protected / (protected + rest),
            note="in proportion 0.2; a small request ends before it comes round to every cgroup",
        ),
        Golden("the sibling still gives", SHARE, YES, rest > 0),
    ]


def _exhausted(
    bench: Bench, p_mib: int, a_mib: int, b_mib: int, a_used: int, b_used: int, *, recursive: bool
) -> list[Golden]:
    """Reclaim until nothing is left that memory.min does not protect."""
    family = _family(bench, "memory.min", p_mib, (a_mib, b_mib), (a_used, b_used))
    family.top.reclaim(200 * PAGES_PER_MIB)
    usages = [child.usage_pages() for child in family.children]
    parent = family.parent.usage_pages()
    family.end()
    settings = [a_mib * PAGES_PER_MIB, b_mib * PAGES_PER_MIB]
    claimed = sum(min(u, s) for u, s in zip(usages, settings, strict=True))
    how = f"min {a_mib} and {b_mib} MiB under {p_mib}{'' if recursive else ', not recursive'}"
    found = []
    for name, usage, setting in zip("AB", usages, settings, strict=True):
        worth = effective_protection(
            usage, setting, parent, p_mib * PAGES_PER_MIB, claimed, recursive=recursive
        )
        # what cannot be reclaimed, a task's stack and tables, stays whatever the protection
        worth = max(worth, 0.0 if worth else _own_pages(bench))
        found.append(
            Golden(f"{how}: {name} keeps", FORMULA, about(worth, SLACK_PAGES), usage, "pages")
        )
    if recursive:
        total = exactly(0).most + p_mib * PAGES_PER_MIB
        found.append(
            Golden(f"{how}: both keep", FORMULA, about(total, SLACK_PAGES), sum(usages), "pages")
        )
    return found


def _family(
    bench: Bench, file: str, p_mib: int, settings: Sequence[int], used: Sequence[int]
) -> Family:
    top = bench.cgroup(controllers="+memory")
    parent = bench.cgroup(parent=top, controllers="+memory")
    children = [bench.cgroup(parent=parent) for _ in used]
    probes = []
    for child, mib in zip(children, used, strict=True):
        pages = mib * PAGES_PER_MIB
        probes.append(bench.probe(child, f"anon:a:{pages}", f"write:a:0:{pages}", "wait"))
        probes[-1].arrive()
    parent.set(file, p_mib * MIB)
    for child, mib in zip(children, settings, strict=True):
        child.set(file, mib * MIB)
    return Family(top, parent, children, probes)


def _own_pages(bench: Bench) -> int:
    """What an idle probe charges for itself."""
    group = bench.cgroup()
    probe = bench.probe(group, "wait")
    probe.arrive()
    pages = group.usage_pages()
    probe.end()
    return pages
