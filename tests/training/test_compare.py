from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.envs.reward import Term
from memcg_gym.training.compare import (
    DEFAULT,
    compare,
    is_baseline,
    normalised,
    rankings,
    upper_line,
)
from tests.training.synthetic import make_cell

BASE = [-1.0, -2.0, -3.0, -1.5, -2.5, -1.2]


def shifted(by: float) -> list[float]:
    return [b + by + 0.01 * (-1) ** k for k, b in enumerate(BASE)]


def row_of(**policies: list[float]):  # type: ignore[no-untyped-def]
    named = {name.replace("_", "-"): scores for name, scores in policies.items()}
    return {name: make_cell(name, scores) for name, scores in ({DEFAULT: BASE} | named).items()}


def test_the_default_is_0_on_every_host_and_the_upper_line_1_in_the_mean() -> None:
    row = row_of(tmo=shifted(0.25), senpai=shifted(0.5))
    scores = normalised(row, upper_line(row, None))
    assert scores[DEFAULT].tolist() == [0.0] * 6
    assert np.mean(scores["senpai"]) == pytest.approx(1.0)
    assert np.mean(scores["tmo"]) == pytest.approx(0.5)


def test_the_clairvoyant_line_is_judged_on_its_own_hosts() -> None:
    row = row_of(tmo=[b + g for b, g in zip(BASE, [0.1, 0.1, 9.0, 9.0, 9.0, 9.0], strict=True)])
    row["clairvoyant"] = make_cell("clairvoyant", [BASE[0] + 1.0, BASE[1] + 1.2], seeds=[0, 1])
    line = upper_line(row, "clairvoyant")
    assert line.policy == "clairvoyant" and not line.beaten
    assert line.gap == pytest.approx(1.1) and line.n_hosts == 2
    assert normalised(row, line)["clairvoyant"] == pytest.approx([1.0 / 1.1, 1.2 / 1.1])


def test_whoever_beats_the_clairvoyant_line_is_the_upper_line() -> None:
    row = row_of(tmo=shifted(0.5))
    row["clairvoyant"] = make_cell("clairvoyant", [BASE[0] + 0.2, BASE[1] + 0.2], seeds=[0, 1])
    line = upper_line(row, "clairvoyant")
    assert (line.policy, line.beaten, line.n_hosts) == ("tmo", True, 6)


def test_a_gap_under_three_times_its_noise_is_left_out_and_named() -> None:
    noisy = [b + g for b, g in zip(BASE, [3.0, -3.0, 2.0, -2.0, 1.0, 0.0], strict=True)]
    cells = {
        "burst": row_of(tmo=noisy),
        "host-mix": row_of(tmo=shifted(0.5)),
    }
    results, aggregate = compare(cells, None)
    assert [r.upper.usable for r in results] == [False, True]
    assert aggregate is not None
    assert aggregate.scenarios == ("host-mix",) and aggregate.left_out == ("burst",)


def test_a_clear_contestant_settles_what_too_few_upper_hosts_cannot() -> None:
    row = row_of(tmo=shifted(0.5))
    row["clairvoyant"] = make_cell("clairvoyant", [BASE[0] + 0.6, BASE[1] + 2.4], seeds=[0, 1])
    line = upper_line(row, "clairvoyant")
    assert line.gap == pytest.approx(1.5) and not line.clear
    assert line.contestant_clear and line.usable


def test_without_a_usable_scenario_there_is_no_aggregate() -> None:
    results, aggregate = compare({"burst": row_of(tmo=shifted(-0.5))}, None)
    assert aggregate is None
    assert results[0].upper.policy == DEFAULT and results[0].upper.gap == 0.0


def test_claims_are_corrected_for_all_comparisons() -> None:
    names = {f"constant:reclaim={k}": shifted(0.5 * k) for k in (1, 2, 3)}
    row = row_of() | {name: make_cell(name, scores) for name, scores in names.items()}
    (result,), aggregate = compare({"burst": row}, None)
    assert len(result.comparisons) == 3 + 2
    for c in result.comparisons:
        assert c.corrected_p >= c.difference.p_value
    smallest = min(c.difference.p_value for c in result.comparisons)
    assert min(c.corrected_p for c in result.comparisons) == pytest.approx(5 * smallest)
    assert aggregate is not None and aggregate.best_baseline == "constant:reclaim=3"


def test_a_clear_gain_is_a_claim_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(-2.0, 1.0, 20)
    row = {
        DEFAULT: make_cell(DEFAULT, base.tolist()),
        "tmo": make_cell("tmo", (base + rng.normal(0.5, 0.1, 20)).tolist()),
        "senpai": make_cell("senpai", (base + rng.normal(0.0, 0.1, 20)).tolist()),
    }
    (result,), _ = compare({"burst": row}, None)
    claims = {(c.policy, c.reference): c.claim for c in result.comparisons}
    assert claims == {
        ("tmo", DEFAULT): "better",
        ("senpai", DEFAULT): "-",
        ("senpai", "tmo"): "worse",
    }


def test_the_upper_policy_is_no_contestant() -> None:
    row = row_of(tmo=shifted(0.5))
    row["clairvoyant"] = make_cell("clairvoyant", shifted(2.0))
    (result,), aggregate = compare({"burst": row}, "clairvoyant")
    assert all(c.policy != "clairvoyant" for c in result.comparisons)
    assert result.best_baseline == "tmo"
    assert aggregate is not None
    assert all(s.policy != "clairvoyant" for s in aggregate.standings)


def test_scenarios_count_alike_however_many_hosts_they_have() -> None:
    many = np.linspace(-3.0, -1.0, 40)
    cells = {
        "burst": row_of(tmo=shifted(0.5), senpai=shifted(0.25)),
        "host-mix": {
            DEFAULT: make_cell(DEFAULT, many.tolist()),
            "tmo": make_cell("tmo", (many + 0.5).tolist()),
            "senpai": make_cell("senpai", many.tolist()),
        },
    }
    _, aggregate = compare(cells, None)
    assert aggregate is not None
    difference = next(
        c.difference
        for c in aggregate.comparisons
        if (c.policy, c.reference) == ("senpai", DEFAULT)
    )
    assert difference.estimate == pytest.approx((0.5 + 0.0) / 2)


def test_another_weight_can_change_the_order() -> None:
    ours = {Term.SLO: [-1.0, -1.0], Term.MEMORY: [-0.5, -0.5]}
    theirs = {Term.SLO: [-0.2, -0.2], Term.MEMORY: [-1.4, -1.4]}
    row = {
        DEFAULT: make_cell(DEFAULT, [-1.5, -1.5], terms=ours),
        "tmo": make_cell("tmo", [-1.6, -1.6], terms=theirs),
    }
    found = {(r.term, r.factor): (r.tau, r.best) for r in rankings(row, [DEFAULT, "tmo"])}
    assert found == {
        ("slo", 0.5): (1.0, DEFAULT),  # -1.0 and -1.5
        ("slo", 2.0): (-1.0, "tmo"),  # -2.5 and -1.8
        ("memory", 0.5): (-1.0, "tmo"),  # -1.25 and -0.9
        ("memory", 2.0): (1.0, DEFAULT),  # -2.0 and -3.0
    }


def test_the_price_of_harm_is_no_part_of_the_score_and_of_no_ranking() -> None:
    terms = {Term.SLO: [-1.0], Term.HARM: [-5.0]}
    row = {DEFAULT: make_cell(DEFAULT, [-1.0], terms=terms)}
    assert {r.term for r in rankings(row, [DEFAULT])} == {"slo"}


def test_hand_policies_and_their_combinations_are_baselines(tmp_path: Path) -> None:
    assert is_baseline("tmo") and is_baseline("senpai+oomd") and is_baseline("tmo:a=1")
    assert not is_baseline("policy.mrt")
    assert not is_baseline(str(tmp_path))


def test_few_hosts_give_scores_without_intervals() -> None:
    row = {DEFAULT: make_cell(DEFAULT, [-1.0, -1.1]), "tmo": make_cell("tmo", [-0.5, -0.61])}
    (result,), _ = compare({"burst": row}, None)
    assert math.isnan(result.standings[0].iqm.low)
    assert all(c.claim == "-" for c in result.comparisons)
