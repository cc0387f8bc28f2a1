"""What a plugin is: the small, documented contracts that everything else is built on."""

from mtlbench.contracts.architecture import Architecture, Features, Reading
from mtlbench.contracts.auxiliary import Auxiliary
from mtlbench.contracts.dataset import SPLITS, Batch, Change, Dataset, Split, SplitName
from mtlbench.contracts.encoder import Encoder, EncoderFactory, Pyramid, PyramidShape
from mtlbench.contracts.task import Likelihood, Loss, Map, Metric, Moves, Output, Task, Vector, labelled
from mtlbench.contracts.weighting import Lookahead, Need, Weighting

__all__ = [
    "SPLITS",
    "Architecture",
    "Auxiliary",
    "Batch",
    "Change",
    "Dataset",
    "Encoder",
    "EncoderFactory",
    "Features",
    "Likelihood",
    "Lookahead",
    "Loss",
    "Map",
    "Metric",
    "Moves",
    "Need",
    "Output",
    "Pyramid",
    "PyramidShape",
    "Reading",
    "Split",
    "SplitName",
    "Task",
    "Vector",
    "Weighting",
    "labelled",
]
