"""Several processes that train one model together: what they sum, share and decide."""

from mtlbench.parallel.norm import synchronise_batch_norm
from mtlbench.parallel.ranks import ALONE, Ranks

__all__ = ["ALONE", "Ranks", "synchronise_batch_norm"]
