"""mgda: what its update is, with every normalisation and both solvers."""

from __future__ import annotations

import pytest
import torch

from mtlbench.solvers import SolverError, min_norm_point
from mtlbench.testing import check_weighting, matrix_zoo
from mtlbench_zoo.weightings.mgda import MGDA

NORMALIZATIONS = ("none", "l2", "loss", "loss+")


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_conformance(normalize) -> None:
    check_weighting(MGDA, normalize=normalize)


def example(seed: int = 0, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    jacobian *= torch.logspace(-1, 1, count, dtype=torch.float64)[:, None]
    return jacobian, torch.rand(count, generator=generator) + 0.5


def test_without_normalisation_it_is_the_min_norm_point() -> None:
    jacobian, losses = example()
    gram = jacobian @ jacobian.T
    assert MGDA()(gram, losses).tolist() == min_norm_point(gram.numpy()).tolist()


@pytest.mark.parametrize("normalize", NORMALIZATIONS[1:])
def test_the_update_points_along_the_shortest_normalised_vector(normalize) -> None:
    jacobian, losses = example()
    lengths, sizes = jacobian.norm(dim=1), losses.double()
    scale = {"l2": lengths, "loss": sizes, "loss+": lengths * sizes}[normalize]
    normalized = jacobian / scale[:, None]
    shortest = torch.from_numpy(min_norm_point((normalized @ normalized.T).numpy())) @ normalized
    update = MGDA(normalize)(jacobian @ jacobian.T, losses) @ jacobian
    assert update == pytest.approx(shortest / (1 / scale).mean(), rel=1e-9)


def test_the_update_of_unit_gradients_does_not_depend_on_their_lengths_in_direction() -> None:
    jacobian, losses = example()
    stretched = jacobian * torch.tensor([10.0, 0.1, 3.0, 1.0])[:, None]
    first = MGDA("l2")(jacobian @ jacobian.T, losses) @ jacobian
    second = MGDA("l2")(stretched @ stretched.T, losses) @ stretched
    assert first / first.norm() == pytest.approx(second / second.norm(), rel=1e-9)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_zero_gradient_stops_the_update_without_nan(normalize) -> None:
    jacobian, losses = example()
    jacobian[1] = 0
    weights = MGDA(normalize)(jacobian @ jacobian.T, losses)
    assert weights.isfinite().all()
    assert not (weights @ jacobian).any()


@pytest.mark.parametrize("normalize", ["loss", "loss+"])
@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_loss_that_is_not_positive_turns_no_gradient_round(normalize, loss: float) -> None:
    jacobian, losses = example()
    losses[2] = loss
    weights = MGDA(normalize)(jacobian @ jacobian.T, losses)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_cvxpy_is_the_same_method() -> None:
    for matrix in matrix_zoo():
        if matrix.count in (2, 5) and "float32" not in matrix.name:
            gram = matrix.gram
            exact, generic = MGDA()(gram, matrix.losses), MGDA(solver="cvxpy")(gram, matrix.losses)
            size = (exact @ gram.diagonal().sqrt()).item() ** 2
            ours, theirs = (exact @ gram @ exact).item(), (generic @ gram @ generic).item()
            assert theirs == pytest.approx(ours, rel=1e-6, abs=1e-6 * size), matrix.name


def test_cvxpy_answers_alike_twice() -> None:
    first, second = example(0), example(1)
    gram, other = first[0] @ first[0].T, second[0] @ second[0].T
    weighting = MGDA(solver="cvxpy")
    before = weighting(gram, first[1])
    weighting(other, second[1])
    assert torch.equal(before, weighting(gram, first[1]))


def frank_wolfe_on_vectors(jacobian: torch.Tensor) -> torch.Tensor:
    """Algorithm 2 of the paper with the line search of its algorithm 1, on the vectors themselves."""
    weights = torch.full((len(jacobian),), 1 / len(jacobian), dtype=torch.float64)
    for _ in range(10_000):
        here = weights @ jacobian
        nearest = int((jacobian @ here).argmin())
        there = jacobian[nearest]
        if torch.equal(here, there):
            break
        step = float(((here - there) @ here / ((here - there) @ (here - there))).clamp(0, 1))
        weights = (1 - step) * weights + step * torch.eye(len(jacobian), dtype=torch.float64)[nearest]
        if step <= 1e-5:
            break
    return weights


@pytest.mark.parametrize(("seed", "count"), [(0, 2), (1, 3), (2, 4), (3, 5)])
def test_frank_wolfe_is_the_papers_algorithm_and_comes_near_the_optimum(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    gram, losses = jacobian @ jacobian.T, torch.ones(count)
    weights = MGDA(solver="frank-wolfe")(gram, losses)
    assert weights == pytest.approx(frank_wolfe_on_vectors(jacobian), abs=1e-9)
    best = MGDA()(gram, losses)
    excess = (weights @ gram @ weights - best @ gram @ best) / gram.diagonal().mean()
    assert -1e-12 <= excess < 5e-3


def test_frank_wolfe_answers_or_says_so() -> None:
    told = 0
    for matrix in matrix_zoo():
        if matrix.count > 12:
            continue
        gram = matrix.gram
        try:
            weights = MGDA(solver="frank-wolfe")(gram, matrix.losses)
        except SolverError as error:
            told += error.method == "min_norm_point_frank_wolfe" and (error.residual or 0) > 0.05
            continue
        size = (weights @ gram.diagonal().sqrt()).item() ** 2
        best = MGDA()(gram, matrix.losses)
        assert (weights @ gram @ weights - best @ gram @ best).item() <= 0.05 * size, matrix.name
    assert 0 < told < 10  # lengths over sixteen decades are too much for its rule to stop
    assert not MGDA(solver="frank-wolfe").properties
    assert MGDA(solver="cvxpy").properties == MGDA.properties


@pytest.mark.parametrize("solver", ["exact", "frank-wolfe", "cvxpy"])
def test_gradients_that_are_not_finite_end_in_an_error(solver) -> None:
    gram = torch.eye(3, dtype=torch.float64)
    gram[0, 1] = torch.nan
    with pytest.raises(SolverError, match="not finite at row 0, column 1"):
        MGDA(solver=solver)(gram, torch.ones(3))
