"""The loop: step, validation, selection, checkpoint and resume."""
