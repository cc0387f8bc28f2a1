"""What a weighting promises."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.testing.matrices import LinearLookahead, Matrix, matrix_zoo
from mtlbench.testing.parts import build, inner_weightings, require_gradients, through_checkpoint, tiny_tasks

PROPERTIES = frozenset({"permutation-equivariant", "scale-free", "non-conflicting", "diagonal"})

Make = Callable[[tuple[Task, ...]], Weighting]


def check_weighting(cls: type[Weighting], **parameters: Any) -> None:
    """Assert that a weighting with these parameters keeps the contract and what its `properties` declare.

    On all matrices of `matrix_zoo`: finite, of the right shape, the same again from the same generator,
    without a draw from a global one and without touching what it was given; equivariant, scale-free,
    non-conflicting, blind to what is off the diagonal where it says so. Besides: a resumed weighting answers
    like one that never stopped; a batch that lacks some tasks is answered; learned parameters are in the
    objective.

    A number of tasks that the constructor refuses with `MtlbenchError` is left out; it must accept some.
    What a wrapper wraps is looked up among the installed plugins; its `needs` and `properties` are those of
    the instance.
    """
    name = cls.__name__
    assert cls.__doc__, f"{name}: its docstring is its method card, and it has none"
    assert isinstance(getattr(cls, "needs", None), Need), f"{name}: needs must be a Need, such as Need.GRAM"

    def make(tasks: tuple[Task, ...]) -> Weighting:
        weighting = build(cls, {"tasks": tasks, "weightings": inner_weightings(tasks)}, parameters)
        for part in weighting.modules():
            if isinstance(part, Weighting):
                part.active = torch.arange(len(tasks))
                part.generator.manual_seed(0)
        return weighting

    sizes = _accepted_sizes(make)
    assert sizes, f"{name}: the constructor refuses every number of tasks from 1 to 40"
    example = make(tiny_tasks(min(sizes)))
    needs, properties = example.needs, example.properties
    unknown = sorted(properties - PROPERTIES)
    assert not unknown, f"{name}: unknown properties {unknown}; there are {sorted(PROPERTIES)}"
    for matrix in matrix_zoo():
        if matrix.count not in sizes:
            continue
        tasks = tiny_tasks(matrix.count)
        answer = _answer(make(tasks), matrix)
        again = _answer(make(tasks), matrix)
        assert torch.equal(answer, again), (
            f"{name}: two answers from one generator state differ on {matrix.name}"
        )
        if "diagonal" in properties:
            bare = _answer(make(tasks), matrix.with_gram(matrix.gram.diagonal().diag()))
            assert torch.equal(answer, bare), (
                f"{name}: it is declared diagonal and reads more of the matrix, on {matrix.name}"
            )
        if "non-conflicting" in properties:
            _check_non_conflicting(name, needs, matrix, answer)
        if "scale-free" in properties:
            for factor in (1e-6, 1e-3, 1e3, 1e6):
                _check_same(name, needs, "scale-free", matrix, answer, _scaled(make(tasks), matrix, factor))
        if "permutation-equivariant" in properties:
            permuted = _permuted(make, tasks, matrix)
            _check_same(name, needs, "permutation-equivariant", matrix, answer, permuted)
    count = min(sizes, key=lambda size: abs(size - 5))
    tasks, matrices = tiny_tasks(count), [matrix for matrix in matrix_zoo() if matrix.count == count]
    if needs is Need.JACOBIAN:  # the gradients of one run have one length
        width = matrices[-1].jacobian.shape[1]
        matrices = [matrix for matrix in matrices if matrix.jacobian.shape[1] == width]
    _check_resume(make(tasks), make(tasks), matrices)
    _check_random(make(tasks), matrices[0])
    _check_subsets(make(tasks), matrices[0])
    _check_parameters(make(tasks), matrices[0])


def _accepted_sizes(make: Make) -> set[int]:
    sizes = set()
    for count in range(1, 41):
        try:
            make(tiny_tasks(count))
        except MtlbenchError:
            continue
        sizes.add(count)
    return sizes


def _answer(weighting: Weighting, matrix: Matrix) -> Tensor:
    """Return the weights ``[T]`` (of an objective: its derivatives by the losses) or the update ``[P]``."""
    name, where = type(weighting).__name__, f"on {matrix.name}"
    losses = matrix.losses.clone().requires_grad_(weighting.needs is Need.LOSSES)
    match weighting.needs:
        case Need.LOSSES:
            inputs: tuple[Tensor, ...] = (losses,)
        case Need.GRAM:
            gram = matrix.gram.clone()
            inputs = (gram if weighting.blocks == "model" else torch.stack([gram, 2 * gram]), losses)
        case Need.CROSS:
            inputs = (matrix.cross.clone(), losses)
        case Need.BILEVEL:
            inputs = (losses.double(),)
        case Need.JACOBIAN:
            inputs = (matrix.jacobian.clone(), losses)
    before = [tensor.detach().clone() for tensor in inputs]
    ahead = [LinearLookahead(matrix)] if weighting.needs is Need.BILEVEL else []
    answer = weighting(*ahead, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True)), (
        f"{name}: forward changes what it is given, {where}"
    )
    assert isinstance(answer, Tensor), f"{name}: forward must return a tensor, got {type(answer).__name__}"
    if weighting.needs is Need.LOSSES and answer.ndim == 0:
        assert answer.isfinite(), f"{name}: the objective is {answer.item()} {where}"
        assert answer.requires_grad, f"{name}: the objective does not depend on the losses"
        (answer,) = torch.autograd.grad(answer, losses)
    shape: tuple[int, ...] = (matrix.count,)
    if weighting.needs is Need.JACOBIAN:
        shape = (matrix.jacobian.shape[1],)
    elif weighting.blocks != "model" or (ahead and answer.ndim == 2):
        shape = (2, matrix.count)
    assert answer.shape == shape, f"{name}: the answer must be {shape}, got {tuple(answer.shape)} {where}"
    assert answer.isfinite().all(), f"{name}: the answer is not finite {where}: {answer.tolist()}"
    if weighting.heads == "own":
        _check_head_weights(weighting, matrix)
    if weighting.blocks != "model":  # both blocks have one matrix, but for its scale
        answer = answer[0]
    return answer.detach()


def _check_head_weights(weighting: Weighting, matrix: Matrix) -> None:
    name, given = type(weighting).__name__, getattr(weighting, "head_weights", None)
    assert isinstance(given, Tensor), f'{name}: heads = "own", so forward must set self.head_weights'
    assert given.shape == (matrix.count,), (
        f"{name}: head_weights must be ({matrix.count},), got {tuple(given.shape)} on {matrix.name}"
    )
    assert given.isfinite().all(), f"{name}: head_weights are not finite on {matrix.name}: {given.tolist()}"


def _check_random(weighting: Weighting, matrix: Matrix) -> None:
    before = _global_random_state()
    _answer(weighting, matrix)
    assert _global_random_state() == before, (
        f"{type(weighting).__name__}: draws from a global generator; every draw must come from self.generator"
    )


def _global_random_state() -> tuple[object, ...]:
    _, key, position, *_ = np.random.get_state()
    return torch.get_rng_state().tolist(), np.asarray(key).tobytes(), position, random.getstate()


def _scaled(weighting: Weighting, matrix: Matrix, factor: float) -> Tensor:
    answer = _answer(weighting, matrix.times(factor))
    return answer / factor if weighting.needs is Need.JACOBIAN else answer


def _permuted(make: Make, tasks: tuple[Task, ...], matrix: Matrix) -> Tensor:
    """Return the answer to the tasks in another order, put back into the first order."""
    order = torch.randperm(matrix.count, generator=torch.Generator().manual_seed(3))
    weighting = make(tuple(tasks[i] for i in order.tolist()))
    answer = _answer(weighting, matrix.pick(order))
    return answer if weighting.needs is Need.JACOBIAN else answer[..., order.argsort()]


def _check_same(name: str, needs: Need, what: str, matrix: Matrix, expected: Tensor, found: Tensor) -> None:
    """Assert that two answers make the same update of the shared parameters.

    Weights from a Gram matrix are compared by the update that they make: where gradients are dependent,
    several weights make the same one.
    """
    difference, size = (found - expected).double(), expected.double().abs()
    if needs.small:
        gram = matrix.gram if found.ndim == 1 else LinearLookahead(matrix).gram()
        difference, size = difference.flatten(), size.flatten()
        error = (difference @ gram @ difference).clamp(min=0).sqrt()
        scale = size @ gram.diagonal().sqrt()
    elif needs is Need.JACOBIAN:
        error, scale = difference.norm(), matrix.jacobian.double().norm(dim=1).max().maximum(size.norm())
    else:
        error, scale = difference.abs().max(), size.max()
    assert error <= 1e-5 * scale, (
        f"{name}: it is declared {what} and is not, on {matrix.name}: "
        f"{expected.tolist()} became {found.tolist()}"
    )


def _check_non_conflicting(name: str, needs: Need, matrix: Matrix, answer: Tensor) -> None:
    lengths = matrix.gram.diagonal().sqrt()
    if needs is Need.JACOBIAN:
        products, size = matrix.jacobian.double() @ answer.double(), answer.double().norm()
    else:
        products, size = matrix.gram @ answer.double(), answer.double().abs() @ lengths
    assert (products >= -1e-6 * lengths * size).all(), (
        f"{name}: it is declared non-conflicting, but on {matrix.name} the update has the products "
        f"{products.tolist()} with the task gradients"
    )


def _check_resume(weighting: Weighting, resumed: Weighting, matrices: list[Matrix]) -> None:
    """Assert that a weighting that went through a checkpoint goes on as if nothing had happened."""
    for matrix in matrices[:3]:
        _live_one_epoch(weighting, matrix)
        with torch.no_grad():
            for parameter in weighting.parameters():
                parameter.add_(0.1)
    resumed.generator.manual_seed(4)
    through_checkpoint(weighting, resumed)
    for matrix in matrices:
        expected, found = _live_one_epoch(weighting, matrix), _live_one_epoch(resumed, matrix)
        assert torch.equal(expected, found), (
            f"{type(weighting).__name__}: after a checkpoint it answers {found.tolist()} instead of "
            f"{expected.tolist()}; is all state in buffers, parameters and self.generator?"
        )


def _live_one_epoch(weighting: Weighting, matrix: Matrix) -> Tensor:
    answer = _answer(weighting, matrix)
    weighting.after_step(lambda: 0.9 * matrix.losses)
    weighting.after_epoch(matrix.losses.double())
    return answer


def _check_subsets(weighting: Weighting, matrix: Matrix) -> None:
    """Assert that batches in which tasks lack their labels are answered."""
    every = torch.arange(matrix.count)
    for active in (every[::2], every[-1:], every[1:], every):
        if len(active):
            weighting.active = active
            _answer(weighting, matrix.pick(active))


def _check_parameters(weighting: Weighting, matrix: Matrix) -> None:
    """Assert that what the optimiser is to learn is part of an objective."""
    if weighting.needs is Need.LOSSES and any(p.requires_grad for p in weighting.parameters()):
        name, objective = type(weighting).__name__, weighting(matrix.losses)
        assert objective.ndim == 0, f"{name}: with parameters to learn it must return the objective, a scalar"
        require_gradients(name, weighting, objective)
