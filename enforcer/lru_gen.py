"""Working sets as a stock host can know them: the generations of the multi-gen LRU.

``/sys/kernel/debug/lru_gen`` lists the pages of every memory cgroup and NUMA node by generation,
oldest first, with the time since each generation began.  An *aging walk*, which a write to the same
file asks for, goes through the page tables of the cgroup's processes, moves every page whose
accessed bit was set since the last walk into what was the youngest generation, and begins a new
one.  A page that lies in a generation which ended 60 s or more before the last walk was therefore
not touched in the 60 s before that walk: it is cold, everything else is the working set.

There are four generations at most; walks merge the oldest two.  So the oldest generation says "not
touched for two walk periods", and a window of 60 s needs a walk every 30 s, neither more nor less
often.

What it does not know:

* Pages used through ``read`` and ``write`` have no accessed bit.  They lie in the oldest
  generations, however hot they are, until reclaim has gone over them; so do pages of mappings with
  ``MADV_RANDOM`` or ``MADV_SEQUENTIAL``, which walks skip.
* Unevictable pages and kernel memory are in no generation.
* Until three walks have been made, whatever was mapped at the first counts as touched.
* Under pressure the kernel walks many times a second; no generation is then old, and all that is
  resident counts as touched.

Source: Documentation/admin-guide/mm/multigen_lru.rst; mm/vmscan.c (lru_gen_seq_show, run_aging,
inc_max_seq).  The text and each statement above were checked on Linux 7.3.

Units: milliseconds and seconds; pages of the host; bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from memcg_gym.enforcer.hostfs import Nodes, Roots
from memcg_gym.enforcer.kernel_text import malformed, read_text

HOT_WINDOW_S = 60.0
"""Touched within this = in the working set, as in the model (envs/model/accounting.py)."""

MAX_GENERATIONS = 4
"""MAX_NR_GENS of include/linux/mmzone.h."""

WALK_PERIOD_S = HOT_WINDOW_S / (MAX_GENERATIONS - 2)
"""Right after a walk the youngest generation is empty, and what was touched since the walk before
is in the second; so the last of four ends two periods ago."""

BORN_SEQ = 3
"""A cgroup begins with generations 0 to 3, all as old as itself (MIN_NR_GENS + 1 in
lru_gen_init_lruvec); a higher one was begun by a walk."""

EARLY_MS = 500
"""A walk asked for in one tick may be seen half a tick younger in another."""

SLACK_MS = 2 * EARLY_MS
"""How much of the window may be missing for it: it holds two walk periods."""

WALKS_ON = 0x0003
"""The multi-gen LRU, and clearing accessed bits in page tables: without the second, walks find
nothing (/sys/kernel/mm/lru_gen/enabled)."""

LRU_GEN_FILE = "/sys/kernel/debug/lru_gen"


class Generation(NamedTuple):
    """Pages of one generation of one cgroup on one node.

    Attributes:
        seq: Number; the youngest has the highest.
        age_ms: Time since it began.
        anon_pages, file_pages: What lies in it.
    """

    seq: int
    age_ms: int
    anon_pages: int
    file_pages: int

    @property
    def pages(self) -> int:
        """All of them."""
        return self.anon_pages + self.file_pages


@dataclass(frozen=True, slots=True)
class LruGen:
    """One cgroup's own generations; its children have theirs.

    Attributes:
        memcg_id: How commands name it.
        nodes: Generations by NUMA node, oldest first, at least one each.
    """

    memcg_id: int
    nodes: Mapping[int, tuple[Generation, ...]]


LruTable = Mapping[str, LruGen]
"""By path below the cgroup mount, ``"."`` for the root, as ``CgroupReader.name``."""


class WorkingSet(NamedTuple):
    """The contract's four working-set signals; NaN where the generations do not say.

    Attributes:
        wss_bytes: Touched within the window before the last walk, or new since.
        confidence: 1 = walked now .. 0 = not within the window, or never.
        cold_fast_bytes: Not touched within the window, on fast nodes.
        hot_slow_bytes: Touched within it, on slow nodes.
    """

    wss_bytes: float = math.nan
    confidence: float = math.nan
    cold_fast_bytes: float = math.nan
    hot_slow_bytes: float = math.nan


# --- reading -------------------------------------------------------------------------------------


def read_lru_gen(text: str, path: str = LRU_GEN_FILE) -> dict[str, LruGen]:
    r"""Take the kernel's file apart.

    Args:
        text: Its content.
        path: Its name, for errors.

    Returns:
        Generations by cgroup.  Before Linux 7 a removed cgroup whose pages are still charged to it
        is listed under its old path: of two entries of one path the later one was made later, and
        is kept.

    Raises:
        CgroupError: A line is not what the kernel writes.

    Example:
        >>> text = "memcg    67 /a/b\n node     0\n          3       8000       12          4 \n"
        >>> read_lru_gen(text)["a/b"].nodes[0][0].anon_pages
        12
    """
    table: dict[str, LruGen] = {}
    nodes: dict[int, tuple[Generation, ...]] | None = None
    node = -1
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(maxsplit=2)
        if words[:1] == ["memcg"] and len(words) > 1 and words[1].isdecimal():
            nodes, node = {}, -1
            table[memcg_name(words[2] if len(words) > 2 else "/")] = LruGen(int(words[1]), nodes)
        elif nodes is not None and len(words) == 2 and words[0] == "node" and words[1].isdecimal():
            node = int(words[1])
            nodes[node] = ()
        elif nodes is not None and node >= 0:
            nodes[node] += (generation(line, path, number),)
        else:
            raise malformed(path, number, line, "'memcg id path', 'node id' or a generation")
    for lru in table.values():
        if not all(lru.nodes.values()):
            raise malformed(path, 1, text, "at least one generation a node")
    return table


def memcg_name(path: str) -> str:
    """A cgroup's path as the kernel prints it, made relative to the mount."""
    return path.lstrip("/") or "."


def generation(line: str, path: str, number: int) -> Generation:
    """One line of four numbers."""
    words = line.split()
    if len(words) != 4 or not all(word.isdecimal() for word in words):
        raise malformed(path, number, line, "'seq age_ms anon_pages file_pages'")
    seq, age_ms, anon_pages, file_pages = map(int, words)
    return Generation(seq, age_ms, anon_pages, file_pages)


def subtree(table: LruTable, name: str) -> list[LruGen]:
    """A cgroup and all below it: memory.current counts them together, generations do not."""
    if name == ".":
        return list(table.values())
    below = name + "/"
    return [lru for path, lru in table.items() if path == name or path.startswith(below)]


class LruGenFile:
    """The file on this host, and whether it can be believed.

    Args:
        roots: Where ``/sys`` is.

    Attributes:
        why: Why the last read gave nothing, ``""`` where it gave something.
    """

    def __init__(self, roots: Roots) -> None:
        """Open nothing; every read opens what it reads."""
        self.path = f"{roots.sys}/kernel/debug/lru_gen"
        self.enabled_path = f"{roots.sys}/kernel/mm/lru_gen/enabled"
        self.why = ""

    def read(self) -> LruTable:
        """All cgroups' generations; empty where the kernel does not offer them.

        Raises:
            CgroupError: A file holds what the kernel would never write.
        """
        table: LruTable = {}
        self.why = self._why_off()
        if not self.why:
            text = read_text(self.path)
            if text is None:
                self.why = f"{self.path} cannot be opened (Linux 6.1, CONFIG_LRU_GEN, debugfs)"
            else:
                table = read_lru_gen(text, self.path)
        # A switched-off LRU lists its generations still, all of them empty.
        if not self.why and not any(map(has_pages, table.values())):
            self.why, table = f"{self.path} lists no page: the multi-gen LRU is off", {}
        return table

    def _why_off(self) -> str:
        text = read_text(self.enabled_path)
        if text is None:
            return ""  # a mirrored tree may lack it; the file itself then says enough
        try:
            enabled = int(text, 16)
        except ValueError:
            raise malformed(self.enabled_path, 1, text, "a mask such as 0x0007") from None
        if enabled & WALKS_ON != WALKS_ON:
            return f"{self.enabled_path} is {enabled:#06x}, and {WALKS_ON:#06x} is needed"
        return ""


def has_pages(lru: LruGen) -> bool:
    """Whether any generation of any node holds a page."""
    return any(g.pages for gens in lru.nodes.values() for g in gens)


# --- the working set -----------------------------------------------------------------------------


def working_set(
    lrus: Iterable[LruGen], nodes: Nodes, page_bytes: int, window_s: float = HOT_WINDOW_S
) -> WorkingSet:
    """What was touched within a window, judged at the last walk.

    Says nothing, with confidence 0, where most pages were last looked at longer than a window ago.

    Args:
        lrus: A cgroup and all below it, from :func:`subtree`.
        nodes: The host's tiers.
        page_bytes: The host's page size.
        window_s: Touched within this = in the working set; needs a walk every half of it.
    """
    total = unseen = cold_fast = hot_slow = hot = walks = 0
    weighted = unweighted = 0.0
    for node, gens in ((n, g) for lru in lrus for n, g in lru.nodes.items()):
        pages = sum(g.pages for g in gens)
        cold = cold_pages(gens, window_s)
        believed = walk_confidence(gens, window_s)
        walks += 1
        unweighted += believed
        weighted += believed * pages
        total += pages
        hot += pages - cold
        unseen += pages if gens[-1].age_ms > window_s * 1e3 else 0
        cold_fast += cold if node in nodes.fast else 0
        hot_slow += pages - cold if node in nodes.slow else 0
    if walks == 0:
        return WorkingSet()
    if unseen * 2 > total:
        return WorkingSet(confidence=0.0)
    tiers = nodes.fast != ()
    return WorkingSet(
        wss_bytes=float(hot * page_bytes),
        confidence=weighted / total if total else unweighted / walks,
        cold_fast_bytes=float(cold_fast * page_bytes) if tiers else math.nan,
        hot_slow_bytes=float(hot_slow * page_bytes) if tiers else math.nan,
    )


def cold_pages(gens: tuple[Generation, ...], window_s: float) -> int:
    """Pages not touched within the window before the last walk.

    A generation ends when the next one begins, and the youngest begins with the last walk.
    """
    needed_ms = window_s * 1e3 - SLACK_MS
    walk_ms = gens[-1].age_ms
    return sum(g.pages for g, younger in pairwise(gens) if younger.age_ms - walk_ms >= needed_ms)


def walk_confidence(gens: tuple[Generation, ...], window_s: float) -> float:
    """Age of the last walk, 1 = now .. 0 = a window ago or never."""
    if gens[-1].seq <= BORN_SEQ:
        return 0.0
    return max(0.0, 1.0 - gens[-1].age_ms / (window_s * 1e3))


# --- aging ---------------------------------------------------------------------------------------


def aging_commands(
    lrus: Iterable[LruGen], period_s: float = WALK_PERIOD_S, most: int | None = None
) -> list[str]:
    """Commands for the walks that are due: never made, or the last one a period ago.

    Anonymous memory is walked on hosts without swap too (``can_swap``), and every page table is,
    not only those that reclaim has found fruitful (``force_scan``).  A node without pages is left
    alone.  Walks that the kernel made by itself count.

    Args:
        lrus: Whose generations are to have ages.
        period_s: Time between walks [s].
        most: How many at most, those longest due first; None = all.

    Returns:
        Lines ``+ memcg_id node_id max_gen_nr can_swap force_scan``, to be written to the file.

    Example:
        >>> lru = LruGen(67, {0: (Generation(3, 8000, 12, 4),)})
        >>> aging_commands([lru])
        ['+ 67 0 3 1 1']
    """
    return [walk.command for walk in due_walks(lrus, period_s)[:most]]


class Walk(NamedTuple):
    """One aging walk that is due; sorts by how long."""

    minus_age_ms: float
    memcg_id: int
    node: int
    seq: int

    @property
    def command(self) -> str:
        """What to write."""
        return f"+ {self.memcg_id} {self.node} {self.seq} 1 1"


def due_walks(lrus: Iterable[LruGen], period_s: float) -> list[Walk]:
    """Walks never made or made a period ago, those longest due first."""
    due: set[Walk] = set()
    for lru in lrus:
        for node, gens in lru.nodes.items():
            youngest = gens[-1]
            age_ms = math.inf if youngest.seq <= BORN_SEQ else youngest.age_ms
            if age_ms >= period_s * 1e3 - EARLY_MS and any(g.pages for g in gens):
                due.add(Walk(-age_ms, lru.memcg_id, node, youngest.seq))
    return sorted(due)


class AgingSchedule:
    """Which walks are made in a tick: each once a period, spread over its ticks.

    A walk costs the CPU time of going through all page tables of a cgroup (0.6 us a page in an
    emulated guest), so they are not all made at once; and one that was asked for and not made is
    not asked for again before a period has gone by.

    Args:
        period_s: Time between two walks of one cgroup and node [s].
        tick_s: Length of a tick [s].
    """

    def __init__(self, period_s: float = WALK_PERIOD_S, tick_s: float = 1.0) -> None:
        """Nothing asked for yet."""
        self.period_s = period_s
        self.period_ticks = max(1, round(period_s / tick_s))
        self._asked: dict[tuple[int, int], int] = {}

    def commands(self, lrus: Iterable[LruGen], tick: int) -> list[str]:
        """This tick's commands.

        Args:
            lrus: Those to keep aged.
            tick: Number of the tick; grows by one each tick.
        """
        lrus = list(lrus)
        self._asked = {k: t for k, t in self._asked.items() if 0 <= tick - t < self.period_ticks}
        populated = {
            (lru.memcg_id, node)
            for lru in lrus
            for node, gens in lru.nodes.items()
            if any(g.pages for g in gens)
        }
        most = math.ceil(len(populated) / self.period_ticks)
        walks = [
            walk
            for walk in due_walks(lrus, self.period_s)
            if (walk.memcg_id, walk.node) not in self._asked
        ][:most]
        self._asked |= {(walk.memcg_id, walk.node): tick for walk in walks}
        return [walk.command for walk in walks]

    def writes(
        self, roots: Roots, tick: int, names: Collection[str] | None = None
    ) -> dict[str, str]:
        """This tick's commands as the text to write, for a host that is read through a mirror.

        Args:
            roots: Where its files are mirrored.
            tick: Number of the tick.
            names: Cgroups to keep aged, with all below them; None = all but the root.

        Returns:
            Text by path on that host; empty where nothing is due.

        Raises:
            CgroupError: The file holds what the kernel would never write.
        """
        table = LruGenFile(roots).read()
        if names is None:
            lrus = [lru for name, lru in table.items() if name != "."]
        else:
            lrus = [lru for name in names for lru in subtree(table, name)]
        commands = self.commands(lrus, tick)
        return {LRU_GEN_FILE: "\n".join(commands)} if commands else {}
