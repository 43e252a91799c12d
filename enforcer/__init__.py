"""What runs on a host: the rule table, its evaluators, the shield, the cgroup reader and writer.

Everything here needs numpy at most.  The arithmetic is written as plain scalar functions over
arrays, because the model compiles the very same functions: a feature, a shield decision or a knob
value means the same in the model and on a host.
"""
