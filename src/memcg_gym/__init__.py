"""memcg-gym: learn, evaluate and ship memory-cgroup enforcement policies.

Importing this package is cheap on purpose: it loads neither numpy nor torch, so a host that only
runs the enforcer pays for nothing else.  Environment ids reach Gymnasium through its plug-in
entry point (``gymnasium.envs`` in ``pyproject.toml``).
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
