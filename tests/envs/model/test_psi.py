"""Pressure averages against the kernel's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcg_gym.envs.model.psi import (
    PSI_PERIOD_US,
    calc_avgs,
    full_share,
    percent_of,
    some_share,
)


def test_half_of_the_time_stalled_rises_as_the_kernel_shows_it() -> None:
    avg = np.zeros(3, dtype=np.int64)
    shown = []
    for _ in range(5):
        calc_avgs(avg, PSI_PERIOD_US / 2, PSI_PERIOD_US)
        shown.append(percent_of(int(avg[0])))
    # 50 % * (1 - exp(-t / 10 s)), in the kernel's 11 fractional bits, printed without rounding
    assert shown == pytest.approx([9.05, 16.47, 22.54, 27.52, 31.59], abs=1e-9)
    assert shown == pytest.approx([9.1, 16.5, 22.6, 27.5, 31.6], abs=0.07)


def test_averages_settle_at_the_stall_and_fall_back_to_zero() -> None:
    avg = np.zeros(3, dtype=np.int64)
    for _ in range(1000):
        calc_avgs(avg, PSI_PERIOD_US / 4, PSI_PERIOD_US)
    assert [percent_of(int(value)) for value in avg] == [25.0, 25.0, 25.0]
    for _ in range(3000):
        calc_avgs(avg, 0.0, PSI_PERIOD_US)
    assert avg.tolist() == [0, 0, 0]


@settings(deadline=None)
@given(
    stalled=st.floats(0.0, 1.0),
    more=st.floats(0.0, 1.0),
    threads=st.integers(1, 200),
    cpus=st.integers(1, 64),
)
def test_full_pressure_is_never_above_some_pressure(
    stalled: float, more: float, threads: int, cpus: int
) -> None:
    busy = stalled + (1.0 - stalled) * more
    some = some_share(stalled, threads, cpus)
    full = full_share(stalled, busy, threads, cpus)
    assert 0.0 <= full <= some + 1e-12
    assert some <= 1.0


def test_one_thread_alone_stalls_fully_and_one_of_many_hardly() -> None:
    assert full_share(0.3, 1.0, 1, 4) == pytest.approx(some_share(0.3, 1, 4))
    assert full_share(0.3, 1.0, 40, 4) < 1e-4
