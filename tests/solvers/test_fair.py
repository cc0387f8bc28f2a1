"""The bargain's equations: their residual everywhere, closed forms, a generic solver and scales."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
from hypothesis import example, given, settings
from problems import jacobians

from mtlbench.solvers import SolverError, fair_weights
from mtlbench.solvers.gram import ROUNDING
from mtlbench.testing import matrix_zoo

ALPHAS = (0.1, 0.5, 1.0, 2.0)


def conflicting(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([count, seed])
    jacobian = rng.normal(size=(count, 3)) @ rng.normal(size=(3, 200)) + rng.normal(size=(count, 200))
    jacobian *= np.exp(rng.normal(size=(count, 1)))
    return jacobian @ jacobian.T


def assert_solved(gram: np.ndarray, weights: np.ndarray, alpha: float) -> None:
    """``G w = w^(-1/alpha)`` up to a relative change of 1e-9 in what is summed."""
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    present = gram.diagonal() > 0
    found, wanted = gram @ weights, weights ** (-1 / alpha)
    size = np.abs(gram) @ weights + wanted
    assert (np.abs(found - wanted) <= 1.01e-9 * size)[present].all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_zoo_is_solved(alpha: float) -> None:
    for matrix in matrix_zoo():
        assert_solved(matrix.gram.numpy(), fair_weights(matrix.gram.numpy(), alpha), alpha)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("count", [2, 3, 5, 10, 40])
def test_ordinary_gradients_are_solved_to_rounding(count: int, alpha: float) -> None:
    for seed in range(4):
        gram = conflicting(count, seed)
        weights = fair_weights(gram, alpha)
        assert gram @ weights == pytest.approx(weights ** (-1 / alpha), rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_cvxpy_maximises_no_better(count: int) -> None:
    """With alpha 1 the weights minimise ``wᵀ G w / 2 - sum(log w)``."""
    for seed in range(3):
        gram = conflicting(count, seed)
        lengths = np.sqrt(gram.diagonal())
        values, vectors = np.linalg.eigh(gram / np.outer(lengths, lengths))
        root = np.sqrt(values.clip(min=0))[:, None] * vectors.T
        scaled = cvxpy.Variable(count, pos=True)
        objective = cvxpy.Minimize(cvxpy.sum_squares(root @ scaled) / 2 - cvxpy.sum(cvxpy.log(scaled)))
        problem = cvxpy.Problem(objective)
        problem.solve(solver="CLARABEL")
        ours = fair_weights(gram) * lengths
        assert ours == pytest.approx(scaled.value, rel=1e-4)
        value = ((root @ ours) ** 2).sum() / 2 - np.log(ours).sum()
        assert value == pytest.approx(problem.value, rel=1e-6)


def test_two_tasks_weigh_by_their_inverse_lengths() -> None:
    gram = np.array([[4.0, -1.0], [-1.0, 9.0]])
    cosine = -1 / 6
    assert fair_weights(gram) == pytest.approx(np.array([1 / 2, 1 / 3]) / np.sqrt(1 + cosine), rel=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_orthogonal_gradients_have_a_closed_form(alpha: float) -> None:
    squares = np.logspace(-6, 6, 7)
    assert fair_weights(np.diag(squares), alpha) == pytest.approx(squares ** (-alpha / (1 + alpha)), rel=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e40])
def test_scaled_gradients_have_scaled_weights(scale: float, alpha: float) -> None:
    gram = conflicting(5)
    expected = fair_weights(gram, alpha) * scale ** (-alpha / (1 + alpha))
    assert fair_weights(gram * scale, alpha) == pytest.approx(expected, rel=1e-9)


def test_a_zero_gradient_has_the_largest_of_the_other_weights() -> None:
    gram = conflicting(3)
    expected = fair_weights(gram[1:, 1:])
    gram[0] = gram[:, 0] = 0
    assert fair_weights(gram) == pytest.approx(np.array([expected.max(), *expected]), rel=1e-12)
    assert fair_weights(np.zeros((3, 3))).tolist() == [1, 1, 1]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_that_cancel_leave_no_update(alpha: float) -> None:
    jacobian = np.array([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    weights = fair_weights(jacobian @ jacobian.T, alpha)
    assert np.linalg.norm(weights @ jacobian) <= 1e-4 * weights.sum()


@settings(max_examples=200, deadline=None)
@given(jacobians)
@example(
    np.array(
        [
            [-895538.0, 1, -2, 0],
            [0, -1455, 512559, 0],
            [0, 0, 0, 1],
            [1, 0, 0, 0],
            [0, -221, 1, 0],
            [0, -39, 0, 0],
            [0, -1, -1, 0],
            [1, -1, 0, 0],
        ]
    )
)
def test_any_gradients_bargain(jacobian: np.ndarray) -> None:
    gram = jacobian @ jacobian.T
    found = fair_weights(gram)
    try:
        assert_solved(gram, found, 1.0)
    except AssertionError:  # lengths of six orders of magnitude that cancel: see `within_rounding`
        mended = gram + np.diag(gram.diagonal() * len(gram) * ROUNDING)
        assert_solved(mended, found, 1.0)


def test_bad_matrices_are_refused() -> None:
    with pytest.raises(SolverError, match=r"fair_weights: .* not finite at row 1, column 1"):
        fair_weights(np.diag([1.0, np.nan]))
    gram = np.full((3, 3), -5.0)
    np.fill_diagonal(gram, 1)
    with pytest.raises(SolverError, match=r"fair_weights: the relative residual is .*, above") as caught:
        fair_weights(gram)
    assert caught.value.residual > 1e-9
