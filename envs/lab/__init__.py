"""The kernel lab: a real Linux kernel in a virtual machine, stepped tick by tick."""
