"""torch.compile for the parts of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def require_compilable(dataset: Dataset, tasks: int) -> None:
    """Raise `MtlbenchError` where there would be too many graphs, or where nothing makes code of them."""
    if dataset.partial and tasks > SUBSETS:
        raise MtlbenchError(
            f"--compile: samples of {dataset.title} lack labels, so each step may train other tasks, and"
            f" every subset of {tasks} tasks would be compiled by itself; leave --compile out"
        )
    if BACKEND == "inductor":
        from torch._inductor import cpp_builder, exc  # seconds of start-up that nobody else needs

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            raise MtlbenchError(
                "--compile: torch.compile needs a C++ compiler, and there is none; install g++, or leave"
                " --compile out"
            ) from None


def compile_parts(parts: list[nn.Module]) -> None:
    """Compile modules in place; the names in their state dicts stay.

    Every shape gets a graph of its own. With graphs for several shapes, which one is used would depend on
    what came before, and a resumed run could differ in the last digits.
    """
    import torch._dynamo.config as dynamo  # a second of start-up that nobody else needs
    import torch._functorch.config as functorch

    # A graph is gone through backwards once for each task, so its buffers may not be given away.
    functorch.donated_buffer = False
    dynamo.recompile_limit = GRAPHS
    for part in parts:
        part.compile(backend=BACKEND, dynamic=False)


@contextmanager
def compiling(stopped: Callable[[], bool]) -> Iterator[None]:
    """Tell in one line what torch.compile could not do inside the block, where it gives pages.

    stopped: whether the user asked for it: Ctrl-C also ends the C++ compiler, which is no failure.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        if stopped():
            raise KeyboardInterrupt from error
        what = str(error).strip().partition("\n")[0]
        raise MtlbenchError(f"--compile: torch.compile failed: {what}; leave --compile out") from error
