"""The projection on the dual cone: optimal everywhere, by either method, and honest where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import jacobians

from mtlbench.solvers import SolverError, dual_cone, dual_cone_projection
from mtlbench.solvers.gram import cosines_and_lengths, least_square
from mtlbench.solvers.nonnegative import lawson_hanson
from mtlbench.testing import matrix_zoo


def assert_optimal(gram: np.ndarray, weights: np.ndarray, found: np.ndarray) -> None:
    """``p >= w, G p >= 0`` and each of the two is tight where the other is not, up to rounding."""
    lengths = np.sqrt(gram.diagonal())
    assert np.isfinite(found).all()
    assert (found >= weights).all()
    size = found @ lengths
    slack = np.where(lengths > 0, gram @ found / np.where(lengths > 0, lengths, 1), 0)
    assert (slack >= -1e-9 * size).all()
    assert (np.minimum((found - weights) * lengths, slack) <= 1e-9 * size).all()


@pytest.mark.parametrize("matrix", list(matrix_zoo()), ids=lambda matrix: matrix.name)
def test_the_zoo_is_solved_to_optimality(matrix) -> None:
    gram, count = matrix.gram.numpy(), matrix.count
    single = dual_cone_projection(gram, np.full(count, 1 / count))
    assert_optimal(gram, np.full(count, 1 / count), single)
    for weights, found in zip(np.eye(count), dual_cone_projection(gram, np.eye(count)), strict=True):
        assert_optimal(gram, weights, found)


@settings(max_examples=300, deadline=None)
@given(jacobians)
def test_any_gradients_are_solved_to_optimality(jacobian: np.ndarray) -> None:
    gram = jacobian @ jacobian.T
    for weights, found in zip(np.eye(len(gram)), dual_cone_projection(gram, np.eye(len(gram))), strict=True):
        assert_optimal(gram, weights, found)


def test_the_monotone_method_alone_is_enough() -> None:
    for matrix in matrix_zoo():
        gram, weights = matrix.gram.numpy(), np.full(matrix.count, 1 / matrix.count)
        cosines, lengths = cosines_and_lengths(gram, least_square(gram))
        bound, size = dual_cone._bound(cosines, lengths, weights)
        added = lawson_hanson(cosines, bound) * size / lengths
        assert_optimal(gram, weights, weights + added)


def test_opposite_gradients_do_not_stop_the_others() -> None:
    """They make a system singular, which ends the pivoting for some of the rows."""
    jacobian = np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]])
    gram = jacobian @ jacobian.T
    for weights, found in zip(np.eye(4), dual_cone_projection(gram, np.eye(4)), strict=True):
        assert_optimal(gram, weights, found)


def test_a_vector_is_projected_alike_alone_and_among_others() -> None:
    jacobian = np.random.default_rng(0).normal(size=(6, 8))
    gram = jacobian @ jacobian.T
    together = dual_cone_projection(gram, np.eye(6))
    for i in range(6):
        assert dual_cone_projection(gram, np.eye(6)[i]) == pytest.approx(together[i], rel=1e-12)


def test_a_projection_stays_where_it_is() -> None:
    jacobian = np.random.default_rng(1).normal(size=(6, 8))
    gram = jacobian @ jacobian.T
    once = dual_cone_projection(gram, np.full(6, 1 / 6))
    assert dual_cone_projection(gram, once) == pytest.approx(once, rel=1e-9)


def test_bad_matrices_are_refused() -> None:
    with pytest.raises(SolverError, match=r"dual_cone_projection: .* not finite at row 1, column 1"):
        dual_cone_projection(np.diag([1.0, np.nan]), np.ones(2))
    for count in (2, 3):
        gram = np.full((count, count), -5.0)
        np.fill_diagonal(gram, 1)
        with pytest.raises(SolverError, match=r"dual_cone_projection: the relative residual is .*, above"):
            dual_cone_projection(gram, np.eye(count))


@settings(max_examples=100, deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_two_tasks_have_a_closed_form(cosine: float, first: float, second: float) -> None:
    gram, weights = np.array([[1.0, 3 * cosine], [3 * cosine, 9.0]]), np.array([first, second])
    assert_optimal(gram, weights, dual_cone_projection(gram, weights))
