"""The only place that calls autograd: per-task gradients, their Gram matrix and the combined update."""

from mtlbench.gradients.engine import Batches, GradientEngine, Step
from mtlbench.gradients.gram import combine, cross_gram, gram

__all__ = ["Batches", "GradientEngine", "Step", "combine", "cross_gram", "gram"]
