"""How the touches of a region fall on its pages: heat bins from measured popularity, zipf, uniform.

A region of the memory model holds a few bins of pages that it treats as alike, the hottest first.
This module makes the bins: from the object popularity of six production caches (CacheLib, data
under ``configs/data/cachelib``), from a zipf law, or all alike.  It knows nothing of time: heat
here is a long-run average, touches are independent of each other, and which page is hot stays so
(phases and loops are the workload's business).

From objects to pages: a slab allocator gives each size class pages of its own and fills them in
the order of arrival, which is at random with respect to popularity.  A page of a class with chunks
of ``s`` bytes holds ``4096 / s`` objects and its heat is the sum of theirs; an object larger than
a page owns its pages alone, and a request touches all of them.  An object that straddles a page
boundary is counted on one of the two pages, and size is taken as independent of popularity, as in
the generator these distributions were made for.

Units: shares of pages and of touches, both in 0..1; heat is touches per page over their mean.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memcg_gym.envs.contract.errors import ConfigError, did_you_mean

FloatArray = NDArray[np.float64]

PAGE_BYTES: Final = 4096

#: Metadata that CacheLib adds to every item (CacheLib user guide, "Item memory overhead").
ITEM_OVERHEAD_BYTES: Final = 31

#: The popularity distributions that ship, by the name CacheLib gives the workload.
POPULARITIES: Final[tuple[str, ...]] = (
    "cdn",
    "graph_cache_follower_assocs",
    "graph_cache_follower_fbobj",
    "graph_cache_leader_assocs",
    "graph_cache_leader_fbobj",
    "kvcache_reg",
)

#: A 4-KiB page holds no more objects than this: CacheLib's smallest value class is 32 bytes.
MAX_OBJECTS_PER_PAGE: Final = 128

#: More bins than this cost the model time and gain nothing (at 16 the error is under 0.2 point).
MAX_BINS: Final = 64

# Pages drawn per workload.  At 200 000 the miss ratios of two seeds differ by less than 0.2 point
# (tests/configs/test_heat.py holds the line).
_SAMPLED_PAGES = 200_000
_MIN_SAMPLED_PAGES_PER_CLASS = 500
_SAMPLE_SEED = 278

# Objects so hot that their pages are at most this share of a class are placed one by one; that two
# of them share a page (about half this share of them) is neglected.
_SINGLED_OUT_PAGE_SHARE = 0.01

# The fine distribution keeps about twice this many groups, half of them equal in pages and half
# equal in touches; the cut points of the bins are chosen among far fewer.
_FINE_QUANTILES = 2048
_CUT_QUANTILES = 100
_SMALLEST_CUT_SHARE = 1e-5

#: Cache sizes, as shares of the pages, at which bins are fitted and their error is measured.
RESIDENT_SHARES: Final[tuple[float, ...]] = tuple(round(0.05 * i, 2) for i in range(1, 20))


# Rounds of multiplicative weights in ``cut_bins``: more change the worst error by under 0.02 point.
_REWEIGHTINGS = 12


@dataclass(frozen=True, slots=True, eq=False)
class HeatBins:
    """Pages in groups of like heat, the hottest group first.

    Attributes:
        share_of_pages: Share of the region's pages in each bin, shape ``(n_bins,)`` [1].
        share_of_touches: Share of its touches that go to each bin, shape ``(n_bins,)`` [1].

    Raises:
        ConfigError: If the arrays are no such shares, or the bins are not in order of heat.

    Example:
        >>> HeatBins(np.array([0.1, 0.9]), np.array([0.6, 0.4])).heat.round(2)
        array([6.  , 0.44])
    """

    share_of_pages: FloatArray
    share_of_touches: FloatArray

    def __post_init__(self) -> None:
        """Copies the arrays, freezes the copies and checks them."""
        for field in ("share_of_pages", "share_of_touches"):
            shares = np.array(getattr(self, field), dtype=np.float64)
            shares.setflags(write=False)
            object.__setattr__(self, field, shares)
            if shares.ndim != 1 or not 1 <= shares.size <= MAX_BINS:
                raise ConfigError(
                    f"HeatBins: {field} must be a vector of 1..{MAX_BINS} shares, "
                    f"got shape {shares.shape}"
                )
            if not (np.all(shares >= 0.0) and abs(float(shares.sum()) - 1.0) < 1e-9):
                raise ConfigError(
                    f"HeatBins: {field} must be shares that sum to 1, got {shares.tolist()}"
                )
        if self.share_of_pages.shape != self.share_of_touches.shape:
            raise ConfigError(
                f"HeatBins: {self.share_of_pages.size} shares of pages but "
                f"{self.share_of_touches.size} of touches; give one of each for every bin"
            )
        if not np.all(self.share_of_pages > 0.0):
            raise ConfigError("HeatBins: a bin without pages; leave it out")
        if np.any(np.diff(self.heat) > 1e-9 * self.heat[:-1]):
            raise ConfigError(
                f"HeatBins: the hottest bin comes first, got heat {self.heat.tolist()}; sort them"
            )

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return int(self.share_of_pages.size)

    @property
    def heat(self) -> FloatArray:
        """Touches per page of each bin over the mean of the region [1]."""
        return self.share_of_touches / self.share_of_pages


@dataclass(frozen=True, slots=True)
class _Objects:
    """A workload's objects: popularity by group, and slab classes."""

    keys: FloatArray  # objects in each popularity group, hottest first
    heat: FloatArray  # requests for one object of the group
    class_share: FloatArray  # share of the objects in each slab class
    class_bytes: FloatArray  # bytes of one object of the class, key and metadata included


@lru_cache(maxsize=64)
def heat_from_popularity(
    name: str, n_bins: int = 8, objects_per_page: float | None = None
) -> HeatBins:
    """Heat bins of a region that holds the objects of a production cache.

    Args:
        name: One of ``POPULARITIES``.
        n_bins: Number of bins, at most ``MAX_BINS``.
        objects_per_page: Objects on a page, all of one size; below 1 an object spans pages.  By
            default the workload's own sizes decide, by slab class.

    Returns:
        The bins, cut where the miss ratio of a model that treats a bin's pages as alike errs least
        (see ``docs/data.md`` for the rule and the error).

    Raises:
        ConfigError: If there is no such popularity, or a number is out of range.

    Source:
        CacheLib, ``cachelib/cachebench/test_configs/hit_ratio`` (Apache-2.0).

    Example:
        >>> bins = heat_from_popularity("kvcache_reg")
        >>> bool(bins.share_of_touches[:4].sum() > bins.share_of_pages[:4].sum())
        True
    """
    _check_bins(n_bins)
    return cut_bins(*page_heat(name, objects_per_page), n_bins)


@lru_cache(maxsize=64)
def zipf_heat(exponent: float, n_pages: int, n_bins: int = 8) -> HeatBins:
    """Heat bins of pages whose touches fall as ``rank ** -exponent``.

    Args:
        exponent: Exponent of the law, 0 (uniform) to 5.
        n_pages: Pages of the region.
        n_bins: Number of bins, at most ``MAX_BINS`` and ``n_pages``.

    Raises:
        ConfigError: If a number is out of range.

    Example:
        >>> zipf_heat(1.0, 3, 3).share_of_touches.round(3)
        array([0.545, 0.273, 0.182])
    """
    _check_bins(n_bins)
    if not 0.0 <= exponent <= 5.0:
        raise ConfigError(f"zipf_heat: exponent must be in 0..5, got {exponent!r}")
    if n_pages < n_bins:
        raise ConfigError(
            f"zipf_heat: {n_pages} pages cannot fill {n_bins} bins; "
            "give at least a page for each bin"
        )
    if exponent == 0.0:
        return uniform_heat(n_bins)
    return cut_bins(*zipf_page_heat(exponent, n_pages), n_bins)


@lru_cache(maxsize=64)
def uniform_heat(n_bins: int = 8) -> HeatBins:
    """Heat bins of pages that are all alike: equal shares of both.

    Raises:
        ConfigError: If ``n_bins`` is out of range.
    """
    _check_bins(n_bins)
    shares = np.full(n_bins, 1.0 / n_bins)
    return HeatBins(shares, shares)


def one_hit_share(name: str) -> float:
    """Share of a workload's requests that go to objects requested once [1].

    They are in no popularity group: a region that wants them adds a ``stream`` with this share.

    Raises:
        ConfigError: If there is no such popularity.
    """
    _check_name(name)
    return _workload(name)["one_hit_share"]


def random_replacement_miss_ratio(
    share_of_pages: FloatArray, share_of_touches: FloatArray, resident_share: FloatArray
) -> FloatArray:
    """Share of independent touches that miss when random pages, or the oldest, are evicted.

    A page with touch rate ``h`` is resident a share ``h T / (1 + h T)`` of the time; ``T`` is what
    fills the cache.  Random eviction and FIFO agree when touches are independent.

    Args:
        share_of_pages: Share of the pages in each group, shape ``(n,)`` [1].
        share_of_touches: Share of the touches of each group, shape ``(n,)`` [1].
        resident_share: Cache sizes over the number of pages, shape ``(m,)``, each in 0..1 [1].

    Returns:
        Miss ratio at each cache size, shape ``(m,)`` [1].

    Source:
        E. Gelenbe, "A unified approach to the evaluation of a class of replacement algorithms",
        IEEE Trans. Computers 22(6), 1973; the fixed point in ``T`` is its large-cache limit.

    Example:
        >>> half = np.array([0.5, 0.5])
        >>> random_replacement_miss_ratio(half, half, np.array([0.25])).round(6)
        array([0.75])
    """
    heat = share_of_touches / share_of_pages
    time = _residence_time(share_of_pages, heat, resident_share)
    return np.asarray((share_of_touches / (1.0 + time[:, None] * heat)).sum(axis=1))


@lru_cache(maxsize=32)
def page_heat(
    name: str, objects_per_page: float | None = None, *, seed: int = _SAMPLE_SEED
) -> tuple[FloatArray, FloatArray]:
    """Heat of single pages of a popularity, in some thousands of groups, hottest first.

    Pages of objects larger than a page are exact.  Of the others, those with one of the hottest
    objects are exact up to the mean of its neighbours, and the rest are drawn.

    Args:
        name: One of ``POPULARITIES``.
        objects_per_page: As in ``heat_from_popularity``.
        seed: Seed of the draw; the bins use the default.

    Returns:
        Shares of pages and shares of touches, the same shape ``(n,)``; they cannot be written.

    Raises:
        ConfigError: If there is no such popularity, or a number is out of range.
    """
    _check_name(name)
    if objects_per_page is not None and not 0.0 < objects_per_page <= MAX_OBJECTS_PER_PAGE:
        raise ConfigError(
            f"{name}: objects_per_page must be over 0 and at most {MAX_OBJECTS_PER_PAGE}, "
            f"got {objects_per_page!r}"
        )
    objects = _objects(name, objects_per_page)
    rng = np.random.Generator(np.random.PCG64(seed))
    parts = list(_pages_by_class(objects, rng))
    pages = np.concatenate([part[0] for part in parts])
    heat = np.concatenate([part[1] for part in parts])
    order = np.argsort(-heat, kind="stable")
    pages, touches = pages[order], (pages * heat)[order]
    starts = _quantile_cuts(pages, touches, _FINE_QUANTILES)[:-1]
    pages, touches = np.add.reduceat(pages, starts), np.add.reduceat(touches, starts)
    pages, touches = pages / pages.sum(), touches / touches.sum()
    pages.setflags(write=False)
    touches.setflags(write=False)
    return pages, touches


def zipf_page_heat(exponent: float, n_pages: int) -> tuple[FloatArray, FloatArray]:
    """Heat of single pages of a zipf law, exact for the first pages, in groups after them.

    Returns:
        Shares of pages and shares of touches, hottest first, the same shape ``(n,)``.
    """
    single = min(n_pages, _FINE_QUANTILES)
    ranks = np.arange(1, single + 1, dtype=np.float64)
    edges = np.unique(np.geomspace(single, n_pages, _FINE_QUANTILES).round())
    low, high = edges[:-1] + 0.5, edges[1:] + 0.5
    if abs(exponent - 1.0) < 1e-9:
        tail = np.log(high / low)
    else:
        tail = (high ** (1.0 - exponent) - low ** (1.0 - exponent)) / (1.0 - exponent)
    pages = np.concatenate([np.ones(single), high - low])
    touches = np.concatenate([ranks**-exponent, tail])
    return pages / pages.sum(), touches / touches.sum()


def cut_bins(share_of_pages: FloatArray, share_of_touches: FloatArray, n_bins: int) -> HeatBins:
    """Cuts a fine heat distribution into bins where the miss ratio suffers least.

    Treating the pages of a bin as alike overstates the miss ratio, and to first order the errors
    of the bins add up.  So the cut points, taken from a grid that is dense both in log rank and in
    touches, are those of the least weighted sum of the errors at ``RESIDENT_SHARES``, found by
    dynamic programming; a few rounds raise the weight of the cache sizes that come out worst.

    Args:
        share_of_pages: Shares of pages, hottest group first, shape ``(n,)`` [1].
        share_of_touches: Shares of touches, shape ``(n,)`` [1].
        n_bins: Number of bins, at most ``n``.

    Returns:
        The bins.
    """
    cuts = _quantile_cuts(share_of_pages, share_of_touches, _CUT_QUANTILES)
    errors = _bin_errors(share_of_pages, share_of_touches, cuts)
    weight = np.full(errors.shape[0], 1.0 / errors.shape[0])
    best, best_error = cuts, np.inf
    for _ in range(_REWEIGHTINGS):
        chosen = _shortest_partition(np.tensordot(weight, errors, axes=1), n_bins)
        error = errors[:, chosen[:-1], chosen[1:]].sum(axis=1)
        if error.max() < best_error:
            best, best_error = cuts[chosen], float(error.max())
        weight = weight * np.exp(error / max(float(error.max()), 1e-300))
        weight /= weight.sum()
    pages = np.add.reduceat(share_of_pages, best[:-1])
    touches = np.add.reduceat(share_of_touches, best[:-1])
    return HeatBins(pages / pages.sum(), touches / touches.sum())


def error_table() -> str:
    """What binning costs, as a Markdown table; ``python -m memcg_gym.configs.heat`` prints it.

    One row a distribution: its miss ratio with a tenth and half of the pages resident, then by how
    much 4, 8 and 16 bins overstate the miss ratio where they are worst, in points.
    """
    fine = {name: page_heat(name) for name in POPULARITIES}
    for exponent in (0.6, 0.8, 1.0, 1.2):
        fine[f"zipf {exponent}, 1e6 pages"] = zipf_page_heat(exponent, 1_000_000)
    lines = [
        "| heat | misses at 10 % | at 50 % | 4 bins | 8 bins | 16 bins |",
        "|---|---|---|---|---|---|",
    ]
    sizes = np.array(RESIDENT_SHARES)
    for name, (pages, touches) in fine.items():
        at_10, at_50 = random_replacement_miss_ratio(pages, touches, np.array([0.1, 0.5]))
        exact = random_replacement_miss_ratio(pages, touches, sizes)
        cells = [f"{100 * at_10:.1f} %", f"{100 * at_50:.1f} %"]
        for n_bins in (4, 8, 16):
            bins = cut_bins(pages, touches, n_bins)
            coarse = random_replacement_miss_ratio(
                bins.share_of_pages, bins.share_of_touches, sizes
            )
            cells.append(f"{100 * float(np.abs(coarse - exact).max()):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _pages_by_class(
    objects: _Objects, rng: np.random.Generator
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yields the pages and their heat of each slab class, exact parts and drawn parts."""
    n_objects = float(objects.keys.sum())
    class_pages = n_objects * objects.class_share * objects.class_bytes / PAGE_BYTES
    for share, object_bytes, pages in zip(
        objects.class_share, objects.class_bytes, class_pages, strict=True
    ):
        per_page = PAGE_BYTES / object_bytes
        if per_page <= 1.0:
            yield objects.keys * share / per_page, objects.heat
            continue
        limit = n_objects * _SINGLED_OUT_PAGE_SHARE / per_page
        n_hot = int(np.searchsorted(np.cumsum(objects.keys), limit, side="right"))
        keys, heat = objects.keys[n_hot:], objects.heat[n_hot:]
        cold_mean = float((keys * heat).sum() / keys.sum())
        hot_pages = objects.keys[:n_hot] * share
        yield hot_pages, objects.heat[:n_hot] + (per_page - 1.0) * cold_mean
        wanted = int(_SAMPLED_PAGES * pages / class_pages.sum())
        n_drawn = max(_MIN_SAMPLED_PAGES_PER_CLASS, wanted)
        cold_pages = pages - float(hot_pages.sum())
        drawn = _draw_pages(keys, heat, per_page, n_drawn, rng)
        yield np.full(n_drawn, cold_pages / n_drawn), drawn


def _draw_pages(
    keys: FloatArray, heat: FloatArray, per_page: float, n_pages: int, rng: np.random.Generator
) -> FloatArray:
    """Draws the heat of pages that hold ``per_page`` objects, or one more for the fraction.

    Each slot of all pages takes its objects at even quantiles in random order, so that the drawn
    pages together hold the popularity as it is.
    """
    cumulative = np.cumsum(keys) / keys.sum()
    whole = int(per_page)
    total = np.zeros(n_pages)
    for i in range(whole + 1):
        quantile = (rng.permutation(n_pages) + 0.5) / n_pages
        group = np.searchsorted(cumulative, quantile, side="right")
        drawn = heat[np.minimum(group, heat.size - 1)]
        if i == whole:
            drawn = np.where(rng.random(n_pages) < per_page - whole, drawn, 0.0)
        total += drawn
    return total


def _quantile_cuts(pages: FloatArray, touches: FloatArray, n: int) -> NDArray[np.intp]:
    """Indices that cut sorted groups by rank, by log rank and by touches, ends included."""
    size = pages.size
    if size <= n:
        return np.arange(size + 1)
    by_pages, by_touches = np.cumsum(pages) / pages.sum(), np.cumsum(touches) / touches.sum()
    inner = np.arange(1, n) / n
    marks = (
        np.searchsorted(by_pages, inner),
        np.searchsorted(by_pages, np.geomspace(_SMALLEST_CUT_SHARE, 1.0, n)),
        np.searchsorted(by_touches, inner),
    )
    cuts = np.unique(np.concatenate([[0], *marks, [size]]))
    return np.asarray(cuts[cuts <= size], dtype=np.intp)


def _bin_errors(pages: FloatArray, touches: FloatArray, cuts: NDArray[np.intp]) -> FloatArray:
    """Overstatement of the miss ratio by each possible bin, shape ``(sizes, cuts, cuts)``.

    At a fixed ``T`` a bin of mean heat holds more pages than its members would and catches fewer
    touches; the surplus of pages shortens ``T``, which costs the slope of hits over pages.
    """
    heat = touches / pages
    time = _residence_time(pages, heat, np.array(RESIDENT_SHARES))
    errors = np.empty((time.size, cuts.size, cuts.size))
    bin_pages, bin_touches = _between(pages, cuts), _between(touches, cuts)
    bin_heat = np.divide(bin_touches, bin_pages, out=np.zeros_like(bin_pages), where=bin_pages > 0)
    for i, t in enumerate(time):
        resident = heat * t / (1.0 + heat * t)
        leaving = heat / (1.0 + heat * t) ** 2
        slope = float((touches * leaving).sum() / (pages * leaving).sum())
        alike = bin_heat * t / (1.0 + bin_heat * t)
        lost_touches = _between(touches * resident, cuts) - bin_touches * alike
        surplus_pages = bin_pages * alike - _between(pages * resident, cuts)
        errors[i] = lost_touches + slope * surplus_pages
    return errors


def _between(values: FloatArray, cuts: NDArray[np.intp]) -> FloatArray:
    """Sum of the values between cut ``i`` and cut ``j``, shape ``(cuts, cuts)``; 0 for j <= i."""
    total = np.concatenate([[0.0], np.cumsum(values)])[cuts]
    return np.asarray(np.maximum(total[None, :] - total[:, None], 0.0), dtype=np.float64)


def _shortest_partition(cost: FloatArray, n_bins: int) -> NDArray[np.intp]:
    """Positions of the ``n_bins + 1`` cuts, first and last included, of the least summed cost."""
    size = cost.shape[0]
    forward = np.where(np.triu(np.ones((size, size), dtype=bool), k=1), cost, np.inf)
    least = forward[0]
    came_from = []
    for _ in range(n_bins - 1):
        through = least[:, None] + forward
        came_from.append(through.argmin(axis=0))
        least = through.min(axis=0)
    path = [size - 1]
    for step in reversed(came_from):
        path.append(int(step[path[-1]]))
    return np.array([0, *reversed(path)], dtype=np.intp)


def _residence_time(pages: FloatArray, heat: FloatArray, resident: FloatArray) -> FloatArray:
    """Mean stay ``T`` that fills each cache size, by bisection in its logarithm."""
    hottest, coldest = float(heat.max()), float(heat[heat > 0.0].min())
    low = np.full(resident.shape, np.log(1e-9 / hottest))
    high = np.full(resident.shape, np.log(1e9 / coldest))
    for _ in range(60):
        middle = 0.5 * (low + high)
        reach = np.exp(middle)[:, None] * heat
        filled = (pages * (reach / (1.0 + reach))).sum(axis=1)
        low = np.where(filled < resident, middle, low)
        high = np.where(filled < resident, high, middle)
    return np.asarray(np.exp(0.5 * (low + high)))


def _objects(name: str, objects_per_page: float | None) -> _Objects:
    """Reads a workload's popularity and, unless a number replaces them, its sizes."""
    popularity = _read_columns(f"{name}.popularity.csv")
    heat = popularity["requests"] / popularity["keys"]
    if objects_per_page is not None:
        one = np.array([1.0])
        return _Objects(popularity["keys"], heat, one, np.array([PAGE_BYTES / objects_per_page]))
    sizes = _read_columns(f"{name}.sizes.csv")
    overhead_bytes = ITEM_OVERHEAD_BYTES + _workload(name)["mean_key_bytes"]
    object_bytes = sizes["value_bytes"] / sizes["objects"] + overhead_bytes
    return _Objects(
        popularity["keys"], heat, sizes["objects"] / sizes["objects"].sum(), object_bytes
    )


def _workload(name: str) -> dict[str, float]:
    """The row of a workload: mean key size and share of one-hit requests."""
    rows = csv.DictReader(_data_text("workloads.csv").splitlines())
    row = next(row for row in rows if row["name"] == name)
    return {key: float(value) for key, value in row.items() if key != "name"}


def _read_columns(file_name: str) -> dict[str, FloatArray]:
    """Columns of a shipped CSV of numbers, by name."""
    header, *lines = _data_text(file_name).splitlines()
    table = np.array([line.split(",") for line in lines], dtype=np.float64)
    return {column: table[:, i] for i, column in enumerate(header.split(","))}


def _data_text(file_name: str) -> str:
    data = files("memcg_gym.configs").joinpath("data", "cachelib", file_name)
    return data.read_text(encoding="ascii")


def _check_name(name: str) -> None:
    if name not in POPULARITIES:
        raise ConfigError(f"heat: no popularity {name!r}{did_you_mean(name, POPULARITIES)}")


def _check_bins(n_bins: int) -> None:
    if not 1 <= n_bins <= MAX_BINS:
        raise ConfigError(f"heat: n_bins must be in 1..{MAX_BINS}, got {n_bins!r}")


if __name__ == "__main__":
    print(error_table())
