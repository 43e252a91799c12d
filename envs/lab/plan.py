"""What a guest is to be: its devices, its cgroups, and the workload of each, as agent commands.

Plain data that whoever draws a host fills in; this module knows the agent's language and nothing
of scenarios or of the model.

Units: pages of 4 KiB, bytes, seconds, microseconds, as named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memcg_gym.enforcer.btf import Btf
from memcg_gym.enforcer.lock_trace import INSTANCE, OFFSETS, instance_settings, probes
from memcg_gym.envs.lab.protocol import Report, write_command

ROOT = "/sys/fs/cgroup"
CGROUPS = f"{ROOT}/work"
"""All workloads lie below one cgroup, whose pressure is the host's: the agent's idle thread, which
is always able to run, would keep ``full`` of the root at 0.  It is protected without limit, which
passes its children's own protection through as it is (page_counter_calculate_protection)."""

NULLB = "/sys/kernel/config/nullb"
SWAP_DEVICE, FILE_DEVICE, PAGE_DEVICE = "labswap", "labfiles", "labpages"
"""Files touched by heat lie on the third, which reads nothing ahead: as in the model, a miss brings
one page.  (MADV_RANDOM would do that too, but makes the kernel ignore how recently a page was
used.)"""


QUEUE_DEPTH = 4
"""Requests a device has at once; what waits beyond them, the scheduler orders.

A drive serves reads while it has writes to store; a bandwidth by itself would let a thousand
swapped pages stand before one page that somebody waits for.  So the queue is short and mq-deadline
sends reads first (assumption: a drive's own buffer hides its writes)."""

MEMCG_FILES = (
    "memory.current",
    "memory.swap.current",
    "memory.zswap.current",
    "memory.stat",
    "memory.numa_stat",
    "memory.events",
    "memory.pressure",
    "io.pressure",
    "cpu.pressure",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "cpu.weight",
    "io.weight",
    "memory.oom.group",
)
"""What the enforcer reads of a cgroup each tick."""

TRACEFS = "/sys/kernel/tracing"
TRACE_INSTANCE = f"{TRACEFS}/{INSTANCE}"
BTF = "/sys/kernel/btf/vmlinux"
AGENT_PID = 1

HOST_FILES = (
    "/proc/meminfo",
    "/proc/stat",
    "/proc/vmstat",
    "/sys/kernel/debug/lru_gen",
    "/sys/kernel/mm/lru_gen/enabled",
    "/sys/devices/system/node/node0/cpulist",
    "/sys/devices/system/node/node0/meminfo",
    "/sys/devices/system/node/node1/cpulist",
    "/sys/devices/system/node/node1/meminfo",
)
"""What the enforcer reads of the host; a file that is not there is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """The device behind swap and files.

    Attributes:
        swap_mib: Swap space; its storage is guest memory, taken before anything else runs.
        file_mib: Size of the device that file regions lie on; it stores nothing.
        latency_us: Time from submission to completion.
        swap_mib_per_s: Bandwidth, which is how an operation rate of 4-KiB pages is held.
        file_mib_per_s: The same for files, whose operations read ahead.
    """

    swap_mib: int
    file_mib: int
    latency_us: float
    swap_mib_per_s: int
    file_mib_per_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionPlan:
    """One region; the fields are the agent's ``region`` command."""

    kind: str
    pattern: str
    pages: int
    touches_per_request: float
    touches_per_s: float
    write_share: float
    critical_share: float
    burst: bool
    object: str
    offset_pages: int
    prefill: bool
    bin_pages: tuple[float, ...]
    bin_heat: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockPlan:
    """A lock shared by name; the fields are the agent's ``lock`` command.

    Attributes:
        kind: ``user``: a mutex of programs; ``kernel``: one in the kernel, of a pipe.
    """

    name: str
    role: str
    section_us: float
    per_s: float
    charge_share: float
    kind: str = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupPlan:
    """A cgroup and what runs in it.

    Attributes:
        compute: ``sleep``: a request's CPU time is time, as on a host with a CPU for every thread;
            ``burn``: it is work for the guest's CPUs.
    """

    name: str
    threads_critical: int
    threads_tolerant: int
    cpu_us: float
    requests_per_s: float
    queue_s: float
    burst_on_path: float
    compute: str
    seed: int
    regions: tuple[RegionPlan, ...]
    lock: LockPlan | None
    limits: tuple[tuple[str, str], ...]
    present: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """A whole guest."""

    devices: DevicePlan
    cgroups: tuple[CgroupPlan, ...]
    mglru: bool
    swappiness: int
    zswap_percent: int
    demotion: bool
    numa_balancing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a workload wants in the coming tick."""

    load: float
    shed: float
    burst_on: bool
    burst_pages_per_s: float
    burst_target_pages: float


def device_commands(plan: HostPlan) -> bytes:
    """Kernel settings, the two devices, swap: before any cgroup."""
    d = plan.devices
    settings = [
        ("/proc/sys/vm/swappiness", str(plan.swappiness)),
        # Swap-in without readahead: the device counts bytes, a drive counts operations.
        ("/proc/sys/vm/page-cluster", "0"),
        ("/sys/kernel/mm/lru_gen/enabled", "y" if plan.mglru else "n"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "never"),
        ("/sys/module/zswap/parameters/max_pool_percent", str(max(plan.zswap_percent, 1))),
        ("/sys/module/zswap/parameters/enabled", "Y" if plan.zswap_percent > 0 else "N"),
    ]
    if plan.demotion:
        settings.append(("/sys/kernel/mm/numa/demotion_enabled", "1"))
    if plan.numa_balancing:
        settings.append(("/proc/sys/kernel/numa_balancing", "2"))
    parts = [write_command(path, text) for path, text in settings]
    speed = d.swap_mib_per_s, d.file_mib_per_s
    parts.append(null_block(SWAP_DEVICE, d.swap_mib, d.latency_us, speed[0], backed=True))
    parts.append(null_block(FILE_DEVICE, d.file_mib, d.latency_us, speed[1], backed=False))
    parts.append(null_block(PAGE_DEVICE, d.file_mib, d.latency_us, speed[0], backed=False))
    parts.append(write_command(f"/sys/block/{PAGE_DEVICE}/queue/read_ahead_kb", "0"))
    swap = f"/dev/{SWAP_DEVICE}"
    # Filled first: storing a page later would take memory when the kernel wants to free some.
    parts.append(f"fill {swap} {d.swap_mib}\nmkswap {swap}\nswapon {swap} 0\n".encode())
    parts.append(write_command(f"{ROOT}/cgroup.subtree_control", "+memory +io +cpu"))
    parts.append(f"mkdir {CGROUPS}\n".encode())
    for file, text in (
        ("cgroup.subtree_control", "+memory +io +cpu"),
        ("memory.min", "max"),
        ("memory.low", "max"),
    ):
        parts.append(write_command(f"{CGROUPS}/{file}", text))
    parts.append(_watch((path.lstrip("/"), path) for path in HOST_FILES))
    parts.append(
        _watch((f"proc/pressure/{k}", f"{CGROUPS}/{k}.pressure") for k in ("memory", "io", "cpu"))
    )
    return b"".join(parts)


def null_block(
    name: str, size_mib: int, latency_us: float, mib_per_s: int, *, backed: bool
) -> bytes:
    """A null_blk device that completes by timer and holds a bandwidth."""
    folder = f"{NULLB}/{name}"
    attributes = {
        "size": size_mib,
        "blocksize": 4096,
        "memory_backed": int(backed),
        "irqmode": 2,
        "completion_nsec": round(latency_us * 1e3),
        "mbps": mib_per_s,
        "hw_queue_depth": QUEUE_DEPTH,
        "power": 1,
    }
    writes = [write_command(f"{folder}/{key}", str(value)) for key, value in attributes.items()]
    queue = f"/sys/block/{name}/queue"
    writes.append(write_command(f"{queue}/max_sectors_kb", str(request_kib(mib_per_s))))
    writes.append(write_command(f"{queue}/scheduler", "mq-deadline"))
    return f"mkdir {folder}\n".encode() + b"".join(writes)


def request_kib(mib_per_s: int) -> int:
    """Largest request that a bandwidth lets through: null_blk hands it out in shares of 20 ms.

    drivers/block/null_blk: a request beyond one share (TICKS_PER_SEC is 50) would wait forever.
    """
    share_kib = (mib_per_s << 10) // 50
    return min(128, max(4, 1 << (share_kib.bit_length() - 1)))


def cgroup_commands(slot: int, plan: CgroupPlan) -> bytes:
    """Make a cgroup, watch its files, declare its workload."""
    folder = f"{CGROUPS}/{plan.name}"
    parts = [f"mkdir {folder}\n".encode()]
    parts.append(_watch((f"sys/fs/cgroup/{plan.name}/{f}", f"{folder}/{f}") for f in MEMCG_FILES))
    slot_keys = {
        "threads_critical": plan.threads_critical,
        "threads_tolerant": plan.threads_tolerant,
        "cpu_us": plan.cpu_us,
        "requests_per_s": plan.requests_per_s,
        "queue_s": plan.queue_s,
        "burst_on_path": plan.burst_on_path,
        "compute": plan.compute,
        "seed": plan.seed,
    }
    parts.append(f"slot {slot} {folder} {_words(slot_keys)}\n".encode())
    parts += [_region(slot, region) for region in plan.regions]
    if plan.lock is not None:
        lock = plan.lock
        keys = {
            "name": lock.name,
            "role": lock.role,
            "kind": lock.kind,
            "section_us": lock.section_us,
            "per_s": lock.per_s,
            "charge_share": lock.charge_share,
        }
        parts.append(f"lock {slot} {_words(keys)}\n".encode())
    return b"".join(parts)


def start_commands(cgroups: Sequence[CgroupPlan]) -> bytes:
    """Start all workloads side by side, wait until they are loaded, then set their limits.

    Side by side, so that memory that is short is short for all of them; limits last: a service
    that is loaded first and limited then, as in the model.
    """
    present = [slot for slot, plan in enumerate(cgroups) if plan.present]
    parts = [f"launch {slot}\n".encode() for slot in present]
    parts += [f"await {slot}\n".encode() for slot in present]
    for plan in cgroups:
        folder = f"{CGROUPS}/{plan.name}"
        parts += [write_command(f"{folder}/{file}", text) for file, text in plan.limits]
    return b"".join(parts)


def trace_question() -> bytes:
    """Ask what the guest can trace, and where its kernel keeps a lock's owner."""
    files = {"trace/events": f"{TRACEFS}/available_events", "trace/btf": BTF}
    return _watch(files.items())


def trace_commands(report: Report, cgroups: Sequence[CgroupPlan]) -> bytes:
    """Trace locks, as the enforcer does on a host, and hand the text out with each report.

    Args:
        report: The answer to :func:`trace_question`.
        cgroups: Whose threads the reader must know.
    """
    offsets = Btf(report.files["trace/btf"], BTF).offsets(OFFSETS)
    text = probes(offsets, report.text("trace/events").split())
    parts = [b"unwatch trace/events\nunwatch trace/btf\n"]
    # All probes in one write: the agent's truncates, which removes what was there.
    parts.append(write_command(f"{TRACEFS}/dynamic_events", text))
    parts.append(f"mkdir {TRACE_INSTANCE}\n".encode())
    for file, value in instance_settings([AGENT_PID]):
        parts.append(write_command(f"{TRACE_INSTANCE}/{file}", value))
    pipe = f"{TRACE_INSTANCE}/trace_pipe"
    parts.append(_watch([(pipe.lstrip("/"), pipe)]))
    threads = ((f"{c.name}/cgroup.threads", f"{CGROUPS}/{c.name}/cgroup.threads") for c in cgroups)
    parts.append(_watch((f"sys/fs/cgroup/{name}", path) for name, path in threads))
    return b"".join(parts)


def demand_command(slot: int, demand: Demand) -> bytes:
    """What holds for a workload from now on."""
    keys = {
        "load": demand.load,
        "shed": demand.shed,
        "burst_on": int(demand.burst_on),
        "burst_pages_per_s": demand.burst_pages_per_s,
        "burst_target_pages": demand.burst_target_pages,
    }
    return f"demand {slot} {_words(keys)}\n".encode()


def _region(slot: int, region: RegionPlan) -> bytes:
    keys: dict[str, object] = {
        "kind": region.kind,
        "pattern": region.pattern,
        "pages": region.pages,
        "touches_per_request": region.touches_per_request,
        "touches_per_s": region.touches_per_s,
        "write_share": region.write_share,
        "critical_share": region.critical_share,
        "burst": int(region.burst),
        "prefill": int(region.prefill),
        "bin_pages": ",".join(f"{p:.9g}" for p in region.bin_pages),
        "bin_heat": ",".join(f"{h:.9g}" for h in region.bin_heat),
    }
    if region.object:
        keys["object"] = region.object
    if region.kind in ("file", "file_read"):
        by_page = region.kind == "file" and region.pattern == "heat"
        device = PAGE_DEVICE if by_page else FILE_DEVICE
        keys |= {"device": f"/dev/{device}", "offset_pages": region.offset_pages}
    return f"region {slot} {_words(keys)}\n".encode()


def _words(keys: dict[str, object] | dict[str, float]) -> str:
    return " ".join(
        f"{key}={value:.9g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in keys.items()
    )


def _watch(files: Iterable[tuple[str, str]]) -> bytes:
    return "".join(f"watch {name} {path}\n" for name, path in files).encode()
