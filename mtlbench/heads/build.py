"""From the shape of an output to the head that gives it."""

from __future__ import annotations

from mtlbench.contracts import Map, Output, PyramidShape, Vector
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.heads.fcn import FCNHead
from mtlbench.heads.head import Head
from mtlbench.heads.unet import UNetHead
from mtlbench.heads.vector import VectorHead

HEADS: dict[str, type[Head]] = {"fcn": FCNHead, "unet": UNetHead, "vector": VectorHead}
"""All heads by name."""


def build_head(output: Output, shape: PyramidShape, name: str | None = None) -> Head:
    """Return a new head for ``output``, reading pyramids of ``shape``.

    name: one of `HEADS`; None takes "vector" for a vector and ``shape.map_head`` for a map. Raises
    `MtlbenchError` where the name is unknown or its head gives the other kind of output.
    """
    if name is None:
        name = "vector" if isinstance(output, Vector) else shape.map_head
    suitable = sorted(key for key, head in HEADS.items() if isinstance(output, head.gives))
    if name not in HEADS:
        raise MtlbenchError(
            f"unknown head {name!r}.{did_you_mean(name, suitable)} Heads for {output}: {', '.join(suitable)}"
        )
    if name not in suitable:
        raise MtlbenchError(f"head {name!r} cannot give {output}; use one of: {', '.join(suitable)}")
    return HEADS[name](output.channels if isinstance(output, Map) else output.size, shape)
