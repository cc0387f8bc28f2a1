"""The min-norm point with a constraint against cvxpy, on vectors."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlbench.solvers import SolverError, min_norm_point
from mtlbench.solvers.constrained import constrained_min_norm


def vectors(seed: int, count: int, width: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count + 1, width)) * np.exp(draw.normal(size=(count + 1, 1)))


def objective(rows: np.ndarray, rho: float, weights: np.ndarray) -> float:
    """The program's value at b and the best nu for it."""
    combined, constraint = weights @ rows[:-1], rows[-1]
    square = constraint @ constraint
    along = combined @ constraint
    nu = max(rho - along / square, 0) if square > 0 else 0.0
    moved = combined + nu * constraint
    return float(moved @ moved / 2 - nu * rho * square)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 12), st.sampled_from([0.0, 0.1, 1.0, 30.0])
)
def test_it_is_the_optimum(seed: int, count: int, width: int, rho: float) -> None:
    rows = vectors(seed, count, width)
    found = constrained_min_norm(rows @ rows.T, rho)
    weights, nu = cvxpy.Variable(count, nonneg=True), cvxpy.Variable(nonneg=True)
    square = rows[-1] @ rows[-1]
    moved = rows[:-1].T @ weights + nu * rows[-1]
    program = cvxpy.Problem(
        cvxpy.Minimize(cvxpy.sum_squares(moved) / 2 - nu * rho * square), [cvxpy.sum(weights) == 1]
    )
    program.solve(solver="CLARABEL")
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    size = (np.linalg.norm(rows[:-1], axis=1).max() + rho * np.sqrt(square)) ** 2
    assert objective(rows, rho, found) <= program.value + 1e-7 * size


def test_without_a_constraint_it_is_the_shortest_vector() -> None:
    rows = vectors(3, 5, 9)
    rows[-1] = 0
    gram = rows @ rows.T
    expected = min_norm_point(gram[:-1, :-1])
    assert constrained_min_norm(gram, 0.5) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e8, 1e20])
def test_the_constraint_may_be_of_any_length(scale: float) -> None:
    """A long one leaves only the products with it, a short one none of them."""
    rows = vectors(1, 4, 7)
    rows[-1] *= scale
    found = constrained_min_norm(rows @ rows.T, 0.1)
    assert found.sum() == pytest.approx(1)
    if scale > 1:
        assert found.argmax() == (rows[:-1] @ rows[-1]).argmin()
        assert found.max() == pytest.approx(1)


def test_gradients_may_be_zero_or_the_same() -> None:
    rows = vectors(2, 4, 6)
    rows[1], rows[2] = 0, rows[0]
    for rho in (0.0, 0.3):
        found = constrained_min_norm(rows @ rows.T, rho)
        others = [np.eye(4)[t] for t in range(4)]
        assert objective(rows, rho, found) <= min(objective(rows, rho, b) for b in others) + 1e-9
    assert constrained_min_norm(np.zeros((4, 4)), 0.1).sum() == pytest.approx(1)


def test_a_matrix_that_is_not_finite_is_refused() -> None:
    gram = np.eye(3)
    gram[0, 2] = np.nan
    with pytest.raises(SolverError, match="not finite at row 0, column 2"):
        constrained_min_norm(gram, 0.1)
