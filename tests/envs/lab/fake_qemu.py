"""A QEMU without a guest: it answers on its monitor and does what the kernel command line says.

``fake=`` names how it ends: at once, in silence, at the second report, and so on.
"""

import json
import os
import re
import signal
import socket
import struct
import sys
import time

READY, PAUSED, FAILED = 1, 2, 3
REPORT_OFFSET = 4 << 20


def main():
    if "--version" in sys.argv:
        print("QEMU emulator version 99.1 (fake)")
        return
    words = " ".join(sys.argv)
    way = re.search(r"fake=(\S+)", words)
    way = way[1] if way else "well"
    if way == "refuses":
        sys.exit("fake: no such device")
    monitor = socket.socket(fileno=int(re.search(r"socket,id=monitor,fd=(\d+)", words)[1]))
    shared = os.open(re.search(r"mem-path=([^, ]+)", words)[1], os.O_RDWR)
    console = os.open(re.search(r"path=([^, ]+)", words)[1], os.O_WRONLY | os.O_TRUNC)
    if way == "mute":
        time.sleep(60)
    os.write(console, b"first words\r\nlast words\r\n")
    run(monitor, shared, way)


def run(monitor, shared, way):
    lines = monitor.makefile("r")

    def say(**message):
        monitor.sendall(json.dumps(message).encode() + b"\n")

    def stop(state, **files):
        write(shared, state, files)
        say(event="GUEST_PANICKED", data={"action": "pause"})
        say(event="STOP")

    say(QMP={"version": {}})
    for line in lines:
        command = json.loads(line)["execute"]
        if command == "query-status":
            say(**{"return": {"status": "internal-error"}})
            continue
        if command == "cont" and way == "refuses-cont":
            say(error={"class": "GenericError", "desc": "not now"})
            continue
        # Events may come before the answer.
        if command == "cont":
            say(event="RESUME")
        say(**{"return": {}})
        if command == "qmp_capabilities":
            if way == "hangs-at-boot":
                continue
            if way == "never-ready":
                stop(PAUSED)
            else:
                stop(READY, **{"boot/version": b"Linux fake"})
            continue
        told = os.pread(shared, struct.unpack("<I", os.pread(shared, 4, 32))[0], 4096)
        if told == b"poweroff\n":
            say(event="SHUTDOWN", data={"guest": True, "reason": "guest-shutdown"})
            return
        if way == "fails":
            stop(FAILED, error=b"no swap device")
        elif way == "stale":
            say(event="STOP")
        elif way == "resets":
            say(event="SHUTDOWN", data={"guest": True, "reason": "guest-reset"})
            return
        elif way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif way == "garbage":
            monitor.sendall(b"what?\n")
        elif way == "alien":
            os.pwrite(shared, struct.pack("<I", 7), 0)
            os.pwrite(shared, struct.pack("<I", PAUSED), 8)
            say(event="STOP")
        elif way != "hangs":
            stop(PAUSED, echo=told)


def write(shared, state, files):
    text = b""
    for name, content in files.items():
        text += struct.pack("<II", len(name), len(content)) + name.encode() + content
    os.pwrite(shared, text, REPORT_OFFSET)
    length = os.pread(shared, 4, 32)
    header = struct.pack("<IIIIQQ", 0x4C47434D, 1, state, 0, 0, 5) + length
    os.pwrite(shared, header + struct.pack("<IQ", len(text), 0), 0)


main()
