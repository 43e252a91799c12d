"""The reference page of the contract, ``docs/contract.md``, made from the code.

Writes down what signals, features, heads, knobs and shield rules say; it adds only the prose that
explains a table's columns.

Units: as each table names them.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Iterable
from enum import Enum

from memcg_gym.envs.contract.features import FEATURES, MISSING_FIXED, SHIFT, Feature
from memcg_gym.envs.contract.heads import DUTY_WINDOW_TICKS, HEADS, HeadSpec
from memcg_gym.envs.contract.knobs import Knob
from memcg_gym.envs.contract.schema import CONTRACT_VERSION, contract_hash
from memcg_gym.envs.contract.shield_rules import (
    KILL_TOKEN_TICKS,
    LEASE_TICKS,
    Shielded,
    ShieldLines,
)
from memcg_gym.envs.contract.signals import HOST_SIGNALS, MEMCG_SIGNALS, Signal

COMMAND = "python -m memcg_gym.envs.contract.page > docs/contract.md"
"""What makes the page."""


def render_page() -> str:
    """The whole page as Markdown, ending in a newline."""
    parts = [_head(), _features(), _heads(), _knobs(), _shield(), *_signals()]
    return "\n\n".join(parts) + "\n"


def _head() -> str:
    return f"""# The contract

What every observation and every action means: in the model, on a replayed recording, on a real
kernel, in a rule table. The page is made from the code by

    {COMMAND}

Version {CONTRACT_VERSION}, SHA-256

    {contract_hash()}

Checkpoints and rule tables carry the hash, and a loader refuses another one. A tick is one
second."""


def _features() -> str:
    rows = (
        (
            str(column),
            str(f.id),
            f"`{f.name}`",
            f.unit,
            f"{_number(f.low)} .. {_number(f.high)}",
            f.meaning,
            ", ".join(f"`{s}`" for s in _sources(f)) or "the shield's own state",
            _since(f),
            "required" if f.fallback is None and f.signals else _fallback(f),
            "host" if f.per_host else "cgroup",
        )
        for column, f in enumerate(FEATURES)
    )
    titles = ("column", "id", "name", "unit", "range", "meaning", "signals", "kernel", "where a "
              "host lacks it", "per")  # fmt: skip
    return f"""## Features

What an agent sees: {len(FEATURES)} numbers a cgroup, as int32 fixed point, `floor(value *
2**{SHIFT})`, saturated at the range. `{MISSING_FIXED}` stands for a required reading that is
missing; the shield then takes the default action. "Over usage" means over
`memory.current`, but at least 1 MiB. The column `kernel` is the first one with all signals.

{_table(titles, rows)}"""


def _heads() -> str:
    rows = (
        (
            f"`{h.name}`",
            h.meaning,
            h.unit,
            " ".join(_levels(h)),
            h.stock + (f": {' '.join(_numbers(h.stock_levels))}" if h.stock_levels else ""),
            h.bpf,
            str(h.dwell_ticks),
            _duty(h),
        )
        for h in HEADS
    )
    titles = ("head", "meaning", "unit", "levels from 0", "stock cgroup v2 host",
              "memcg_ext (bpf) host", "dwell, ticks", "duty")  # fmt: skip
    return f"""## Action heads

What an agent asks for: one level a head. Level 0 is always the owner's configured value (`owner`,
or doing nothing), so the all-zero action is "as if we were not there". A level stays for its dwell
before it may change to another non-zero one. Duty is earned and spent in a bucket that holds
{DUTY_WINDOW_TICKS} ticks' earnings.

{_table(titles, rows)}"""


def _knobs() -> str:
    rows = (
        (f"`{knob.name.lower()}`", meaning)
        for knob, meaning in zip(Knob, _meanings(Knob), strict=True)
    )
    return f"""## Knobs

What is written. Heads become knobs in an adapter for each kind of host; hand policies, which people
run today, set knobs themselves.

{_table(("knob", "carried by"), rows)}"""


def _shield() -> str:
    reasons = (
        (str(reason.value), f"`{reason.name}`", meaning)
        for reason, meaning in zip(Shielded, _meanings(Shielded), strict=True)
    )
    lines = ShieldLines()
    constants = (
        ("lease of an action, unless a rule says otherwise", f"{LEASE_TICKS} ticks"),
        ("a host earns its one kill token in", f"{KILL_TOKEN_TICKS} ticks"),
        ("extreme pressure: host memory PSI full, at least", _number(lines.kill_psi_full_ratio)),
        ("extreme pressure: host memory utilisation, at least", _number(lines.kill_util_ratio)),
        ("extreme pressure must last", f"{lines.kill_hold_ticks} ticks"),
    )
    return f"""## The shield

What holds whatever a policy or a table asks for. Every rule moves a head towards level 0 or keeps
the level in force; the reasons are bits, so several can hold.

{_table(("bit", "reason", "meaning"), reasons)}

{_table(("constant", "value"), constants)}

The lines of extreme pressure are defaults; an objective may set its own."""


def _signals() -> list[str]:
    titles = ("signal", "unit", "source", "kernel", "kind", "required")
    parts = []
    for title, text, signals in (
        ("Signals of a cgroup", "What a host reads for each cgroup.", MEMCG_SIGNALS),
        ("Signals of the host", "What it reads once a tick.", HOST_SIGNALS),
    ):
        rows = (
            (
                f"`{s.name}`",
                s.unit,
                s.source,
                s.since or "not the kernel's",
                "counter" if s.cumulative else "reading",
                "yes" if s.required else "no",
            )
            for s in signals
        )
        parts.append(f"## {title}\n\n{text}\n\n{_table(titles, rows)}")
    return parts


def _sources(feature: Feature) -> list[str]:
    return [s.name for s in _signals_of(feature)]


def _signals_of(feature: Feature) -> list[Signal]:
    """The signals a feature is made of; a host's feature means the host's of two like names."""
    ours = {s.name: s for s in (HOST_SIGNALS if feature.per_host else MEMCG_SIGNALS)}
    return [ours[name] for name in feature.signals]


def _since(feature: Feature) -> str:
    """The first kernel that offers all signals of a feature."""
    versions = [s.since for s in _signals_of(feature) if s.since]
    if not versions:
        return "any"
    return max(versions, key=lambda v: tuple(int(part) for part in v.split(".")))


def _fallback(feature: Feature) -> str:
    return "always there" if feature.fallback is None else _number(feature.fallback)


def _levels(head: HeadSpec) -> list[str]:
    return _numbers(head.levels)


def _numbers(values: Iterable[float]) -> list[str]:
    return ["owner" if math.isnan(v) else _number(v) for v in values]


def _number(value: float) -> str:
    return f"{value:g}"


def _duty(head: HeadSpec) -> str:
    if head.duty_cap >= 1.0:
        return "free"
    return f"levels above {head.duty_level}: earns {_number(head.duty_cap)} of a tick each tick"


def _meanings(kind: type[Enum]) -> list[str]:
    """The line under each member, as the source has it: Python keeps no docstring for members."""
    source = inspect.getsource(kind)
    found = []
    for member in kind:
        match = re.search(rf'\n    {member.name} = \d+\n    """(.*?)"""', source, re.DOTALL)
        if match is None:
            raise RuntimeError(
                f"{kind.__module__}.{kind.__name__}.{member.name} has no line under it"
            )
        found.append(" ".join(match[1].split()))
    return found


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


if __name__ == "__main__":
    sys.stdout.write(render_page())
