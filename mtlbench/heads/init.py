"""He initialisation."""

from __future__ import annotations

from torch import nn


def he_initialise(module: nn.Module) -> None:
    """Initialise every convolution, linear layer and batch norm in ``module``, in place.

    Weights are drawn from a zero-mean normal with variance 2 / fan (He et al., ICCV 2015, arXiv:1502.01852,
    eq. 10 and 14); biases become 0, batch norm scales 1 and shifts 0. The fan is that of the outputs, which
    keeps the size of gradients, for a layer without a bias: a normalisation follows and fixes the size of
    what it gives. For a layer with a bias it is that of the inputs, so that an output layer of few
    channels does not start with large values. Other parameters are left as they are.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            if part.bias is None:
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
