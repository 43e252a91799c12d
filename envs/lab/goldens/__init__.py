"""Golden values: what the kernel's source says it does, checked on the lab's kernel.

Every check puts a probe into fresh cgroups, does one thing to them, and holds what the kernel shows
against a number worked out beforehand.
"""
