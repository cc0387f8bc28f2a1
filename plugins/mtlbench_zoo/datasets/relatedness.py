"""Two regression tasks whose relatedness is chosen."""

from __future__ import annotations

import numpy as np
import torch

from mtlbench.contracts import SPLITS, Dataset, SplitName, Task, Vector
from mtlbench.data.memory import MemorySplit
from mtlbench.errors import MtlbenchError
from mtlbench.losses import MSE
from mtlbench.metrics import mse

NOISE = 0.1
"""Standard deviation of the noise; the paper gives its variance, 0.01."""


class Relatedness(Dataset):
    """Synthetic regression of the MMoE paper: two tasks with a chosen correlation.

    With u1, u2 orthogonal unit vectors of R^d,

        w1 = c u1,    w2 = c (p u1 + sqrt(1 - p^2) u2),    x ~ N(0, I),
        y_k = w_k x + sum_i sin(a_i w_k x + b_i) + e_k,    e_k ~ N(0, 0.01).

    p: the cosine of the angle between the two weight vectors, in -1..1; for 0..1 the labels' Pearson
    correlation grows with it, to almost 1. count: training samples; a quarter as many for val, and for test.
    features: d. sines: m, the terms of the sum. scale: c. seed: of vectors, samples and noise.

    Tasks y1, y2: targets float32 ``[B, 1]``, inputs float32 ``[B, d]``.
    Source: Ma et al., "Modeling task relationships in multi-task learning with multi-gate
    mixture-of-experts", KDD 2018, section 3.1.
    Deviations: the paper leaves c, m, a_i and b_i open; here c = 1, m = 4, a_i uniform in 1..3 and b_i in
    0..2 pi, the same for both tasks.
    """

    encoder = "mlp"
    title = "relatedness"
    tasks = tuple(Task(name, Vector(1), MSE(), (mse(),)) for name in ("y1", "y2"))
    licence = "generated, free to use"
    citation = (
        "J. Ma, Z. Zhao, X. Yi, J. Chen, L. Hong, E. H. Chi. Modeling Task Relationships in Multi-task "
        "Learning with Multi-gate Mixture-of-Experts. KDD, 2018."
    )

    def __init__(
        self,
        p: float = 0.5,
        count: int = 4000,
        features: int = 100,
        sines: int = 4,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        rules = {
            f"p must be in -1..1, found {p}": -1 <= p <= 1,
            f"count must be in 4..10000000, found {count}": 4 <= count <= 10_000_000,
            f"features must be in 2..100000, found {features}": 2 <= features <= 100_000,
            f"sines must be in 0..1000, found {sines}": 0 <= sines <= 1000,
            f"scale must be finite and above 0, found {scale}": 0 < scale < np.inf,
            f"seed must be in 0..{2**32 - 1}, found {seed}": 0 <= seed < 2**32,
        }
        for rule, holds in rules.items():
            if not holds:
                raise MtlbenchError(f"relatedness: {rule}")
        self.title = f"relatedness (p = {p:g})"
        self.input_shape = (features,)
        # Of all generators of NumPy this one alone promises the same numbers in all its versions.
        draw = np.random.RandomState(seed)
        u1, u2 = np.linalg.qr(draw.standard_normal((features, 2))).Q.T
        weights = scale * np.stack([u1, p * u1 + np.sqrt(1 - p * p) * u2])
        a, b = draw.uniform(1, 3, sines), draw.uniform(0, 2 * np.pi, sines)
        self._splits: dict[SplitName, MemorySplit] = {}
        for name in SPLITS:
            x = draw.standard_normal((count if name == "train" else count // 4, features))
            z = x @ weights.T
            y = z + np.sin(a * z[..., None] + b).sum(-1) + NOISE * draw.standard_normal(z.shape)
            inputs, labels = (torch.from_numpy(v.astype(np.float32)) for v in (x, y))
            self._splits[name] = MemorySplit(inputs, {"y1": labels[:, :1], "y2": labels[:, 1:]})

    def split(self, name: SplitName) -> MemorySplit:
        """Return one split."""
        return self._splits[name]
