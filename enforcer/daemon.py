"""What happens on a host once a tick: read, decide, shield, write; and at the end, give back.

A tick reads the host and every managed cgroup, fills the contract's vectors, asks the policy,
passes its levels through the shield, turns them into knobs and writes what differs.  Whatever goes
wrong means less enforcement: an unusable reading takes the default action, a decision that fails
lets leases run out, a failed write is reported and the others go on, a cgroup that is removed is
dropped.  The loop never ends by itself on account of a cgroup's content.

Dry-run does all of this but the writing.  Its shield keeps count as if the levels were in force,
so it shows what a policy asks for and what the shield would say, not how the host would answer.

Units: seconds, ticks, bytes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memcg_gym.enforcer.adapter import levels_to_knobs
from memcg_gym.enforcer.capabilities import capabilities, unsupported_heads
from memcg_gym.enforcer.cgroupfs import Reading
from memcg_gym.enforcer.discovery import (
    children_of,
    find_cgroup,
    inode_of,
    own_cgroup,
    refuse_unmanageable,
    why_left_alone,
)
from memcg_gym.enforcer.facts import MAX_RANK, Site
from memcg_gym.enforcer.features import (
    Guard,
    fill_features,
    fill_host,
    seconds_between,
    update_averages,
)
from memcg_gym.enforcer.hostfs import HostReader, Nodes, Roots
from memcg_gym.enforcer.journal import Journal, Owned, restore
from memcg_gym.enforcer.kernel_text import CgroupGoneError
from memcg_gym.enforcer.lru_gen import AgingSchedule, LruGenFile, LruTable, subtree
from memcg_gym.enforcer.managed import Managed, Record
from memcg_gym.enforcer.shield import (
    HostGuard,
    accept,
    expire_lease,
    line_array,
    put_in_force,
    reset_host_guard,
    shield_host_tick,
    shield_row,
)
from memcg_gym.enforcer.tracefs import LockTracer
from memcg_gym.enforcer.writer import (
    PARTIAL,
    PLANNED,
    QUEUED,
    WRITTEN,
    CommandWorker,
    Write,
    plan_writes,
)
from memcg_gym.envs.contract.errors import CgroupError
from memcg_gym.envs.contract.features import N_FEATURES
from memcg_gym.envs.contract.heads import HEADS, N_HEADS, HostKind
from memcg_gym.envs.contract.knobs import N_KNOBS, Knob
from memcg_gym.envs.contract.shield_rules import Shielded
from memcg_gym.envs.contract.signals import HostSig, Sig

LOG = logging.getLogger("memcg_gym.enforcer")

Decide = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""From vectors (n, N_FEATURES) int32 to levels (n, N_HEADS), rule ids (n,) and leases (n,)."""

MAX_LEASE_TICKS = 64
HARMLESS = ("EINVAL", "ERANGE", "EEXIST")
"""How the kernel refuses to age a cgroup that went away, or that was aged meanwhile."""
CLOSE_WAIT_S = 1.0
"""How long the end waits for background reclaim under way (assumption: ten chunks' time)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Whatever decides.

    Attributes:
        decide: Vectors to levels, rule ids and leases; a lease of 0 takes the shield's.
        max_age_s: Oldest reading it may be asked about; older ones take the default action.
    """

    decide: Decide
    max_age_s: float = 2.0


class Daemon:
    """Everything between a policy and a host's cgroups.

    Args:
        policy: What decides.
        roots: Where the files are.
        nodes: The host's tiers.
        cgroups: Folders to manage.
        children: Manage their children instead, those that come later too.
        site: What the operator says.
        interval_s: Length of a tick [s].
        journal: Where owners' values are kept; None = dry-run: nothing is ever written.
        locks: Traces who holds locks; None = tags tell, or nobody.

    Raises:
        CgroupError: A folder is no cgroup below the mount, is the root, or holds this process.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        roots: Roots,
        nodes: Nodes,
        cgroups: Sequence[Path],
        children: bool = False,
        site: Site | None = None,
        interval_s: float = 1.0,
        journal: Journal | None = None,
        locks: LockTracer | None = None,
    ) -> None:
        """Check what is asked; read and write nothing."""
        self.policy = policy
        self.roots = roots
        self.nodes = nodes
        self.site = Site() if site is None else site
        self.interval_s = interval_s
        self.journal = journal
        self.locks = locks
        self.children = children
        self.own = own_cgroup(roots)
        self.cgroups = [find_cgroup(roots, path) for path in cgroups]
        if not children:
            for path in self.cgroups:
                refuse_unmanageable(path, roots, self.own)
        self.managed: dict[Path, Managed] = {}
        self.host_reader = HostReader(roots, nodes)
        self.lru_file = LruGenFile(roots)
        self.generations: LruTable = {}
        self.aging = AgingSchedule(tick_s=interval_s)
        self.aging_worker = CommandWorker(self.lru_file.path)
        self.host_before: np.ndarray | None = None
        self.host_guard = np.zeros(HostGuard.SIZE, dtype=np.int64)
        self.lines = line_array(self.site.lines)
        self.n_ticks = 0
        self._said: set[tuple[str, str]] = set()
        self._ranks: dict[str, int] = {}
        self._recovered = False
        self._closed = False
        reset_host_guard(self.host_guard)

    @property
    def dry_run(self) -> bool:
        """True where nothing is ever written."""
        return self.journal is None

    def start(self) -> None:
        """Undo a dead run, then take the first readings that the first tick compares with.

        Raises:
            CgroupError: A dead run's journal cannot be read or its values not given back.
        """
        if self.journal is not None:
            for line in self.journal.recover():
                LOG.warning("left by a run that ended badly: %s", line)
        host, readings, _ = self._look()
        self._recovered = True
        self._remember(host, readings)
        self._age()

    def tick(self) -> list[Record]:
        """One tick.

        Returns:
            One record for each cgroup that is, or was until now, managed.

        Raises:
            CgroupError: The journal cannot be written.
        """
        self.n_ticks += 1
        host, readings, records = self._look()
        rows = [m for m in readings if records[m.path].state == "managed"]
        vectors = self._vectors(host, readings, rows)
        self._support(host, readings)
        self._remember(host, readings)
        self._decide(host, readings, rows, vectors, records)
        self._carry_out(readings, records)
        self._age()
        return list(records.values())

    def close(self) -> list[str]:
        """Give every changed file back; files an owner changed meanwhile stay as they are.

        Returns:
            What could not be given back; the journal is then kept for the next start.  A second
            call does nothing.
        """
        if self._closed:
            return []
        self._closed = True
        if self.locks is not None:
            self.locks.close()
        self.aging_worker.close(CLOSE_WAIT_S)
        failures = []
        for managed in self.managed.values():
            managed.writer.worker.close(CLOSE_WAIT_S)
            ours = {
                file: managed.owner[file]
                for file, text in managed.wrote.items()
                if self._text_now(managed, file) in (text, None)
            }
            failed = restore(managed.path, Owned(managed.inode, ours))
            failures += [f"{managed.name}/{line}" for line in failed]
            if not failed:
                managed.wrote.clear()
        for line in failures:
            LOG.error("%s", line)
        if self.journal is not None:
            if not failures and self._recovered:
                self.journal.remove()
            self.journal.close()
        return failures

    # --- looking ---------------------------------------------------------------------------------

    def _look(self) -> tuple[np.ndarray | None, dict[Managed, Reading], dict[Path, Record]]:
        """Read the host and every cgroup; who cannot be decided about gets its state here."""
        host = self._read_host()
        records: dict[Path, Record] = {}
        self._discover(records)
        self._ranks = self._kill_ranks()
        self.generations = self._read_generations()
        self._read_locks()
        readings: dict[Managed, Reading] = {}
        for managed in list(self.managed.values()):
            record = records.setdefault(managed.path, self._record(managed, "managed"))
            reading = self._read(managed, record)
            if reading is None:
                continue
            readings[managed] = reading
            if host is None:
                record.state, record.note = "skipped", "the host could not be read"
            elif self.host_before is None or managed.before is None:
                record.state = "warming"
        return host, readings, records

    def _read_host(self) -> np.ndarray | None:
        try:
            host = self.host_reader.read()
        except CgroupError as error:
            self._say("host", str(error))
            self.host_before = None
            return None
        self._hush("host")
        return host

    def _read_generations(self) -> LruTable:
        """Once a tick for all cgroups; empty where the kernel does not say."""
        try:
            table = self.lru_file.read()
        except CgroupError as error:
            self._say("lru_gen", str(error))
            return {}
        if self.lru_file.why:
            self._say("lru_gen", f"no working sets from the kernel: {self.lru_file.why}")
        else:
            self._hush("lru_gen")
        return table

    def _read_locks(self) -> None:
        """Once a tick for all cgroups."""
        if self.locks is None:
            return
        cgroups = {managed.name: managed.path for managed in self.managed.values()}
        try:
            self.locks.update(cgroups, self.host_reader.clock_us())
        except CgroupError as error:
            self._say("locks", f"locks are no longer traced: {error}")
            self.locks.close()
            self.locks = None
            return
        if self.locks.note:
            self._say("locks", self.locks.note)
        else:
            self._hush("locks")

    def _read(self, managed: Managed, record: Record) -> Reading | None:
        try:
            reading = managed.reader.read(self.generations, self.locks)
        except CgroupGoneError:
            self._drop(managed)
            record.state, record.note = "gone", "the cgroup was removed"
            return None
        except CgroupError as error:
            self._say(managed.name, str(error))
            managed.before = None
            record.state, record.note = "skipped", str(error)
            return None
        self._hush(managed.name)
        managed.follow_owner(reading)
        self._put_facts(managed, reading.signals)
        return reading

    def _discover(self, records: dict[Path, Record]) -> None:
        """Adopt what is wanted and there; drop what went away or was made anew."""
        wanted = self._children() if self.children else self.cgroups
        for path in wanted:
            inode = inode_of(path)
            known = self.managed.get(path)
            if known is not None and known.inode == inode:
                continue
            if known is not None:
                self._drop(known)
                records[path] = Record(
                    self.n_ticks, known.name, "gone", note="the cgroup was removed"
                )
            elif inode is not None:
                self.managed[path] = Managed(path, inode, self.roots, self.nodes)
                LOG.info("%s: managed from now on", self.managed[path].name)
        for path in self.managed.keys() - set(wanted):
            managed = self.managed[path]
            self._drop(managed)
            records[path] = self._record(managed, "gone")

    def _children(self) -> list[Path]:
        found = []
        for path in (child for parent in self.cgroups for child in children_of(parent)):
            reason = why_left_alone(path, self.site, self.own)
            if reason:
                self._say(str(path), f"{path}: left alone: {reason}")
            else:
                found.append(path)
        return found

    def _drop(self, managed: Managed) -> None:
        LOG.warning("%s: no longer managed", managed.name)
        managed.writer.worker.close(0.0)
        self.managed.pop(managed.path, None)
        # A no-op where it is gone; a child may also have become one that must be left alone.
        restore(managed.path, managed.owned(()))

    def _put_facts(self, managed: Managed, signals: np.ndarray) -> None:
        facts = self.site.facts(managed.name)
        signals[Sig.MEMSW_CEILING_BYTES] = facts.memsw_ceiling_bytes
        if facts.priority is not None:
            signals[Sig.PRIORITY] = facts.priority
        rank = self._ranks.get(managed.name)
        if rank is not None:
            signals[Sig.KILL_RANK] = rank

    def _kill_ranks(self) -> dict[str, int]:
        """Given ranks, else the order of values among the managed; no value, no rank, no kill."""
        names = [managed.name for managed in self.managed.values()]
        worth = {n: v for n in names if (v := self.site.facts(n).value) is not None}
        ordered = sorted(worth, key=lambda name: (worth[name], name))
        ranks = {name: min(rank, MAX_RANK) for rank, name in enumerate(ordered)}
        given = {n: r for n in names if (r := self.site.facts(n).kill_rank) is not None}
        return ranks | given

    def _support(self, host: np.ndarray | None, readings: dict[Managed, Reading]) -> None:
        """Which heads can be used now: all of it once a cgroup, then what changes."""
        if host is None:
            return
        blind = self.site.throttle_without_lock_signals
        for managed, reading in readings.items():
            found = unsupported_heads(managed.path, reading, managed.before, blind_throttle=blind)
            if managed.unsupported is None:
                for line in capabilities(managed.path, reading, host, blind_throttle=blind).lines():
                    LOG.info("%s: %s", managed.name, line)
            else:
                report_changes(managed.name, managed.unsupported, found)
            managed.unsupported = found

    # --- deciding --------------------------------------------------------------------------------

    def _vectors(
        self, host: np.ndarray | None, readings: dict[Managed, Reading], rows: list[Managed]
    ) -> np.ndarray:
        """Vectors of the rows, shape (n, N_FEATURES); moves averages, leases and the host guard."""
        vectors = np.zeros((len(rows), N_FEATURES), dtype=np.int32)
        if host is not None and self.host_before is not None:
            tick_s = seconds_between(host, self.host_before)
            self._expire(math.floor(tick_s / self.interval_s + 0.5) - 1)
            for row, managed in enumerate(rows):
                before = managed.before
                assert before is not None  # a row has one, see _look
                now = readings[managed].signals
                averages = managed.averages.copy()
                update_averages(now, before, tick_s, averages)
                fill_features(
                    now, before, host, self.host_before, averages, managed.guard, vectors[row]
                )
                # A signal that is missing now must not poison the averages for ever.
                managed.averages = np.where(np.isnan(averages), managed.averages, averages)
            whole = np.zeros(N_FEATURES, dtype=np.int32)
            fill_host(host, self.host_before, tick_s, whole)
            shield_host_tick(whole, self.host_guard, self.lines)
        return vectors

    def _remember(self, host: np.ndarray | None, readings: dict[Managed, Reading]) -> None:
        """Keep this tick's readings for the next one to compare with."""
        self.host_before = host
        for managed, reading in readings.items():
            managed.before = reading.signals

    def _expire(self, missed_ticks: int) -> None:
        """Leases run while the loop was held up (a suspended host, a stopped process)."""
        for _ in range(min(missed_ticks, MAX_LEASE_TICKS)):
            for managed in self.managed.values():
                expire_lease(managed.guard)

    def _decide(
        self,
        host: np.ndarray | None,
        readings: dict[Managed, Reading],
        rows: list[Managed],
        vectors: np.ndarray,
        records: dict[Path, Record],
    ) -> None:
        if not rows or host is None:
            return
        try:
            levels, rule_ids, leases = self.policy.decide(vectors)
        except Exception as error:  # a policy is not ours; the loop outlives it
            self._say("policy", f"the decision failed: {error!r}; leases run out")
            for managed in rows:
                records[managed.path].state = "undecided"
                records[managed.path].note = repr(error)
                if expire_lease(managed.guard):
                    records[managed.path].note += "; the lease has ended"
                managed.keep_levels(records[managed.path])
            return
        self._hush("policy")
        age_s = self.host_reader.clock_us() * 1e-6 - host[HostSig.UPTIME_US] * 1e-6
        for row, managed in enumerate(rows):
            record = records[managed.path]
            wanted = np.array(levels[row], dtype=np.int64)
            record.requested = tuple(int(level) for level in wanted)
            record.rule_id = int(rule_ids[row])
            if age_s > self.policy.max_age_s:
                wanted[:] = 0
                record.shield |= Shielded.STALE
            self._shield(managed, readings[managed], wanted, vectors[row], record)
            if leases[row] > 0:
                managed.guard[Guard.LEASE_LEFT] = min(int(leases[row]), MAX_LEASE_TICKS)
            record.lease_ticks = int(managed.guard[Guard.LEASE_LEFT])

    def _shield(
        self,
        managed: Managed,
        reading: Reading,
        wanted: np.ndarray,
        vector: np.ndarray,
        record: Record,
    ) -> None:
        assert managed.unsupported is not None  # every reading was looked at, see tick
        supported = np.array([h.name not in managed.unsupported for h in HEADS], dtype=np.int64)
        mask = shield_row(
            wanted,
            vector,
            float(reading.signals[Sig.USAGE_BYTES]),
            float(reading.signals[Sig.OWNER_MIN_BYTES]),
            supported,
            HostKind.STOCK,
            managed.guard,
            self.host_guard,
            self.lines,
            True,
        )
        put_in_force(managed.guard)
        record.shield |= Shielded(mask)
        record.accepted = tuple(int(level) for level in wanted)

    # --- writing ---------------------------------------------------------------------------------

    def _carry_out(self, readings: dict[Managed, Reading], records: dict[Path, Record]) -> None:
        """Plan for all, journal, then write."""
        for managed in self.managed.values():
            record = records[managed.path]
            if record.state in ("managed", "undecided"):
                record.writes = self._plan(managed, readings[managed], record)
            else:
                accept(np.zeros(N_HEADS, dtype=np.int64), managed.guard)
                put_in_force(managed.guard)
                record.writes = managed.give_back(self.roots.page_bytes)
        if self.journal is None:
            return
        everything = {
            m.name: owned
            for m in self.managed.values()
            if (owned := m.owned(records[m.path].writes)).files
        }
        self.journal.record(everything)
        for managed in self.managed.values():
            record = records[managed.path]
            managed.writer.apply(record.writes, self.interval_s)
            managed.note_writes(record.writes)
            record.reclaim = managed.writer.worker.outcome
            self._report_failures(managed, record)

    def _plan(self, managed: Managed, reading: Reading, record: Record) -> list[Write]:
        usage_bytes = float(reading.signals[Sig.USAGE_BYTES])
        knobs = np.full(N_KNOBS, np.nan)
        levels_to_knobs(
            np.array(record.accepted), reading.signals, HostKind.STOCK, self.interval_s, knobs
        )
        if math.isnan(usage_bytes):
            # A ceiling minus an unknown usage is no limit to write.
            knobs[Knob.SWAP_MAX_BYTES] = math.nan
        if record.state == "undecided":
            # Levels stay until their lease ends; what happens only once is not repeated.
            knobs[Knob.RECLAIM_BYTES] = knobs[Knob.KILL] = 0.0
        return plan_writes(
            knobs, reading.settings, managed.owner, usage_bytes, self.roots.page_bytes
        )

    def _age(self) -> None:
        """Have the kernel walk page tables, so that generations have ages; never in dry-run."""
        outcome = self.aging_worker.outcome
        if outcome not in ("", WRITTEN, *HARMLESS):
            self._say("aging", f"{self.aging_worker.file}: aging was refused: {outcome}")
        else:
            self._hush("aging")
        if self.dry_run or not self.site.lru_gen_aging or self.aging_worker.busy:
            return
        lrus = [lru for m in self.managed.values() for lru in subtree(self.generations, m.name)]
        commands = self.aging.commands(lrus, self.n_ticks)
        if commands:
            self.aging_worker.submit(commands)

    def _report_failures(self, managed: Managed, record: Record) -> None:
        for write in record.writes:
            subject = f"{managed.name}/{write.file}"
            if write.result in (WRITTEN, QUEUED, PLANNED):
                self._hush(subject)
            else:
                self._say(subject, f"{subject}={write.text} was not written: {write.result}")
        outcome = record.reclaim
        if outcome not in ("", WRITTEN, PARTIAL, "late"):
            self._say(f"{managed.name}/memory.reclaim", f"{managed.name}: reclaim: {outcome}")

    # --- helpers ---------------------------------------------------------------------------------

    def _record(self, managed: Managed, state: str) -> Record:
        return Record(self.n_ticks, managed.name, state)

    def _text_now(self, managed: Managed, file: str) -> str | None:
        """A setting's text in the reader's form, None where it cannot be read."""
        try:
            return managed.reader.read_setting(file)
        except CgroupError:
            return None

    def _say(self, subject: str, message: str) -> None:
        """Log once until the subject is well again."""
        if (subject, message) not in self._said:
            self._hush(subject)
            self._said.add((subject, message))
            LOG.warning("%s", message)

    def _hush(self, subject: str) -> None:
        if self._said:
            self._said = {entry for entry in self._said if entry[0] != subject}


def report_changes(name: str, before: dict[str, str], now: dict[str, str]) -> None:
    """Log the heads that can be used, or cannot any more."""
    for head in before.keys() - now.keys():
        LOG.info("%s: %s supported from now on", name, head)
    for head in now.keys() - before.keys():
        LOG.warning("%s: %s unsupported from now on: %s", name, head, now[head])
