"""Limits, protection and watermarks against numbers worked out from the kernel's source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcg_gym.envs.model.build import set_watermarks
from memcg_gym.envs.model.page_counter import (
    calculate_high_delay,
    calculate_overage,
    effective_protection,
    high_delay_us,
    scan_share,
)
from memcg_gym.envs.model.state import HOST_DTYPE

MIB = 256  # pages
GIB = 1024 * MIB

# mm/memcontrol.c: the table above calculate_high_delay is for high = 100M and one batch.
ONE_BATCH_MS = {100: 0, 101: 6, 102: 25, 103: 57, 105: 159, 110: 639, 115: 1439, 118: 2000}
EIGHT_BATCHES_MS = {100: 0, 101: 48, 103: 456, 107: 2000, 120: 2000}


@pytest.mark.parametrize(
    ("nr_pages", "usage_mib", "delay_ms"),
    [(64, usage, delay) for usage, delay in ONE_BATCH_MS.items()]
    + [(512, usage, delay) for usage, delay in EIGHT_BATCHES_MS.items()],
)
def test_the_penalty_over_memory_high_is_the_kernels_table(
    nr_pages: int, usage_mib: int, delay_ms: int
) -> None:
    overage = calculate_overage(usage_mib * MIB, 100 * MIB)
    assert calculate_high_delay(overage, nr_pages) == delay_ms


@settings(deadline=None)
@given(
    high=st.integers(10 * MIB, 64 * GIB), over=st.floats(0.0, 3.0), nr_pages=st.integers(1, 4096)
)
def test_the_penalty_is_the_square_of_the_overage_up_to_two_seconds(
    high: int, over: float, nr_pages: int
) -> None:
    usage = high + int(over * high)
    closed_ms = 1000.0 * min(2.0, nr_pages * ((usage - high) / high) ** 2)
    got_ms = calculate_high_delay(calculate_overage(usage, high), nr_pages)
    # every jiffy cut off before the multiplication by batches counts that often
    assert got_ms <= closed_ms + 1e-6
    assert got_ms >= 0.999 * closed_ms - nr_pages / 64.0 - 2.0


def test_penalties_of_up_to_ten_milliseconds_are_not_slept() -> None:
    assert high_delay_us(101 * MIB, 100 * MIB, 64) == 0.0
    assert high_delay_us(102 * MIB, 100 * MIB, 64) == 25_000.0


CHILD = st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1e6))  # usage, setting


@settings(deadline=None)
@given(children=st.lists(CHILD, min_size=1, max_size=6), share=st.floats(0.0, 1.5))
def test_children_never_get_more_protection_than_their_parent_has(
    children: list[tuple[float, float]], share: float
) -> None:
    usage = sum(child[0] for child in children)
    siblings = sum(min(child) for child in children)
    parent = share * usage
    for recursive in (False, True):
        got = [
            effective_protection(used, usage, setting, parent, siblings, recursive)
            for used, setting in children
        ]
        assert sum(got) <= parent * (1 + 1e-9) + 1e-6
        assert all(ep <= used + 1e-6 for ep, (used, _) in zip(got, children, strict=True)) or (
            parent > usage
        )


@settings(deadline=None)
@given(children=st.lists(CHILD, min_size=1, max_size=6), share=st.floats(0.0, 1.0))
def test_recursive_protection_is_work_conserving(
    children: list[tuple[float, float]], share: float
) -> None:
    usage = sum(child[0] for child in children)
    siblings = sum(min(child) for child in children)
    parent = share * usage
    got = [
        effective_protection(used, usage, setting, parent, siblings, True)
        for used, setting in children
    ]
    assert sum(got) == pytest.approx(parent, rel=1e-6, abs=1.0)


def test_overcommitted_protection_is_shared_in_proportion_to_what_is_used_of_it() -> None:
    assert effective_protection(100.0, 300.0, 200.0, 90.0, 300.0, False) == pytest.approx(30.0)
    assert effective_protection(200.0, 300.0, 200.0, 90.0, 300.0, False) == pytest.approx(60.0)


def test_unclaimed_protection_goes_to_unprotected_memory_only_with_recursiveprot() -> None:
    assert effective_protection(100.0, 200.0, 0.0, 80.0, 20.0, False) == 0.0
    assert effective_protection(100.0, 200.0, 0.0, 80.0, 20.0, True) == pytest.approx(
        60.0 * 100.0 / 180.0
    )


@settings(deadline=None)
@given(protection=st.floats(0.0, 1e8), size=st.floats(1.0, 1e8))
def test_protection_takes_its_share_off_the_scan(protection: float, size: float) -> None:
    share = scan_share(protection, size)
    assert 0.0 <= share <= 1.0
    if protection < size:
        assert share == pytest.approx(1.0 - protection / (size + 1.0))
    else:
        assert share <= 1.0 / size + 1e-9


@pytest.mark.parametrize(
    ("gib", "low", "high", "promo"),
    [
        # min_free = sqrt(16 * KiB) KiB, gap = the larger of min / 4 and a thousandth
        (1, 1024 + 262.144, 1024 + 2 * 262.144, 1024 + 3 * 262.144),
        (16, 4096 + 4194.304, 4096 + 2 * 4194.304, 4096 + 3 * 4194.304),
        (8192, 65_536 + 2_147_483.648, 65_536 + 2 * 2_147_483.648, 65_536 + 3 * 2_147_483.648),
    ],
)
def test_watermarks_of_one_node_are_the_kernels(
    gib: int, low: float, high: float, promo: float
) -> None:
    host = np.zeros(1, dtype=HOST_DTYPE)[0]
    host.total_pages = host.node_pages[0] = gib * GIB
    set_watermarks(host)
    assert host.wmark_low[0] == pytest.approx(low)
    assert host.wmark_high[0] == pytest.approx(high)
    assert host.wmark_promo[0] == pytest.approx(promo)
    assert host.wmark_high[1] == 0.0


def test_watermarks_are_shared_out_over_nodes_by_size() -> None:
    host = np.zeros(1, dtype=HOST_DTYPE)[0]
    host.total_pages = 16 * GIB
    host.node_pages[:] = 4 * GIB, 12 * GIB
    set_watermarks(host)
    assert host.wmark_min.tolist() == [1024.0, 3072.0]
