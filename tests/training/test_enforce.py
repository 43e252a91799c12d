from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcg_gym.enforcer.journal import Journal, Owned
from memcg_gym.enforcer.managed import Record
from memcg_gym.enforcer.table import read_table, table_from_tree, write_table
from memcg_gym.enforcer.writer import Write
from memcg_gym.envs.contract.errors import TableError
from memcg_gym.envs.contract.features import N_FEATURES
from memcg_gym.envs.contract.heads import HEADS, N_HEADS, Head
from memcg_gym.envs.contract.shield_rules import Shielded
from memcg_gym.training import cli, enforce
from tests.cgroupfs import MIB, FakeHost

ROOT = Path(__file__).parents[2]
LEVELS = [3, 2, 0, 0, 0, 1, 0]


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    fake = FakeHost(tmp_path)
    fake.make_cgroup("work/a")
    fake.make_cgroup("work/b")
    # nobody tells the locks of a host of files
    fake.file("facts.toml", "throttle_without_lock_signals = true\n")
    return fake


@pytest.fixture
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of one rule: always the same levels."""
    path = tmp_path_factory.mktemp("tables") / "constant.mrt"
    write_table(path, table_from_tree([-1], [-1], [0], [0], [LEVELS]))
    return path


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The verb sets signal handlers; tests give them back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def arguments(host: FakeHost, *more: str | Path) -> list[str]:
    roots = host.roots
    where = ["--root", roots.cgroup, "--proc", roots.proc, "--sys", roots.sys]
    quick = ["--interval", "0.1", "--ticks", "2", "--journal", host.path / "run/j.json"]
    facts = ["--config", host.path / "facts.toml"]
    return [str(word) for word in ("enforce", *where, *quick, *facts, *more)]


def test_dry_run_prints_json_for_every_cgroup_and_tick_and_writes_nothing(
    host: FakeHost, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = host.digest()
    argv = arguments(host, "--table", table, "--cgroup", "work/a", "--cgroup", "work/b")
    assert cli.main([*argv, "--dry-run", "--json"]) == 0
    assert host.digest() == before
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(d["tick"], d["cgroup"]) for d in lines] == [
        (1, "work/a"), (1, "work/b"), (2, "work/a"), (2, "work/b"),
    ]  # fmt: skip
    first: dict[str, Any] = lines[0]
    assert first["rule_id"] == 1 and first["dry_run"] is True
    assert first["accepted"] == dict(zip((h.name for h in HEADS), LEVELS, strict=True))
    files = {w["file"]: w["text"] for w in first["writes"]}
    assert files["memory.high"] == str(int(0.97 * 64 * MIB) // 4096 * 4096)
    assert {w["result"] for w in first["writes"]} == {"planned"}


def test_dry_run_says_in_a_line_what_it_would_write_and_why(
    host: FakeHost, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(host, "--table", table, "--cgroup", "work", "--children", "--dry-run")
    assert cli.main(argv) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "work/a: R01 throttle=100ms reclaim=0.01/s flush=3x | would write" in line
    assert "memory.high=65093632" in line and "io.weight=default:600" in line


def test_an_unsigned_table_never_writes(
    host: FakeHost, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = host.digest()
    assert cli.main(arguments(host, "--table", table, "--cgroup", "work/a")) == 2
    error = capsys.readouterr().err
    assert error.startswith("memcg-gym: error: E_SIGNATURE: ")
    assert "unsigned tables run in dry-run only" in error
    assert host.digest() == before


def test_a_signature_that_was_not_checked_never_writes(
    host: FakeHost, table: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    class Signed:
        signed, verified = True, False

    monkeypatch.setattr(enforce, "read_table", lambda *args, **more: Signed())
    assert cli.main(arguments(host, "--table", table, "--cgroup", "work/a")) == 2
    assert "give --public-key" in capsys.readouterr().err


def test_a_verified_table_writes_and_gives_back(
    host: FakeHost, table: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(
        enforce, "load_policy", lambda args: enforce.table_policy(read_table(args.table))
    )
    assert cli.main(arguments(host, "--table", table, "--cgroup", "work/a", "--json")) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    results = {w["file"]: w["result"] for w in lines[0]["writes"]}
    assert results["memory.high"] == "written" and results["memory.reclaim"] == "queued"
    assert host.text("work/a/memory.high") == "max"
    assert host.text("work/a/memory.reclaim") != ""
    assert not (host.path / "run/j.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cgroup", "work/a"], "--table and at least one --cgroup"),
        (["--table", "TABLE"], "--table and at least one --cgroup"),
        (["--table", "TABLE", "--cgroup", "work/c"], "no such cgroup"),
        (["--table", "/nosuch.mrt", "--cgroup", "work/a"], "E_READ"),
        (["--table", "TABLE", "--cgroup", "work/a", "--config", "/nosuch.toml"], "cannot be read"),
        (["--table", "TABLE", "--cgroup", "work/a", "--public-key", "/nosuch"], "No such file"),
        (["--table", "TABLE", "--cgroup", "work/a", "--public-key", "TABLE"], "32 raw bytes"),
        (["--table", "TABLE", "--cgroup", "work/a", "--fast-nodes", "9"], "no node 9"),
        (["--table", "TABLE", "--cgroup", "work/a", "--min-version", "99"], "E_ROLLBACK"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(
    host: FakeHost, table: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    words = [str(table) if word == "TABLE" else word for word in more]
    assert cli.main([*arguments(host, "--dry-run"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "more", [["--interval", "0"], ["--interval", "x"], ["--ticks", "0"], ["--fast-nodes", "a"]]
)
def test_values_out_of_range_are_refused_as_usage(host: FakeHost, more: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments(host), *more])
    assert caught.value.code == 2


def test_restore_gives_back_what_a_dead_run_left(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    path = host.path / "run/j.json"
    journal = Journal(path, host.roots)
    inode = (host.cgroup / "work/a").stat().st_ino
    journal.record({"work/a": Owned(inode, {"memory.high": "max"})})
    journal.close()
    host.file("cgroup/work/a/memory.high", "4096")
    assert cli.main(arguments(host, "--restore")) == 0
    assert host.text("work/a/memory.high") == "max"
    assert capsys.readouterr().out == "work/a: restored memory.high\n"
    assert cli.main(arguments(host, "--restore")) == 0
    assert capsys.readouterr().out == f"{path}: nothing to restore\n"


def test_facts_and_tags_reach_the_decision(
    host: FakeHost, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = host.path / "tags"
    facts = host.file("facts.toml", f'tags = "{tags}"\n[cgroup."work/a"]\nkill_rank = 0\n')
    host.file("tags/work/a/wss_bytes", "many")
    argv = arguments(host, "--table", table, "--cgroup", "work/a", "--dry-run", "--json")
    assert cli.main([*argv, "--config", str(facts)]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["state"] == "skipped" and "wss_bytes:1: got 'many'" in line["note"]


def test_a_table_whose_time_is_over_decides_nothing_more(table: Path) -> None:
    tree = table_from_tree([-1], [-1], [0], [0], [LEVELS], not_before_s=10, not_after_s=20)
    now_s = [15.0]
    policy = enforce.table_policy(tree, now_s=lambda: now_s[0])
    vectors = np.zeros((2, N_FEATURES), dtype=np.int32)
    levels, rule_ids, leases = policy.decide(vectors)
    assert levels.tolist() == [LEVELS, LEVELS]
    assert rule_ids.tolist() == [1, 1] and (leases > 0).all()
    now_s[0] = 21.0
    with pytest.raises(TableError, match="E_VALIDITY"):
        policy.decide(vectors)


def test_a_line_names_shield_failures_and_state() -> None:
    requested = tuple(3 if head == Head.THROTTLE else 0 for head in Head)
    record = Record(
        3,
        "a",
        "managed",
        rule_id=12,
        requested=requested,
        shield=Shielded.HOLDER | Shielded.DWELL,
        writes=[Write("memory.low", "0", "EPERM")],
    )
    assert enforce.record_line(record, dry_run=False) == (
        "     3 a: R12 owner | shield holder,dwell (asked throttle=100ms) | "
        "wrote memory.low=0(EPERM)"
    )
    gone = Record(4, "b", "gone", note="the cgroup was removed")
    assert enforce.record_line(gone, dry_run=False) == "     4 b: gone | the cgroup was removed"


def test_every_level_of_every_head_has_a_word() -> None:
    for head in Head:
        for level in range(1, HEADS[head].n_levels):
            levels = [0] * N_HEADS
            levels[head] = level
            assert enforce.levels_text(tuple(levels)).startswith(f"{HEADS[head].name}=")


def test_the_verb_needs_numpy_alone() -> None:
    blocked = ("gymnasium", "numba", "pydantic", "rich", "scipy", "stable_baselines3", "torch")
    script = (
        f"import sys\nfor name in {blocked!r}:\n    sys.modules[name] = None\n"
        "import memcg_gym.training.enforce\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr


def test_a_host_that_cannot_trace_locks_says_so_and_goes_on(
    host: FakeHost, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = arguments(host, "--table", table, "--cgroup", "work/a", "--dry-run", "--trace-locks")
    with caplog.at_level(logging.WARNING):
        assert cli.main(argv) == 0
    assert "locks are not traced" in caplog.text
