"""Grids of runs, and the executors that carry them."""
