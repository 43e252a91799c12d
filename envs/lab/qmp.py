"""QEMU's monitor (QMP): commands to a machine, and the events that tell what became of it.

One JSON object a line on a connected socket.  It knows nothing of the guest.

Units: seconds of wall time.
"""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from typing import Any

ANSWER_S = 30.0
"""In which QEMU answers a command, whatever its guest does; assumption."""

CHUNK_BYTES = 1 << 16


class MonitorClosed(Exception):
    """QEMU has gone, or talks nonsense; private to the lab."""


class Monitor:
    """The host's end of a monitor's socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._text = b""
        self._events: deque[dict[str, Any]] = deque()

    def greet(self) -> None:
        """Shake hands: QEMU speaks first.

        Raises:
            MonitorClosed: It ended instead.
            TimeoutError: It said nothing.
        """
        self._next(time.monotonic() + ANSWER_S)
        self.execute("qmp_capabilities")

    def execute(self, command: str) -> Any:
        """Run a command without arguments.

        Raises:
            MonitorClosed: QEMU ended or refused.
            TimeoutError: It did not answer.
        """
        self._connection.settimeout(ANSWER_S)
        try:
            self._connection.sendall(json.dumps({"execute": command}).encode() + b"\n")
        except OSError as error:
            raise MonitorClosed(str(error)) from error
        deadline = time.monotonic() + ANSWER_S
        while True:
            message = self._next(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise MonitorClosed(f"{command}: {message['error']}")
            self._events.append(message)

    def wait(self, names: tuple[str, ...], deadline: float) -> dict[str, Any]:
        """The next event of one of these names; others are passed over.

        Args:
            names: E.g. ``("STOP", "SHUTDOWN")``.
            deadline: By ``time.monotonic()``.

        Raises:
            MonitorClosed: QEMU ended.
            TimeoutError: The deadline passed.
        """
        while True:
            message = self._events.popleft() if self._events else self._next(deadline)
            if message.get("event") in names:
                return message

    def _next(self, deadline: float) -> dict[str, Any]:
        """The next message, whatever it is."""
        while b"\n" not in self._text:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._connection.settimeout(left_s)
            try:
                chunk = self._connection.recv(CHUNK_BYTES)
            except ConnectionError as error:
                raise MonitorClosed(str(error)) from error
            if not chunk:
                raise MonitorClosed("QEMU closed its monitor")
            self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise MonitorClosed(f"not JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise MonitorClosed(f"not a message: {line[:80]!r}")
        return message
