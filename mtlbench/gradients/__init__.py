"""The only place that calls autograd: per-task gradients, their Gram matrix and the combined update."""

from mtlbench.gradients.engine import Batches, GradientEngine, Step
from mtlbench.gradients.gram import Jacobian
from mtlbench.gradients.precision import Precision, at_least_float32

__all__ = [
    "Batches",
    "GradientEngine",
    "Jacobian",
    "Precision",
    "Step",
    "at_least_float32",
]
