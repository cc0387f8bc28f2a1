"""What every loss asks of its arguments before it computes."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.errors import MtlbenchError


def at_least_float32(output: Tensor) -> Tensor:
    """Return ``output`` in float32 where it is of half precision: a sum over pixels needs the digits."""
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output


def require_shape(loss: str, output: Tensor, found: torch.Size, target: Tensor) -> None:
    """Refuse a target that ``loss`` could only meet by broadcasting; ``found`` is the shape that fits."""
    if target.shape != found:
        raise MtlbenchError(
            f"{loss}: a target of shape {tuple(target.shape)} does not fit an output of shape "
            f"{tuple(output.shape)}; it must be {tuple(found)}"
        )


def require_real(loss: str, target: Tensor) -> None:
    """Refuse a target that is not real-valued: its missing labels could not be told from values."""
    if not target.is_floating_point():
        raise MtlbenchError(f"{loss}: the target must be real-valued (missing = NaN), found {target.dtype}")


def require_integer(loss: str, target: Tensor) -> None:
    """Refuse a target that does not hold class indices."""
    if target.dtype != torch.int64:
        raise MtlbenchError(f"{loss}: the target must be int64 (missing = -1), found {target.dtype}")
