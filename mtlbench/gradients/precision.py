"""Half precision: what is computed in it, and how its small range is kept from losing gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from mtlbench.errors import MtlbenchError, RunFailedError

Name = Literal["32", "bf16", "16"]
FIRST_SCALE, PATIENCE = 2.0**16, 2000
"""What float16's losses are multiplied by at first, and after how many good steps it is doubled."""
_TYPES = {"bf16": torch.bfloat16, "16": torch.float16}


class Precision:
    """What networks compute in; losses, parameters, their gradients and Gram matrix stay in float32 or more.

    "32": the parameters' own precision. "bf16", "16": torch's autocast around architecture and heads. With
    "16" every loss is multiplied by `scale` before it is backpropagated, since float16 ends at 6e-8, and
    gradients are divided by it before anyone sees them. After a step with a gradient that is not finite the
    scale is halved, after `PATIENCE` steps without one it is doubled.
    """

    def __init__(self, name: Name = "32") -> None:
        self.name: Name = name
        self.scale = FIRST_SCALE if name == "16" else 1.0
        self._good = 0

    @property
    def eps(self) -> float:
        """The relative rounding error of what networks compute, 0 for that of the parameters' dtype."""
        return 0.0 if self.name == "32" else torch.finfo(_TYPES[self.name]).eps

    @property
    def scaled(self) -> bool:
        """Whether gradients are scaled, so that a step may have to be skipped."""
        return self.name == "16"

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of a forward pass on ``device``."""
        if self.name == "32":
            return nullcontext()
        return torch.autocast(device.type, dtype=_TYPES[self.name])

    def check(self, device: torch.device) -> None:
        """Raise `MtlbenchError` where ``device`` cannot compute in this precision."""
        try:
            with self.autocast(device):
                image = torch.ones(1, 1, 4, 4, device=device)
                output = torch.nn.functional.conv2d(image, image[:, :, :3, :3].requires_grad_())
            torch.autograd.backward(output.float().sum())
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise MtlbenchError(
                f"--precision {self.name}: {device} can't compute in it ({first}); use --precision 32"
            ) from None

    def unscale(self, gradients: Sequence[Tensor | None]) -> bool:
        """Divide gradients by the scale, in place, and adapt it. False where one is not finite."""
        present = [gradient for gradient in gradients if gradient is not None]
        if present:
            torch._foreach_mul_(present, 1 / self.scale)
            largest = torch._foreach_norm(present, float("inf"))
            if not torch.stack([value.float() for value in largest]).isfinite().all():
                self.overflowed()
                return False
        self._good += 1
        if self._good == PATIENCE:
            self.scale, self._good = self.scale * 2, 0
        return True

    def overflowed(self) -> None:
        """Halve the scale: a gradient was not finite. Raises `RunFailedError` where that helps no longer."""
        self.scale, self._good = self.scale / 2, 0
        if self.scale < 2.0**-14:
            raise RunFailedError(
                "gradients leave the range of float16 however they are scaled; use --precision bf16 or 32"
            )

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {"scale": self.scale, "good": self._good}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what `state_dict` gave."""
        self.scale, self._good = float(state["scale"]), int(state["good"])


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 where it is of half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
