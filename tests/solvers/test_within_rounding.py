from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mtlbench.gradients import Jacobian
from mtlbench.solvers import (
    SolverError,
    conflict_averse_correction,
    dual_cone_projection,
    fair_weights,
    min_norm_point,
)

SOLVERS: dict[str, Callable[[Any], Any]] = {
    "min-norm point": min_norm_point,
    "dual cone": lambda g: dual_cone_projection(g, np.eye(len(g)) / len(g)).sum(0),
    "conflict-averse": lambda g: conflict_averse_correction(g, 0.4),
    "fair": fair_weights,
}


@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_in_float32_that_depend_on_each_other_are_solved(name: str) -> None:
    """Their Gram matrix has an eigenvalue below 0 in about every second case, by rounding."""
    draw = torch.Generator().manual_seed(0)
    negative = 0
    for case in range(60):
        tasks = 3 + case % 8
        rank = 1 + case % (tasks - 1)
        jacobian = torch.randn(tasks, rank, generator=draw) @ torch.randn(rank, 500, generator=draw)
        jacobian *= torch.randn(tasks, 1, generator=draw).exp()
        products = Jacobian([[row.clone()] for row in jacobian]).gram().numpy()
        negative += np.linalg.eigvalsh(products)[0] < 0
        weights = SOLVERS[name](products)
        assert np.isfinite(weights).all()
        if name == "min-norm point":
            exact = jacobian.double().numpy()
            update = weights @ exact
            lengths = np.linalg.norm(exact, axis=1)
            # no task gets worse by more than the products' rounding errors allow
            assert (exact @ update >= -1e-5 * lengths * lengths.max()).all()
    assert negative > 15


@pytest.mark.parametrize("name", SOLVERS)
def test_what_is_far_from_a_gram_matrix_still_raises(name: str) -> None:
    products = np.array([[1.0, -5.0, 5.0], [-5.0, 1.0, 5.0], [5.0, 5.0, 1.0]])
    with pytest.raises(SolverError):
        SOLVERS[name](products)
    with pytest.raises(SolverError, match="not finite"):
        SOLVERS[name](np.array([[1.0, np.nan], [np.nan, 1.0]]))
