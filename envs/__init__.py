"""Environments: the contract, the memory model, and what wraps them.

This file imports nothing, so that a host can import ``memcg_gym.envs.contract`` with numpy alone.
"""
