"""The bench of the golden checks: cgroups and probes in a guest that stands still between moves.

A *probe* (``guest/probe.c``) does what its operations say and waits where one of them is ``wait``;
:meth:`Probe.arrive` lets guest time pass until it waits, :meth:`Probe.go` lets it go on.

Units: bytes, pages of 4 KiB, microseconds as named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from memcg_gym.enforcer.writer import errno_name
from memcg_gym.envs.lab.machine import Machine
from memcg_gym.envs.lab.protocol import GuestError, Report, parse_results, write_command

CGROUPS = PurePosixPath("/sys/fs/cgroup")
PROGRAM = "/probe"
MEETINGS = PurePosixPath("/tmp/meetings")
NULLB = PurePosixPath("/sys/kernel/config/nullb")
SWAP, FILES = PurePosixPath("/dev/labswap"), PurePosixPath("/dev/labfiles")
SWAP_MIB, FILES_MIB = 128, 512
LATENCY_US = 100
"""Of both devices: assumption, a flash disk's."""

MAX_PROBES = 12
PAGE_BYTES = 4096
MIB = 1 << 20


@dataclass(slots=True)
class Said:
    """What a probe has told since it was heard last.

    Attributes:
        us: Time of the last operation of each name [us].
        all_us: Times of all operations, in order.
        values: What operations told, by its name.
        got: What ``get`` told, in order.
        stalls: Pages that took long, and how long [us].
    """

    us: dict[str, float] = field(default_factory=dict)
    all_us: list[tuple[str, float]] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    got: list[float] = field(default_factory=list)
    stalls: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> Said:
        """Read a probe's output.

        Raises:
            GuestError: It is not one's.
        """
        said = cls()
        for line in text.splitlines():
            words = line.split()
            try:
                if words[0] == "stall":
                    said.stalls.append((int(words[1]), float(words[2])))
                elif words[0] == "value":
                    said.got.append(float(words[1]))
                elif words[0] in TOLD:
                    said.values[words[0]] = float(words[1])
                else:
                    said.us[words[0]] = float(words[1])
                    said.all_us.append((words[0], float(words[1])))
            except (IndexError, ValueError):
                raise GuestError(f"probe: said {line!r}") from None
        return said


TOLD = ("errno", "jiffy_ns", "resident_pages")


@dataclass(frozen=True, slots=True)
class Generation:
    """A line of lru_gen: number, age [ms], pages."""

    number: int
    age_ms: int
    anon_pages: int
    file_pages: int


class Bench:
    """A started guest, and what is set up in it.

    Args:
        machine: Started.

    Attributes:
        root: The root cgroup.
        hz: Jiffies in a second.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._pending = b""
        self._free = [f"p{k}" for k in range(MAX_PROBES)]
        self._names = 0
        fifos = (f"fifo:{MEETINGS}/{name}.{end}" for name in self._free for end in ("at", "go"))
        self.do(f"mkdir {MEETINGS}")
        self.do(f"spawn fifos {CGROUPS} {PROGRAM} - {' '.join(fifos)}", end="tick")
        self.write(CGROUPS / "cgroup.subtree_control", "+memory +io +cpu")
        self.root = Cgroup(self, CGROUPS)
        self.hz = round(1e9 / self.ask("hz").values["jiffy_ns"])

    def add_devices(self) -> None:
        """Swap, whose pages live in the guest's memory, and a device for files that keeps nothing.

        One page at a time: neither readahead nor mapping around a fault.
        """
        self.write("/sys/kernel/mm/transparent_hugepage/enabled", "never")
        self.do(*self._device(SWAP.name, SWAP_MIB, backed=True))
        self.do(*self._device(FILES.name, FILES_MIB, backed=False))
        self.do(f"fill {SWAP} {SWAP_MIB}", f"mkswap {SWAP}", f"swapon {SWAP} 0")
        self.write(f"/sys/block/{FILES.name}/queue/read_ahead_kb", "0")
        self.write("/sys/kernel/debug/fault_around_bytes", str(PAGE_BYTES))
        self.write("/proc/sys/vm/page-cluster", "0")

    def _device(self, name: str, mib: int, *, backed: bool) -> list[str | bytes]:
        folder = f"{NULLB}/{name}"
        settings = {
            "size": mib,
            "blocksize": PAGE_BYTES,
            "memory_backed": int(backed),
            "irqmode": 2,
            "completion_nsec": LATENCY_US * 1000,
            "power": 1,
        }
        writes = (write_command(f"{folder}/{key}", str(value)) for key, value in settings.items())
        return [f"mkdir {folder}", *writes]

    def mount_cgroups(self, *, recursive: bool) -> None:
        """Mount cgroup2 once more: a mount's options hold for all of them."""
        self._names += 1
        folder = f"/tmp/cgroups{self._names}"
        options = "nsdelegate,memory_recursiveprot" if recursive else "nsdelegate"
        self.do(f"mkdir {folder}", f"mount cgroup2 none {folder} {options}")

    def generations(self, group: Cgroup) -> list[Generation]:
        """Its generations on the first node, oldest first."""
        lines = self.read("/sys/kernel/debug/lru_gen")[0].splitlines()
        at = next(k for k, line in enumerate(lines) if line.split()[2:] == [group.lru_name])
        rows = []
        for line in lines[at + 2 :]:
            if not line.split()[0].isdigit():
                break
            number, age_ms, anon, file = (int(word) for word in line.split()[:4])
            rows.append(Generation(number, age_ms, anon, file))
        return rows

    def age(self, group: Cgroup) -> None:
        """Let the kernel walk its page tables, which makes a new generation."""
        text = self.read("/sys/kernel/debug/lru_gen")[0]
        ids = [w[1] for w in map(str.split, text.splitlines()) if w[2:] == [group.lru_name]]
        youngest = self.generations(group)[-1].number
        self.write("/sys/kernel/debug/lru_gen", f"+ {ids[0]} 0 {youngest} 1 1")

    def drop_caches(self) -> None:
        """Forget clean pages of files that nothing maps, whoever paid for them."""
        self.write("/proc/sys/vm/drop_caches", "3")

    def do(self, *commands: str | bytes, end: str = "pause") -> Report:
        """Do commands and stop again; all must succeed.

        Raises:
            GuestError: One failed; names it.
        """
        report, codes = self.attempt(*commands, end=end)
        for command, code in zip(commands, codes, strict=True):
            if code:
                text = command if isinstance(command, str) else command.decode()
                raise GuestError(f"guest: {text.splitlines()[0]}: {errno_name(OSError(code, ''))}")
        return report

    def attempt(self, *commands: str | bytes, end: str = "pause") -> tuple[Report, list[int]]:
        """Do commands and stop again; also returns the errno of each."""
        lines = [c if isinstance(c, bytes) else f"{c}\n".encode() for c in commands]
        skip = self._pending.count(b"\n")
        report = self.machine.step(self._pending + b"".join(lines) + f"{end}\n".encode())
        self._pending = b""
        return report, parse_results(report.text("results"))[skip:]

    def tick(self, count: int = 1) -> Report:
        """Let guest time pass to the next second boundary, ``count`` times."""
        for _ in range(count):
            report = self.do(end="tick")
        return report

    def write(self, path: object, text: str, *, nonblocking: bool = False) -> None:
        """Write a guest file; it must succeed."""
        self.do(write_command(str(path), text, nonblocking=nonblocking))

    def write_errno(self, path: object, text: str, *, nonblocking: bool = False) -> int:
        """Write a guest file; returns the errno, 0 where it succeeded."""
        return self.attempt(write_command(str(path), text, nonblocking=nonblocking))[1][0]

    def read(self, *paths: object, end: str = "pause") -> list[str]:
        """Guest files as they are at one moment; empty where there is none."""
        names = [f"peek/{k}" for k in range(len(paths))]
        report = self.do(
            *(f"watch {name} {path}" for name, path in zip(names, paths, strict=True)), end=end
        )
        self._pending = "".join(f"unwatch {name}\n" for name in names).encode()
        return [report.text(name) if name in report.files else "" for name in names]

    def cgroup(self, *, parent: Cgroup | None = None, controllers: str = "") -> Cgroup:
        """A fresh cgroup.

        Args:
            parent: None = the root.
            controllers: Enabled for its own children.
        """
        self._names += 1
        path = (CGROUPS if parent is None else parent.path) / f"g{self._names}"
        self.do(f"mkdir {path}")
        if controllers:
            self.write(path / "cgroup.subtree_control", controllers)
        return Cgroup(self, path)

    def probe(self, cgroup: Cgroup, *operations: str) -> Probe:
        """Start a probe in a cgroup; it does nothing yet.

        Raises:
            GuestError: Too many at once.
        """
        if not self._free:
            raise GuestError(f"guest: more than {MAX_PROBES} probes at once")
        name = self._free.pop(0)
        self.do(f"spawn {name} {cgroup.path} {PROGRAM} {MEETINGS / name} {' '.join(operations)}")
        return Probe(self, name)

    def ask(self, *operations: str) -> Said:
        """What a probe in the root cgroup tells once its operations are done."""
        probe = self.probe(self.root, *operations, "wait")
        said = probe.arrive()
        probe.end()
        return said

    def release(self, name: str) -> None:
        """A probe's name may be used again."""
        self._free.append(name)


@dataclass(slots=True)
class Cgroup:
    """A cgroup of the guest.

    Attributes:
        bench: Where it is.
        path: Its folder.
    """

    bench: Bench
    path: PurePosixPath

    def set(self, file: str, value: float | str, *, nonblocking: bool = False) -> None:
        """Write one of its files."""
        text = value if isinstance(value, str) else str(int(value))
        self.bench.write(self.path / file, text, nonblocking=nonblocking)

    def set_errno(self, file: str, value: float | str) -> int:
        """Write one of its files; returns the errno."""
        text = value if isinstance(value, str) else str(int(value))
        return self.bench.write_errno(self.path / file, text)

    def text(self, file: str) -> str:
        """One of its files."""
        return self.bench.read(self.path / file)[0]

    def number(self, file: str) -> int:
        """One of its files that holds a number."""
        return int(self.text(file))

    def table(self, file: str) -> dict[str, int]:
        """One of its files that holds lines of a name and a number."""
        return numbers(self.text(file))

    @property
    def lru_name(self) -> str:
        """Its name in lru_gen."""
        return f"/{self.path.relative_to(CGROUPS)}"

    def stat(self, *names: str) -> list[int]:
        """Some numbers of memory.stat."""
        table = self.table("memory.stat")
        return [table[name] for name in names]

    def reclaim(self, pages: float, *, options: str = "") -> int:
        """Write memory.reclaim from an ordinary task in the root cgroup; returns the errno."""
        text = f"{int(pages) * PAGE_BYTES}{options}"
        return int(self.bench.ask(f"put:{self.path}/memory.reclaim:{text}").values["errno"])

    def usage_pages(self) -> int:
        """memory.current."""
        return self.number("memory.current") // PAGE_BYTES

    def stalled_us(self, resource: str = "memory", kind: str = "some") -> int:
        """Total stall time by its pressure file [us]."""
        return stall_total_us(self.text(f"{resource}.pressure"), kind)


@dataclass(slots=True)
class Probe:
    """A running probe.

    Attributes:
        bench: Where it is.
        name: Of its meetings with the host.
    """

    bench: Bench
    name: str

    def arrive(self) -> Said:
        """Let guest time pass until it waits.  It must live to do so."""
        report = self.bench.do(_meet(self.name, "at"))
        return Said.parse(report.text(f"out/{self.name}"))

    def go(self, end: str = "pause") -> Report:
        """Let it go on once it waits."""
        return self.bench.do(_meet(self.name, "go"), end=end)

    def run(self) -> Said:
        """Let it go on, and wait until it waits again."""
        report = self.bench.do(_meet(self.name, "go"), _meet(self.name, "at"))
        return Said.parse(report.text(f"out/{self.name}"))

    def alive(self) -> bool:
        """Whether it has not ended."""
        return numbers(self.bench.do().text(f"program/{self.name}"))["alive"] == 1

    def end(self) -> None:
        """Kill it; its memory is free afterwards."""
        if self.alive():
            self.bench.do(f"signal {self.name} 9", end="tick")
        self.bench.release(self.name)


def _meet(name: str, end: str) -> bytes:
    return write_command(f"{MEETINGS}/{name}.{end}", ".")


def numbers(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].lstrip("-").isdigit()}


def stall_total_us(text: str, kind: str) -> int:
    """``total`` of a line of a pressure file [us].

    Raises:
        GuestError: There is no such line.
    """
    for words in _rows(text):
        if words and words[0] == kind:
            return int(words[-1].removeprefix("total="))
    raise GuestError(f"pressure file without {kind!r}: {text!r}")


def _rows(text: str) -> Iterable[list[str]]:
    return (line.split() for line in text.splitlines())
