"""The contract as one canonical text, its hash, and the first difference between two.

The hash travels in every checkpoint and every table.  A host computes its own from this code,
never from the file it is about to trust.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

from memcg_gym.envs.contract.features import FAST_ALPHA, FEATURES, SHIFT, SLOW_ALPHA
from memcg_gym.envs.contract.heads import DUTY_WINDOW_TICKS, HEADS
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.shield_rules import KILL_TOKEN_TICKS, LEASE_TICKS, Shielded
from memcg_gym.envs.contract.signals import HOST_SIGNALS, MEMCG_SIGNALS, Signal

CONTRACT_VERSION = 1


@functools.cache
def canonical() -> dict[str, Any]:
    """The contract as plain JSON data, in its one order."""
    return {
        "version": CONTRACT_VERSION,
        "shift": SHIFT,
        "features": [
            {
                "id": f.id,
                "name": f.name,
                "unit": f.unit,
                "low": f.low_fixed,
                "high": f.high_fixed,
                "signals": list(f.signals),
                "fallback": None if f.fallback is None else int(f.fallback * (1 << SHIFT)),
                "per_host": f.per_host,
            }
            for f in FEATURES
        ],
        "heads": [
            {
                "name": h.name,
                "unit": h.unit,
                "levels": [None if v != v else v for v in h.levels],
                "stock_levels": [None if v != v else v for v in h.stock_levels],
                "dwell_ticks": h.dwell_ticks,
                "duty_cap": h.duty_cap,
                "duty_level": h.duty_level,
            }
            for h in HEADS
        ],
        "averages": {"fast": FAST_ALPHA, "slow": SLOW_ALPHA},
        "shield": {
            "lease_ticks": LEASE_TICKS,
            "kill_token_ticks": KILL_TOKEN_TICKS,
            "duty_window_ticks": DUTY_WINDOW_TICKS,
            "reasons": [reason.name for reason in Shielded],
        },
        "knobs": [k.name.lower() for k in Knob],
        "signals": [_signal(s) for s in MEMCG_SIGNALS],
        "host_signals": [_signal(s) for s in HOST_SIGNALS],
    }


@functools.cache
def contract_hash() -> str:
    """SHA-256 of the canonical serialisation, 64 hexadecimal digits."""
    text = json.dumps(canonical(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def first_difference(other: dict[str, Any], ours: dict[str, Any] | None = None) -> str | None:
    """The path and values of the first field that differs, or None when all agree.

    Example:
        >>> theirs = json.loads(json.dumps(canonical()))
        >>> theirs["features"][3]["high"] = 1
        >>> first_difference(theirs)
        'features[3] (growth_slow).high: 1 there, 262144 here'
    """
    return _differ(other, canonical() if ours is None else ours, "")


def _signal(s: Signal) -> dict[str, Any]:
    return {"name": s.name, "unit": s.unit, "source": s.source, "cumulative": s.cumulative}


def _differ(theirs: Any, ours: Any, path: str) -> str | None:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in ours:
            found = (
                _differ(theirs[key], ours[key], f"{path}.{key}" if path else key)
                if key in theirs
                else f"{path}.{key}: absent there".removeprefix(".")
            )
            if found:
                return found
        extra = [key for key in theirs if key not in ours]
        return f"{path}.{extra[0]}: unknown here".removeprefix(".") if extra else None
    if isinstance(theirs, list) and isinstance(ours, list):
        for i, (a, b) in enumerate(zip(theirs, ours, strict=False)):
            name = f" ({b['name']})" if isinstance(b, dict) and "name" in b else ""
            found = _differ(a, b, f"{path}[{i}]{name}")
            if found:
                return found
        if len(theirs) != len(ours):
            return f"{path}: {len(theirs)} entries there, {len(ours)} here"
        return None
    return None if theirs == ours else f"{path}: {theirs!r} there, {ours!r} here"
