"""What a policy is: something that looks at a batch of hosts once a tick and answers.

Two languages.  Learned policies, tables and rules speak in *levels* (``envs/contract/heads.py``),
which pass the shield.  The policies that fleets run today write the kernel's files, so they speak
in *knobs* (``envs/contract/knobs.py``) and no shield stands behind them.  A policy sees what a
host can measure; the clairvoyant one is the only exception, and it says so.

Units: signals in bytes, microseconds, pages; knobs in bytes; features in fixed point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from memcg_gym.envs.contract.heads import Head
from memcg_gym.envs.contract.knobs import N_KNOBS, Knob
from memcg_gym.envs.contract.signals import Sig

Array = np.ndarray[Any, np.dtype[Any]]
Speech = Literal["levels", "knobs"]

HEAD_KNOBS: dict[Head, tuple[Knob, ...]] = {
    Head.THROTTLE: (Knob.HIGH_BYTES, Knob.STALL_CEILING_US),
    Head.RECLAIM: (Knob.RECLAIM_BYTES,),
    Head.DEMOTE: (Knob.DEMOTE_BYTES, Knob.PROMOTE_PREFERRED),
    Head.PROTECT: (Knob.MIN_BYTES, Knob.LOW_BYTES),
    Head.SHED: (Knob.SHED_RATIO,),
    Head.FLUSH: (Knob.FLUSH_WEIGHT,),
    Head.KILL: (Knob.KILL,),
}
"""Knobs behind each head: a scenario without the head takes them away from hand policies too.

``memory.max``, ``memory.swap.max`` and the tags belong to no head, so no policy may write them.
"""


@dataclass(frozen=True, slots=True)
class View:
    """What any policy may look at, for all hosts of a batch at once.

    The arrays are the batch's own: valid until it is stepped, and not to be written.

    Attributes:
        features: Fixed-point vectors, int32 ``[H, N, F]``.
        signals, signals_before: Per cgroup, now and a tick ago, float64 ``[H, N, S]``.
        host_signals, host_before: Per host, float64 ``[H, SH]``.
        active: True where a slot holds a cgroup, bool ``[H, N]``.
        tick: Ticks since the policy took over [s].
    """

    features: Array
    signals: Array
    signals_before: Array
    host_signals: Array
    host_before: Array
    active: Array
    tick: int

    def now(self, signal: Sig) -> Array:
        """One signal of every cgroup, ``[H, N]``."""
        return self.signals[..., signal]

    def delta(self, signal: Sig) -> Array:
        """How far a counter moved over the tick, ``[H, N]``."""
        return self.signals[..., signal] - self.signals_before[..., signal]


@runtime_checkable
class Policy(Protocol):
    """The interface of everything that maps observation to action.

    Attributes:
        name: As tables of results show it.
        speaks: What :meth:`act` returns: int64 levels ``[H, N, N_HEADS]`` or float64 knobs
            ``[H, N, N_KNOBS]``.
        shielded: Whether the environment's shield stands behind it by default.
    """

    name: str
    speaks: Speech
    shielded: bool

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Forget everything; ``supported`` is 1 where the hosts have a knob for the head."""

    def act(self, view: View) -> Array:
        """Decide for every cgroup of every host."""


class KnobPolicy(ABC):
    """Base of the hand policies: starts from the owner's knobs and writes only what it owns.

    A subclass keeps its state in arrays of shape ``[H, N]`` made by :meth:`start`, clears rows in
    :meth:`forget` when a new cgroup moves in or one was killed, and decides in :meth:`write`.
    What it writes to slots that are empty, to knobs outside ``owns``, or to knobs whose head the
    scenario lacks, goes nowhere.
    """

    name: str
    speaks: Speech = "knobs"
    shielded: bool = False
    owns: ClassVar[tuple[Knob, ...]] = ()

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        """Forget everything."""
        self.shape = batch_shape
        self.may_write = owned_knobs(self.owns) & supported_knobs(supported)
        self._was_active = np.zeros(batch_shape, dtype=np.bool_)
        self._killed = np.zeros(batch_shape, dtype=np.bool_)
        self.start(batch_shape)

    def act(self, view: View) -> Array:
        """The owner's knobs, changed where this policy may and wants to."""
        owner = owner_knobs_from(view)
        born = view.active & ~self._was_active
        fresh = born | self._killed | (view.delta(Sig.EVENTS_OOM_KILL) > 0)
        if fresh.any():
            self.forget(fresh, view)
        wanted = owner.copy()
        self.write(view, wanted)
        knobs = np.where(view.active[..., None] & self.may_write, wanted, owner)
        self._was_active[...] = view.active
        self._killed[...] = knobs[..., Knob.KILL] > 0
        return knobs

    def start(self, shape: tuple[int, int]) -> None:  # noqa: B027 - stateless policies keep none
        """Make the state arrays."""

    def forget(self, rows: Array, view: View) -> None:  # noqa: B027 - stateless policies keep none
        """Clear the state of the cgroups marked in ``rows``, bool ``[H, N]``."""

    @abstractmethod
    def write(self, view: View, knobs: Array) -> None:
        """Change ``knobs``, float64 ``[H, N, N_KNOBS]``, which arrive as the owner set them."""


def owned_knobs(owns: tuple[Knob, ...]) -> Array:
    """True for the knobs listed, bool ``[N_KNOBS]``."""
    return np.isin(np.arange(N_KNOBS), [int(knob) for knob in owns])


def supported_knobs(supported: Array) -> Array:
    """True for the knobs whose head is supported, bool ``[N_KNOBS]``."""
    return owned_knobs(
        tuple(k for head, knobs in HEAD_KNOBS.items() if supported[head] for k in knobs)
    )


def owner_knobs_from(view: View) -> Array:
    """The owner's configuration as knobs, ``[H, N, N_KNOBS]``: where hand policies start.

    The vectorised twin of :func:`memcg_gym.enforcer.adapter.owner_knobs`.
    """
    knobs = np.zeros((*view.signals.shape[:2], N_KNOBS))
    knobs[..., Knob.MIN_BYTES] = view.now(Sig.OWNER_MIN_BYTES)
    knobs[..., Knob.LOW_BYTES] = view.now(Sig.OWNER_LOW_BYTES)
    knobs[..., Knob.HIGH_BYTES] = view.now(Sig.OWNER_HIGH_BYTES)
    knobs[..., Knob.MAX_BYTES] = view.now(Sig.OWNER_MAX_BYTES)
    swap_max = view.now(Sig.OWNER_SWAP_MAX_BYTES)
    ceiling, usage = view.now(Sig.MEMSW_CEILING_BYTES), view.now(Sig.USAGE_BYTES)
    capped = np.minimum(swap_max, np.maximum(0.0, ceiling - usage))
    knobs[..., Knob.SWAP_MAX_BYTES] = np.where((ceiling > 0.0) & ~np.isnan(usage), capped, swap_max)
    knobs[..., Knob.FLUSH_WEIGHT] = 1.0
    return knobs
