"""One page of results over training seeds, from the results of ``memcg-gym evaluate``.

``python benchmarks/results_page.py RESULTS/results.json ... --out docs/results.md``

Contestants whose name ends in ``-<digit>`` (run folders) or ``-<digit>.mrt`` (their tables; those
named ``grown-...`` hold the rules a run grew by trial, without a network) are training seeds of one
method: their scores are averaged host by host before anything else, so an interval speaks of
held-out hosts, and each training seed's own mean stands beside it.  Scores are raw: the
objective's terms per cgroup and second, 0 is best.  Everything is measured on the model.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from memcg_gym.training.stats import bootstrap, holm, mean, paired_difference, worst_decile

DEFAULT = "kernel-default"
SEED = re.compile(r"-(\d+)(\.mrt)?$")
METRICS = {
    "slo_violated": "SLO missed",
    "slowdown_mean": "slowdown",
    "dram": "DRAM GiB",
    "memory": "memory GiB",
    "inversion": "inversion s/h",
    "critical_stall": "critical stall s/h",
    "refaults": "refaults/s",
    "oom_kills": "OOM/h",
    "swap_writes": "swap MiB/s",
}
LEARNED = ("learned", "table")
GROWN = "grown rules"


def upper_of(provenance: dict[str, Any]) -> str | None:
    """The policy of the upper line, where there is one."""
    upper = provenance.get("upper")
    return upper["policy"] if upper else None


def group(policies: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Policies by name; training seeds of the network and of the table under one name each."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, cell in policies.items():
        found = SEED.search(name)
        key = name
        if found:
            key = "table" if found.group(2) else "learned"
            key = GROWN if Path(name).name.startswith("grown-") else key
        groups.setdefault(key, []).append(cell)
    return groups


def scores(cells: list[dict[str, Any]]) -> np.ndarray:
    """Mean raw score of each host over training seeds."""
    return np.mean([cell["score"] for cell in cells], axis=0)


def scenario_lines(name: str, policies: dict[str, Any], upper: str | None) -> list[str]:
    groups = group(policies)
    hands = [k for k in groups if k not in (*LEARNED, GROWN, upper)]
    best = max(hands, key=lambda k: scores(groups[k]).mean())
    order = sorted(groups, key=lambda k: -float(scores(groups[k]).mean()))
    columns = [m for m in METRICS if m in next(iter(policies.values()))["metrics"]]
    compared = [k for k in order if k in (*LEARNED, GROWN)]
    found = {
        k: [paired_difference([scores(groups[k])], [scores(groups[r])]) for r in (DEFAULT, best)]
        for k in compared
    }
    corrected = holm([d.p_value for pair in found.values() for d in pair])
    lines = [f"## {name}", "", f"Best hand policy on these hosts: **{best}**.", ""]
    lines += [
        "| policy | raw score | worst decile | " + " | ".join(METRICS[m] for m in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for key in order:
        cells = groups[key]
        if len(cells[0]["score"]) != len(scores(groups[DEFAULT])):
            continue
        values = scores(cells)
        middle, worst = bootstrap([values], mean), worst_decile(values)
        seeds = ""
        if len(cells) > 1:
            seeds = " (" + ", ".join(f"{np.mean(c['score']):.4f}" for c in cells) + ")"
        raw = [np.mean([c["metrics"][m] for c in cells]) for m in columns]
        lines.append(
            f"| {'**' + key + '**' if key in LEARNED else key} "
            f"| {middle.estimate:.4f} [{middle.low:.4f}, {middle.high:.4f}]{seeds} "
            f"| {float(worst):.4f} | " + " | ".join(f"{v:.3g}" for v in raw) + " |"
        )
    lines += ["", "| paired difference | to kernel-default | to the best hand policy |"]
    lines += ["|---|---|---|"]
    for i, key in enumerate(compared):
        cells_text = [
            f"{d.estimate:+.4f} [{d.low:+.4f}, {d.high:+.4f}] p={corrected[2 * i + j]:.2g}"
            for j, d in enumerate(found[key])
        ]
        lines.append(f"| {key} | {cells_text[0]} | {cells_text[1]} |")
    for one, other, title in (
        ("table", "learned", "Table minus network"),
        ("learned", GROWN, "Network minus the rules it started from"),
    ):
        if {one, other} <= groups.keys():
            d = paired_difference([scores(groups[one])], [scores(groups[other])])
            lines += ["", f"{title}: {d.estimate:+.4f} [{d.low:+.4f}, {d.high:+.4f}]."]
    if upper in groups:
        lines += clairvoyant_lines(groups, upper, best)
    return [*lines, ""]


def summary_line(name: str, policies: dict[str, Any], upper: str | None) -> str:
    """A scenario in one row: everybody who matters, and the paired difference."""
    groups = group(policies)
    hands = [k for k in groups if k not in (*LEARNED, GROWN, upper)]
    best = max(hands, key=lambda k: scores(groups[k]).mean())
    shown = [DEFAULT, best, GROWN, *LEARNED]
    cells = [f"{scores(groups[k]).mean():.4f}" if k in groups else "" for k in shown]
    cells[1] += f" {best}"
    for reference in (DEFAULT, best):
        difference = ""
        if "learned" in groups:
            d = paired_difference([scores(groups["learned"])], [scores(groups[reference])])
            difference = f"{d.estimate:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
        cells.append(difference)
    return f"| {name} | " + " | ".join(cells) + " |"


def clairvoyant_lines(groups: dict[str, list[dict[str, Any]]], upper: str, best: str) -> list[str]:
    """Gains over kernel-default on the few hosts the clairvoyant search ran on."""
    seeds = groups[upper][0]["seeds"]
    where = [groups[DEFAULT][0]["seeds"].index(s) for s in seeds]
    base = scores(groups[DEFAULT])[where]
    gains = [f"{upper} {float((scores(groups[upper]) - base).mean()):+.4f}"]
    gains += [
        f"{k} {float((scores(groups[k])[where] - base).mean()):+.4f}"
        for k in (*LEARNED, GROWN, best)
        if k in groups
    ]
    return ["", f"Gain over kernel-default on hosts {seeds}: " + ", ".join(gains) + "."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    lines = [
        "# Results",
        "",
        "Made by `python benchmarks/run_results.py` (the runs) and `python "
        "benchmarks/results_page.py`; **measured on the model, not on a kernel**.",
        "Raw score: the objective's terms per cgroup and second, 0 is best. `learned` and `table`",
        "are averages over training seeds, host by host (each seed's mean in brackets); intervals",
        "are 95 % bootstrap over held-out hosts, p values Holm-corrected over a scenario.",
        "`grown rules` were found by trial on the train ranges, without a network; the networks",
        "start from them.",
        "",
    ]
    lines += [
        "| scenario | kernel-default | best hand policy | grown rules | learned | table "
        "| learned minus kernel-default | learned minus best hand policy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = [json.loads(path.read_text()) for path in args.results]
    for data in found:
        p = data["provenance"]
        for name, scenario in data["scenarios"].items():
            title = f"{name}, {p['host_kind']}"
            lines.append(summary_line(title, scenario["policies"], upper_of(p)))
    lines.append("")
    for data in found:
        p = data["provenance"]
        lines += [
            f"Host kind `{p['host_kind']}`, split `{p['split']}`, {len(p['seeds'])} hosts, "
            f"{p['settle_ticks']} ticks settled under each policy's own control, {p['ticks']} "
            f"scored; contract `{p['contract'][:16]}`, code `{p['code'][:16]}`:",
            "",
            "```",
            p["command"],
            "```",
            "",
        ]
        for name, scenario in data["scenarios"].items():
            lines += scenario_lines(f"{name}, {p['host_kind']}", scenario["policies"], upper_of(p))
    args.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
