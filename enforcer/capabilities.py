"""What a cgroup on this host offers, and what is done without: signals, features, heads.

Judged by a reading, not by a version number: distributions move features between versions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memcg_gym.enforcer.cgroupfs import Reading
from memcg_gym.enforcer.shield import HOLDER_FEATURES
from memcg_gym.envs.contract.features import FEATURES
from memcg_gym.envs.contract.heads import HEADS, Head
from memcg_gym.envs.contract.signals import HOST_SIGNALS, MEMCG_SIGNALS, HostSig, Sig

HOLDER_SIGNALS = tuple(
    dict.fromkeys(Sig[name.upper()] for f in HOLDER_FEATURES for name in FEATURES[f].signals)
)
"""What must be told before a cgroup may be throttled: who holds locks, who is critical."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one cgroup on this host offers, and what is done without.

    Attributes:
        working_set: Who says how much memory is in use: ``tag``, ``lru_gen`` or ``""``.
        missing_signals: Names of signals without a source, host signals as ``host.<name>``.
        missing_required: Those of them without which only the default action is ever taken.
        fallback_features: Features that run on their fallback value.
        unsupported_heads: Reason by head name.
    """

    working_set: str
    missing_signals: tuple[str, ...]
    missing_required: tuple[str, ...]
    fallback_features: tuple[str, ...]
    unsupported_heads: dict[str, str]

    def lines(self) -> list[str]:
        """The report, one line a subject."""
        out = []
        if self.missing_required:
            out.append(f"default action only: no source for {', '.join(self.missing_required)}")
        if self.working_set:
            out.append(f"working set from {self.working_set}")
        if self.fallback_features:
            out.append(f"features on fallback: {', '.join(self.fallback_features)}")
        for head, reason in self.unsupported_heads.items():
            out.append(f"{head} unsupported: {reason}")
        return out


def capabilities(
    path: Path, reading: Reading, host: np.ndarray, *, blind_throttle: bool = False
) -> Capabilities:
    """What a cgroup offers, judged by one reading of it and of its host.

    Args:
        path: The cgroup's folder.
        reading: Of the cgroup.
        host: Of the host, shape ``(N_HOST_SIGNALS,)``.
        blind_throttle: As in :func:`why_unsupported`.
    """
    own = {s.name for s in MEMCG_SIGNALS if math.isnan(reading.signals[Sig[s.name.upper()]])}
    hosts = {s.name for s in HOST_SIGNALS if math.isnan(host[HostSig[s.name.upper()]])}
    required = [s.name for s in MEMCG_SIGNALS if s.required and s.name in own]
    required += [f"host.{s.name}" for s in HOST_SIGNALS if s.required and s.name in hosts]
    fallback = [
        f.name
        for f in FEATURES
        if f.fallback is not None and any(s in (hosts if f.per_host else own) for s in f.signals)
    ]
    return Capabilities(
        working_set=reading.working_set,
        missing_signals=(*sorted(own), *(f"host.{name}" for name in sorted(hosts))),
        missing_required=tuple(required),
        fallback_features=tuple(fallback),
        unsupported_heads=unsupported_heads(path, reading, blind_throttle=blind_throttle),
    )


def unsupported_heads(
    path: Path,
    reading: Reading,
    before: np.ndarray | None = None,
    *,
    blind_throttle: bool = False,
) -> dict[str, str]:
    """Reason by name of each head that cannot be used; arguments as :func:`why_unsupported`."""
    return {
        HEADS[head].name: reason
        for head in Head
        if (reason := why_unsupported(head, path, reading, before, blind_throttle=blind_throttle))
    }


def why_unsupported(
    head: Head,
    path: Path,
    reading: Reading,
    before: np.ndarray | None = None,
    *,
    blind_throttle: bool = False,
) -> str:
    """Why a head cannot be used here, or ``""`` where it can.

    Args:
        head: The head.
        path: The cgroup's folder.
        reading: Of the cgroup.
        before: Its signals a tick ago; None = not looked at.
        blind_throttle: Throttle though nobody tells who holds locks.
    """
    settings = reading.settings
    if head == Head.THROTTLE:
        return why_not_throttled(reading, before, blind_throttle)
    if head == Head.RECLAIM and not (path / "memory.reclaim").exists():
        return "no memory.reclaim (Linux 5.19)"
    if head == Head.DEMOTE:
        return "no DAMON scheme is set up by this version"
    if head == Head.PROTECT:
        if "memory.low" not in settings:
            return "no memory.low"
        if math.isnan(reading.signals[Sig.WSS_BYTES]):
            return "no working-set estimate (a walk of lru_gen within 60 s, or the tag wss_bytes)"
    if head == Head.SHED:
        return "no shedding channel in this version"
    if head == Head.FLUSH and not {"cpu.weight", "io.weight"} & settings.keys():
        return "neither cpu.weight nor io.weight"
    if head == Head.KILL and not (path / "cgroup.kill").exists():
        return "no cgroup.kill (Linux 5.14)"
    return ""


def why_not_throttled(reading: Reading, before: np.ndarray | None, blind: bool) -> str:
    """The shield can spare lock holders and critical threads only where it is told of them.

    They are told as counters, so two readings are needed, and the later must not be the lower one
    (a teller that began anew).
    """
    if "memory.high" not in reading.settings:
        return "no memory.high"
    if blind:
        return ""
    now = reading.signals
    silent = [
        sig.name.lower()
        for sig in HOLDER_SIGNALS
        if math.isnan(now[sig]) or (before is not None and not now[sig] >= before[sig])
    ]
    if not silent:
        return ""
    return f"lock holders and critical threads are not known: no source for {', '.join(silent)}"
