"""Views put together by hand, so that a policy's arithmetic can be checked without a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from memcg_gym.agents.policy import View
from memcg_gym.envs.contract.features import N_FEATURES, SHIFT, F
from memcg_gym.envs.contract.heads import N_HEADS
from memcg_gym.envs.contract.signals import (
    N_HOST_SIGNALS,
    N_MEMCG_SIGNALS,
    UNLIMITED_BYTES,
    HostSig,
    Sig,
)

MIB = float(1 << 20)
GIB = float(1 << 30)
ALL_HEADS = np.ones(N_HEADS, dtype=np.int64)


def view(
    n: int = 1,
    *,
    now: dict[Sig, Any] | None = None,
    delta: dict[Sig, Any] | None = None,
    host: dict[HostSig, float] | None = None,
    host_delta: dict[HostSig, float] | None = None,
    features: dict[F, Any] | None = None,
    active: list[bool] | None = None,
    tick: int = 0,
) -> View:
    """One host of ``n`` cgroups of 1 GiB without limits, on 16 GiB of which 8 are free.

    Args:
        now, delta: Signals and their growth over the tick, a number or one for each cgroup.
        host, host_delta: The same for the host.
        features: Features in their own units.
        active: Which slots hold a cgroup; all.
    """
    signals = np.zeros((1, n, N_MEMCG_SIGNALS))
    for limit in (Sig.OWNER_HIGH_BYTES, Sig.OWNER_MAX_BYTES, Sig.OWNER_SWAP_MAX_BYTES):
        signals[..., limit] = UNLIMITED_BYTES
    signals[..., Sig.USAGE_BYTES] = signals[..., Sig.ANON_BYTES] = GIB
    for signal, value in (now or {}).items():
        signals[0, :, signal] = value
    before = signals.copy()
    for signal, value in (delta or {}).items():
        before[0, :, signal] -= value
    host_signals = np.zeros((1, N_HOST_SIGNALS))
    host_signals[0, [HostSig.TOTAL_BYTES, HostSig.FAST_TOTAL_BYTES]] = 16 * GIB
    host_signals[0, [HostSig.FREE_BYTES, HostSig.FAST_FREE_BYTES]] = 8 * GIB
    for host_signal, number in (host or {}).items():
        host_signals[0, host_signal] = number
    host_before = host_signals.copy()
    for host_signal, number in (host_delta or {}).items():
        host_before[0, host_signal] -= number
    vector = np.zeros((1, n, N_FEATURES))
    for feature, value in (features or {}).items():
        vector[0, :, feature] = value
    present = np.ones((1, n), dtype=np.bool_)
    if active is not None:
        present[0] = active
    return View(
        np.floor(vector * (1 << SHIFT)).astype(np.int32),
        signals,
        before,
        host_signals,
        host_before,
        present,
        tick,
    )
