"""gradnorm against the paper's algorithm with autograd and torch's Adam."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_weighting, matrix_zoo, tiny_tasks
from mtlbench_zoo.weightings.gradnorm import GradNorm


@pytest.mark.parametrize("parameters", [{}, {"alpha": 0.12, "learning_rate": 0.1}])
def test_conformance(parameters) -> None:
    check_weighting(GradNorm, **parameters)


def run(weighting: GradNorm, steps: int, factor: float = 1.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    answers = []
    for _ in range(steps):
        lengths = torch.rand(3, generator=draw, dtype=torch.float64) + torch.tensor([0.1, 1.0, 3.0])
        losses = torch.rand(3, generator=draw, dtype=torch.float64) + 0.1
        answers.append(weighting((factor * lengths).square().diag(), factor * losses))
    return torch.stack(answers)


def test_it_is_adam_on_the_papers_objective() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weights], lr=0.05)
    expected, first = [], None
    for _ in range(50):
        lengths = torch.rand(3, generator=draw, dtype=torch.float64) + torch.tensor([0.1, 1.0, 3.0])
        losses = torch.rand(3, generator=draw, dtype=torch.float64) + 0.1
        first = losses if first is None else first
        expected.append(weights.detach().clone())
        sizes = weights * lengths
        progress = losses / first
        target = (sizes.mean() * (progress / progress.mean()) ** 1.5).detach()
        adam.zero_grad()
        (sizes - target).abs().sum().backward()
        adam.step()
        with torch.no_grad():
            weights *= 3 / weights.sum()
    found = run(GradNorm(tiny_tasks(3), learning_rate=0.05), 50)
    assert found == pytest.approx(torch.stack(expected), rel=1e-6)
    assert (found[-1] - 1).abs().max() > 0.3


def test_weights_are_one_at_first_and_always_sum_to_the_number_of_tasks() -> None:
    found = run(GradNorm(tiny_tasks(3), learning_rate=0.5), 200)
    assert found[0].tolist() == [1, 1, 1]
    assert found.sum(1) == pytest.approx(3)
    assert (found > 0).all()


def test_with_alpha_zero_all_gradients_get_one_length() -> None:
    weighting = GradNorm(tiny_tasks(3), alpha=0.0, learning_rate=0.005)
    lengths = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    for _ in range(2000):
        weights = weighting(lengths.square().diag(), torch.ones(3, dtype=torch.float64))
    sizes = (weights * lengths).tolist()
    assert sizes == pytest.approx([sum(sizes) / 3] * 3, rel=0.02)


def test_a_task_that_lags_behind_gains_weight() -> None:
    weighting = GradNorm(tiny_tasks(2))
    for step in range(10):
        weights = weighting(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 0.8**step]).double())
    assert weights[0] > 1.05


def test_the_scale_of_all_losses_does_not_matter_over_many_steps() -> None:
    plain = run(GradNorm(tiny_tasks(3)), 30)
    for factor in (1e-6, 1e6):
        assert run(GradNorm(tiny_tasks(3)), 30, factor) == pytest.approx(plain, rel=1e-6)


def test_zero_gradients_and_zero_losses_leave_finite_weights() -> None:
    weighting = GradNorm(tiny_tasks(2))
    zero = torch.zeros(2, 2, dtype=torch.float64)
    assert weighting(zero, torch.zeros(2)).tolist() == [1, 1]
    one = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    for losses in ([0.0, 1.0], [1.0, 1.0], [0.0, 0.0]):
        assert weighting(one, torch.tensor(losses)).isfinite().all()


def test_steps_of_any_scale_leave_finite_weights() -> None:
    by_count: dict[int, GradNorm] = {}
    for matrix in matrix_zoo():
        weighting = by_count.setdefault(matrix.count, GradNorm(tiny_tasks(matrix.count)))
        weights = weighting(matrix.gram, matrix.losses)
        assert weights.isfinite().all(), matrix.name
        assert weights.sum() == pytest.approx(matrix.count), matrix.name


def test_a_task_without_a_label_keeps_its_weight_and_starts_when_it_is_seen() -> None:
    weighting = GradNorm(tiny_tasks(3), learning_rate=0.1)
    weighting.active = torch.tensor([0, 2])
    for loss in (1.0, 0.5):
        weights = weighting(torch.tensor([[1.0, 0.0], [0.0, 9.0]]).double(), torch.tensor([loss, 1.0]))
        assert weights.sum() == pytest.approx(2)
    assert weighting.state[0, 1] == 1
    assert weighting.state[1].tolist() == [1, 0, 1]
    weighting.active = torch.arange(3)
    weighting(torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 7.0, 1.0]))
    assert weighting.state[1].tolist() == [1, 7, 1]


@pytest.mark.parametrize("name", ["alpha", "learning_rate"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_wrong_parameters_are_named(name: str, value: float) -> None:
    with pytest.raises(MtlbenchError, match=f"gradnorm: {name} must be a number >= 0, got {value}"):
        GradNorm(tiny_tasks(2), **{name: value})
