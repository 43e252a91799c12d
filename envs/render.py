"""Pictures and text of one host: memory by tier and cgroup, pressure, and what was asked for.

A small rasteriser over NumPy arrays with its own five-row font: an episode can be filmed, and
nothing needs a display or a plotting library.

Panels, top to bottom, time to the right: memory by cgroup (full colour on the fast tier, pale on
the slow one, dark in swap); pressure (host memory ``some``, then each cgroup's); levels in
force, one band a cgroup, one line a head.

Units: GiB; shares of the tick; ticks of one second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from memcg_gym.enforcer.features import Guard
from memcg_gym.envs.contract.features import F
from memcg_gym.envs.contract.heads import HEADS, LEVEL_COUNTS, N_HEADS
from memcg_gym.envs.contract.signals import HostSig, Sig
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.reward import Metric

Array = np.ndarray[Any, np.dtype[Any]]

WINDOW_TICKS = 240
STEP_PIXELS = 2
LEFT, RIGHT, GAP, TITLE = 92, 12, 14, 12
PLOT_WIDTH = WINDOW_TICKS * STEP_PIXELS
MEMORY_HEIGHT, PRESSURE_HEIGHT, BAND_HEIGHT = 150, 80, 2 * N_HEADS + 2
GIB = float(2**30)

PAPER, INK, FAINT = (250, 250, 247), (40, 40, 44), (216, 216, 210)
COLOURS = np.array(
    [
        # Okabe and Ito's palette, which colour-blind readers can tell apart, and two greys.
        (0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233),
        (204, 121, 167), (180, 170, 40), (90, 90, 96), (150, 150, 156), (60, 120, 90),
    ],
    dtype=np.float64,
)  # fmt: skip

GLYPHS = {
    "a": "75757", "b": "65656", "c": "74447", "d": "65556", "e": "74647", "f": "74644",
    "g": "74557", "h": "55755", "i": "72227", "j": "11157", "k": "55655", "l": "44447",
    "m": "57755", "n": "75555", "o": "75557", "p": "75744", "q": "75711", "r": "75655",
    "s": "74717", "t": "72222", "u": "55557", "v": "55552", "w": "55775", "x": "55255",
    "y": "55722", "z": "71247", "0": "75557", "1": "26227", "2": "71747", "3": "71717",
    "4": "55711", "5": "74717", "6": "74757", "7": "71122", "8": "75757", "9": "75717",
    "-": "00700", "_": "00007", ".": "00002", ":": "02020", "/": "11244", "%": "51245",
    "(": "24442", ")": "21112", " ": "00000",
}  # fmt: skip
"""Five rows of three pixels, one octal digit a row."""
HIGHEST_LEVEL = np.array(LEVEL_COUNTS) - 1


@dataclass(frozen=True, slots=True)
class Sample:
    """What one tick leaves for the picture."""

    fast_gib: Array
    slow_gib: Array
    swap_gib: Array
    pressure: Array
    host_pressure: float
    levels: Array
    total_gib: float


class History:
    """The last ``WINDOW_TICKS`` ticks of one host."""

    def __init__(self, names: tuple[str, ...] | list[str]) -> None:
        self.names = tuple(names)
        self.samples: deque[Sample] = deque(maxlen=WINDOW_TICKS)

    def clear(self) -> None:
        """Forget the last episode."""
        self.samples.clear()

    def note(self, batch: HostBatch, host: int) -> None:
        """Remember the tick just made."""
        signals, here = batch.signals[host], batch.host_signals[host]
        present = batch.active[host]
        one = 1 << 16
        self.samples.append(
            Sample(
                np.where(present, signals[:, Sig.FAST_BYTES], 0.0) / GIB,
                np.where(present, signals[:, Sig.SLOW_BYTES], 0.0) / GIB,
                np.where(present, signals[:, Sig.SWAP_BYTES], 0.0) / GIB,
                batch.features[host, :, F.PSI_MEM_SOME] / one,
                float(batch.features[host, 0, F.HOST_PSI_MEM_SOME]) / one,
                batch.guard[host, :, Guard.IN_FORCE : Guard.IN_FORCE + N_HEADS].copy(),
                float(here[HostSig.TOTAL_BYTES]) / GIB,
            )
        )


def frame_shape(n_cgroups: int) -> tuple[int, int, int]:
    """Height, width and channels of a frame; even, as video codecs want them."""
    height = 4 * TITLE + MEMORY_HEIGHT + PRESSURE_HEIGHT + n_cgroups * BAND_HEIGHT + 3 * GAP
    return height + height % 2, LEFT + PLOT_WIDTH + RIGHT, 3


def draw(history: History) -> Array:
    """The window as a picture, uint8 ``(height, width, 3)``; empty panels before the first tick."""
    canvas = np.empty(frame_shape(len(history.names)), dtype=np.uint8)
    canvas[:] = PAPER
    samples = list(history.samples)
    top = TITLE
    _draw_memory(canvas, top, samples, history.names)
    top += TITLE + MEMORY_HEIGHT + GAP
    _draw_pressure(canvas, top, samples)
    top += TITLE + PRESSURE_HEIGHT + GAP
    _draw_levels(canvas, top, samples, history.names)
    return canvas


def _draw_memory(canvas: Array, top: int, samples: list[Sample], names: tuple[str, ...]) -> None:
    total = samples[-1].total_gib if samples else 0.0
    write(canvas, top - 8, LEFT, f"memory: full fast  pale slow  dark swap ({total:.1f} gib)")
    for i, name in enumerate(names):
        write(canvas, top + 8 * i, 4, name[:20], colour_of(i))
    _frame(canvas, top, MEMORY_HEIGHT)
    if not samples:
        return
    # Per tick the stack of (fast, slow, swap) of each cgroup, from the bottom up.
    pieces = np.stack([np.stack([s.fast_gib, s.slow_gib, s.swap_gib], 1) for s in samples])
    tops = pieces.reshape(len(samples), -1).cumsum(axis=1)
    scale = MEMORY_HEIGHT / max(float(tops.max()), total)
    heights = np.round(tops * scale)
    up = MEMORY_HEIGHT - 1 - np.arange(MEMORY_HEIGHT)
    piece = (up[:, None, None] >= heights[None]).sum(axis=2)
    full = COLOURS[np.arange(len(names)) % len(COLOURS)]
    shades = np.stack([full, 0.45 * full + 0.55 * 255, 0.45 * full], axis=1).reshape(-1, 3)
    _paint(canvas, top, np.concatenate([shades, [PAPER]])[piece])
    line = top + MEMORY_HEIGHT - round(total * scale)
    canvas[max(line, top), LEFT : LEFT + PLOT_WIDTH : 2] = INK


def _draw_pressure(canvas: Array, top: int, samples: list[Sample]) -> None:
    write(canvas, top - 8, LEFT, "psi memory some: host dark  cgroups coloured  top 100 %")
    _frame(canvas, top, PRESSURE_HEIGHT)
    if not samples:
        return
    shares = np.stack([np.append(s.pressure, s.host_pressure) for s in samples])
    # Square root: 1 % of pressure must be seen beside 100 %.
    rows = (
        PRESSURE_HEIGHT
        - 2
        - np.round(np.sqrt(np.clip(shares, 0.0, 1.0)) * (PRESSURE_HEIGHT - 2)).astype(int)
    )
    panel = np.full((PRESSURE_HEIGHT, len(samples), 3), PAPER, dtype=np.float64)
    ticks = np.arange(len(samples))
    for i in range(shares.shape[1] - 1):
        panel[rows[:, i], ticks] = colour_of(i)
    panel[rows[:, -1], ticks] = panel[rows[:, -1] + 1, ticks] = INK
    _paint(canvas, top, panel)


def _draw_levels(canvas: Array, top: int, samples: list[Sample], names: tuple[str, ...]) -> None:
    write(canvas, top - 8, LEFT, "levels in force: " + " ".join(h.name for h in HEADS))
    for i, name in enumerate(names):
        band = top + i * BAND_HEIGHT
        write(canvas, band + 4, 4, name[:20], colour_of(i))
        canvas[band + BAND_HEIGHT - 1, LEFT : LEFT + PLOT_WIDTH] = FAINT
        if not samples:
            continue
        share = np.stack([s.levels[i] for s in samples], axis=1) / HIGHEST_LEVEL[:, None]
        strength = np.where(share > 0.0, 0.35 + 0.65 * share, 0.0)[..., None]
        lines = strength * colour_of(i) + (1.0 - strength) * np.array(PAPER)
        _paint(canvas, band, lines.repeat(2, axis=0))


def _paint(canvas: Array, top: int, panel: Array) -> None:
    """Put a panel of one pixel a tick, ``(height, ticks, 3)``, where its ticks belong."""
    wide = panel.repeat(STEP_PIXELS, axis=1)
    canvas[top : top + len(wide), LEFT : LEFT + wide.shape[1]] = wide


def colour_of(cgroup: int) -> Array:
    """A cgroup's colour; they repeat after ten."""
    colour: Array = COLOURS[cgroup % len(COLOURS)]
    return colour


def _frame(canvas: Array, top: int, height: int) -> None:
    canvas[top : top + height, LEFT - 1] = FAINT
    canvas[top + height, LEFT - 1 : LEFT + PLOT_WIDTH] = FAINT


def write(
    canvas: Array, top: int, left: int, text: str, colour: Array | tuple[int, ...] = INK
) -> None:
    """Small text; characters without a glyph leave a gap, what does not fit is cut."""
    for character in text.lower():
        if left + 4 > canvas.shape[1]:
            return
        for row, digit in enumerate(GLYPHS.get(character, "00000")):
            for column in range(3):
                if int(digit) >> (2 - column) & 1:
                    canvas[top + row, left + column] = colour
        left += 4


def write_ansi(batch: HostBatch, host: int, tick: int) -> str:
    """The host as a table of text, one line a cgroup."""
    signals, here = batch.signals[host], batch.host_signals[host]
    util = 1.0 - here[HostSig.AVAILABLE_BYTES] / here[HostSig.TOTAL_BYTES]
    in_force = batch.guard[host, :, Guard.IN_FORCE : Guard.IN_FORCE + N_HEADS]
    lines = [
        f"tick {tick}: {here[HostSig.TOTAL_BYTES] / GIB:.1f} GiB, {100 * util:.1f} % used, "
        f"PSI memory some {100 * batch.features[host, 0, F.HOST_PSI_MEM_SOME] / (1 << 16):.2f} %",
        f"{'cgroup':<14}{'fast':>8}{'slow':>8}{'swap':>8}{'PSI %':>8}{'slowdown':>10}  "
        + " ".join(f"{h.name[:4]:>4}" for h in HEADS),
    ]
    for i, name in enumerate(batch.layout.names):
        if not batch.active[host, i]:
            lines.append(f"{name:<14}{'empty':>8}")
            continue
        row = signals[i]
        lines.append(
            f"{name:<14}{row[Sig.FAST_BYTES] / GIB:>8.2f}{row[Sig.SLOW_BYTES] / GIB:>8.2f}"
            f"{row[Sig.SWAP_BYTES] / GIB:>8.2f}"
            f"{100 * batch.features[host, i, F.PSI_MEM_SOME] / (1 << 16):>8.2f}"
            f"{batch.metrics[host, i, Metric.SLOWDOWN]:>10.2f}  "
            + " ".join(f"{level:>4}" for level in in_force[i])
        )
    return "\n".join(lines)
