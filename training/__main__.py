"""``python -m memcg_gym.training`` is ``memcg-gym``."""

from __future__ import annotations

import sys

from memcg_gym.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
