"""The errors a user can meet.

::

    MemcgGymError
     ├── ConfigError          a configuration file, key or --set
     ├── TraceError           a recorded trace
     ├── CheckpointError      a run folder or checkpoint
     │    └── ContractMismatch    made under another contract
     ├── TableError           a rule table, with its stable code
     ├── CgroupError          a cgroup file or folder
     └── MissingExtraError    an optional dependency that is not installed

A message names the origin, the thing, what was got, and what would do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MemcgGymError(Exception):
    """Base of every error that bad input or a bad environment can cause."""


class ConfigError(MemcgGymError):
    """A configuration file, key or value is not usable."""


class TraceError(MemcgGymError):
    """A recorded trace is malformed."""


class CheckpointError(MemcgGymError):
    """A run folder or checkpoint cannot be read or does not fit."""


class ContractMismatch(CheckpointError):
    """Something was made under another contract; the message names the first difference."""


class TableError(MemcgGymError):
    """A rule table was refused.

    Attributes:
        code: Stable refusal code, e.g. ``"E_MAGIC"``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class CgroupError(MemcgGymError):
    """A cgroup file is missing, malformed or cannot be written."""


class MissingExtraError(MemcgGymError):
    """An optional dependency is needed and not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"{module} is not installed; install it with: pip install 'memcg-gym[{extra}]'"
        )
        self.module = module
        self.extra = extra


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """A ``; did you mean 'x'?`` tail when something close is known, else the list of what is.

    Example:
        >>> did_you_mean("tik_s", ["tick_s", "seed"])
        "; did you mean 'tick_s'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(got, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
