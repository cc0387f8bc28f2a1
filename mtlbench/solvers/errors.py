"""What a solver raises instead of returning weights that are not a solution."""

from __future__ import annotations

from mtlbench.errors import RunFailedError


class SolverError(RunFailedError):
    """A solver that did not reach its tolerance, or that was given something that has no solution.

    method: the solver's name. reason: what was found. residual: how far from optimal the last iterate was,
    relative to the natural scale of the problem; None where there was no iterate.
    """

    def __init__(self, method: str, reason: str, residual: float | None = None) -> None:
        super().__init__(f"{method}: {reason}")
        self.method = method
        self.residual = residual
