"""Streams of page touches: who touches which page in which 100 ms.

A region's pattern says how its touches spread over its pages.  Heat is scattered over the
address space at random, as in a heap; ``loop`` and ``stream`` run through the addresses in order.
Touches of several regions are interleaved at random, each region's own order kept.

What it does not know: that a slow page slows the program down.  A region keeps its rate however
many touches miss.

Units: pages of 4 KiB; touches per second; seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

SUBSTEPS_PER_S = 10
PMD_PAGES = 512  # pages under one page-table page (x86-64)

Kind = Literal["anon", "mapped", "read"]
Pattern = Literal["zipf", "bins", "uniform", "loop", "stream"]
KINDS = ("anon", "mapped", "read")
PATTERNS = ("zipf", "bins", "uniform", "loop", "stream")


@dataclass(frozen=True, kw_only=True)
class TwinRegion:
    """A part of the cgroup's memory with one kind, one pattern and one rate.

    Attributes:
        kind: ``anon``, ``mapped`` (a mapped file) or ``read`` (a file only ever read()).
        pattern: ``zipf``, ``bins``, ``uniform``, ``loop`` or ``stream``.
        n_pages: Size [pages].  A stream never comes back, so it needs a page per touch.
        rate_per_s: Touches per second while active.
        zipf_exponent: Exponent of ``zipf``, above 0 and not 1.
        share_of_pages: For ``bins``: the share of the pages in each bin; sums to 1.
        share_of_touches: For ``bins``: the share of the touches in each bin; sums to 1.
        active_from_s: First second with touches.
        active_to_s: Second at which touches end; None for never.
        phase_changes: Pairs ``(second, overlap)``: at that second the share ``overlap`` of the
            pages, drawn at random, keep their heat and the others swap theirs at random.
        prefault: Touch every page once, in address order, before time zero; streams never do.

    Raises:
        ValueError: If a field is out of its range.
    """

    kind: Kind
    pattern: Pattern
    n_pages: int
    rate_per_s: float
    zipf_exponent: float = 1.1
    share_of_pages: tuple[float, ...] = ()
    share_of_touches: tuple[float, ...] = ()
    active_from_s: float = 0.0
    active_to_s: float | None = None
    phase_changes: tuple[tuple[int, float], ...] = ()
    prefault: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.pattern not in PATTERNS:
            raise ValueError(f"unknown kind {self.kind!r} or pattern {self.pattern!r}")
        if self.n_pages < 1 or self.rate_per_s < 0.0:
            raise ValueError(f"n_pages={self.n_pages} or rate_per_s={self.rate_per_s} too small")
        if self.zipf_exponent <= 0.0 or self.zipf_exponent == 1.0:
            raise ValueError(f"zipf_exponent must be above 0 and not 1, got {self.zipf_exponent}")
        if self.pattern == "bins":
            shares = np.array([self.share_of_pages, self.share_of_touches], dtype=np.float64)
            if shares.shape[1] == 0 or shares.min() < 0.0 or not np.allclose(shares.sum(1), 1.0):
                raise ValueError(f"the shares of the bins must each sum to 1, got {shares}")


class TouchGenerator:
    """Draws the touches of all regions, sub-step by sub-step; the same seed, the same touches."""

    def __init__(self, regions: Sequence[TwinRegion], seed: int) -> None:
        self._regions = tuple(regions)
        self._rng = np.random.default_rng(seed)
        sizes = [region.n_pages for region in regions]
        self._first_page = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        # page_of_rank[k] is the page with the k-th greatest heat
        self._page_of_rank = [self._rng.permutation(region.n_pages) for region in regions]
        self._position = [0] * len(self._regions)

    def prefault(self) -> npt.NDArray[np.int32]:
        """Every page once, in address order, but for streams."""
        parts = [
            first + np.arange(region.n_pages)
            for first, region in zip(self._first_page, self._regions, strict=True)
            if region.prefault and region.pattern != "stream"
        ]
        return np.concatenate([np.zeros(0), *parts]).astype(np.int32)

    def substep(self, substep: int) -> npt.NDArray[np.int32]:
        """Pages touched in one sub-step, in order; sub-steps must be asked for in order."""
        parts = []
        for index, region in enumerate(self._regions):
            if substep % SUBSTEPS_PER_S == 0:
                self._change_phase(index, substep // SUBSTEPS_PER_S)
            count = _touches_due(region, substep + 1) - _touches_due(region, substep)
            parts.append(self._first_page[index] + self._draw(index, count))
        owner = np.repeat(np.arange(len(parts)), [part.size for part in parts])
        self._rng.shuffle(owner)
        touches = np.empty(owner.size, dtype=np.int32)
        for index, part in enumerate(parts):
            touches[owner == index] = part
        return touches

    def _change_phase(self, index: int, second: int) -> None:
        region = self._regions[index]
        for at_s, overlap in region.phase_changes:
            if at_s == second:
                moved = np.flatnonzero(self._rng.random(region.n_pages) >= overlap)
                pages = self._page_of_rank[index]
                pages[moved] = pages[self._rng.permutation(moved)]

    def _draw(self, index: int, count: int) -> npt.NDArray[np.int64]:
        region = self._regions[index]
        if region.pattern in ("loop", "stream"):
            start = self._position[index]
            self._position[index] = start + count
            if region.pattern == "stream" and start + count > region.n_pages:
                raise ValueError(f"the stream has {region.n_pages} pages and needs more")
            addresses = np.arange(start, start + count) % region.n_pages
            return addresses.astype(np.int64)
        pages: npt.NDArray[np.int64] = self._page_of_rank[index][self._ranks(region, count)]
        return pages

    def _ranks(self, region: TwinRegion, count: int) -> npt.NDArray[np.int64]:
        n_pages = region.n_pages
        if region.pattern == "uniform":
            return self._rng.integers(n_pages, size=count).astype(np.int64)
        if region.pattern == "zipf":
            return zipf_ranks(self._rng.random(count), n_pages, region.zipf_exponent)
        edges = np.rint(np.cumsum((0.0, *region.share_of_pages)) * n_pages).astype(np.int64)
        bins = self._rng.choice(len(region.share_of_pages), size=count, p=region.share_of_touches)
        width = np.maximum(edges[bins + 1] - edges[bins], 1)
        ranks = edges[bins] + (self._rng.random(count) * width).astype(np.int64)
        in_range: npt.NDArray[np.int64] = np.minimum(ranks, n_pages - 1)
        return in_range


def zipf_ranks(
    uniform: npt.NDArray[np.float64], n_pages: int, exponent: float
) -> npt.NDArray[np.int64]:
    """Ranks under a heat of ``x ** -exponent`` on ``[1, n_pages)``, by inverting its integral.

    The continuous form is what the guest program of the laboratory's experiment 1 draws from.
    """
    power = 1.0 - exponent
    height = float(n_pages) ** power - 1.0
    heat_inverse: npt.NDArray[np.float64] = (uniform * height + 1.0) ** (1.0 / power)
    return np.minimum(heat_inverse.astype(np.int64) - 1, n_pages - 1)


def _touches_due(region: TwinRegion, substep: int) -> int:
    """Touches from the start to the beginning of this sub-step: whole, without drift."""
    now_s = substep / SUBSTEPS_PER_S
    end_s = now_s if region.active_to_s is None else min(now_s, region.active_to_s)
    return int(region.rate_per_s * max(end_s - region.active_from_s, 0.0) + 1e-6)
