"""The two-objective problem that CAGrad and Nash-MTL draw: where each weighting ends from five starts.

Run: python benchmarks/toy.py PICTURE.png [METHOD ...]

Both losses fall steeply into a valley on the way to the Pareto front, and their gradients there conflict and
differ a hundredfold in length. From one start equal weighting creeps along the valley and is still there
after 4000 steps, when most methods with a guarantee have reached the front from all five.

Source of the problem: Liu et al., NeurIPS 2021, arXiv:2110.14048, appendix; of the five starts: Navon et al.,
ICML 2022, arXiv:2202.01017.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mtlbench.contracts import Need, Weighting
from mtlbench.solvers.min_norm import min_norm_point

STARTS = ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))
FLOOR = 5e-6
METHODS = ["ew", "mgda", "pcgrad", "cagrad[c=0.9]", "nash", "fairgrad", "upgrad", "imtl-g", "aligned"]
SHIFTS = ((-7.0, 0.0, 7.0), (3.0, 2.0, -7.0))

Array = NDArray[np.float64]


def evaluate(x: Array) -> tuple[Array, Array]:
    """Return the two losses ``[2]`` and their gradients ``[2, 2]`` at the point ``x`` ``[2]``."""
    a, b = float(x[0]), float(x[1])
    upper, lower = max(math.tanh(0.5 * b), 0.0), max(math.tanh(-0.5 * b), 0.0)
    slope_upper = 0.5 * (1 - upper**2) if b >= 0 else 0.0
    slope_lower = -0.5 * (1 - lower**2) if b <= 0 else 0.0
    losses, gradients = [], []
    for first, second, centre in SHIFTS:
        inner = 0.5 * (-a + first) - math.tanh(-b) + second
        steep = math.log(max(abs(inner), FLOOR)) + 6
        bowl = ((-a + centre) ** 2 + 0.1 * (-b - 8) ** 2) / 10 - 20
        rate = 1 / inner if abs(inner) > FLOOR else 0.0
        losses.append(upper * steep + lower * bowl)
        gradients.append(
            [
                upper * rate * -0.5 - lower * 0.2 * (-a + centre),
                slope_upper * steep
                + upper * rate * (1 - math.tanh(b) ** 2)
                + slope_lower * bowl
                - lower * 0.02 * (-b - 8),
            ]
        )
    return np.array(losses), np.array(gradients)


def descend(weighting: Weighting, start: tuple[float, float], steps: int = 4000, lr: float = 0.02) -> Array:
    """Return the path ``[steps + 1, 2]`` of Adam with the weights that a GRAM or LOSSES method gives."""
    weighting.active = torch.arange(2)
    weighting.generator.manual_seed(0)
    x = np.array(start)
    path = [x.copy()]
    first, second = np.zeros(2), np.zeros(2)
    for step in range(1, steps + 1):
        losses, jacobian = evaluate(x)
        values = torch.from_numpy(losses)
        if weighting.needs is Need.GRAM:
            weights = weighting(torch.from_numpy(jacobian @ jacobian.T), values)
        else:
            weights = weighting(values)
        update = weights.detach().numpy() @ jacobian
        first = 0.9 * first + 0.1 * update
        second = 0.999 * second + 0.001 * update**2
        x = x - lr * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        path.append(x.copy())
    return np.array(path)


def stationarity(x: Array) -> float:
    """Return the shortest convex combination of the gradients, relative to the longer one; 0 on the front."""
    _, jacobian = evaluate(x)
    gram = jacobian @ jacobian.T
    weights = min_norm_point(gram)
    return math.sqrt(max(float(weights @ gram @ weights), 0.0) / gram.max())


def draw(paths: dict[str, list[Array]], file: Path) -> None:
    """Draw the paths of each method over the contours of the mean loss."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    a, b = np.meshgrid(np.linspace(-11, 11, 160), np.linspace(-11, 11, 160))
    height = np.array([evaluate(np.array(p))[0].mean() for p in zip(a.flat, b.flat, strict=True)])
    columns = 3
    rows = math.ceil(len(paths) / columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(9, 3 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(paths) :]:
        axis.remove()
    for axis, (name, found) in zip(axes.flat, paths.items(), strict=False):
        axis.contour(a, b, height.reshape(a.shape), levels=14, cmap="Greys", linewidths=0.6)
        axis.plot(
            [-7, 7], [-8.4, -8.4], color="0.6", linewidth=5, solid_capstyle="round", label="Pareto front"
        )
        for path in found:
            reached = stationarity(path[-1]) < REACHED
            axis.plot(*path.T, color="C0" if reached else "C3", linewidth=1)
            axis.plot(*path[0], "o", color="black", markersize=3)
            axis.plot(*path[-1], "*" if reached else "X", color="C0" if reached else "C3", markersize=8)
        axis.set_title(
            f"{name}: {sum(stationarity(p[-1]) < REACHED for p in found)} of {len(found)}", fontsize=10
        )
    figure.tight_layout()
    figure.savefig(file, dpi=110)


REACHED = 0.02
"""Relative length of the shortest combination below which a point counts as on the front."""


def main(file: Path, methods: list[str]) -> None:
    """Print where each method ends, and draw it."""
    from mtlbench.registry import Registry
    from mtlbench.testing.parts import tiny_tasks

    registry = Registry()

    def make(spec: str) -> Weighting:
        made: Weighting = registry.choose("weightings", spec).build(tasks=tiny_tasks(2), weightings=make)
        return made

    paths: dict[str, list[Array]] = {}
    for method in methods:
        paths[method] = [descend(make(method), start) for start in STARTS]
        ends = "  ".join(
            f"({p[-1][0]:6.2f}, {p[-1][1]:6.2f}) {stationarity(p[-1]):.0e}" for p in paths[method]
        )
        print(f"{method:12} {ends}")
    draw(paths, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or METHODS)
