"""The mean-field memcg and tiering model, compiled with numba.

Pages are counted, not followed: a region's pages are held by heat bin, NUMA node and generation,
and reclaim, aging, refault and demotion move shares of them in the order mm/vmscan.c does.
"""
