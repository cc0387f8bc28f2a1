"""The architectures that ship with mtlbench: one method, one file."""
