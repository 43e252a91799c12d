"""Page-level twins of the kernel's reclaim, the referees of the mean-field model.

``mglru`` follows the multi-generational LRU, ``classic`` the active and inactive lists.  Both
simulate every 4-KiB page of one cgroup, one by one: slow, and simple enough to be believed.

Example:
    >>> heap = TwinRegion(kind="anon", pattern="zipf", n_pages=4096, rate_per_s=50_000.0)
    >>> result = run_mglru([heap], limit_pages=np.full(100, 2048), seed=1, n_substeps=100)
    >>> 0.05 < result.miss_ratio(from_s=5) < 0.1
    True
"""

from .classic import run_classic
from .mglru import run_mglru
from .pages import TwinResult
from .touches import TwinRegion

__all__ = ["TwinRegion", "TwinResult", "run_classic", "run_mglru"]
