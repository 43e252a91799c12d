"""A virtual machine that stands still whenever its agent asks, until the host lets it go on.

The agent stops the machine by writing to the port of a *pvpanic* device, which QEMU under
``-action panic=pause`` obeys at that very instruction.  With QEMU's own translator and its
instruction counter (``-icount``) a guest's clock is the number of instructions it has executed: the
host's load, its pauses and its clock do not enter.  With one processor, two runs with the same seed
agree to the byte if the agent stops the machine as ``guest/standstill.h`` does and never lets it
halt (``guest/agent_idle.c``).  With more, the others run on for as long as the host takes to stop
them; with KVM the guest is fast, and no two runs agree.

All that a machine needs are open files without names, so that nothing is left behind however it
ends; QEMU itself dies with the thread that started it.

Units: seconds of wall time unless a name says otherwise.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from memcg_gym.envs.lab.accel import choose_accel
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.protocol import (
    SHARED_BYTES,
    GuestError,
    LabError,
    Report,
    State,
    read_report,
    write_commands,
)
from memcg_gym.envs.lab.qemu import Accel, Hardware, check_host, fd_path, qemu_command
from memcg_gym.envs.lab.qmp import Monitor, MonitorClosed

__all__ = ["Hardware", "Machine"]

STATE_OFFSET = 8
"""Of the shared memory's header: behind magic and version."""

CONSOLE_LINES = 12
"""Shown with an error."""

CAUSE = re.compile(r"Kernel panic|BUG:|Oops:|Out of memory|agent:")
CAUSES = 3
"""So many lines like this are shown before those."""

KVM_PROBE_S = 30.0
"""A boot takes about a second where KVM works."""

END_S = 5.0
"""In which QEMU, having closed its monitor, ends."""

# QEMU is started by way of this: it asks to be killed with its parent (PR_SET_PDEATHSIG is 1) and
# looks whether that still lives, then QEMU takes its place.  Doing so between fork and exec of this
# process would not be safe beside other threads.
LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Machine:
    r"""A guest in lockstep with the host; a context manager.

    Args:
        image: What to boot.
        hardware: On what.
        boot_timeout_s: In which the agent must be ready.
        step_timeout_s: That one step may take.

    Attributes:
        accel: What executes the guest, once it has started.

    Example::

        with Machine(image, Hardware(memory_mib=512)) as machine:
            print(machine.start().text("boot/version"))
            print(machine.step(b"tick\n").time_ns)
    """

    def __init__(
        self,
        image: GuestImage,
        hardware: Hardware,
        *,
        boot_timeout_s: float = 120.0,
        step_timeout_s: float = 300.0,
    ) -> None:
        self.image = image
        self.hardware = hardware
        self.boot_timeout_s = boot_timeout_s
        self.step_timeout_s = step_timeout_s
        self.accel: Accel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None
        self._open = contextlib.ExitStack()
        self._shared = memoryview(b"")
        self._console_fd = self._stderr_fd = -1
        self._last_console = ""

    def __enter__(self) -> Machine:
        """The machine itself; nothing runs yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the machine."""
        self.close()

    @property
    def console(self) -> str:
        """What the guest's kernel and programs have said so far; still there after the end."""
        if self._console_fd >= 0:
            self._last_console = read_text(self._console_fd)
        return self._last_console

    def start(self) -> Report:
        """Boot until the agent is ready.

        Raises:
            LabError: It runs already, QEMU is missing or refuses, too little memory.
            GuestError: The guest died, or was not ready in time.
        """
        if self._process is not None:
            raise LabError("machine: it runs already")
        check_host(self.hardware)
        self.accel = choose_accel(self.hardware.accel, lambda: probe_kvm(self.image))
        try:
            self._launch(self.accel)
            return self._await_report("boot", self.boot_timeout_s, State.READY)
        except BaseException:
            self.close()
            raise

    def step(self, commands: bytes) -> Report:
        """Write a command block, let the guest go on, wait until it stops.

        After an error the machine is closed.

        Args:
            commands: Lines, the last of which makes the agent stop again.

        Raises:
            LabError: The machine does not run, or the block does not fit.
            GuestError: The guest died, hung, or reports a failure.
        """
        if self._monitor is None:
            raise LabError("machine: it does not run; call start() first")
        write_commands(self._shared, commands)
        try:
            self._resume()
            return self._await_report("step", self.step_timeout_s, State.PAUSED)
        except BaseException:
            self.close()
            raise

    def power_off(self) -> None:
        """Let the guest switch itself off, and close the machine.

        Raises:
            LabError: The machine does not run.
            GuestError: The guest did something else.
        """
        if self._monitor is None:
            raise LabError("machine: it does not run; call start() first")
        write_commands(self._shared, b"poweroff\n")
        try:
            self._resume()
            reason = self._await_end("power off", self.step_timeout_s)
            if reason != "guest-shutdown":
                raise self._failed("power off", reason or "the guest stopped instead")
        finally:
            self.close()

    def close(self) -> None:
        """Kill the machine; harmless where none runs."""
        self._last_console = self.console
        self._console_fd = self._stderr_fd = -1
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._monitor = None
        self._shared.release()
        self._shared = memoryview(b"")
        self._open.close()

    def _launch(self, accel: Accel) -> None:
        """Start QEMU and shake hands with it."""
        shared_fd = self._file("shared", SHARED_BYTES)
        self._console_fd = self._file("console", 0)
        self._stderr_fd = self._file("stderr", 0)
        self._shared = memoryview(self._open.enter_context(mmap.mmap(shared_fd, SHARED_BYTES)))
        ours, theirs = socket.socketpair()
        self._open.enter_context(ours)
        files = (shared_fd, self._console_fd, theirs.fileno())
        paths = (fd_path(shared_fd), fd_path(self._console_fd))
        command = qemu_command(self.image, self.hardware, accel, *paths, theirs.fileno())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-ISc", LAUNCHER, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr_fd,
                stderr=self._stderr_fd,
                pass_fds=files,
                start_new_session=True,  # Ctrl-C is for us; we then close the machine
            )
        self._monitor = Monitor(ours)
        with self._explained("start"):
            self._monitor.greet()

    def _file(self, name: str, size: int) -> int:
        """A file in memory that goes with its last user."""
        fd = os.memfd_create(f"memcg-gym-{name}")
        self._open.callback(os.close, fd)
        os.ftruncate(fd, size)
        return fd

    def _resume(self) -> None:
        """Let the guest go on."""
        assert self._monitor is not None
        # A guest that stops without a new report must not be taken for one that wrote it.
        struct.pack_into("<I", self._shared, STATE_OFFSET, State.BOOTING)
        with self._explained("resume"):
            self._monitor.execute("cont")

    def _await_report(self, what: str, timeout_s: float, expected: State) -> Report:
        """What the agent says when it stops the machine next."""
        reason = self._await_end(what, timeout_s)
        if reason is not None:
            raise self._failed(what, f"the guest has ended ({reason})")
        (state,) = struct.unpack_from("<I", self._shared, STATE_OFFSET)
        if state == State.BOOTING:
            assert self._monitor is not None
            with self._explained(what):
                status = self._monitor.execute("query-status")["status"]
            raise self._failed(what, f"the machine stopped without a report ({status})")
        try:
            report = read_report(self._shared)
        except GuestError as error:
            raise self._failed(what, str(error)) from error
        if report.state is not expected:
            said = report.files.get("error", b"").decode("utf-8", "replace")
            text = f"the agent reports {report.state.name}, expected {expected.name}"
            raise self._failed(what, f"{text}: {said}" if said else text)
        return report

    def _await_end(self, what: str, timeout_s: float) -> str | None:
        """Wait until the guest stops: None where it stands still, else why it has ended."""
        assert self._monitor is not None
        with self._explained(what, timeout_s):
            event = self._monitor.wait(("STOP", "SHUTDOWN"), time.monotonic() + timeout_s)
        if event["event"] == "STOP":
            return None
        data: dict[str, Any] = event.get("data", {})
        return str(data.get("reason", "unknown reason"))

    @contextlib.contextmanager
    def _explained(self, what: str, timeout_s: float = 0.0) -> Iterator[None]:
        """Turn what goes wrong with the monitor into an error that says why."""
        try:
            yield
        except TimeoutError as error:
            waited = f"nothing within {timeout_s:g} s" if timeout_s else "QEMU does not answer"
            raise self._failed(what, f"{waited}: it hangs, or the host is too busy") from error
        except MonitorClosed as error:
            raise self._gone(what, error) from error

    def _gone(self, what: str, error: MonitorClosed) -> LabError:
        """Why QEMU has ended."""
        assert self._process is not None
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return self._failed(what, f"monitor: {error}")
        said = read_text(self._stderr_fd).strip()
        if code < 0:
            text = f"QEMU was killed by {signal.Signals(-code).name}"
            return self._failed(what, f"{text}{' (out of memory?)' if code == -9 else ''} {said}")
        if what == "start":
            return LabError(f"machine: QEMU ended with status {code}: {said or 'no message'}")
        return self._failed(what, f"QEMU ended with status {code}: {said or 'no message'}")

    def _failed(self, what: str, why: str) -> GuestError:
        """An error with the console's last lines."""
        lines = [line for line in self.console.splitlines() if line.strip()]
        # What a panic prints after its first line says less than that line.
        causes = [line for line in lines[:-CONSOLE_LINES] if CAUSE.search(line)][-CAUSES:]
        tail = "\n".join(f"  {line}" for line in causes + lines[-CONSOLE_LINES:]) or "  (nothing)"
        return GuestError(f"guest: {what}: {why.strip()}; its console's last lines:\n{tail}")


def probe_kvm(image: GuestImage) -> str:
    """Why a guest does not boot under KVM; empty where it does."""
    try:
        hardware = Hardware(memory_mib=256, accel="kvm")
        with Machine(image, hardware, boot_timeout_s=KVM_PROBE_S) as machine:
            machine._launch("kvm")
            machine._await_report("boot", KVM_PROBE_S, State.READY)
    except LabError as error:
        return f"a guest does not boot: {str(error).splitlines()[0]}"
    return ""


def read_text(fd: int) -> str:
    """All of a file of text, with a terminal's line ends made plain."""
    content = os.pread(fd, os.fstat(fd).st_size, 0)
    return content.decode("utf-8", "replace").replace("\r\n", "\n")
