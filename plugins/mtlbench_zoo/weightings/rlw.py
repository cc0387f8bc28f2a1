"""Random loss weighting."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtlbench.contracts import Need, Weighting

Distribution = Literal["normal", "uniform", "dirichlet", "bernoulli"]


class RLW(Weighting):
    """Random loss weighting: new weights on the simplex at every step.

    Minimises  sum_t w_t L_t  with w drawn anew at each step:

    - normal:     w = softmax(z),  z_t ~ N(0, 1)
    - uniform:    w = softmax(z),  z_t ~ U(0, 1)
    - dirichlet:  w ~ Dirichlet(1, …, 1), the uniform distribution on the simplex
    - bernoulli:  w = z / sum(z),  z_t ~ Bernoulli(1/2), drawn again while all are 0

    The mean weight is 1/T for each. What a method gains over this one is what its weights are worth.

    Source: Lin, Ye, Zhang & Tsang, TMLR 2022, arXiv:2111.10603; its main results use normal.
    Heads: weighted. The weights sum to 1, so a step is 1/T of equal weighting's in the mean.
    Deviations: none known; LibMTL offers normal only. Draws are float64, from the method's own generator.
    """

    needs = Need.LOSSES
    properties = frozenset({"scale-free"})

    def __init__(self, distribution: Distribution = "normal") -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, losses: Tensor) -> Tensor:
        """Return random weights ``[T]`` for the losses ``[T]``, whose values do not matter."""
        return self._draw(len(losses)).to(losses)

    def _draw(self, count: int) -> Tensor:
        draw = torch.empty(count, dtype=torch.float64)
        match self.distribution:
            case "normal":
                return draw.normal_(generator=self.generator).softmax(0)
            case "uniform":
                return draw.uniform_(generator=self.generator).softmax(0)
            case "dirichlet":
                draw.exponential_(generator=self.generator)
            case "bernoulli":
                draw.bernoulli_(generator=self.generator)
                while not draw.any():
                    draw.bernoulli_(generator=self.generator)
        return draw / draw.sum()
