"""The weightings that ship with mtlbench: one method, one file."""
