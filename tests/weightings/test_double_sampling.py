"""modo and sdmgrad: their steps written on vectors, and what an epoch of theirs is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from runs import facts, outcome, outcome_in_pieces

from mtlbench.errors import MtlbenchError
from mtlbench.parallel import ALONE
from mtlbench.testing import check_weighting, tiny_tasks
from mtlbench.training.loop import _Loader
from mtlbench_zoo.weightings.modo import MoDo
from mtlbench_zoo.weightings.sdmgrad import SDMGrad


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (MoDo, {}),
        (MoDo, {"gamma": 0.1, "rho": 0.0}),
        (SDMGrad, {}),
        (SDMGrad, {"lamda": 0.0, "n_iter": 3, "lr": 10.0, "momentum": 0.0}),
    ],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


def three_batches(seed: int, count: int) -> list[np.ndarray]:
    """Noisy gradients of one model: what three batches would give."""
    draw = np.random.default_rng(seed)
    mean = draw.normal(size=(count, 3)) @ draw.normal(size=(3, 20))
    return [mean + 0.3 * draw.normal(size=mean.shape) for _ in range(3)]


def onto_simplex(point: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex, by bisection on what is subtracted."""
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(point - low, 0)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_modo_is_its_algorithm_on_vectors(count: int) -> None:
    weighting, expected = MoDo(tiny_tasks(count), gamma=0.02, rho=0.1), np.full(count, 1 / count)
    for seed in range(5):
        first, second, third = three_batches(seed, count)
        direction = expected @ second
        expected = onto_simplex(expected - 0.02 * (first @ direction + 0.1 * expected))
        weights = weighting(torch.from_numpy(first @ second.T), torch.ones(count)).numpy()
        assert weights == pytest.approx(expected, abs=1e-12)
        assert weights @ third == pytest.approx(expected @ third, abs=1e-10)
    assert expected.min() < expected.max()


@pytest.mark.parametrize("count", [2, 3, 7])
def test_sdmgrad_is_its_algorithm_on_vectors(count: int) -> None:
    weighting, expected = SDMGrad(tiny_tasks(count), lamda=0.4, lr=0.5), np.full(count, 1 / count)
    for seed in range(4):
        first, second, third = three_batches(seed, count)
        squares = np.maximum((first * second).sum(1), 0)
        unit = np.sqrt(squares).mean()
        velocity = np.zeros(count)
        for _ in range(20):
            direction = (expected @ second + 0.4 * second.mean(0)) / unit
            velocity = 0.5 * velocity + (first / unit) @ direction
            expected = onto_simplex(expected - 0.5 * velocity)
        update = (expected @ third + 0.4 * third.mean(0)) / 1.4
        weights = weighting(torch.from_numpy(first @ second.T), torch.ones(count)).numpy()
        assert weights @ third == pytest.approx(update, abs=1e-9)
        assert weights.sum() == pytest.approx(1)


def test_without_noise_sdmgrad_comes_to_the_shortest_vector_near_the_mean() -> None:
    jacobian = three_batches(1, 3)[0]
    weighting = SDMGrad(tiny_tasks(3), lamda=0.3, lr=0.3)
    gram = torch.from_numpy(jacobian @ jacobian.T)
    for _ in range(200):
        weights = weighting(gram, torch.ones(3)).numpy()
    inner = 1.3 * weights - 0.1
    slope = jacobian @ ((inner + 0.1) @ jacobian)
    assert slope[inner > 1e-9].max() == pytest.approx(slope.min(), rel=1e-6)


def test_sdmgrad_does_not_depend_on_scale_and_order_of_the_losses() -> None:
    first, second, _ = three_batches(2, 4)
    cross = torch.from_numpy(first @ second.T)
    expected = SDMGrad(tiny_tasks(4))(cross, torch.ones(4))
    for factor in (2.0**40, 2.0**-40):  # which rounds nothing
        assert SDMGrad(tiny_tasks(4))(cross * factor, torch.ones(4)).equal(expected)
    order = torch.tensor([2, 0, 3, 1])
    permuted = SDMGrad(tiny_tasks(4), lr=0.3)(cross[order][:, order], torch.ones(4))
    straight = SDMGrad(tiny_tasks(4), lr=0.3)(cross, torch.ones(4))
    assert permuted == pytest.approx(straight[order], abs=1e-12)


def test_products_that_are_all_negative_leave_sdmgrads_weights() -> None:
    weighting = SDMGrad(tiny_tasks(2))
    weights = weighting(-torch.eye(2, dtype=torch.float64), torch.ones(2))
    assert weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("cls", [MoDo, SDMGrad])
def test_tasks_without_a_label_keep_their_weight(cls) -> None:
    weighting = cls(tiny_tasks(3))
    first, second, _ = three_batches(0, 3)
    cross = torch.from_numpy(first @ second.T)
    weighting(cross, torch.ones(3))
    before = weighting.weights.clone()
    weighting.active = torch.tensor([0, 2])
    weights = weighting(cross[[0, 2]][:, [0, 2]], torch.ones(2))
    assert weights.sum() == pytest.approx(1)
    assert weighting.weights[1] == before[1]
    assert weighting.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (MoDo, {"gamma": -1.0}, "modo: gamma must be a finite number >= 0, got -1"),
        (MoDo, {"rho": math.inf}, "modo: rho must be"),
        (SDMGrad, {"lamda": math.nan}, "sdmgrad: lamda must be"),
        (SDMGrad, {"lr": -0.5}, "sdmgrad: lr must be"),
        (SDMGrad, {"n_iter": 0}, "sdmgrad: n_iter must be an integer >= 1, got 0"),
        (SDMGrad, {"momentum": 1.0}, "sdmgrad: momentum must be from 0 to below 1"),
    ],
)
def test_a_wrong_number_is_named(cls, parameters, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        cls(tiny_tasks(2), **parameters)


SETTINGS: list[dict[str, Any]] = [
    {"weight": "modo", "arch": "mmoe"},
    {"weight": "sdmgrad", "data": "tiny[apart=true]"},
    {"weight": "ema[of=modo]", "data": "tiny[missing=0.5]"},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_a_run_of_several_batches_a_step_goes_on_exactly(
    setting: dict[str, Any], experiment: Callable[..., Any], tmp_path: Any
) -> None:
    made = experiment(**setting, batch_size=2)
    whole = facts(outcome(made))
    assert whole["status"] == "ok", whole["reason"]
    assert facts(outcome_in_pieces(made, tmp_path / "c.pt")) == whole


def test_an_epoch_is_one_pass_over_the_data_for_every_method(experiment: Callable[..., Any]) -> None:
    """24 samples in batches of 4: six steps of one batch, or two of three."""
    one, three = (outcome(experiment(weight=w, batch_size=4)) for w in ("ew", "modo"))
    assert (one.steps, one.samples) == (3 * 6, 3 * 24)
    assert (three.steps, three.samples) == (3 * 2, 3 * 24)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(4, [[0, 1, 2], [3, 4, 5]]), (5, [[0, 1, 2]]), (16, [[0, 1, 0]]), (24, [[0, 0, 0]])],
)
def test_each_step_takes_the_next_batches(
    size: int, expected: list[list[int]], experiment: Callable[..., Any]
) -> None:
    """What does not fill a step is left out; where one step takes more than all there are, they repeat."""
    made = experiment(batch_size=size)
    split = made.dataset.split("train")
    single = _Loader(split, list(made.run.tasks), made.run, 1, ALONE)
    several = _Loader(split, list(made.run.tasks), made.run, 3, ALONE)
    batches = [parts[0].inputs for (parts,), _ in single.epoch(0, 0)]
    found = [[parts[0].inputs for parts in step] for step, _ in several.epoch(0, 0)]
    assert len(found) == several.steps == len(expected)
    for step, numbers in zip(found, expected, strict=True):
        assert all(inputs.equal(batches[n]) for inputs, n in zip(step, numbers, strict=True))
    resumed = [[parts[0].inputs for parts in step] for step, _ in several.epoch(0, several.steps - 1)]
    assert len(resumed) == 1
    assert all(a.equal(b) for a, b in zip(resumed[0], found[-1], strict=True))


def test_features_of_several_batches_are_refused(experiment: Callable[..., Any]) -> None:
    with pytest.raises(MtlbenchError, match="modo compares gradients of several batches"):
        experiment(weight="modo", grad="features")
