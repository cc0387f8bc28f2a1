"""Heads: from the features of one task to its output."""

from mtlbench.heads.aspp import ASPPHead
from mtlbench.heads.build import HEADS, HeadChoice, build_head, choose_head
from mtlbench.heads.fcn import FCNHead
from mtlbench.heads.head import Head
from mtlbench.heads.init import he_initialise
from mtlbench.heads.segnet import SegNetHead
from mtlbench.heads.unet import UNetHead
from mtlbench.heads.vector import VectorHead

__all__ = [
    "HEADS",
    "ASPPHead",
    "FCNHead",
    "Head",
    "HeadChoice",
    "SegNetHead",
    "UNetHead",
    "VectorHead",
    "build_head",
    "choose_head",
    "he_initialise",
]
