"""imtl-g and imtl: equal projections, the paper's closed form, and what degenerate gradients come to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd import aggregation

from mtlbench.errors import MtlbenchError
from mtlbench.solvers.imtl_g import impartial_weights
from mtlbench.testing import check_weighting, matrix_zoo, tiny_tasks
from mtlbench_zoo.weightings.imtl import IMTL
from mtlbench_zoo.weightings.imtl_g import IMTLG


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [(IMTLG, {}), (IMTL, {}), (IMTL, {"learning_rate": 0.1}), (IMTL, {"learning_rate": 0})],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


def gradients(seed: int, count: int, width: int = 30) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, width)) * np.exp(draw.normal(size=(count, 1)))


def answer(jacobian: np.ndarray) -> np.ndarray:
    return impartial_weights(jacobian @ jacobian.T)


def projections(jacobian: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return jacobian @ (weights @ jacobian) / np.linalg.norm(jacobian, axis=1)


def closed_form(jacobian: np.ndarray) -> np.ndarray:
    """Equation 6 of the paper: the weights of all tasks but the first, from differences to the first."""
    units = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    to_first, units_to_first = jacobian[:1] - jacobian[1:], units[:1] - units[1:]
    others = jacobian[0] @ units_to_first.T @ np.linalg.inv(to_first @ units_to_first.T)
    return np.array([1 - others.sum(), *others])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_projections_are_equal_and_the_sum_is_one(seed: int, count: int) -> None:
    jacobian = gradients(seed, count)
    weights = answer(jacobian)
    found = projections(jacobian, weights)
    size = np.abs(weights) @ np.linalg.norm(jacobian, axis=1)
    assert weights.sum() == pytest.approx(1)
    assert found == pytest.approx(found[0], abs=1e-10 * size)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
def test_it_is_the_closed_form_of_the_paper(seed: int, count: int) -> None:
    jacobian = gradients(seed, count)
    assert answer(jacobian) == pytest.approx(closed_form(jacobian), rel=1e-6)


def test_it_is_torchjds_where_gradients_are_independent_or_identical() -> None:
    theirs, seen = aggregation.IMTLG(), 0
    for matrix in matrix_zoo():
        name = matrix.name
        if name.startswith(("conflicting", "independent", "aligned", "orthogonal", "identical")):
            jacobian = matrix.jacobian.double()
            expected = theirs(jacobian).numpy()
            found = answer(jacobian.numpy()) @ jacobian.numpy()
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-7 * np.linalg.norm(expected)), name
            seen += 1
    assert seen > 50


def test_two_tasks_are_bisected() -> None:
    jacobian = gradients(0, 2)
    lengths = np.linalg.norm(jacobian, axis=1)
    assert answer(jacobian) == pytest.approx(1 / lengths / (1 / lengths).sum())


def test_orthogonal_and_parallel_gradients_count_by_their_inverse_lengths() -> None:
    inverse = np.array([1, 1 / 2, 1 / 5])
    for jacobian in (np.diag([1.0, 2.0, 5.0]), np.array([[1.0], [2.0], [5.0]])):
        assert answer(jacobian) == pytest.approx(inverse / inverse.sum())


@pytest.mark.parametrize(
    "jacobian",
    [
        np.array([[1.0, 0.0], [-3.0, 0.0]]),
        np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0]]),
        np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-2.0, 1.0]]),
    ],
    ids=["opposite", "the sum of the others", "more than dimensions"],
)
def test_where_only_zero_has_equal_projections_the_update_is_zero(jacobian: np.ndarray) -> None:
    weights = answer(jacobian)
    assert weights.sum() == pytest.approx(1)
    assert weights @ jacobian == pytest.approx(np.zeros(2), abs=1e-12)


def test_the_update_shrinks_to_that_as_gradients_become_dependent() -> None:
    lengths = []
    for height in (1e-1, 1e-2, 1e-3, 1e-4):
        jacobian = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 2.0, height]])
        lengths.append(np.linalg.norm(answer(jacobian) @ jacobian))
    assert lengths == pytest.approx([lengths[0] * 10.0**-k for k in range(4)], rel=0.3)


def test_a_zero_gradient_sets_no_condition() -> None:
    jacobian = gradients(2, 4)
    jacobian[1] = 0
    weights = answer(jacobian)
    assert weights[1] == 0
    assert weights[[0, 2, 3]] == pytest.approx(answer(jacobian[[0, 2, 3]]))
    assert answer(np.zeros((4, 3))).tolist() == [0.25] * 4


def test_where_no_weights_of_sum_one_exist_all_are_zero() -> None:
    """Two long gradients close together and a short third: the shares' weights change sign in between."""

    def total(length: float) -> float:
        units = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.9, 0.3, 0.1]])
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        shares = np.linalg.solve(units @ units.T, np.ones(3))
        return float(shares @ [1.0, 1.0, 1 / length])

    low, high = 1e-3, 1e3
    assert total(low) < 0 < total(high)
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if total(middle) < 0 else (low, middle)
    units = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.9, 0.3, 0.1]])
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    assert answer(units * [[1], [1], [high]]) == pytest.approx(np.zeros(3))
    mean = np.array([[1.0, 0.0], [0.0, 2.0], [0.5, 1.0]])
    assert answer(mean) == pytest.approx(np.zeros(3))


def test_imtl_learns_scales_as_adam_on_its_objective_does() -> None:
    tasks, losses = tiny_tasks(3), torch.tensor([0.2, 1.0, 7.0], dtype=torch.float64)
    weighting = IMTL(tasks, learning_rate=0.05)
    log_scale = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log_scale], lr=0.05)
    for step in range(300):
        jacobian = gradients(step, 3)
        scale = log_scale.detach().exp().numpy()
        weights = weighting(torch.from_numpy(jacobian @ jacobian.T), losses).numpy()
        assert weights == pytest.approx(answer(jacobian * scale[:, None]) * scale, rel=1e-6)
        adam.zero_grad()
        (log_scale.exp() * losses - log_scale).sum().backward()
        adam.step()
    assert weighting.log_scale == pytest.approx(log_scale.detach(), rel=1e-6)
    assert weighting.log_scale.exp() == pytest.approx(1 / losses, rel=0.05)


def test_imtl_has_the_direction_of_imtl_g() -> None:
    jacobian = gradients(0, 4)
    gram, losses = torch.from_numpy(jacobian @ jacobian.T), torch.tensor([0.2, 1.0, 7.0, 3.0])
    weighting = IMTL(tiny_tasks(4), learning_rate=0.1)
    for _ in range(20):
        update = weighting(gram, losses).numpy() @ jacobian
        expected = answer(jacobian) @ jacobian
        cosine = update @ expected / np.linalg.norm(update) / np.linalg.norm(expected)
        assert cosine == pytest.approx(1)


def test_the_scale_of_a_task_without_a_label_rests() -> None:
    weighting = IMTL(tiny_tasks(3))
    weighting.active = torch.tensor([0, 2])
    weighting(torch.eye(2, dtype=torch.float64), torch.tensor([2.0, 0.5]))
    assert weighting.log_scale.tolist() == pytest.approx([-1e-3, 0, 1e-3])
    assert weighting.log_scale[1] == 0


def test_imtl_names_a_wrong_learning_rate() -> None:
    with pytest.raises(MtlbenchError, match=r"imtl: learning_rate must be a number >= 0, got -1"):
        IMTL(tiny_tasks(2), learning_rate=-1)


def test_heads_follow_the_scaled_losses() -> None:
    weighting = IMTL(tiny_tasks(3), learning_rate=0.1)
    gram = torch.eye(3, dtype=torch.float64)
    for _ in range(5):
        scale = weighting.log_scale.exp()
        weighting(gram, torch.tensor([0.1, 1.0, 10.0]))
        assert weighting.head_weights.equal(scale)
    assert scale[0] > 1 > scale[2]


@pytest.mark.parametrize("count", [3, 5, 10, 40])
def test_independent_gradients_need_no_spectrum_and_get_the_same(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    jacobian = np.random.default_rng(count).normal(size=(count, 80)) * np.logspace(-3, 3, count)[:, None]
    gram = jacobian @ jacobian.T
    quick = impartial_weights(gram)
    monkeypatch.setattr("mtlbench.solvers.imtl_g._INDEPENDENT", np.inf)
    assert quick == pytest.approx(impartial_weights(gram), rel=1e-9)
