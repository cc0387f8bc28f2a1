"""The auxiliary tasks that ship with mtlbench: one task, one file."""
