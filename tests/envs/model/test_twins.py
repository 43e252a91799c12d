"""The mean field against its referees: the page-level twins under the same touches.

Steady states are held to two points of miss ratio, seconds after a change to five.  One kind of
case is not that near, ``TIERED`` below, and is held to what it is.  Touch rates
are such that a sub-step does not miss more than a few per cent of what is resident, as in every
scenario that ships: the model does not look inside a sub-step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.envs.model.single import ModelResult, run_model
from tests.twins import TwinRegion, TwinResult, run_classic, run_mglru

SIZE = 20_000
STEADY_POINTS = 0.02
SECOND_POINTS = 0.05
TWINS: dict[str, Callable[..., TwinResult]] = {"mglru": run_mglru, "classic": run_classic}
LRUS = pytest.mark.parametrize("lru", ["mglru", "classic"])
KINDS = pytest.mark.parametrize("kind", ["anon", "mapped"])
SHARES = (0.1, 0.25, 0.375, 0.5, 0.75, 0.9, 0.98)
# Touches per second at each of these sizes: the smaller the memory, the slower.
RATES = {
    "zipf": (2e3, 8e3, 8e3, 20e3, 20e3, 50e3, 50e3),
    "bins": (2e3, 8e3, 8e3, 20e3, 20e3, 50e3, 50e3),
    "uniform": (5e2, 2e3, 2e3, 2e3, 2e3, 5e3, 5e3),
}
BINS: dict[str, Any] = {
    "share_of_pages": (0.02, 0.08, 0.2, 0.3, 0.4),
    "share_of_touches": (0.35, 0.3, 0.2, 0.1, 0.05),
}
STEADY_S = 60

# Anonymous pages with sharp steps of heat in far too little memory: the kernel's controller then
# protects workingset pages by their tier, hot or not, which the model leaves out; it misses up to
# seven points less than the twin.  In the first seconds of other changes a page that is looked at
# twice within a sub-step counts once, which costs up to three points beyond the five.
TIERED = {("mglru", "anon", "bins", share) for share in (0.25, 0.375)}
TIERED_POINTS = 0.07
ABRUPT_POINTS = 0.08


def region(kind: str, pattern: str, rate_per_s: float = 10_000.0, **changes: Any) -> TwinRegion:
    given: dict[str, Any] = {"n_pages": SIZE, **(BINS if pattern == "bins" else {}), **changes}
    return TwinRegion(kind=kind, pattern=pattern, rate_per_s=rate_per_s, **given)  # type: ignore[arg-type]


def limits(*stretches: tuple[float, int]) -> npt.NDArray[np.int64]:
    """Limits as shares of ``SIZE``, each for some seconds."""
    return np.concatenate([np.full(10 * s, int(share * SIZE)) for share, s in stretches])


def both(
    regions: Sequence[TwinRegion], limit_pages: npt.NDArray[np.int64], lru: str
) -> tuple[TwinResult, ModelResult]:
    twin = TWINS[lru](regions, limit_pages, 7, limit_pages.size)
    return twin, run_model(regions, limit_pages, lru)


@LRUS
@KINDS
@pytest.mark.parametrize("pattern", ["zipf", "bins", "uniform"])
@pytest.mark.parametrize("share", SHARES)
def test_the_model_misses_what_the_twin_misses_in_steady_state(
    lru: str, kind: str, pattern: str, share: float
) -> None:
    rate = RATES[pattern][SHARES.index(share)]
    twin, model = both([region(kind, pattern, rate)], limits((share, STEADY_S)), lru)
    expected = twin.miss_ratio(STEADY_S // 2)
    points = TIERED_POINTS if (lru, kind, pattern, share) in TIERED else STEADY_POINTS
    assert model.miss_ratio(STEADY_S // 2) == pytest.approx(expected, abs=points)


def assert_alike_by_second(
    twin: TwinResult, model: ModelResult, at: int, seconds: Sequence[int]
) -> None:
    expected = [twin.region_miss_ratio(at, s, s + 1) for s in seconds]
    got = [model.region_miss_ratio(at, s, s + 1) for s in seconds]
    off = np.abs(np.subtract(got, expected))
    assert (off < (ABRUPT_POINTS if twin.agings.sum() > 0 else SECOND_POINTS)).all(), off
    assert np.median(off) < TIERED_POINTS


@LRUS
@KINDS
@pytest.mark.parametrize("pattern", ["zipf", "bins"])
@pytest.mark.parametrize(("before", "after"), [(1.0, 0.5), (0.9, 0.5), (0.5, 0.25)])
def test_the_model_follows_the_twin_after_a_cut_of_the_limit(
    lru: str, kind: str, pattern: str, before: float, after: float
) -> None:
    twin, model = both([region(kind, pattern)], limits((before, 20), (after, 20)), lru)
    assert_alike_by_second(twin, model, 0, range(18, 40))


@LRUS
@KINDS
@pytest.mark.parametrize(("pattern", "overlap"), [("zipf", 0.0), ("bins", 0.5)])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_model_follows_the_twin_after_a_phase_change(
    lru: str, kind: str, pattern: str, overlap: float, share: float
) -> None:
    changing = region(kind, pattern, phase_changes=((20, overlap),))
    twin, model = both([changing], limits((share, 40)), lru)
    assert_alike_by_second(twin, model, 0, range(18, 40))


@LRUS
@pytest.mark.parametrize("heap", ["anon", "mapped"])
@pytest.mark.parametrize("stream", ["read", "mapped"])
@pytest.mark.parametrize("share", [0.8, 1.05])
def test_the_model_follows_the_twin_through_a_stream(
    lru: str, heap: str, stream: str, share: float
) -> None:
    passing = region(
        stream, "stream", 5000.0, n_pages=3 * SIZE, active_from_s=15.0, active_to_s=25.0
    )
    twin, model = both([region(heap, "zipf"), passing], limits((share, 40)), lru)
    assert_alike_by_second(twin, model, 0, range(13, 40))
    assert_alike_by_second(twin, model, 1, range(15, 25))


@LRUS
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_heap_and_cache_share_memory_as_with_the_twin(lru: str, share: float) -> None:
    regions = [region("anon", "zipf"), region("mapped", "zipf", 5000.0)]
    twin, model = both(regions, limits((2.0 * share, 60)), lru)
    for at in range(2):
        expected = twin.region_miss_ratio(at, 20)
        assert model.region_miss_ratio(at, 20) == pytest.approx(expected, abs=0.04)


@LRUS
@pytest.mark.parametrize("share", [0.1, 0.25, 0.375, 0.5, 0.75, 0.9, 0.98])
def test_files_that_are_read_miss_about_what_the_twin_misses(lru: str, share: float) -> None:
    # MGLRU protects pages read often by tiers, which the model does in the mean only
    rate = RATES["zipf"][SHARES.index(share)]
    twin, model = both([region("read", "zipf", rate)], limits((share, STEADY_S)), lru)
    expected = twin.miss_ratio(STEADY_S // 2)
    tolerance = 0.04 if lru == "mglru" else STEADY_POINTS
    assert model.miss_ratio(STEADY_S // 2) == pytest.approx(expected, abs=tolerance)


@KINDS
@LRUS
def test_a_loop_twice_as_large_as_memory_misses_nearly_always(lru: str, kind: str) -> None:
    # Between half and all of the loop, position within a sector decides; the model keeps eight
    # sectors, and keeps more of such a loop than the twin does.
    twin, model = both([region(kind, "loop")], limits((0.3, 20)), lru)
    assert twin.miss_ratio(10) > 0.99
    assert model.miss_ratio(10) > 0.95


@LRUS
def test_memory_that_fits_never_misses(lru: str) -> None:
    model = run_model([region("anon", "zipf")], limits((1.0, 5)), lru)
    assert model.misses.sum() == 0.0
