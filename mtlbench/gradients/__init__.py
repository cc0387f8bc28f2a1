"""The only place that calls autograd: per-task gradients, their Gram matrix and the combined update."""

from mtlbench.gradients.engine import GradientEngine, Step
from mtlbench.gradients.gram import combine, gram

__all__ = ["GradientEngine", "Step", "combine", "gram"]
