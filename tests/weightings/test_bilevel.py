"""auto-lambda, moml and forum: their steps on quadratic tasks, whose gradients have a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from runs import facts, outcome, outcome_in_pieces
from scipy.optimize import minimize
from torch import Tensor

from mtlbench.contracts import Lookahead, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_weighting, tiny_tasks
from mtlbench_zoo.weightings.auto_lambda import AutoLambda
from mtlbench_zoo.weightings.forum import FORUM
from mtlbench_zoo.weightings.moml import MOML

RATE = 0.05


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (AutoLambda, {}),
        (AutoLambda, {"learning_rate": 0.1, "init": 1.0}),
        (MOML, {}),
        (MOML, {"normalize": "l2", "inner_lr": 0.1, "learning_rate": 1e-3}),
        (FORUM, {}),
        (FORUM, {"rho": 1.0, "inner_step": 1, "learning_rate": 0.1}),
    ],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


class Quadratic:
    """Losses |A_t (x - c_t)|² / 2 of T tasks at a point x; those of the held-out batch have other A and c."""

    def __init__(self, seed: int, count: int, size: int = 6) -> None:
        draw = np.random.default_rng(seed)
        self.rate = RATE
        self.point = draw.normal(size=size)
        self.curves = [draw.normal(size=(2, count, 4, size))[i] / 2 for i in (0, 1)]
        self.centres = draw.normal(size=(2, count, size))

    def loss(self, batch: int, point: np.ndarray) -> np.ndarray:
        away = point - self.centres[batch]
        return np.array([(a @ v) @ (a @ v) / 2 for a, v in zip(self.curves[batch], away, strict=True)])

    def slope(self, batch: int, point: np.ndarray) -> np.ndarray:
        away = point - self.centres[batch]
        return np.stack([a.T @ a @ v for a, v in zip(self.curves[batch], away, strict=True)])

    def gram(self) -> Tensor:
        both = np.concatenate([self.slope(0, self.point), self.slope(1, self.point)])
        return torch.from_numpy(both @ both.T)

    def cross(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        here = self.slope(0, self.point)
        there = self.point - steps.numpy() @ here
        return torch.from_numpy(here @ self.slope(1, there).T), torch.from_numpy(self.loss(1, there))

    def losses(self, steps: Tensor, count: int) -> Tensor:
        point = self.point
        for _ in range(count):
            point = point - steps.numpy() @ self.slope(0, point)
        return torch.from_numpy(self.loss(0, point))

    def ask(self, weighting: Weighting) -> np.ndarray:
        ahead: Lookahead = self
        answer: np.ndarray = weighting(ahead, torch.from_numpy(self.loss(0, self.point))).numpy()
        return answer


def numeric(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The derivatives of ``function`` [M] by ``at`` [N], as [M, N], by central differences."""
    unit = np.eye(len(at)) * step
    return np.stack([(function(at + u) - function(at - u)) / (2 * step) for u in unit], axis=1)


def first_adam_step(gradient: np.ndarray, rate: float) -> np.ndarray:
    return -rate * gradient / (np.abs(gradient) + 1e-8)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("primary", [None, ["task1"]])
def test_auto_lambda_follows_the_derivative_of_the_held_out_losses(count: int, primary: Any) -> None:
    tasks, weighting = Quadratic(count, count), AutoLambda(tiny_tasks(count), primary, learning_rate=0.01)
    chosen = np.ones(count) if primary is None else np.eye(count)[1]

    def after(weights: np.ndarray) -> np.ndarray:
        there = tasks.point - RATE * weights @ tasks.slope(0, tasks.point)
        return np.array([chosen @ tasks.loss(1, there)])

    derivative = numeric(after, np.full(count, 0.1))[0]
    expected = 0.1 + first_adam_step(derivative, 0.01)
    assert tasks.ask(weighting) == pytest.approx(expected, abs=1e-7)


def test_auto_lambda_counts_auxiliary_tasks_only_if_asked() -> None:
    tasks = tiny_tasks(3)
    some = (tasks[0], replace(tasks[1], auxiliary=True), tasks[2])
    assert AutoLambda(some).primary.tolist() == [1, 0, 1]
    assert AutoLambda(some, ["task1"]).primary.tolist() == [0, 1, 0]
    assert AutoLambda([replace(task, auxiliary=True) for task in tasks]).primary.tolist() == [1, 1, 1]


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("normalize", ["none", "l2", "loss"])
def test_moml_follows_the_shortest_derivative_of_all_held_out_losses(count: int, normalize: Any) -> None:
    tasks = Quadratic(count, count)
    weighting = MOML(tiny_tasks(count), inner_lr=0.1, learning_rate=0.01, normalize=normalize)

    def after(logits: np.ndarray) -> np.ndarray:
        return tasks.loss(1, tasks.point - 0.1 * softmax(logits) @ tasks.slope(0, tasks.point))

    start = np.zeros(count)
    slopes = numeric(after, start)
    scale = {"none": np.ones(count), "l2": np.linalg.norm(slopes, axis=1), "loss": after(start)}[normalize]
    slopes = slopes / scale[:, None]
    found = minimize(
        lambda b: ((b @ slopes) ** 2).sum() * 1e4,
        np.full(count, 1 / count),
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda b: b.sum() - 1},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    shortest = found.x @ slopes
    answer = tasks.ask(weighting)
    if np.linalg.norm(shortest) > 1e-3 * np.linalg.norm(slopes):
        moved = weighting.logits.numpy()
        assert moved == pytest.approx(first_adam_step(shortest, 0.01), abs=2e-5)
    assert answer == pytest.approx(softmax(weighting.logits.numpy()))
    assert answer.sum() == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("rho", [0.0, 0.1, 2.0])
def test_forum_takes_the_best_direction_that_lowers_the_constraint(count: int, rho: float) -> None:
    """The direction of the first step is found by a generic solver from its definition."""
    tasks = Quadratic(count, count)
    weighting = FORUM(tiny_tasks(count), rho=rho, inner_lr=0.02, inner_step=3, learning_rate=0.01)
    weights = np.full(count, 1 / count)
    held = tasks.slope(1, tasks.point)
    held = held / np.linalg.norm(held, axis=1, keepdims=True)
    end = tasks.point
    for _ in range(3):
        end = end - 0.02 * weights @ tasks.slope(0, end)
    gap = tasks.loss(0, tasks.point) - tasks.loss(0, end)
    by_logits = (np.diag(weights) - np.outer(weights, weights)) @ gap
    constraint = np.concatenate([by_logits, weights @ tasks.slope(0, tasks.point)])
    rows = np.concatenate([np.zeros((count, count)), held], axis=1)
    level = -rho * constraint @ constraint
    size = len(constraint)
    found = minimize(  # d and the largest product t
        lambda v: v[-1] + v[:-1] @ v[:-1] / 2,
        np.zeros(size + 1),
        jac=lambda v: np.append(v[:-1], 1.0),
        constraints=[
            {"type": "ineq", "fun": lambda v: v[-1] - rows @ v[:-1]},
            {"type": "ineq", "fun": lambda v: level - constraint @ v[:-1]},
        ],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    direction = found.x[:-1]
    train, of_held = tasks.ask(weighting)
    update = train @ tasks.slope(0, tasks.point) + of_held @ tasks.slope(1, tasks.point)
    assert -update == pytest.approx(direction[count:], abs=2e-5 * max(1, np.linalg.norm(direction)))
    assert constraint @ -np.append(train.sum() * by_logits, update) <= level + 1e-9 * abs(level) + 1e-12
    assert (train >= 0).all()
    assert (of_held >= 0).all()
    if train.any():
        assert weighting.logits.numpy() == pytest.approx(
            first_adam_step(train.sum() * by_logits, 0.01), abs=1e-7
        )


def test_forum_averages_its_shares_from_the_second_epoch_on() -> None:
    weighting = FORUM(tiny_tasks(3))
    first = Quadratic(0, 3)
    first.ask(weighting)
    before = weighting.weights.clone()
    weighting.after_epoch(torch.ones(3, dtype=torch.float64))
    second = Quadratic(7, 3)
    alone = FORUM(tiny_tasks(3))
    alone.logits.copy_(weighting.logits)
    second.ask(alone)
    second.ask(weighting)
    assert weighting.weights == pytest.approx(before + (alone.weights - before) / 2**0.75)


@pytest.mark.parametrize("cls", [AutoLambda, MOML, FORUM])
def test_steps_lower_what_they_are_to_lower(cls) -> None:
    """Trained by its weights, the held-out losses fall."""
    tasks = Quadratic(3, 3)
    weighting = cls(tiny_tasks(3))
    before = tasks.loss(1, tasks.point).sum()
    for _ in range(100):
        weights = tasks.ask(weighting).reshape(-1, 3)
        rows = [tasks.slope(batch, tasks.point) for batch in range(len(weights))]
        tasks.point = tasks.point - 0.05 * sum(w @ row for w, row in zip(weights, rows, strict=True))
    assert tasks.loss(1, tasks.point).sum() < before


@pytest.mark.parametrize("cls", [AutoLambda, MOML, FORUM])
def test_tasks_without_a_label_rest(cls) -> None:
    weighting = cls(tiny_tasks(3))
    Quadratic(0, 3).ask(weighting)
    state = weighting.weights if hasattr(weighting, "weights") else weighting.logits
    before = state.clone()
    weighting.active = torch.tensor([0, 2])
    Quadratic(1, 2).ask(weighting)
    assert state[1] == before[1]
    assert not state[[0, 2]].equal(before[[0, 2]])


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (AutoLambda, {"init": 0.0}, "auto-lambda: init must be a finite number > 0, got 0"),
        (AutoLambda, {"learning_rate": math.nan}, "auto-lambda: learning_rate must be"),
        (AutoLambda, {"primary": ["tsk1"]}, "auto-lambda: .*no task 'tsk1'. Did you mean 'task1'"),
        (AutoLambda, {"primary": []}, "auto-lambda: primary must name one task or more"),
        (MOML, {"inner_lr": 0.0}, "moml: inner_lr must be a finite number > 0, or None, got 0"),
        (MOML, {"learning_rate": -1.0}, "moml: learning_rate must be"),
        (FORUM, {"rho": -0.1}, "forum: rho must be a finite number >= 0"),
        (FORUM, {"inner_lr": math.inf}, "forum: inner_lr must be"),
        (FORUM, {"inner_step": 0}, "forum: inner_step must be an integer >= 1, got 0"),
        (FORUM, {"learning_rate": math.inf}, "forum: learning_rate must be"),
    ],
)
def test_a_wrong_value_is_named(cls, parameters, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        cls(tiny_tasks(2), **parameters)


SETTINGS: list[dict[str, Any]] = [
    {"weight": "auto-lambda", "arch": "mmoe"},
    {"weight": "moml", "data": "tiny[apart=true]"},
    {"weight": "forum", "data": "tiny[missing=0.4]"},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_a_bilevel_run_goes_on_exactly(
    setting: dict[str, Any], experiment: Callable[..., Any], tmp_path: Any
) -> None:
    made = experiment(**setting, batch_size=4)
    whole = facts(outcome(made))
    assert whole["status"] == "ok", whole["reason"]
    assert whole["steps"] == 3 * 3
    assert facts(outcome_in_pieces(made, tmp_path / "c.pt")) == whole


@pytest.mark.parametrize("of", ["moml", "forum"])
def test_they_are_not_averaged_nor_reused(of: str, experiment: Callable[..., Any]) -> None:
    with pytest.raises(MtlbenchError, match="learns its weights over steps already"):
        experiment(weight=f"ema[of={of}]")
    with pytest.raises(MtlbenchError, match="every: "):
        experiment(weight=f"every[of={of}]")


def test_two_batches_cannot_be_brought_to_one_footing(experiment: Callable[..., Any]) -> None:
    with pytest.raises(MtlbenchError, match="--scale sum: forum weighs two batches"):
        experiment(weight="forum", scale="sum")
    experiment(weight="moml", scale="sum")
