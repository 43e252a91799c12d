"""What the host and the guest's agent say to each other, through one piece of shared memory.

The guest runs until its agent has written a *report* and asks the machine to stop; while it stands
still, the host reads the report, writes a *command block* and lets it go on.  No guest time passes
in between, and nothing arrives at a moment the host chose.  ``guest/protocol.h`` is the same layout
in C.

A report is a list of named files: texts the kernel wrote (``/sys/fs/cgroup/...``), and the agent's
own (``results``, ``slot/N/stats``).  A command block is lines of text, the last of which is
``tick``, ``pause`` or ``poweroff``.

Units: nanoseconds of guest time, bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from memcg_gym.envs.contract.errors import MemcgGymError

MAGIC = 0x4C47434D  # "MCGL"
VERSION = 1
SHARED_BYTES = 32 << 20
COMMAND_OFFSET = 4 << 10
COMMAND_BYTES = (4 << 20) - COMMAND_OFFSET
REPORT_OFFSET = 4 << 20
REPORT_BYTES = SHARED_BYTES - REPORT_OFFSET

# magic, version, state, reserved, tick, guest time [ns], command bytes, report bytes, overrun [ns]
HEADER = struct.Struct("<IIIIQQIIQ")
COMMAND_LENGTH_OFFSET = 32
ENTRY = struct.Struct("<II")  # bytes of the name, bytes of the text; both follow


class LabError(MemcgGymError):
    """The lab could not do what was asked; the message names the part and its last words."""


class GuestError(LabError):
    """The guest died, hung, or said what it must not; carries its last console lines."""


class State(IntEnum):
    """Why the guest stands still."""

    BOOTING = 0
    READY = 1
    PAUSED = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What the agent wrote before it stopped the machine.

    Attributes:
        state: Why it stopped.
        tick: Ticks since the first ``tick`` command.
        time_ns: The guest's CLOCK_MONOTONIC.
        overrun_ns: How far the tick began late because commands took longer than a tick.
        files: Text by name.
    """

    state: State
    tick: int
    time_ns: int
    overrun_ns: int
    files: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """One file as text.

        Raises:
            GuestError: The report has no such file.
        """
        try:
            return self.files[name].decode("utf-8", "replace")
        except KeyError:
            raise GuestError(
                f"guest report of tick {self.tick}: no {name!r}; it has {len(self.files)} files"
            ) from None


def read_report(shared: memoryview) -> Report:
    """Decode the report area.

    Args:
        shared: The whole shared memory.

    Raises:
        GuestError: It is not a report of this version, or it is cut short.
    """
    magic, version, state, _, tick, time_ns, _, length, overrun_ns = HEADER.unpack_from(shared)
    if magic != MAGIC or version != VERSION:
        raise GuestError(
            f"guest report: magic {magic:#x} version {version}, expected {MAGIC:#x} {VERSION}; "
            "build the guest image again (memcg-gym lab fetch)"
        )
    if length > REPORT_BYTES or state not in State._value2member_map_:
        raise GuestError(f"guest report: {length} bytes in state {state}: broken header")
    return Report(State(state), tick, time_ns, overrun_ns, unpack_files(shared, length))


def unpack_files(shared: memoryview, length: int) -> dict[str, bytes]:
    """The files of a report of ``length`` bytes."""
    files: dict[str, bytes] = {}
    at, end = REPORT_OFFSET, REPORT_OFFSET + length
    while at < end:
        if at + ENTRY.size > end:
            raise GuestError("guest report: cut short")
        name_bytes, text_bytes = ENTRY.unpack_from(shared, at)
        at += ENTRY.size
        if at + name_bytes + text_bytes > end:
            raise GuestError("guest report: cut short")
        name = bytes(shared[at : at + name_bytes]).decode("utf-8", "replace")
        at += name_bytes
        files[name] = bytes(shared[at : at + text_bytes])
        at += text_bytes
    return files


def write_commands(shared: memoryview, commands: bytes) -> None:
    """Put a command block where the guest reads it on resuming.

    Raises:
        LabError: The block does not fit.
    """
    if len(commands) > COMMAND_BYTES:
        raise LabError(f"command block: {len(commands)} bytes, at most {COMMAND_BYTES} fit")
    shared[COMMAND_OFFSET : COMMAND_OFFSET + len(commands)] = commands
    struct.pack_into("<I", shared, COMMAND_LENGTH_OFFSET, len(commands))


def write_command(path: str, text: str, *, nonblocking: bool = False) -> bytes:
    """``write``: put ``text`` into a guest file; its errno comes back in ``results``."""
    data = text.encode()
    return f"write {'n' if nonblocking else '-'} {len(data)} {path}\n".encode() + data + b"\n"


def parse_results(text: str) -> list[int]:
    """``results``: the errno of every command of the last block, in order; 0 = done."""
    return [int(word) for word in text.split()]
