from __future__ import annotations

import argparse
import dataclasses
import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.enforcer.evaluator import evaluate_batch
from memcg_gym.enforcer.render import (
    action_text,
    changes,
    condition_text,
    read_support,
    render,
    render_changes,
    support_path,
    table_sha256,
    table_to_dict,
    write_support,
)
from memcg_gym.enforcer.table import Table, encode, write_table
from memcg_gym.envs.contract.errors import ConfigError, TableError
from memcg_gym.envs.contract.features import FEATURES, F
from memcg_gym.envs.contract.heads import HEADS, N_HEADS
from memcg_gym.training import show
from tests.enforcer.sample_tables import boundary_vectors, random_table, small_table, usual_vectors

SMALL = small_table()
COLUMN = {f.name: i for i, f in enumerate(FEATURES)}


def holds(condition: str, vector: np.ndarray) -> bool:
    """Whether a vector satisfies a rule's text, by exact arithmetic on the decimals."""
    if condition == "anything":
        return True
    for part in condition.split(" AND "):
        match = re.fullmatch(r"(?:(\S+) <= )?([a-z_0-9]+)(?: (<=|>=) (\S+))?( %.*| ticks)?", part)
        assert match, part
        below, name, sign, above, unit = match.groups()
        value = Fraction(int(vector[COLUMN[name]]), 65536) * (100 if unit and "%" in unit else 1)
        if below is not None and value < Fraction(below):
            return False
        if sign == "<=" and value > Fraction(above):
            return False
        if sign == ">=" and value < Fraction(above):
            return False
    return True


def rule_conditions(table: Table) -> list[str]:
    lines = [line for line in render(table).splitlines() if re.match(r"R\d+ IF ", line)]
    found = [re.fullmatch(r"R\d+ IF (.*) THEN .*", line) for line in lines]
    return [match[1] for match in found if match]


def test_the_sample_reads_as_expected() -> None:
    rules = render(SMALL).splitlines()[-7:]
    assert rules == [
        "R01 IF psi_mem_some <= 10.5 % AND host_util <= 91.553 % THEN as configured [support 103]",
        "R02 IF growth <= -5 %/s AND psi_mem_some <= 10.5 % AND host_util >= 91.554 % THEN "
        "reclaim 1 %/s, demote 1 %/s for 5 ticks [support 109]",
        "R03 IF growth >= -5 %/s AND psi_mem_some <= 10.5 % AND host_util >= 91.554 % THEN "
        "throttle nobody, promote, protect 0 % of working set, flush x 3 for 5 ticks "
        "[support 110]",
        "R04 IF usage_ratio <= 0.93 AND psi_mem_some >= 10.5 % THEN throttle <= 10 ms, "
        "reclaim 1 %/s for 5 ticks [support 105]",
        "R05 IF usage_ratio >= 0.93 AND 10.5 <= psi_mem_some <= 45.777 % THEN throttle <= "
        "100 ms, protect 60 % of working set, shed 15 % of load for 5 ticks [support 107]",
        "R06 IF usage_ratio >= 0.93 AND psi_mem_some >= 45.777 % THEN shed 35 % of load, "
        "flush x 10, kill for 5 ticks [support 108]",
        "ELSE (a feature above is missing, stale or out of its range) as configured",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_vector_satisfies_the_text_of_exactly_its_own_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = SMALL if seed == 0 else random_table(rng, 30)
    vectors = np.concatenate([boundary_vectors(table, rng, 60), usual_vectors(rng, 20)])
    conditions = rule_conditions(table)
    assert len(conditions) == table.n_rules
    for vector, leaf in zip(vectors, evaluate_batch(table, vectors), strict=True):
        assert [i for i, text in enumerate(conditions) if holds(text, vector)] == [leaf]


@pytest.mark.parametrize(
    ("feature", "low", "high", "text"),
    [
        (F.PSI_MEM_SOME, None, 6881, "psi_mem_some <= 10.5 %"),
        (F.PSI_MEM_SOME, 6882, None, "psi_mem_some >= 10.5 %"),
        (F.LOCK_USER_SHARE, None, 0, "lock_user_share <= 0 %"),
        (F.LOCK_USER_SHARE, 1, None, "lock_user_share >= 0.001 %"),
        (F.GROWTH, None, -3277, "growth <= -5 %/s"),
        (F.GROWTH, -3276, None, "growth >= -5 %/s"),
        (F.USAGE_RATIO, 65536, 2 * 65536, "1 <= usage_ratio <= 2"),
        (F.SLACK, -65536, None, "slack >= -1"),
        (F.LEASE_LEFT, None, 3 * 65536, "lease_left <= 3 ticks"),
        (F.PRIORITY, 3 * 65536, None, "priority >= 3"),
        (F.PRIORITY, None, None, "priority anything"),
    ],
)
def test_a_bound_is_the_shortest_exact_decimal(
    feature: F, low: int | None, high: int | None, text: str
) -> None:
    assert condition_text(FEATURES[feature], low, high) == text


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        ([0] * N_HEADS, "as configured"),
        ([1, 0, 0, 0, 0, 0, 0], "throttle nobody"),
        ([4, 1, 3, 4, 1, 1, 0],
         "throttle <= 2000 ms, reclaim 0.25 %/s, demote 20 %/s, protect 150 % of working set, "
         "shed 5 % of load, flush x 3"),
        ([0, 0, 4, 0, 0, 0, 1], "promote, kill"),
    ],
)  # fmt: skip
def test_actions_are_named_in_units(levels: list[int], text: str) -> None:
    assert action_text(np.array(levels)) == text


def test_every_level_of_every_head_has_its_own_text() -> None:
    texts = set()
    for head, spec in enumerate(HEADS):
        for level in range(1, spec.n_levels):
            levels = np.zeros(N_HEADS, dtype=int)
            levels[head] = level
            texts.add(action_text(levels))
    assert len(texts) == sum(spec.n_levels - 1 for spec in HEADS)


def test_json_carries_the_exact_integers() -> None:
    data = json.loads(json.dumps(table_to_dict(SMALL)))
    assert data["rules"][4]["bounds"] == {
        "usage_ratio": {"low_fixed": 60949, "high_fixed": 4 * 65536},
        "psi_mem_some": {"low_fixed": 6882, "high_fixed": 30000},
    }
    assert data["rules"][4]["levels"]["throttle"] == 3
    assert [rule["rule_id"] for rule in data["rules"]] == [1, 2, 3, 4, 5, 6]
    assert (data["bytes"], data["version"], data["signed"]) == (len(encode(SMALL)), 7, False)


def test_alike_tables_have_no_changes() -> None:
    assert changes(SMALL, small_table()) == []
    assert render_changes([]) == "the two tables decide alike\n"


def test_a_moved_threshold_changes_only_the_strip_between() -> None:
    nodes = SMALL.nodes.copy()
    nodes["threshold"][0] = 7000
    found = changes(SMALL, dataclasses.replace(SMALL, nodes=nodes))
    assert all("10.5 <= psi_mem_some <= 10.682 %" in change.condition for change in found)
    assert {(c.old_rule, c.new_rule) for c in found} == {
        (4, 1), (4, 2), (4, 3), (5, 1), (5, 2), (5, 3),
    }  # fmt: skip
    assert "R04 -> R01 IF usage_ratio <= 0.93 AND" in render_changes(found)


def test_changes_cover_every_vector_decided_differently() -> None:
    rng = np.random.default_rng(2)
    old, new = random_table(rng, 15), random_table(rng, 15)
    found = changes(old, new)
    vectors = np.concatenate([usual_vectors(rng, 40), boundary_vectors(old, rng, 40)])
    before = old.levels[evaluate_batch(old, vectors)]
    after = new.levels[evaluate_batch(new, vectors)]
    for vector, a, b in zip(vectors, before, after, strict=True):
        regions = [c for c in found if holds(c.condition, vector)]
        expected = [] if (a == b).all() else [(action_text(a), action_text(b))]
        assert [(c.old_action, c.new_action) for c in regions] == expected


def test_support_lies_beside_the_table(tmp_path: Path) -> None:
    path = tmp_path / "policy.mrt"
    assert read_support(path, SMALL) == ()
    write_support(path, dataclasses.replace(SMALL, support=()))
    assert not support_path(path).exists()
    write_support(path, SMALL)
    assert read_support(path, SMALL) == SMALL.support
    with pytest.raises(TableError, match=r"E_SUPPORT: .*belongs to another table"):
        read_support(path, dataclasses.replace(SMALL, version=8))


@pytest.mark.parametrize("content", ["", "[]", "{}", "\xff", '{"table_sha256": 1}', "HASH"])
def test_a_malformed_support_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "policy.mrt"
    if content == "HASH":
        content = json.dumps({"table_sha256": table_sha256(SMALL), "support": {"1": "many"}})
    support_path(path).write_bytes(content.encode("latin-1"))
    with pytest.raises(TableError, match="E_SUPPORT"):
        read_support(path, SMALL)


class TestShow:
    def run(self, *words: str) -> int:
        parser = argparse.ArgumentParser()
        show.add_arguments(parser)
        return show.run(parser.parse_args(list(words)))

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "policy.mrt"
        write_table(path, SMALL)
        write_support(path, SMALL)
        return path

    def test_show_prints_the_rules(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(str(path)) == 0
        assert capsys.readouterr().out == render(SMALL)

    def test_show_prints_json(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(str(path), "--json") == 0
        assert json.loads(capsys.readouterr().out) == table_to_dict(SMALL)

    def test_show_diff_says_alike(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(str(path), "--diff", str(path)) == 0
        assert capsys.readouterr().out == "the two tables decide alike\n"

    def test_show_diff_prints_what_changed(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        leaves = SMALL.leaves.copy()
        leaves["levels"][0, 1] = 1
        newer = path.with_name("newer.mrt")
        write_table(newer, dataclasses.replace(SMALL, leaves=leaves))
        assert self.run(str(newer), "--diff", str(path)) == 1
        assert capsys.readouterr().out == (
            "R01 -> R01 IF psi_mem_some <= 10.5 % AND host_util <= 91.553 %: as configured -> "
            "reclaim 0.25 %/s\n"
        )
        assert self.run(str(newer), "--diff", str(path), "--json") == 1
        assert json.loads(capsys.readouterr().out)[0]["new_action"] == "reclaim 0.25 %/s"

    def test_show_reports_a_refused_table(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path.write_bytes(encode(SMALL)[:-1])
        assert self.run(str(path)) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("TableError: E_LENGTH: ")

    @pytest.mark.parametrize("content", [b"\7" * 32, b"07" * 32 + b"\n"])
    def test_a_key_file_is_raw_or_hexadecimal(self, tmp_path: Path, content: bytes) -> None:
        key = tmp_path / "key"
        key.write_bytes(content)
        assert show.read_public_key(str(key)) == b"\7" * 32

    @pytest.mark.parametrize("content", [b"", b"07", b"\xff" * 31, b"z" * 64])
    def test_a_malformed_key_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        key = tmp_path / "key"
        key.write_bytes(content)
        with pytest.raises(ConfigError, match="needs 32 raw bytes or 64 hexadecimal digits"):
            show.read_public_key(str(key))
        with pytest.raises(ConfigError, match="No such file"):
            show.read_public_key(str(tmp_path / "none"))

    def test_an_unsigned_table_is_refused_when_a_key_is_given(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        key = path.with_name("key")
        key.write_bytes(bytes(32))
        assert self.run(str(path), "--public-key", str(key)) == 1
        assert "E_SIGNATURE" in capsys.readouterr().err
