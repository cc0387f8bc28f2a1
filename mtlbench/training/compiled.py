"""torch.compile for the parts of a model."""

from __future__ import annotations

from torch import nn

from mtlbench.contracts import Dataset
from mtlbench.errors import MtlbenchError

BACKEND = "inductor"
GRAPHS = 256
"""Graphs that torch may make of one part: of every batch size, mode and list of tasks one, with gradients
and without (micro-batches, and methods that look at losses once more). Beyond, it would silently compile no
more."""
SUBSETS = 5
"""Tasks of which every subset still gets its graphs within `GRAPHS`."""


def compile_parts(parts: list[nn.Module], dataset: Dataset, tasks: int) -> None:
    """Compile modules in place; the names in their state dicts stay.

    Every shape gets a graph of its own. With graphs for several shapes, which one is used would depend on
    what came before, and a resumed run could differ in the last digits. Raises `MtlbenchError` where there
    would be too many.
    """
    if dataset.partial and tasks > SUBSETS:
        raise MtlbenchError(
            f"--compile: samples of {dataset.title} lack labels, so each step may train other tasks, and"
            f" every subset of {tasks} tasks would be compiled by itself; leave --compile out"
        )
    import torch._dynamo.config as dynamo  # a second of start-up that nobody else needs
    import torch._functorch.config as functorch

    # A graph is gone through backwards once for each task, so its buffers may not be given away.
    functorch.donated_buffer = False
    dynamo.recompile_limit = GRAPHS
    for part in parts:
        part.compile(backend=BACKEND, dynamic=False)
