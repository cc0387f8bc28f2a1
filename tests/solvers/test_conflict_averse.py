"""CAGrad's problem: optimal everywhere, by either method, beside a generic solver."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import jacobians

from mtlbench.solvers import SolverError, conflict_averse, conflict_averse_correction, dual_cone_projection
from mtlbench.testing import matrix_zoo

RADII = (0.05, 0.4, 0.9, 1.5)


def conflicting(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([count, seed])
    jacobian = rng.normal(size=(count, 3)) @ rng.normal(size=(3, 200)) + rng.normal(size=(count, 200))
    jacobian *= np.exp(rng.normal(size=(count, 1)))
    return jacobian @ jacobian.T


def progress(gram: np.ndarray, correction: np.ndarray) -> np.ndarray:
    return gram @ (1 / len(gram) + correction)


def assert_optimal(gram: np.ndarray, correction: np.ndarray, radius: float) -> None:
    """In the ball, and no task that has weight gains more than the one that gains least, up to rounding."""
    lengths = np.sqrt(gram.diagonal())
    assert np.isfinite(correction).all()
    assert (correction >= 0).all()
    length, size = np.sqrt(max(gram.mean(), 0)), correction @ lengths
    if length <= 2e-6 * lengths.mean():
        return  # the mean gradient is rounding error
    outside = correction @ gram @ correction - (radius * length) ** 2
    assert outside <= 1e-8 * (radius * length) ** 2 + 1e-13 * size**2
    gains = progress(gram, correction)
    rounding = 1e-8 * lengths * (length + size)
    used = correction * lengths > 1e-8 * (length + size)
    if used.any():
        least = float((gains + rounding).min())
        if outside < -1e-8 * (radius * length) ** 2 - 1e-13 * size**2:
            least = min(0.0, least)  # room is left only where nothing better than 0 can be had
        assert (gains[used] - 2 * rounding[used] <= least).all()


@pytest.mark.parametrize("radius", RADII)
def test_the_zoo_is_solved_to_optimality(radius: float) -> None:
    for matrix in matrix_zoo():
        gram = matrix.gram.numpy()
        assert_optimal(gram, conflict_averse_correction(gram, radius), radius)


@pytest.mark.parametrize("radius", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("count", [2, 3, 5, 10, 20, 40])
def test_cvxpy_finds_no_better_weights(count: int, radius: float) -> None:
    for seed in range(2):
        gram = conflicting(count, seed)
        gram /= gram.trace()
        correction = conflict_averse_correction(gram, radius)
        ours = correction / correction.sum()
        root = np.linalg.cholesky(gram).T
        weights = cvxpy.Variable(count, nonneg=True)
        objective = gram.mean(0) @ weights + radius * np.sqrt(gram.mean()) * cvxpy.norm(root @ weights)
        problem = cvxpy.Problem(cvxpy.Minimize(objective), [cvxpy.sum(weights) == 1])
        problem.solve(solver="CLARABEL")
        value = ours @ gram.mean(0) + radius * np.sqrt(gram.mean() * (ours @ gram @ ours))
        assert value == pytest.approx(problem.value, rel=1e-6, abs=1e-9)
        assert value <= problem.value + 1e-12
        # no gap: the least progress in the ball is what the weights bound it by
        assert progress(gram, correction).min() == pytest.approx(value, abs=1e-9)
        assert correction @ gram @ correction == pytest.approx(radius**2 * gram.mean(), rel=1e-9)


def by_newton(gram: np.ndarray, radius: float) -> np.ndarray:
    correction, residual = conflict_averse._by_newton(gram, radius)
    assert residual <= 1e-9
    return correction


@pytest.mark.parametrize("radius", RADII)
def test_the_monotone_method_alone_is_enough(radius: float) -> None:
    for matrix in matrix_zoo():
        gram = matrix.gram.numpy()
        assert_optimal(gram, by_newton(gram, radius), radius)
    for count in (2, 3, 5, 10, 40):
        gram = conflicting(count, 0)
        expected = conflict_averse_correction(gram, radius)
        assert by_newton(gram, radius) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_one_task_goes_further_along_its_gradient() -> None:
    assert conflict_averse_correction(np.array([[7.0]]), 0.4) == pytest.approx(0.4)


def test_orthogonal_gradients_of_one_length_are_treated_alike() -> None:
    assert conflict_averse_correction(np.eye(4), 0.4) == pytest.approx(0.4 / 4)


@pytest.mark.parametrize("radius", [0.4, 0.9])
def test_gradients_that_cancel_give_the_projected_mean(radius: float) -> None:
    """A hull that contains 0, and a mean that is not: the nearest of the best is wanted."""
    jacobian = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [0.0, 1.0, 1.0]])
    gram = jacobian @ jacobian.T
    expected = dual_cone_projection(gram, np.full(4, 0.25)) @ jacobian
    assert (0.25 + conflict_averse_correction(gram, radius)) @ jacobian == pytest.approx(expected, abs=1e-12)


def test_a_mean_of_zero_is_left_alone() -> None:
    assert conflict_averse_correction(np.array([[1.0, -1.0], [-1.0, 1.0]]), 0.4).tolist() == [0, 0]
    assert conflict_averse_correction(np.zeros((3, 3)), 0.4).tolist() == [0, 0, 0]
    assert conflict_averse_correction(conflicting(3, 0), 0.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e40])
@pytest.mark.parametrize("count", [2, 5, 20])
def test_scale_does_not_matter(count: int, scale: float) -> None:
    gram = conflicting(count, 0)
    expected = conflict_averse_correction(gram, 0.4)
    assert conflict_averse_correction(gram * scale, 0.4) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(jacobians, st.sampled_from(RADII))
def test_any_gradients_are_solved_to_optimality(jacobian: np.ndarray, radius: float) -> None:
    gram = jacobian @ jacobian.T
    assert_optimal(gram, conflict_averse_correction(gram, radius), radius)


def test_bad_matrices_are_refused() -> None:
    with pytest.raises(SolverError, match=r"conflict_averse_correction: .* not finite at row 1, column 1"):
        conflict_averse_correction(np.diag([1.0, np.nan]), 0.4)
    gram = np.full((3, 3), 5.0)
    np.fill_diagonal(gram, 1)
    gram[0, 1] = gram[1, 0] = -5
    with pytest.raises(SolverError, match=r"the relative residual is .*, above"):
        conflict_averse_correction(gram, 0.4)
