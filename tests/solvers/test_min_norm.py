"""The min-norm point: closed forms, optimality everywhere, and agreement with a generic solver and a peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import jacobians
from torchjd.aggregation import MGDAWeighting

from mtlbench.errors import RunFailedError
from mtlbench.solvers import SolverError, min_norm, min_norm_point, min_norm_point_cvxpy
from mtlbench.solvers.gram import least_square
from mtlbench.solvers.nonnegative import lawson_hanson
from mtlbench.testing import matrix_zoo

SIZES = (2, 3, 5, 10, 20, 40)


def conflicting(count: int, seed: int) -> np.ndarray:
    """A Gram matrix of gradients with a common part, noise and unequal lengths."""
    rng = np.random.default_rng([count, seed])
    jacobian = rng.normal(size=(count, 3)) @ rng.normal(size=(3, 200)) + rng.normal(size=(count, 200))
    jacobian *= np.exp(rng.normal(size=(count, 1)))
    return jacobian @ jacobian.T


def assert_optimal(gram: np.ndarray, weights: np.ndarray) -> None:
    """The variational inequality: no task gradient shortens the vector, up to rounding."""
    lengths = np.sqrt(gram.diagonal())
    assert weights.shape == lengths.shape
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    size = weights @ lengths
    violation = weights @ gram @ weights - gram @ weights
    assert (violation <= 1e-9 * size * (size + lengths)).all()


@pytest.mark.parametrize("count", SIZES)
def test_the_objective_equals_cvxpys(count: int) -> None:
    for seed in range(4):
        gram = conflicting(count, seed)
        ours, theirs = min_norm_point(gram), min_norm_point_cvxpy(gram)
        assert theirs @ gram @ theirs == pytest.approx(ours @ gram @ ours, rel=1e-6)
        assert ours @ gram @ ours <= theirs @ gram @ theirs * (1 + 1e-12)


@pytest.mark.parametrize("count", SIZES)
def test_torchjd_finds_nothing_shorter(count: int) -> None:
    for seed in range(4):
        gram = conflicting(count, seed)
        ours = min_norm_point(gram)
        theirs = MGDAWeighting()(torch.from_numpy(gram)).numpy()
        assert ours @ gram @ ours <= theirs @ gram @ theirs * (1 + 1e-12)


def test_one_task_has_weight_one() -> None:
    assert min_norm_point(np.array([[3.0]])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("gram", "expected"),
    [
        ([[1.0, 0.0], [0.0, 4.0]], [0.8, 0.2]),
        ([[1.0, 2.0], [2.0, 9.0]], [1.0, 0.0]),
        ([[9.0, 2.0], [2.0, 1.0]], [0.0, 1.0]),
        ([[1.0, -2.0], [-2.0, 4.0]], [2 / 3, 1 / 3]),
        ([[5.0, 5.0], [5.0, 5.0]], [0.5, 0.5]),
        ([[0.0, 0.0], [0.0, 7.0]], [1.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5]),
    ],
)
def test_two_tasks_have_a_closed_form(gram: list[list[float]], expected: list[float]) -> None:
    assert min_norm_point(np.array(gram)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("count", [3, 7, 40])
def test_orthogonal_gradients_weigh_by_the_inverse_of_their_square(count: int) -> None:
    squares = np.logspace(-6, 6, count)
    inverse = 1 / squares
    assert min_norm_point(np.diag(squares)) == pytest.approx(inverse / inverse.sum(), rel=1e-12)


def test_of_parallel_gradients_the_shortest_counts() -> None:
    lengths = np.array([3.0, 1.0, 2.0, 5.0])
    assert min_norm_point(np.outer(lengths, lengths)).tolist() == [0, 1, 0, 0]


def test_of_opposite_gradients_nothing_is_left() -> None:
    gradients = np.array([1.0, -2.0, 3.0])
    weights = min_norm_point(np.outer(gradients, gradients))
    assert weights @ gradients == pytest.approx(0, abs=1e-14)


def test_zero_gradients_share_the_weight() -> None:
    assert min_norm_point(np.zeros((4, 4))).tolist() == [0.25] * 4
    assert min_norm_point(np.diag([2.0, 0.0, 3.0, 0.0])).tolist() == [0, 0.5, 0, 0.5]


@pytest.mark.parametrize("matrix", list(matrix_zoo()), ids=lambda matrix: matrix.name)
def test_the_zoo_is_solved_to_optimality(matrix) -> None:
    assert_optimal(matrix.gram.numpy(), min_norm_point(matrix.gram.numpy()))


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e40])
@pytest.mark.parametrize("count", SIZES)
def test_scale_does_not_matter(count: int, scale: float) -> None:
    gram = conflicting(count, 0)
    assert min_norm_point(gram * scale) == pytest.approx(min_norm_point(gram), rel=1e-9, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(jacobians)
def test_any_gradients_are_solved_to_optimality(jacobian: np.ndarray) -> None:
    gram = jacobian @ jacobian.T
    assert_optimal(gram, min_norm_point(gram))


@settings(max_examples=100, deadline=None)
@given(jacobians, st.randoms(use_true_random=False))
def test_the_vector_does_not_depend_on_the_order_of_the_tasks(jacobian: np.ndarray, random) -> None:
    order = list(range(len(jacobian)))
    random.shuffle(order)
    gram = jacobian @ jacobian.T
    weights, permuted = min_norm_point(gram), np.empty(len(order))
    permuted[order] = min_norm_point(gram[np.ix_(order, order)])
    size = max(weights @ np.sqrt(gram.diagonal()), permuted @ np.sqrt(gram.diagonal()))
    assert np.abs((weights - permuted) @ jacobian).max() <= 1e-6 * size


def test_the_monotone_method_alone_is_enough() -> None:
    for matrix in matrix_zoo():
        gram = matrix.gram.numpy()
        if matrix.count > 2 and (shortest := least_square(gram)) > 0:
            _, bound, program = min_norm._cone(gram, shortest)
            weights = min_norm._weights(bound, lawson_hanson(program, bound))
            assert_optimal(gram, weights)
            step, size = weights - min_norm_point(gram), weights @ np.sqrt(gram.diagonal())
            assert step @ gram @ step <= 1e-12 * size**2


@pytest.mark.parametrize("solve", [min_norm_point, min_norm_point_cvxpy])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_matrix_that_is_not_finite_is_refused(solve, count: int, bad: float) -> None:
    gram = np.eye(count)
    gram[-1, -1] = bad
    with pytest.raises(
        SolverError, match=rf"{solve.__name__}: .* not finite at row {count - 1}, column {count - 1}"
    ):
        solve(gram)


@pytest.mark.parametrize("solve", [min_norm_point, min_norm_point_cvxpy])
def test_a_negative_square_is_refused(solve) -> None:
    with pytest.raises(SolverError, match=r"has -1\.0e\+00 on its diagonal"):
        solve(np.diag([1.0, -1.0, 1.0]))


def test_a_matrix_that_no_gradients_have_is_refused() -> None:
    gram = np.full((3, 3), -5.0)
    np.fill_diagonal(gram, 1)
    with pytest.raises(SolverError, match=r"min_norm_point: the relative residual is .*, above"):
        min_norm_point(gram)


def test_an_unreached_tolerance_names_method_and_residual() -> None:
    with pytest.raises(
        SolverError, match=r"min_norm_point: the relative residual is .*e-\d\d, above"
    ) as caught:
        min_norm_point(conflicting(10, 0), tol=-1.0)
    assert isinstance(caught.value, RunFailedError)
    assert caught.value.method == "min_norm_point"
    assert abs(caught.value.residual) < 1e-12


@pytest.mark.parametrize(
    "name", ["zero", "one zero row", "parallel", "opposite", "rank one", "affinely dependent"]
)
def test_cvxpy_agrees_on_degenerate_matrices(name: str) -> None:
    (gram,) = [matrix.gram.numpy() for matrix in matrix_zoo() if matrix.name == f"{name}, T=5"]
    ours, theirs = min_norm_point(gram), min_norm_point_cvxpy(gram)
    scale = (ours @ np.sqrt(gram.diagonal())) ** 2
    assert theirs @ gram @ theirs == pytest.approx(ours @ gram @ ours, rel=1e-6, abs=1e-6 * scale)
