"""How task gradients are scaled before a Gram method compares them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Normalization = Literal["none", "l2", "loss", "loss+"]


def gradient_scale(
    gram: NDArray[np.float64], losses: NDArray[np.float64], normalize: Normalization
) -> NDArray[np.float64]:
    """Return the positive scale ``s`` ``[T]`` that each task gradient is divided by: ``g_t / s_t``.

    gram: ``G = J Jᵀ`` ``[T, T]``. losses: ``[T]``. normalize, as in the published code of Sener & Koltun
    (arXiv:1810.04650): ``"none"`` 1, ``"l2"`` the gradient's length, ``"loss"`` the loss, ``"loss+"`` the
    loss times the length.

    A scale must be positive, or it would turn a gradient round or blow it up. So a loss counts by its
    absolute value and never as less than 1e-8 of the largest; and a gradient of length 0, which no
    scale changes, is divided by 1.
    """
    scale = np.ones(len(gram))
    if normalize in ("loss", "loss+"):
        size = np.abs(losses)
        if (largest := size.max()) > 0:
            scale *= np.maximum(size, 1e-8 * largest)
    if normalize in ("l2", "loss+"):
        length = np.sqrt(gram.diagonal())
        scale *= np.where(length > 0, length, 1.0)
    return scale
