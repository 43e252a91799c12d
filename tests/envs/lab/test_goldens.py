"""Golden values of the kernel: formulas against the model's, and the checks on a real kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcg_gym.envs.lab.goldens import formulas, suite
from memcg_gym.envs.lab.goldens.bench import Said, numbers, stall_total_us
from memcg_gym.envs.lab.goldens.golden import (
    NO,
    Golden,
    about,
    at_least,
    at_most,
    between,
    exactly,
)
from memcg_gym.envs.lab.guest_image import GuestImage
from memcg_gym.envs.lab.protocol import GuestError, LabError
from memcg_gym.envs.model import page_counter, psi
from memcg_gym.envs.model.build import set_watermarks
from memcg_gym.envs.model.state import HOST_DTYPE


@settings(deadline=None)
@given(high=st.integers(256, 1 << 24), over=st.floats(0.0, 3.0), pages=st.integers(1, 4096))
def test_the_penalty_is_the_models(high: int, over: float, pages: int) -> None:
    usage = high + int(over * high)
    ours = formulas.high_delay_jiffies(usage, high, pages, page_counter.HZ)
    overage = page_counter.calculate_overage(usage, high)
    assert ours == page_counter.calculate_high_delay(overage, pages)
    models_us = page_counter.high_delay_us(usage, high, pages)
    assert (models_us > 0) == formulas.slept(ours, page_counter.HZ)


@settings(deadline=None)
@given(
    children=st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1e6)), min_size=1, max_size=5),
    share=st.floats(0.0, 1.5),
    recursive=st.booleans(),
)
def test_protection_is_the_models(
    children: list[tuple[float, float]], share: float, recursive: bool
) -> None:
    parent_usage = sum(usage for usage, _ in children)
    claimed = sum(min(child) for child in children)
    for usage, setting in children:
        ours = formulas.effective_protection(
            usage, setting, parent_usage, share * parent_usage, claimed, recursive=recursive
        )
        models = page_counter.effective_protection(
            usage, parent_usage, setting, share * parent_usage, claimed, recursive
        )
        assert ours == pytest.approx(models, rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(stalls=st.lists(st.integers(0, 100), min_size=1, max_size=40))
def test_averages_are_the_models(stalls: list[int]) -> None:
    models = np.zeros(3, dtype=np.int64)
    ours = [0, 0, 0]
    for percent in stalls:
        psi.calc_avgs(models, percent * psi.PSI_PERIOD_US / 100.0, psi.PSI_PERIOD_US)
        stalled = int(percent * psi.PSI_PERIOD_US / 100.0) / psi.PSI_PERIOD_US
        ours = [
            formulas.next_average(average, window, stalled)
            for average, window in zip(ours, formulas.DECAY, strict=True)
        ]
    # 29 % as a double is 28.999...: a whole percent less, which the average hardly shows
    assert models == pytest.approx(ours, abs=formulas.FIXED_ONE)


@pytest.mark.parametrize("gib", [1, 16, 64])
def test_watermarks_are_the_models(gib: int) -> None:
    pages = gib << 18
    host = np.zeros(1, dtype=HOST_DTYPE)[0]
    host.total_pages = host.node_pages[0] = pages
    set_watermarks(host)
    ((low_min, low, high, promo),) = formulas.watermarks(
        formulas.min_free_kib(4 * pages) // 4, [pages]
    )
    models = [host.wmark_min[0], host.wmark_low[0], host.wmark_high[0], host.wmark_promo[0]]
    assert models == pytest.approx([low_min, low, high, promo], abs=4)


def test_huge_pages_want_more_free_memory_than_the_square_root() -> None:
    pages = 16 << 18
    assert formulas.huge_page_min_free_kib(3, pages) == 67_584  # of a host with three zones
    assert formulas.huge_page_min_free_kib(3, pages) > 4 * formulas.min_free_kib(4 * pages)
    assert formulas.huge_page_min_free_kib(2, 100_000) == 20_000  # no more than a twentieth


def test_dirty_limits_round_as_the_kernel_does() -> None:
    assert formulas.dirty_limits(105_652) == (21_125, 10_549)


@pytest.mark.parametrize(
    ("expected", "observed", "ok", "text"),
    [
        (exactly(3), 3, True, "3"),
        (exactly(3), 4, False, "3"),
        (about(10, 2), 12, True, "8 to 12"),
        (between(1, 2), 0.5, False, "1 to 2"),
        (at_least(5), math.inf, True, "at least 5"),
        (at_most(5), 5.5, False, "at most 5"),
        (NO, False, True, "0"),
    ],
)
def test_a_value_is_held_against_its_interval(
    expected: object, observed: float, ok: bool, text: str
) -> None:
    golden = Golden("x", "source", expected, observed, "pages")  # type: ignore[arg-type]
    assert golden.ok is ok
    assert str(golden.expected) == text


def test_what_a_probe_says_is_read() -> None:
    said = Said.parse("anon 3.5\nstall 7 1200.5\nerrno 11\nvalue 60\nvalue 2\nput 9.0\nwait 0\n")
    assert said.us["put"] == 9.0
    assert said.stalls == [(7, 1200.5)]
    assert said.values == {"errno": 11.0}
    assert said.got == [60.0, 2.0]


@pytest.mark.parametrize("text", ["read\n", "read x\n", "stall 1\n", "\n"])
def test_what_no_probe_says_is_an_error(text: str) -> None:
    with pytest.raises(GuestError, match="probe"):
        Said.parse(text)


def test_kernel_files_are_read_by_name() -> None:
    assert numbers("anon 12\nlow -1\nhead of line\nx y\n") == {"anon": 12, "low": -1}
    text = "some avg10=0.00 avg60=1.00 avg300=0.00 total=7\nfull avg10=0.00 total=5\n"
    assert stall_total_us(text, "full") == 5
    with pytest.raises(GuestError, match="half"):
        stall_total_us(text, "half")


def test_an_unknown_section_is_named_before_anything_boots() -> None:
    image = GuestImage(*(None,) * 2, "0", "0")  # type: ignore[arg-type]
    with pytest.raises(LabError, match=r"'tea'.*Reclaim"):
        suite.run(image, ["tea"])


@pytest.fixture(scope="module")
def found(guest_image: GuestImage) -> dict[str, list[Golden]]:
    """Every check, on two machines."""
    return suite.run(guest_image)


@pytest.mark.lab
@pytest.mark.parametrize("section", suite.sections())
def test_the_kernel_does_what_its_source_says(found: dict[str, list[Golden]], section: str) -> None:
    assert found[section]
    assert [str(golden) for golden in found[section] if not golden.ok] == []
