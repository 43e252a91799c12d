"""memcg-gym: learn, evaluate and ship memory-cgroup enforcement policies.

Importing this package is cheap on purpose: it loads neither numpy nor torch, so a host that only
runs the enforcer pays for nothing else.  Where Gymnasium is already imported, the environment ids
are registered; otherwise ``memcg_gym.envs.registration:memcg_gym/Host-v0`` names module and id.
"""

import sys as _sys

__version__ = "0.1.0"

__all__ = ["__version__"]

# Gymnasium up to 1.3 finds the ids through the package's entry point; 1.4 dropped plug-ins.
if _sys.modules.get("gymnasium") is not None:
    from memcg_gym.envs.registration import register_environments as _register

    _register()
