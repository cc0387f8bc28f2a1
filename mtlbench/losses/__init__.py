"""Losses that mask missing labels and stay exact when a batch is divided."""

from mtlbench.losses.binary_cross_entropy import BinaryCrossEntropy
from mtlbench.losses.cosine import Cosine
from mtlbench.losses.cross_entropy import CrossEntropy
from mtlbench.losses.l1 import L1
from mtlbench.losses.mse import MSE

__all__ = ["L1", "MSE", "BinaryCrossEntropy", "Cosine", "CrossEntropy"]
