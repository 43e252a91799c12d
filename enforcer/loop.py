"""The daemon's life: start, tick until told to stop, give everything back.

It ends on a signal or after a number of ticks, never in the middle of a write.  Where systemd asks
for it, it says that it is ready and alive (``Type=notify``, ``WatchdogSec=``).

Units: seconds.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

from memcg_gym.enforcer.daemon import Daemon
from memcg_gym.enforcer.managed import Record

LOG = logging.getLogger("memcg_gym.enforcer")


class StopSignal:
    """Ends a loop's sleep on a signal, without an exception in the middle of a write."""

    def __init__(self) -> None:
        """Open the pipe that a handler writes to; no handler yet."""
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.number: int | None = None

    def catch(self, *signals: int) -> None:
        """Stop on these from now on; the main thread's to call."""
        for number in signals:
            signal.signal(number, self._stop)

    def wait(self, time_s: float) -> bool:
        """Sleep; True at once when a stop was asked for."""
        if self.number is None:
            select.select([self._read_fd], [], [], max(time_s, 0.0))
        return self.number is not None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        os.write(self._write_fd, b".")


def run_loop(
    daemon: Daemon,
    emit: Callable[[list[Record]], None],
    stop: StopSignal,
    n_ticks: int | None = None,
) -> int:
    """Tick until told to stop; whatever happens, give back what was changed.

    Args:
        daemon: Not started yet.
        emit: Gets each tick's records.
        stop: Ends the loop.
        n_ticks: How many ticks at most; None = for ever.

    Returns:
        0, or 1 where something could not be given back.
    """
    failures: list[str] = []
    try:
        daemon.start()
        notify("READY=1")
        due_s = time.monotonic()
        while n_ticks is None or daemon.n_ticks < n_ticks:
            # A loop that fell behind does not catch up: two ticks at once would measure nothing.
            due_s = max(due_s + daemon.interval_s, time.monotonic())
            if stop.wait(due_s - time.monotonic()):
                break
            emit(daemon.tick())
            notify("WATCHDOG=1")
    finally:
        notify("STOPPING=1")
        failures = daemon.close()
    return 1 if failures else 0


def notify(state: str) -> None:
    """Tell systemd, where it asked to be told (sd_notify's datagram); never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.connect("\0" + address[1:] if address[0] == "@" else address)
            out.send(state.encode())
    except OSError as error:
        LOG.debug("%s could not be sent: %s", state, error.strerror)
