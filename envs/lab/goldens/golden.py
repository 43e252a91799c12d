"""One golden value: what is expected, what the kernel showed.

Units: as each value says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Expected:
    """A closed interval.

    Attributes:
        least, most: Its ends; infinite where there is none.
    """

    least: float
    most: float

    def __str__(self) -> str:
        """As a table prints it."""
        if self.least == self.most:
            return _plain(self.least)
        if math.isinf(self.most):
            return f"at least {_plain(self.least)}"
        if math.isinf(self.least):
            return f"at most {_plain(self.most)}"
        return f"{_plain(self.least)} to {_plain(self.most)}"


@dataclass(frozen=True, slots=True)
class Golden:
    """One value that was checked.

    Attributes:
        name: What it is about, in words.
        source: Where the kernel's source says so.
        expected: What it should be.
        observed: What it was.
        unit: Of both.
        note: What a reader should know of it.
        before: What Linux 6.18 does instead, from whose source the model was written; empty where
            it does the same.
    """

    name: str
    source: str
    expected: Expected
    observed: float
    unit: str = ""
    note: str = ""
    before: str = ""

    @property
    def ok(self) -> bool:
        """Whether the kernel does what is expected."""
        return self.expected.least <= self.observed <= self.expected.most

    @property
    def value(self) -> str:
        """What was observed, with its unit."""
        return f"{_plain(self.observed)} {self.unit}".rstrip()

    def __str__(self) -> str:
        """One line."""
        mark = "ok" if self.ok else "NOT OK"
        return f"{mark}: {self.name}: expected {self.expected}, got {self.value}"


def exactly(value: float) -> Expected:
    """One value."""
    return Expected(value, value)


def about(value: float, slack: float) -> Expected:
    """A value and what it may be off, either way."""
    return Expected(value - slack, value + slack)


def between(least: float, most: float) -> Expected:
    """An interval."""
    return Expected(least, most)


def at_least(value: float) -> Expected:
    """A value or more."""
    return Expected(value, math.inf)


def at_most(value: float) -> Expected:
    """A value or less."""
    return Expected(-math.inf, value)


YES = exactly(1.0)
NO = exactly(0.0)


def _plain(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"
