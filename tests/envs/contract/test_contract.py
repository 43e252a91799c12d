from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest

from memcg_gym.envs.contract import schema
from memcg_gym.envs.contract.errors import (
    CgroupError,
    CheckpointError,
    ConfigError,
    ContractMismatch,
    MemcgGymError,
    MissingExtraError,
    TableError,
    TraceError,
    did_you_mean,
)
from memcg_gym.envs.contract.features import FEATURES, MISSING_FIXED, N_FEATURES, SHIFT, F, Feature
from memcg_gym.envs.contract.heads import (
    DUTY_WINDOW_TICKS,
    HEADS,
    LEVEL_COUNTS,
    LIFT_LEVEL,
    N_HEADS,
    PROMOTE_LEVEL,
    Head,
)
from memcg_gym.envs.contract.knobs import N_KNOBS, Knob
from memcg_gym.envs.contract.schema import canonical, contract_hash, first_difference
from memcg_gym.envs.contract.shield_rules import Shielded
from memcg_gym.envs.contract.signals import (
    HOST_SIGNALS,
    MEMCG_SIGNALS,
    N_HOST_SIGNALS,
    N_MEMCG_SIGNALS,
    HostSig,
    Sig,
    Signal,
)


def theirs() -> dict[str, object]:
    """Another contract that is still ours: a copy as it comes out of a file."""
    copy: dict[str, object] = json.loads(json.dumps(canonical()))
    return copy


def in_another_process(code: str) -> list[str]:
    """What a fresh Python prints for the code; it finds the package where this one does."""
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout.splitlines()


def test_there_are_at_most_64_features_and_their_ids_are_unique() -> None:
    assert len(FEATURES) == N_FEATURES <= 64
    assert len({f.id for f in FEATURES}) == len({f.name for f in FEATURES}) == N_FEATURES


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.name)
def test_a_feature_has_a_range_a_meaning_and_a_fallback_within_it(feature: Feature) -> None:
    f = feature
    assert f.low < f.high and f.meaning and f.unit
    assert f.low_fixed == f.low * 2**SHIFT and f.high_fixed == f.high * 2**SHIFT
    assert f.low_fixed > MISSING_FIXED and max(-f.low_fixed, f.high_fixed) <= 2**24
    assert f.fallback is None or f.low <= f.fallback <= f.high


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.name)
def test_a_feature_is_made_of_signals_that_exist(feature: Feature) -> None:
    f = feature
    known = {s.name for s in (HOST_SIGNALS if f.per_host else MEMCG_SIGNALS)}
    assert set(f.signals) <= known


def test_features_stand_where_their_index_says() -> None:
    assert [f.name for f in FEATURES] == [member.name.lower() for member in F]
    assert [f.id for f in FEATURES] == [int(member) for member in F]
    assert F.LEVEL_FLUSH - F.LEVEL_THROTTLE == Head.FLUSH - Head.THROTTLE


def test_signals_stand_where_their_index_says() -> None:
    assert [s.name for s in MEMCG_SIGNALS] == [member.name.lower() for member in Sig]
    assert [s.name for s in HOST_SIGNALS] == [member.name.lower() for member in HostSig]
    assert [int(member) for member in Sig] == list(range(N_MEMCG_SIGNALS))
    assert [int(member) for member in HostSig] == list(range(N_HOST_SIGNALS))


@pytest.mark.parametrize("signal", [*MEMCG_SIGNALS, *HOST_SIGNALS], ids=lambda s: s.name)
def test_a_signal_says_where_it_comes_from(signal: Signal) -> None:
    s = signal
    assert s.source
    assert s.unit in {"bytes", "us", "pages", "count", "ratio", "percent"}
    assert all(part.isdigit() for part in s.since.split(".") if part)


def test_no_feature_needs_what_only_a_model_knows() -> None:
    sourceless = {s.name for s in (*MEMCG_SIGNALS, *HOST_SIGNALS) if not s.source}
    assert not sourceless & {name for f in FEATURES for name in f.signals}
    assert {f.name for f in FEATURES if not f.signals} == {
        *(f"level_{h.name}" for h in HEADS if h.name != "kill"), "dwell_left", "lease_left",
        "pending",
    }  # fmt: skip


@pytest.mark.parametrize("head", Head)
def test_level_zero_is_the_owners_value(head: Head) -> None:
    spec = HEADS[head]
    assert spec.name == head.name.lower()
    assert math.isnan(spec.levels[0]) or spec.levels[0] in (0.0, 1.0)
    assert all(math.isfinite(v) for v in spec.levels[1:])
    assert not spec.stock_levels or len(spec.stock_levels) == spec.n_levels


def test_levels_grow_with_their_number() -> None:
    for head, spec in zip(Head, HEADS, strict=True):
        numbers = [v for v in spec.levels[1:] if head is not Head.DEMOTE or v >= 0]
        assert numbers == sorted(set(numbers))
    assert HEADS[Head.THROTTLE].levels[LIFT_LEVEL] == 0.0
    assert HEADS[Head.DEMOTE].levels[PROMOTE_LEVEL] == -1.0
    assert len(HEADS) == N_HEADS == 7


def test_levels_and_times_fit_what_the_features_show() -> None:
    assert max(LEVEL_COUNTS) - 1 <= FEATURES[F.LEVEL_THROTTLE].high
    assert max(h.dwell_ticks for h in HEADS) <= FEATURES[F.DWELL_LEFT].high
    assert all(h.dwell_ticks < DUTY_WINDOW_TICKS and 0 < h.duty_cap <= 1 for h in HEADS)


def test_reasons_are_distinct_bits() -> None:
    assert [reason.value for reason in Shielded] == [1 << i for i in range(len(Shielded))]


def test_knobs_are_numbered_without_holes() -> None:
    assert [int(knob) for knob in Knob] == list(range(N_KNOBS))


def test_the_hash_is_stable_within_and_between_processes() -> None:
    code = "from memcg_gym.envs.contract.schema import contract_hash; print(contract_hash())"
    assert in_another_process(code) == [contract_hash()]
    assert len(contract_hash()) == 64


def test_the_canonical_form_survives_json() -> None:
    assert theirs() == canonical()
    assert first_difference(theirs()) is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "version: 2 there, 1 here"),
        (("shift",), 12, "shift: 12 there, 16 here"),
        (("features", 6, "high"), 1, "features[6] (psi_mem_some).high: 1 there, 65536 here"),
        (("features", 0, "name"), "x", "features[0] (usage_ratio).name: 'x' there"),
        (("heads", 1, "levels", 1), 0.5, "heads[1] (reclaim).levels[1]: 0.5 there, 0.0025 here"),
        (("heads", 0, "levels", 0), 0.0, "heads[0] (throttle).levels[0]: 0.0 there, None here"),
        (("signals", 0, "source"), "x", "signals[0] (usage_bytes).source: 'x' there"),
        (("knobs", 0), "x", "knobs[0]: 'x' there, 'min_bytes' here"),
    ],
)
def test_the_first_difference_is_named(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    other = theirs()
    inner: object = other
    for key in path[:-1]:
        inner = inner[key]  # type: ignore[index]
    inner[path[-1]] = value  # type: ignore[index]
    found = first_difference(other)
    assert found is not None and found.startswith(message)


def test_what_is_absent_or_too_much_is_named() -> None:
    shorter, without, longer = theirs(), theirs(), theirs()
    shorter["features"].pop()  # type: ignore[attr-defined]
    del without["knobs"]
    longer["extra"] = 1
    assert first_difference(shorter) == "features: 63 entries there, 64 here"
    assert first_difference(without) == "knobs: absent there"
    assert first_difference(longer) == "extra: unknown here"


@pytest.mark.parametrize(
    "path",
    [("features", 3, "unit"), ("heads", 2, "dwell_ticks"), ("signals", 1, "cumulative"),
     ("host_signals", 0, "source"), ("heads", 0, "duty_cap"), ("features", 5, "fallback")],
)  # fmt: skip
def test_any_field_changes_the_hash(
    path: tuple[str | int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = contract_hash()
    other = theirs()
    inner: object = other
    for key in path[:-1]:
        inner = inner[key]  # type: ignore[index]
    inner[path[-1]] = "changed"  # type: ignore[index]
    monkeypatch.setattr(schema, "canonical", lambda: other)
    assert contract_hash.__wrapped__() != ours


def test_every_error_of_ours_is_a_memcg_gym_error() -> None:
    for error in (ConfigError("x"), TraceError("x"), CheckpointError("x"), ContractMismatch("x"),
                  TableError("E_X", "x"), CgroupError("x"),
                  MissingExtraError("numba", "train")):  # fmt: skip
        assert isinstance(error, MemcgGymError)
    assert isinstance(ContractMismatch("x"), CheckpointError)
    assert str(TableError("E_X", "why")) == "E_X: why"
    assert "pip install 'memcg-gym[train]'" in str(MissingExtraError("numba", "train"))


@pytest.mark.parametrize(
    ("got", "known", "tail"),
    [("tik_s", ["tick_s", "seed"], "; did you mean 'tick_s'?"),
     ("zzz", ["b", "a"], "; known: a, b"), ("zzz", [], "")],
)  # fmt: skip
def test_near_misses_are_offered(got: str, known: list[str], tail: str) -> None:
    assert did_you_mean(got, known) == tail


ISOLATION = """
import importlib, pkgutil, sys
import memcg_gym.enforcer, memcg_gym.envs.contract
for package in (memcg_gym.enforcer, memcg_gym.envs.contract):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
heavy = {"numba", "torch", "gymnasium", "pydantic", "stable_baselines3", "scipy", "sklearn",
         "matplotlib", "rich"}
print(",".join(sorted(heavy & set(sys.modules))))
print(",".join(sorted(name for name in sys.modules if name.startswith("memcg_gym.")
    and not name.startswith(("memcg_gym.enforcer", "memcg_gym.envs.contract"))
    and name != "memcg_gym.envs")))
print("memcg_gym.enforcer.shield" in sys.modules)
"""


def test_contract_and_enforcer_need_numpy_at_most() -> None:
    assert in_another_process(ISOLATION) == ["", "", "True"]


def test_the_contract_does_not_import_the_enforcer() -> None:
    code = ISOLATION.replace("import memcg_gym.enforcer, ", "import ")
    code = code.replace(
        "(memcg_gym.enforcer, memcg_gym.envs.contract)", "[memcg_gym.envs.contract]"
    )
    code = code.replace("memcg_gym.enforcer.shield", "memcg_gym.enforcer")
    assert in_another_process(code) == ["", "", "False"]
