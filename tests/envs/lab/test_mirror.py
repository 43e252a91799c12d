from __future__ import annotations

from collections.abc import Iterator

import pytest

from memcg_gym.enforcer.cgroupfs import CgroupReader
from memcg_gym.enforcer.hostfs import HostReader, find_nodes
from memcg_gym.enforcer.lru_gen import LruGenFile
from memcg_gym.envs.contract.signals import HostSig, Sig
from memcg_gym.envs.lab.mirror import Mirror

FILES = {
    "proc/meminfo": b"MemTotal:        1000000 kB\nMemFree:          400000 kB\n"
    b"MemAvailable:     500000 kB\n",
    "sys/devices/system/node/node0/cpulist": b"0\n",
    "sys/devices/system/node/node0/meminfo": b"Node 0 MemTotal:  1000000 kB\n"
    b"Node 0 MemFree:  400000 kB\n",
    "sys/fs/cgroup/web-0/memory.current": b"123456789\n",
}


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror(device_bytes=200_000 << 10)
    yield made
    made.close()


def test_the_enforcers_readers_read_a_guest_like_a_host(mirror: Mirror) -> None:
    mirror.update(FILES)
    nodes = find_nodes(mirror.roots)
    host = HostReader(mirror.roots, nodes, lambda: 7e6).read()
    reading = CgroupReader(mirror.roots, mirror.roots.cgroup / "web-0", nodes).read()
    assert nodes.fast == (0,)
    assert host[HostSig.UPTIME_US] == 7e6
    assert host[HostSig.AVAILABLE_BYTES] == 500_000 << 10
    assert reading.signals[Sig.USAGE_BYTES] == 123456789


def test_the_emulated_disk_is_no_memory_of_the_host_or_of_its_first_node(mirror: Mirror) -> None:
    mirror.update(FILES)
    host = HostReader(mirror.roots, find_nodes(mirror.roots)).read()
    assert host[HostSig.TOTAL_BYTES] == 800_000 << 10
    assert host[HostSig.FAST_TOTAL_BYTES] == 800_000 << 10


def test_time_that_the_guest_s_idle_thread_spends_is_idle_time(mirror: Mirror) -> None:
    stat = b"cpu  10 500 20 300 5 0 0 0 0 0\ncpu0 10 500 20 300 5 0 0 0 0 0\nintr 1\n"
    mirror.update(FILES | {"proc/stat": stat})
    host = HostReader(mirror.roots, find_nodes(mirror.roots)).read()
    assert host[HostSig.CPU_IDLE_US] == (300 + 500 + 5) * 1e4
    assert host[HostSig.CPUS] == 1


def test_generations_are_found_by_the_cgroup_s_name(mirror: Mirror) -> None:
    text = b"memcg    67 /work/web-0\n node     0\n          3       8000       12          4 \n"
    mirror.update(FILES | {"sys/kernel/debug/lru_gen": text})
    assert set(LruGenFile(mirror.roots).read()) == {"web-0"}


def test_what_workloads_tell_is_read_as_tags(mirror: Mirror) -> None:
    mirror.update(FILES)
    mirror.tell("web-0", {Sig.SLACK_RATIO: -0.25, Sig.LOCK_WAITERS: 1.5})
    path = mirror.roots.cgroup / "web-0"
    signals = CgroupReader(mirror.roots, path, find_nodes(mirror.roots)).read().signals
    assert signals[Sig.SLACK_RATIO] == -0.25
    assert signals[Sig.LOCK_WAITERS] == 1.5


def test_files_that_are_not_the_kernels_are_not_laid_out(mirror: Mirror) -> None:
    mirror.update({"slot/0/stats": b"alive 1\n", "../evil": b"x", "results": b"0\n"})
    assert not (mirror.folder / "slot").exists()
    assert not (mirror.folder.parent / "evil").exists()


def test_closing_removes_the_tree(mirror: Mirror) -> None:
    mirror.update(FILES)
    mirror.close()
    assert not mirror.folder.exists()
