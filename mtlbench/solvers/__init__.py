"""Small exact solvers in T x T space: float64 NumPy in, float64 NumPy out, an error where they fail."""

from mtlbench.solvers.conflict_averse import conflict_averse_correction
from mtlbench.solvers.dual_cone import dual_cone_projection
from mtlbench.solvers.errors import SolverError
from mtlbench.solvers.fair import fair_weights
from mtlbench.solvers.min_norm import (
    min_norm_point,
    min_norm_point_cvxpy,
    min_norm_point_frank_wolfe,
)
from mtlbench.solvers.scale import Normalization, gradient_scale
from mtlbench.solvers.spectrum import ScaleMode, aligned_weights, config_weights

__all__ = [
    "Normalization",
    "ScaleMode",
    "SolverError",
    "aligned_weights",
    "config_weights",
    "conflict_averse_correction",
    "dual_cone_projection",
    "fair_weights",
    "gradient_scale",
    "min_norm_point",
    "min_norm_point_cvxpy",
    "min_norm_point_frank_wolfe",
]
