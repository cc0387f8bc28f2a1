"""From the shape of an output to the head that gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtlbench.contracts import Map, Output, PyramidShape, Vector
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.heads.aspp import ASPPHead
from mtlbench.heads.fcn import FCNHead
from mtlbench.heads.head import Head
from mtlbench.heads.segnet import SegNetHead
from mtlbench.heads.unet import UNetHead
from mtlbench.heads.vector import VectorHead
from mtlbench.spec import Spec, bind, changed, format_spec, parameters

HEADS: dict[str, type[Head]] = {
    "aspp": ASPPHead,
    "fcn": FCNHead,
    "segnet": SegNetHead,
    "unet": UNetHead,
    "vector": VectorHead,
}
"""All heads by name."""


@dataclass(frozen=True)
class HeadChoice:
    """A head and the value of every one of its parameters; ``str(choice)`` is the canonical spec."""

    name: str
    parameters: Mapping[str, Any]

    def __str__(self) -> str:
        known = parameters(HEADS[self.name], Head.context)
        return format_spec(self.name, changed(self.parameters, known))


def choose_head(text: str, output: Output) -> HeadChoice:
    """Return what the spec ``text`` chooses.

    Raises `MtlbenchError` where the name is unknown, its head gives the other kind of output, or a
    parameter does not fit.
    """
    spec = Spec.parse(text)
    suitable = sorted(key for key, head in HEADS.items() if isinstance(output, head.gives))
    if spec.name not in HEADS:
        near = did_you_mean(spec.name, suitable)
        raise MtlbenchError(f"unknown head {spec.name!r}.{near} Heads for {output}: {', '.join(suitable)}")
    if spec.name not in suitable:
        raise MtlbenchError(f"head {spec.name!r} cannot give {output}; use one of: {', '.join(suitable)}")
    return HeadChoice(spec.name, bind(spec, HEADS[spec.name], Head.context, f"head {spec.name!r}"))


def build_head(output: Output, shape: PyramidShape, name: str | None = None) -> Head:
    """Return a new head for ``output``, reading pyramids of ``shape``.

    name: a spec such as "aspp[rates=[6,12]]", whose name is one of `HEADS`; None takes "vector" for a
    vector and ``shape.map_head`` for a map. Raises `MtlbenchError` where `choose_head` does, and where the
    head cannot read such pyramids.
    """
    if isinstance(output, Map) and shape.map_head is None:
        raise MtlbenchError(f"these features have no place in space: no head makes {output} of them")
    if name is None:
        name = "vector" if isinstance(output, Vector) else str(shape.map_head)
    choice = choose_head(name, output)
    outputs = output.channels if isinstance(output, Map) else output.size
    return HEADS[choice.name](outputs, shape, **choice.parameters)
