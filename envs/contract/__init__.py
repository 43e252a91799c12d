"""The contract: one meaning of observation and action in every world.

Signals are what a host can read, features what an agent sees, heads what it may ask for, knobs
what is written, and the shield what holds whatever is asked.  Needs numpy at most.
"""
