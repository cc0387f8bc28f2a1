"""The encoders that ship with mtlbench: one method, one file."""
