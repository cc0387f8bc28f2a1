"""The image itself as the target."""

from __future__ import annotations

from torch import Tensor

from mtlbench.contracts import Auxiliary, Map, Task
from mtlbench.losses import MSE
from mtlbench.metrics import mse, psnr


class Reconstruction(Auxiliary):
    """Reconstruction: give the clean image back.

    Predicts a map of C channels in 0..1 for images of C channels, float32 ``[B, C, H, W]``, from one linear
    layer; minimises its mean squared error. Scores: MSE, and PSNR = 10 log10(1 / MSE) in dB.

    Inputs: as they are. Beside ``denoise`` or ``colour`` the model sees what those make of the image, and the
    target is the clean image still.
    Source: the autoencoder, Hinton and Salakhutdinov, Science 313, 2006. As an auxiliary task beside
    supervised
    ones: Zhang, Lee and Lee, ICML 2016, arXiv:1606.06582.
    Deviations: where encoder and head have skip connections, as ``unet`` has, the bottleneck does not limit
    what gets through.
    """

    def task(self, input_shape: tuple[int, ...]) -> Task:
        """Return the task ``reconstruction``, a map of as many channels as the image has."""
        return Task("reconstruction", Map(input_shape[0]), MSE(), (mse(), psnr()), auxiliary=True)

    def target(self, clean: Tensor) -> Tensor:
        """Return the images themselves."""
        return clean
