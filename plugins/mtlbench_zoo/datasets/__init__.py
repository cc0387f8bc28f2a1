"""The datasets that ship with mtlbench: one method, one file."""
