"""Names for what the compiled functions take; numba reads none of it, people and mypy do."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
"""An array; its shape is said where it is taken."""

Rec = Any
"""One record of ``state.py``, or an array of them: attributes are fields (numpy has no type)."""
