"""Heads: from the features of one task to its output."""

from mtlbench.heads.build import HEADS, build_head
from mtlbench.heads.fcn import FCNHead
from mtlbench.heads.head import Head
from mtlbench.heads.init import he_initialise
from mtlbench.heads.unet import UNetHead
from mtlbench.heads.vector import VectorHead

__all__ = ["HEADS", "FCNHead", "Head", "UNetHead", "VectorHead", "build_head", "he_initialise"]
