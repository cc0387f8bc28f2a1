"""What a run leaves behind: the record, the store, Δ-MTL and the statistics over seeds."""

from mtlbench.results.delta import Comparison, Gain, Summary, compare, summarise
from mtlbench.results.record import Cost, Record, canonical, comparability_key, run_id
from mtlbench.results.store import Store

__all__ = [
    "Comparison",
    "Cost",
    "Gain",
    "Record",
    "Store",
    "Summary",
    "canonical",
    "comparability_key",
    "compare",
    "run_id",
    "summarise",
]
