"""Heat bins: shares that hold, cuts that cost little, pages packed as a slab allocator would."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from memcg_gym.configs import heat
from memcg_gym.configs.heat import (
    POPULARITIES,
    RESIDENT_SHARES,
    HeatBins,
    cut_bins,
    error_table,
    heat_from_popularity,
    one_hit_share,
    page_heat,
    random_replacement_miss_ratio,
    uniform_heat,
    zipf_heat,
    zipf_page_heat,
)
from memcg_gym.envs.contract.errors import ConfigError

SIZES = np.array(RESIDENT_SHARES)

#: Worst error of eight bins over cache sizes of 5..95 % that docs/data.md promises [1].
PROMISED_ERROR = 0.01


def excess_misses(bins: HeatBins, pages: np.ndarray, touches: np.ndarray) -> np.ndarray:
    coarse = random_replacement_miss_ratio(bins.share_of_pages, bins.share_of_touches, SIZES)
    return coarse - random_replacement_miss_ratio(pages, touches, SIZES)


def popularity_rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    data = files("memcg_gym.configs").joinpath("data", "cachelib", f"{name}.popularity.csv")
    rows = list(csv.DictReader(data.read_text().splitlines()))
    keys = np.array([int(row["keys"]) for row in rows])
    return keys, np.array([int(row["requests"]) for row in rows])


@pytest.mark.parametrize("name", POPULARITIES)
def test_popularity_groups_are_keys_and_their_summed_requests(name: str) -> None:
    """Only then do requests over keys come out as falling whole counts, down to two a key."""
    keys, requests = popularity_rows(name)
    per_key = requests / keys
    assert np.all(np.diff(per_key) < 0)
    assert per_key[-4:].tolist() == [5.0, 4.0, 3.0, 2.0]
    assert np.all(requests % keys == 0)


@pytest.mark.parametrize("name", POPULARITIES)
@pytest.mark.parametrize("n_bins", [1, 5])
def test_popularity_bins_are_shares_with_the_hottest_first(name: str, n_bins: int) -> None:
    bins = heat_from_popularity(name, n_bins)
    assert bins.n_bins == n_bins
    assert bins.share_of_pages.sum() == pytest.approx(1.0, abs=1e-12)
    assert bins.share_of_touches.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.all(np.diff(bins.heat) < 0)


@pytest.mark.parametrize("objects_per_page", [1.0, 12.5])
@pytest.mark.parametrize("name", POPULARITIES)
def test_eight_bins_keep_the_miss_ratio(name: str, objects_per_page: float) -> None:
    pages, touches = page_heat(name, objects_per_page)
    excess = excess_misses(heat_from_popularity(name, 8, objects_per_page), pages, touches)
    assert np.abs(excess).max() < PROMISED_ERROR


@pytest.mark.parametrize("n_pages", [1_000, 100_000, 50_000_000])
@pytest.mark.parametrize("exponent", [0.4, 0.8, 1.0, 1.4, 3.0])
def test_eight_zipf_bins_keep_the_miss_ratio(exponent: float, n_pages: int) -> None:
    bins = zipf_heat(exponent, n_pages, 8)
    assert np.abs(excess_misses(bins, *zipf_page_heat(exponent, n_pages))).max() < PROMISED_ERROR


def test_chosen_cuts_beat_equal_touches_and_log_ranks() -> None:
    pages, touches = page_heat("kvcache_reg")
    chosen = np.abs(excess_misses(cut_bins(pages, touches, 8), pages, touches)).max()
    for cumulative, marks in (
        (np.cumsum(touches), np.arange(1, 8) / 8),
        (np.cumsum(pages), np.geomspace(1e-4, 1.0, 8)[:-1]),
    ):
        cuts = np.unique([0, *np.searchsorted(cumulative, marks)])
        naive = HeatBins(np.add.reduceat(pages, cuts), np.add.reduceat(touches, cuts))
        assert chosen < 0.5 * np.abs(excess_misses(naive, pages, touches)).max()


def test_more_bins_cost_less() -> None:
    pages, touches = page_heat("graph_cache_follower_fbobj")
    worst = [
        np.abs(excess_misses(cut_bins(pages, touches, n), pages, touches)).max()
        for n in (1, 2, 4, 8, 16)
    ]
    assert worst == sorted(worst, reverse=True)
    assert worst[0] > 20 * worst[-1]


def test_the_page_on_data_tells_the_errors_as_they_are() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "data.md").read_text(encoding="utf-8")
    for line in error_table().splitlines()[2:]:
        name, *cells = line.strip("| ").split(" | ")
        (told,) = [row for row in page.splitlines() if row.startswith(f"| {name} | ")]
        for got, said in zip(cells, told.strip("| ").split(" | ")[1:], strict=True):
            assert float(got.rstrip(" %")) == pytest.approx(float(said.rstrip(" %")), abs=0.1)
        assert float(cells[-2]) < 100 * PROMISED_ERROR


@pytest.mark.parametrize("name", POPULARITIES)
def test_the_draw_hardly_matters(name: str) -> None:
    ratios = [random_replacement_miss_ratio(*page_heat(name, seed=seed), SIZES) for seed in (1, 2)]
    assert np.abs(ratios[0] - ratios[1]).max() < 0.002


def test_bins_are_the_same_when_made_again() -> None:
    first = heat_from_popularity("cdn")
    heat_from_popularity.cache_clear()
    page_heat.cache_clear()
    again = heat_from_popularity("cdn")
    assert again is not first
    np.testing.assert_array_equal(again.share_of_pages, first.share_of_pages)
    np.testing.assert_array_equal(again.share_of_touches, first.share_of_touches)
    assert heat_from_popularity("cdn") is again


@pytest.mark.parametrize("objects_per_page", [4.0, 9.5])
def test_drawn_pages_agree_with_packing_every_object(
    objects_per_page: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = np.array([1.0, 2.0, 10.0, 100.0, 2_000.0, 40_000.0, 360_000.0])
    heat_of = np.array([80_000.0, 30_000.0, 8_000.0, 700.0, 60.0, 7.0, 2.0])
    rng = np.random.default_rng(3)
    shuffled = rng.permutation(np.repeat(heat_of, keys.astype(int)))
    whole = int(objects_per_page)
    counts = np.where(np.arange(shuffled.size) % 2 == 0, whole, np.ceil(objects_per_page))
    starts = np.concatenate([[0], np.cumsum(counts.astype(int))])
    starts = starts[starts < shuffled.size]
    packed = np.sort(np.add.reduceat(shuffled, starts))[::-1]
    expected = random_replacement_miss_ratio(
        np.full(packed.size, 1.0 / packed.size), packed / packed.sum(), SIZES
    )

    monkeypatch.setattr(
        heat,
        "_read_columns",
        lambda _name: {"keys": keys, "requests": keys * heat_of},
    )
    got = random_replacement_miss_ratio(*page_heat.__wrapped__("cdn", objects_per_page), SIZES)
    np.testing.assert_allclose(got, expected, atol=0.005)


def test_an_object_larger_than_a_page_passes_its_heat_to_each_of_its_pages() -> None:
    keys, requests = popularity_rows("cdn")
    pages, touches = page_heat("cdn", 0.125)
    exact = random_replacement_miss_ratio(keys / keys.sum(), requests / requests.sum(), SIZES)
    np.testing.assert_allclose(
        random_replacement_miss_ratio(pages, touches, SIZES), exact, atol=1e-4
    )


def test_objects_that_share_pages_blur_the_heat() -> None:
    at_ten_percent = np.array([0.1])
    ratios = [
        float(random_replacement_miss_ratio(*page_heat("kvcache_reg", n), at_ten_percent)[0])
        for n in (1, 4, 16, 64)
    ]
    assert ratios == sorted(ratios)


def test_zipf_bins_hold_the_exact_sums_of_a_small_law() -> None:
    bins = zipf_heat(0.9, 5, 5)
    weights = np.arange(1, 6) ** -0.9
    np.testing.assert_allclose(bins.share_of_pages, 0.2)
    np.testing.assert_allclose(bins.share_of_touches, weights / weights.sum())


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.3])
def test_zipf_groups_sum_to_the_law(exponent: float) -> None:
    n_pages = 300_000
    pages, touches = zipf_page_heat(exponent, n_pages)
    weights = np.arange(1, n_pages + 1) ** -exponent
    exact = np.cumsum(weights / weights.sum())
    ends = np.rint(np.cumsum(pages) * n_pages).astype(int)
    np.testing.assert_allclose(np.cumsum(touches), exact[ends - 1], atol=1e-7)


def test_uniform_bins_are_all_alike() -> None:
    for bins in (uniform_heat(6), zipf_heat(0.0, 100, 6)):
        np.testing.assert_allclose(bins.heat, 1.0)
        np.testing.assert_allclose(bins.share_of_pages, 1 / 6)


def test_uniform_pages_miss_what_is_not_resident() -> None:
    bins = uniform_heat(3)
    ratio = random_replacement_miss_ratio(bins.share_of_pages, bins.share_of_touches, SIZES)
    np.testing.assert_allclose(ratio, 1.0 - SIZES, atol=1e-9)


@pytest.mark.parametrize("evict", ["random", "oldest"])
def test_formula_agrees_with_evicting_page_by_page(evict: str) -> None:
    n_pages, n_touches, capacity = 600, 120_000, 150
    rng = np.random.default_rng(11)
    weights = np.arange(1, n_pages + 1) ** -0.9
    weights /= weights.sum()
    sequence = rng.choice(n_pages, n_touches, p=weights).tolist()
    victims = rng.integers(0, capacity, n_touches).tolist()
    slots, resident = list(range(capacity)), set(range(capacity))
    misses = hand = 0
    for i, page in enumerate(sequence):
        if page in resident:
            continue
        misses += i >= n_touches // 3
        slot = victims[i] if evict == "random" else hand
        hand = (hand + 1) % capacity
        resident.remove(slots[slot])
        resident.add(page)
        slots[slot] = page
    expected = random_replacement_miss_ratio(
        np.full(n_pages, 1 / n_pages), weights, np.array([capacity / n_pages])
    )
    assert misses / (n_touches - n_touches // 3) == pytest.approx(float(expected[0]), abs=0.01)


def test_one_hit_share_is_that_of_the_workload() -> None:
    assert one_hit_share("graph_cache_leader_fbobj") == pytest.approx(0.231544)
    assert max(POPULARITIES, key=one_hit_share) == "graph_cache_leader_fbobj"


def test_bins_cannot_be_written() -> None:
    bins = heat_from_popularity("cdn")
    with pytest.raises(ValueError, match="read-only"):
        bins.share_of_pages[0] = 0.5


def test_bins_do_not_change_with_the_array_they_were_made_from() -> None:
    shares = np.array([0.5, 0.5])
    bins = HeatBins(shares, shares)
    shares[0] = 0.9
    assert bins.share_of_pages[0] == 0.5


@pytest.mark.parametrize(
    ("pages", "touches", "message"),
    [
        ([0.5, 0.6], [0.5, 0.5], "share_of_pages must be shares that sum to 1"),
        ([0.5, 0.5], [1.5, -0.5], "share_of_touches must be shares that sum to 1"),
        ([0.5, 0.5], [np.nan, 0.5], "share_of_touches must be shares"),
        ([1.0], [0.5, 0.5], "1 shares of pages but 2 of touches"),
        ([0.0, 1.0], [0.5, 0.5], "a bin without pages"),
        ([0.5, 0.5], [0.2, 0.8], "hottest bin comes first"),
        ([[0.5, 0.5]], [[0.5, 0.5]], "must be a vector"),
        ([], [], "must be a vector"),
    ],
)
def test_bins_refuse_what_is_no_heat(pages: list, touches: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HeatBins(np.array(pages), np.array(touches))


def test_an_unknown_popularity_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no popularity 'kvcache'; did you mean 'kvcache_reg'\?"):
        heat_from_popularity("kvcache")


@pytest.mark.parametrize("objects_per_page", [0.0, -1.0, float("nan"), 129.0])
def test_impossible_objects_per_page_are_refused(objects_per_page: float) -> None:
    with pytest.raises(ConfigError, match="objects_per_page must be over 0 and at most 128"):
        heat_from_popularity("cdn", 8, objects_per_page)


@pytest.mark.parametrize("n_bins", [0, -3, 65])
def test_impossible_numbers_of_bins_are_refused(n_bins: int) -> None:
    for make in (
        lambda: heat_from_popularity("cdn", n_bins),
        lambda: zipf_heat(1.0, 1000, n_bins),
        lambda: uniform_heat(n_bins),
    ):
        with pytest.raises(ConfigError, match=r"n_bins must be in 1\.\.64"):
            make()


@pytest.mark.parametrize(
    ("exponent", "n_pages", "message"),
    [
        (-0.1, 100, "exponent must be in"),
        (float("nan"), 100, "exponent must be in"),
        (1.0, 7, "7 pages cannot fill 8 bins"),
    ],
)
def test_impossible_zipf_laws_are_refused(exponent: float, n_pages: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        zipf_heat(exponent, n_pages)
