"""The rule table for people: one IF-THEN a rule, in units, made from the binary.

The text is exact: a bound is the shortest decimal between two neighbouring fixed-point values, so
a vector satisfies the text of exactly the rule that the evaluator picks.  How many training rows
support a rule is not in the binary; it comes from a file beside it that names the table's hash.

Units: percent for shares, per second for rates, milliseconds, ticks, as printed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memcg_gym.enforcer.table import encode, write_atomically
from memcg_gym.enforcer.table_layout import Table, leaf_boxes
from memcg_gym.envs.contract.errors import TableError
from memcg_gym.envs.contract.features import FEATURES, SHIFT, Feature
from memcg_gym.envs.contract.heads import HEADS, LIFT_LEVEL, PROMOTE_LEVEL, Head

AS_CONFIGURED = "as configured"
"""What the all-zero action says."""


class Change(NamedTuple):
    """A region in which two tables decide differently.

    Attributes:
        old_rule, new_rule: Rule ids.
        condition: The region, in units.
        old_action, new_action: What each does there.
    """

    old_rule: int
    new_rule: int
    condition: str
    old_action: str
    new_action: str


def render(table: Table) -> str:
    """The whole table as text, one line a rule, the default last.

    Args:
        table: A usable table; rules show their training support where it is known.

    Returns:
        Lines with a final newline.
    """
    lines = [*_heading(table), ""]
    low, high = leaf_boxes(table)
    for leaf in range(table.n_rules):
        lines.append(_rule_line(table, leaf, low[leaf], high[leaf]))
    lines.append(f"ELSE (a feature above is missing, stale or out of its range) {AS_CONFIGURED}")
    return "\n".join(lines) + "\n"


def table_to_dict(table: Table) -> dict[str, Any]:
    """The whole table as plain JSON data: exact integers beside the values in units."""
    low, high = leaf_boxes(table)
    return {
        "format": "MRT1",
        "bytes": len(encode(table)),
        "sha256": table_sha256(table),
        "version": table.version,
        "policy_id": table.policy_id.hex(),
        "schema_hash": table.schema_hash.hex(),
        "not_before_s": table.not_before_s,
        "not_after_s": table.not_after_s,
        "signed": table.signed,
        "verified": table.verified,
        "key_id": table.key_id.hex(),
        "features": [
            {
                "id": ref.id,
                "name": FEATURES[ref.column].name,
                "unit": FEATURES[ref.column].unit,
                "low_fixed": ref.low,
                "high_fixed": ref.high,
                "max_age_ms": ref.max_age_ms,
            }
            for ref in table.features
        ],
        "rules": [_rule_dict(table, leaf, low[leaf], high[leaf]) for leaf in range(table.n_rules)],
    }


def action_text(levels: np.ndarray) -> str:
    """What a leaf's levels ask for, in units.

    Args:
        levels: Shape ``(N_HEADS,)``.

    Example:
        >>> action_text(np.array([2, 2, 0, 0, 0, 0, 0]))
        'throttle <= 10 ms, reclaim 1 %/s'
    """
    parts = [_level_text(Head(head), int(level)) for head, level in enumerate(levels) if level]
    return ", ".join(parts) or AS_CONFIGURED


def condition_text(feature: Feature, low: int | None, high: int | None) -> str:
    """A feature between two bounds, in units; None = not bounded on that side.

    Args:
        feature: Of the contract.
        low: Lowest value [fixed point].
        high: Highest value [fixed point].

    Example:
        >>> condition_text(FEATURES[6], 6882, None)
        'psi_mem_some >= 10.5 %'
    """
    factor, unit = _display(feature)
    below = "" if low is None else _at_least(low, factor)
    above = "" if high is None else _at_most(high, factor)
    if below and above:
        text = f"{below} <= {feature.name} <= {above}"
    elif below:
        text = f"{feature.name} >= {below}"
    elif above:
        text = f"{feature.name} <= {above}"
    else:
        return f"{feature.name} anything"
    return f"{text} {unit}" if unit else text


def changes(old: Table, new: Table) -> list[Change]:
    """Every region in which two tables decide differently, by exact intersection of their rules.

    Vectors that one of the tables leaves to its default (a feature missing, or outside a range
    that one of them narrowed) are not compared.

    Returns:
        One entry for each pair of rules that overlap and differ in their levels.
    """
    old_low, old_high = _wide_boxes(old)
    new_low, new_high = _wide_boxes(new)
    found = []
    for i in range(old.n_rules):
        low, high = np.maximum(new_low, old_low[i]), np.minimum(new_high, old_high[i])
        differs = (new.levels[:-1] != old.levels[i]).any(axis=1)
        for j in np.flatnonzero((low <= high).all(axis=1) & differs):
            found.append(
                Change(
                    int(old.leaves["rule_id"][i]),
                    int(new.leaves["rule_id"][j]),
                    _region_text(range(len(FEATURES)), low[j], high[j], *_contract_range()),
                    action_text(old.levels[i]),
                    action_text(new.levels[j]),
                )
            )
    return found


def render_changes(found: list[Change]) -> str:
    """The changes as text, one a line; a sentence where there is none."""
    if not found:
        return "the two tables decide alike\n"
    return "".join(
        f"R{c.old_rule:02d} -> R{c.new_rule:02d} IF {c.condition}: {c.old_action} -> "
        f"{c.new_action}\n"
        for c in found
    )


def table_sha256(table: Table) -> str:
    """SHA-256 of the table's file, 64 hexadecimal digits."""
    return hashlib.sha256(encode(table)).hexdigest()


def support_path(path: str | os.PathLike[str]) -> Path:
    """Where the support of a table's rules lies: ``policy.mrt`` has ``policy.mrt.support.json``."""
    return Path(f"{os.fspath(path)}.support.json")


def write_support(path: str | os.PathLike[str], table: Table) -> None:
    """Write the training support of a table beside it.

    Args:
        path: The table's file.
        table: The table; nothing is written where its support is unknown.

    Raises:
        TableError: ``E_WRITE`` where the file cannot be written.
    """
    if not table.support:
        return
    ids = table.leaves["rule_id"][:-1].tolist()
    content = {
        "table_sha256": table_sha256(table),
        "support": {str(rule): rows for rule, rows in zip(ids, table.support, strict=True)},
    }
    write_atomically(support_path(path), (json.dumps(content, indent=1) + "\n").encode())


def read_support(path: str | os.PathLike[str], table: Table) -> tuple[int, ...]:
    """The training support that lies beside a table; empty where there is none.

    Raises:
        TableError: ``E_SUPPORT`` where the file belongs to another table or is not well formed.
    """
    beside = support_path(path)
    try:
        content = json.loads(beside.read_bytes())
        if content["table_sha256"] != table_sha256(table):
            raise TableError("E_SUPPORT", f"{beside}: belongs to another table; export again")
        ids = table.leaves["rule_id"][:-1].tolist()
        return tuple(int(content["support"][str(rule)]) for rule in ids)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError("E_SUPPORT", f"{beside}: not a support file: {error!r}") from error


def _heading(table: Table) -> Iterator[str]:
    yield f"rule table version {table.version}, policy {table.policy_id.hex()}"
    signature = "verified" if table.verified else "not checked" if table.signed else "none"
    yield f"contract {table.schema_hash.hex()}, signature {signature}"
    if table.not_before_s or table.not_after_s:
        end = f"{table.not_after_s} s" if table.not_after_s else "ever"
        yield f"valid from {table.not_before_s} s to {end} since 1970"
    yield f"{table.n_rules} rules, {len(encode(table))} bytes"
    for ref in table.features:
        f = FEATURES[ref.column]
        yield f"reads {condition_text(f, ref.low, ref.high)}, {ref.max_age_ms} ms old at most"


def _rule_line(table: Table, leaf: int, low: np.ndarray, high: np.ndarray) -> str:
    rule = table.leaves[leaf]
    lease = f" for {rule['lease_ticks']} ticks" if rule["levels"].any() else ""
    tail = f" [support {table.support[leaf]}]" if table.support else ""
    condition = _rule_condition(table, low, high)
    return f"R{rule['rule_id']:02d} IF {condition} THEN {action_text(rule['levels'])}{lease}{tail}"


def _rule_condition(table: Table, low: np.ndarray, high: np.ndarray) -> str:
    columns = [ref.column for ref in table.features]
    whole_low = np.array([ref.low for ref in table.features])
    whole_high = np.array([ref.high for ref in table.features])
    return _region_text(columns, low, high, whole_low, whole_high)


def _region_text(
    columns: list[int] | range,
    low: np.ndarray,
    high: np.ndarray,
    whole_low: np.ndarray,
    whole_high: np.ndarray,
) -> str:
    parts = []
    for i, column in enumerate(columns):
        below = int(low[i]) if low[i] > whole_low[i] else None
        above = int(high[i]) if high[i] < whole_high[i] else None
        if below is not None or above is not None:
            parts.append(condition_text(FEATURES[column], below, above))
    return " AND ".join(parts) or "anything"


def _rule_dict(table: Table, leaf: int, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    rule = table.leaves[leaf]
    bounds = {
        FEATURES[ref.column].name: {"low_fixed": int(low[i]), "high_fixed": int(high[i])}
        for i, ref in enumerate(table.features)
        if low[i] > ref.low or high[i] < ref.high
    }
    return {
        "rule_id": int(rule["rule_id"]),
        "if": _rule_condition(table, low, high),
        "then": action_text(rule["levels"]),
        "bounds": bounds,
        "levels": dict(zip((h.name for h in HEADS), (int(v) for v in rule["levels"]), strict=True)),
        "lease_ticks": int(rule["lease_ticks"]),
        "support": table.support[leaf] if table.support else None,
    }


def _level_text(head: Head, level: int) -> str:
    spec = HEADS[head]
    value = spec.levels[level]
    if head is Head.THROTTLE:
        return "throttle nobody" if level == LIFT_LEVEL else f"throttle <= {value:g} ms"
    if head is Head.DEMOTE and level == PROMOTE_LEVEL:
        return "promote"
    if head is Head.KILL:
        return "kill"
    if head is Head.FLUSH:
        return f"flush x {value:g}"
    percent = f"{spec.name} {value * 100:g} %"
    tails = {Head.PROTECT: " of working set", Head.SHED: " of load"}
    return percent + tails.get(head, "/s")


def _display(feature: Feature) -> tuple[int, str]:
    """Factor and unit in which a feature is shown: shares as percent, larger ratios plain."""
    if feature.unit == "1/s":
        return 100, "%/s"
    if feature.unit == "ratio" and feature.low >= -1.0 and feature.high <= 1.0:
        return 100, "%"
    return 1, "ticks" if feature.unit == "ticks" else ""


def _at_least(fixed: int, factor: int) -> str:
    """Shortest decimal above ``fixed - 1`` and not above ``fixed``, times the factor."""
    for digits in range(SHIFT + 1):
        scale = factor * 10**digits
        tried = fixed * scale >> SHIFT
        if tried << SHIFT > (fixed - 1) * scale:
            break
    return _decimal(tried, digits)


def _at_most(fixed: int, factor: int) -> str:
    """Shortest decimal not below ``fixed`` and below ``fixed + 1``, times the factor."""
    for digits in range(SHIFT + 1):
        scale = factor * 10**digits
        tried = -(-fixed * scale >> SHIFT)
        if tried << SHIFT < (fixed + 1) * scale:
            break
    return _decimal(tried, digits)


def _decimal(units: int, digits: int) -> str:
    """``units`` / 10**``digits`` as text."""
    sign = "-" if units < 0 else ""
    whole, fraction = divmod(abs(units), 10**digits)
    return f"{sign}{whole}.{fraction:0{digits}d}" if digits else f"{sign}{whole}"


def _wide_boxes(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The rules' regions over all columns of the contract."""
    low, high = leaf_boxes(table)
    whole_low, whole_high = _contract_range()
    wide_low = np.repeat(whole_low[None], table.n_rules, axis=0)
    wide_high = np.repeat(whole_high[None], table.n_rules, axis=0)
    columns = [ref.column for ref in table.features]
    wide_low[:, columns], wide_high[:, columns] = low, high
    return wide_low, wide_high


def _contract_range() -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([f.low_fixed for f in FEATURES], dtype=np.int64),
        np.array([f.high_fixed for f in FEATURES], dtype=np.int64),
    )
