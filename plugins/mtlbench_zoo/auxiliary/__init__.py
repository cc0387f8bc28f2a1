"""The auxiliary that ship with mtlbench: one method, one file."""
