"""AgentCgroup: protect the important and squeeze the rest for a second after a trigger.

::

    stock host, trigger: memory.events high >= 1, or the parent stalled, or it is 85 % full
        for one second: memory.low of HIGH = 80 % of the parent's max, memory.high of LOW = 50 %
    bpf host, trigger: page faults of HIGH in a second above a threshold of 1
        for one second: HIGH counts as below its low, LOW waits 50 ms a charge
    otherwise: the owner's values

Source: AgentCgroup's fallback daemon and its BPF policy.  Every cgroup of the highest priority
present is HIGH, all lower ones are LOW; the host stands for the parent and its memory for the
parent's max; several HIGH share the 80 %.

Units: bytes, microseconds, ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcg_gym.agents.policy import Array, KnobPolicy, View
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.signals import HostSig, Sig


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCgroupConfig:
    """Published constants."""

    host_kind: str = "stock"
    usage_trigger_ratio: float = 0.85
    high_low_ratio: float = 0.80  # memory.low of HIGH over the parent's max
    low_high_ratio: float = 0.50  # memory.high of LOW over the parent's max
    fault_trigger_pages: float = 1.0
    delay_ms: float = 50.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.host_kind not in ("stock", "bpf"):
            raise ConfigError(
                f"agentcgroup: host_kind must be 'stock' or 'bpf', got {self.host_kind!r}"
            )


class AgentCgroup(KnobPolicy):
    """A second of protection after each trigger."""

    owns = (Knob.LOW_BYTES, Knob.HIGH_BYTES, Knob.STALL_CEILING_US)

    def __init__(self, config: AgentCgroupConfig = AgentCgroupConfig()) -> None:
        self.name = "agentcgroup"
        self.config = config

    def write(self, view: View, knobs: Array) -> None:
        """Protect and squeeze on the hosts that were triggered."""
        high, low = classes_of(view)
        if self.config.host_kind == "bpf":
            faults = np.where(high, view.delta(Sig.PGFAULT), 0.0).max(axis=1)
            on = (faults > self.config.fault_trigger_pages)[:, None]
            usage = view.now(Sig.USAGE_BYTES)
            raise_to(knobs, Knob.LOW_BYTES, usage, on & high)
            knobs[..., Knob.STALL_CEILING_US] = np.where(on & low, 1e3 * self.config.delay_ms, 0.0)
            return
        on = self.triggered(view)[:, None]
        parent = view.host_signals[:, HostSig.TOTAL_BYTES][:, None]
        sharers = np.maximum(high.sum(axis=1, keepdims=True), 1)
        raise_to(knobs, Knob.LOW_BYTES, self.config.high_low_ratio * parent / sharers, on & high)
        squeezed = np.minimum(knobs[..., Knob.HIGH_BYTES], self.config.low_high_ratio * parent)
        knobs[..., Knob.HIGH_BYTES] = np.where(on & low, squeezed, knobs[..., Knob.HIGH_BYTES])

    def triggered(self, view: View) -> Array:
        """True for hosts that hit memory.high, stalled, or are nearly full, ``[H]``."""
        now, before = view.host_signals, view.host_before
        events = np.where(view.active, view.delta(Sig.EVENTS_HIGH), 0.0).max(axis=1) >= 1
        stalled = now[:, HostSig.PSI_MEM_SOME_US] > before[:, HostSig.PSI_MEM_SOME_US]
        used = 1.0 - now[:, HostSig.FREE_BYTES] / np.maximum(now[:, HostSig.TOTAL_BYTES], 1.0)
        fired: Array = events | stalled | (used >= self.config.usage_trigger_ratio)
        return fired


def classes_of(view: View) -> tuple[Array, Array]:
    """Who is HIGH and who is LOW, bool ``[H, N]`` each; alike priorities make no classes."""
    priority = np.where(view.active, view.now(Sig.PRIORITY), -np.inf)
    top = priority.max(axis=1, keepdims=True)
    low = view.active & (priority < top)
    high = view.active & (priority == top) & low.any(axis=1, keepdims=True)
    return high, low


def raise_to(knobs: Array, knob: Knob, value: Array, where: Array) -> None:
    """Raise a knob to at least a value where a mask says so."""
    knobs[..., knob] = np.where(where, np.maximum(knobs[..., knob], value), knobs[..., knob])
