"""Several processes that train one model together: what they sum, share and decide."""

from mtlbench.parallel.norm import synchronise_batch_norm
from mtlbench.parallel.ranks import ALONE, Ranks, Team

__all__ = ["ALONE", "Ranks", "Team", "synchronise_batch_norm"]
