"""A noisy image as the input, the clean one as the target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.contracts import Auxiliary, Map, Task
from mtlbench.errors import MtlbenchError
from mtlbench.losses import MSE
from mtlbench.metrics import mse, psnr


class Denoise(Auxiliary):
    """Denoising: see the image through Gaussian noise, give the clean one back.

    The input of all tasks becomes  x + std * e,  e standard normal for every pixel and channel; it is not cut
    off at 0 and 1. The target is the clean image, float32 ``[B, C, H, W]`` in 0..1; the loss is the mean
    squared error. Scores: MSE, and PSNR = 10 log10(1 / MSE) in dB.

    std: standard deviation of the noise, above 0; the image's range is 0..1.
    Inputs: noise is added to what the auxiliary tasks named before have made of the image. Every sample has
    its noise, the same in all epochs and for all seeds, in val and test as in train, so that all runs see the
    same data.
    Source: the denoising autoencoder, Vincent et al., ICML 2008 and JMLR 11, 2010 (additive isotropic
    Gaussian noise), which draws new noise at every visit of a sample.
    """

    def __init__(self, std: float = 0.1) -> None:
        if not (math.isfinite(std) and std > 0):
            raise MtlbenchError(f"denoise: 'std' must be finite and above 0, found {std}")
        self.std = std

    def task(self, input_shape: tuple[int, ...]) -> Task:
        """Return the task ``denoise``, a map of as many channels as the image has."""
        return Task("denoise", Map(input_shape[0]), MSE(), (mse(), psnr()), auxiliary=True)

    def target(self, clean: Tensor) -> Tensor:
        """Return the images themselves."""
        return clean

    def alter(self, inputs: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the inputs with the noise of each sample added."""
        if not generators:
            return inputs
        noise = torch.stack([torch.randn(inputs.shape[1:], generator=own) for own in generators])
        return inputs + noise.mul_(self.std)
