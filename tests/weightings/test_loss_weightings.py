"""ew, fixed, rlw and uw against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_weighting, tiny_tasks
from mtlbench_zoo.weightings.ew import EqualWeighting
from mtlbench_zoo.weightings.fixed import Fixed
from mtlbench_zoo.weightings.rlw import RLW
from mtlbench_zoo.weightings.uw import UW

TASKS = tiny_tasks(3)  # a classification, a segmentation, a gaussian regression
LOSSES = torch.tensor([0.5, 2.0, 4.0])
DISTRIBUTIONS = ("normal", "uniform", "dirichlet", "bernoulli")


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (EqualWeighting, {}),
        (Fixed, {"weights": [1, 2, 0.5]}),
        *((RLW, {"distribution": distribution}) for distribution in DISTRIBUTIONS),
        (UW, {}),
        (UW, {"initial_log_variance": -1.0}),
    ],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


def test_equal_weighting_is_the_sum() -> None:
    assert EqualWeighting(TASKS)(LOSSES).tolist() == [1, 1, 1]


def test_fixed_gives_its_weights_to_the_tasks_at_hand() -> None:
    weighting = Fixed(TASKS, weights=[1, 2, 0.5])
    assert weighting(LOSSES).tolist() == [1, 2, 0.5]
    weighting.active = torch.tensor([0, 2])
    assert weighting(LOSSES[[0, 2]]).tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ([1.0, 2.0], r"got 2 for 3 tasks: \[1.0, 2.0\]"),
        ([1.0, -2.0, 1.0], "got -2.0 for task1"),
        ([1.0, 1.0, math.nan], "got nan for task2"),
        ([math.inf, 1.0, 1.0], "got inf for task0"),
        ([0.0, 0.0, 0.0], r"not all 0: got \[0.0, 0.0, 0.0\]"),
    ],
)
def test_fixed_explains_what_is_wrong(weights: list[float], found: str) -> None:
    with pytest.raises(MtlbenchError, match=rf"^fixed: weights must .* task0, task1, task2.*{found}$"):
        Fixed(TASKS, weights=weights)


def draws(distribution, number: int = 4000) -> torch.Tensor:
    weighting = RLW(distribution)
    weighting.generator.manual_seed(0)
    return torch.stack([weighting(LOSSES.double()) for _ in range(number)])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_random_weights_lie_on_the_simplex_with_equal_means(distribution) -> None:
    weights = draws(distribution)
    assert (weights >= 0).all()
    assert weights.sum(1) == pytest.approx(1)
    assert weights.mean(0) == pytest.approx(1 / 3, abs=0.02)  # 4 standard errors of the widest, bernoulli


def test_dirichlet_has_the_variance_of_the_uniform_distribution_on_the_simplex() -> None:
    assert draws("dirichlet").var(0) == pytest.approx(1 / 18, rel=0.1)


def test_normal_and_uniform_are_softmaxes() -> None:
    logits = draws("normal").log()
    differences = logits[:, 0] - logits[:, 1]
    assert differences.mean() == pytest.approx(0, abs=0.1)
    assert differences.std() == pytest.approx(math.sqrt(2), rel=0.05)
    assert (draws("uniform").max(1).values / draws("uniform").min(1).values).max() <= math.e


def test_bernoulli_shares_among_the_tasks_that_are_on() -> None:
    patterns, counts = torch.unique(draws("bernoulli"), dim=0, return_counts=True)
    assert len(patterns) == 7  # every subset but the empty one
    assert counts / 4000 == pytest.approx(1 / 7, abs=0.025)


def test_random_weights_have_the_dtype_of_the_losses() -> None:
    assert RLW()(LOSSES).dtype == torch.float32
    assert RLW()(LOSSES.double()).dtype == torch.float64


def test_random_draws_go_on_where_they_were() -> None:
    first = RLW()
    first.generator.manual_seed(0)
    first(LOSSES)
    resumed = RLW()
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(first(LOSSES), resumed(LOSSES))


def test_uncertainty_weighting_is_kendalls_objective() -> None:
    weighting = UW(TASKS)
    scales = torch.tensor([0.5, 1.0, 2.0])
    with torch.no_grad():
        weighting.log_variance.copy_(2 * scales.log())
    losses = LOSSES.clone().requires_grad_()
    objective = weighting(losses)
    factors = torch.tensor([1.0, 1.0, 0.5])
    assert objective.item() == pytest.approx((factors * LOSSES / scales**2 + scales.log()).sum().item())
    objective.backward()
    assert losses.grad == pytest.approx(factors / scales**2)
    assert weighting.log_variance.grad == pytest.approx(0.5 - factors * LOSSES / scales**2)


def test_uncertainty_weighting_starts_where_it_is_told() -> None:
    assert UW(TASKS, initial_log_variance=-0.5).log_variance.tolist() == [-0.5] * 3


def test_the_noise_of_a_task_without_labels_rests() -> None:
    weighting = UW(TASKS)
    weighting.active = torch.tensor([2])
    weighting(LOSSES[2:]).backward()
    assert weighting.log_variance.grad.tolist() == [0, 0, 0.5 - 0.5 * 4.0]
