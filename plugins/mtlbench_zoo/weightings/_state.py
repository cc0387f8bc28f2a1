"""Kinds of state that several weightings keep, all in buffers so that a resumed run goes on exactly."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numba import carray
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlbench.compiled import HEAD, LETTERS, Shared, arrive, compiled, last, pointer, take, told
from mtlbench.contracts import Task, Weighting
from mtlbench.errors import MtlbenchError

Array = NDArray[np.float64]

BLOCK = 1 << 19
"""Elements of a block of `columns`."""

_PIECE = 1 << 14
"""Columns that one thread takes at a time."""

_AHEAD = 16
"""Steps for which is drawn at once what `MeetingState.draws` gives."""

_NO_CHOICE = np.zeros((2, 2))

_STRETCH = 1 << 11
"""Elements that a kernel sums in the rows' own precision, or uses again while they are in the cache."""


class Adam(nn.Module):
    """Adam (arXiv:1412.6980) for ``count`` values of which only some may be active in a step."""

    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, count: int, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        for name in ("first", "second", "steps"):
            self.register_buffer(name, torch.zeros(count, dtype=torch.float64))

    def forward(self, active: Tensor, gradient: Tensor) -> Tensor:
        """Return what to add to the ``active`` values, whose ``gradient`` (float64) is given."""
        state = [self.first, self.second, self.steps]
        numbers = [each.numpy(force=True) for each in (*state, active, gradient)]
        change = adam_step(self.learning_rate, *numbers)
        if not self.first.is_cpu:
            for each, moved in zip(state, numbers, strict=False):
                each.copy_(torch.from_numpy(moved))
        return torch.from_numpy(change).to(gradient)


@compiled()
def adam_step(
    rate: float, first: Array, second: Array, steps: Array, active: NDArray[np.int64], gradient: Array
) -> Array:
    """Return what `Adam` adds to the active values; its state, arrays ``[count]``, moves in its place."""
    change = np.empty(len(active))
    for i in range(len(active)):
        t = active[i]
        steps[t] += 1
        first[t] = 0.9 * first[t] + 0.1 * gradient[i]
        second[t] = 0.999 * second[t] + 0.001 * gradient[i] ** 2
        size = np.sqrt(second[t] / (1 - 0.999 ** steps[t])) + 1e-8
        change[i] = -rate * first[t] / (1 - 0.9 ** steps[t]) / size
    return change


class GradientState(Weighting):
    """A Jacobian weighting that keeps a vector as long as the gradient for every task: ``running`` [T, P].

    P is known when the first gradient comes, so that the buffer has no columns until then; a checkpoint
    brings its own size.
    """

    running: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.count = len(tasks)
        self.register_buffer("running", torch.empty(len(tasks), 0))

    def rows(self, jacobian: Tensor) -> Tensor:
        """Return ``running`` of the active tasks, whose gradients are given; zeros at first.

        It is ``running`` itself where all tasks are active; else `keep` must follow. Raises where gradients
        changed length.
        """
        running, width = self.running, jacobian.shape[1]
        if not running.shape[1]:
            self.running = running = jacobian.new_zeros(self.count, width)
        elif running.shape[1] != width:
            raise MtlbenchError(
                f"{type(self).__name__} follows each task's gradient from step to step, but its length"
                f" changed from {running.shape[1]} to {width}: use --grad parameters, where it is constant"
            )
        return running if jacobian.shape[0] == self.count else running[self.active]

    def keep(self, rows: Tensor) -> None:
        """Let ``running`` of the active tasks be ``rows``."""
        if rows.shape[0] != self.count:
            self.running[self.active] = rows

    def average(
        self, jacobian: Tensor, kept: float, shares: Sequence[float], weights: Sequence[float] = ()
    ) -> tuple[Tensor, Array]:
        """Let ``running`` y of each active task be  kept y_t + shares_t g_t,  in one pass over the memory.

        Return these rows ``[T, P]`` and, float64 ``[2, T]``, the diagonal of  M = Y Yᵀ  and, where weights
        are given, M times these; summed in the rows' precision, see `squared_without_loss`.
        """
        rows = self.rows(jacobian)
        alike = jacobian.dtype is rows.dtype and jacobian.shape == rows.shape
        if alike and _dense(rows) and _dense(jacobian):
            count, length = rows.shape
            numbers = array(LETTERS[rows.dtype], (kept, *shares, *weights))
            pieces = -(-length // _PIECE)
            parts = array("d", [0.0]) * (2 * count * (1 + pieces))  # the whole, and the pieces
            whole, _ = parts.buffer_info()
            places = numbers.buffer_info()[0], whole + 16 * count, whole
            own = rows.data_ptr(), jacobian.data_ptr()
            order = array("q", (*HEAD, pieces, count, length, len(numbers), *own, *places))
            _FOLLOW(rows.dtype, order, count * length)
            sums = np.frombuffer(parts, count=2 * count).reshape(2, count)
        else:
            sums = self._average_by_torch(rows, jacobian.detach().to(rows), kept, shares, weights)
        self.keep(rows)
        return rows, sums

    def _average_by_torch(
        self, rows: Tensor, gradients: Tensor, kept: float, shares: Sequence[float], weights: Sequence[float]
    ) -> Array:
        factors, total = rows.new_tensor(shares)[:, None], rows.new_tensor(weights)
        sums = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
        for averages, new in columns(rows, gradients):
            averages.mul_(kept).addcmul_(new, factors)
            sums[0] += squares(averages)
            if weights:
                sums[1] += torch.mv(averages, total @ averages)
        return sums.numpy(force=True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}running")
        if saved is not None and len(saved) == len(self.running):
            self.running = torch.empty_like(saved, device=self.running.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _follow(order: Any) -> None:
    """Take piece after piece and do what `GradientState.average` says; the last adds up the pieces' sums.

    order: a 0 of the rows' type, from where on numbers say what to do.
    """
    zero = carray(order, 1)
    head = zero.ctypes.data
    given = told(head, 9)
    pieces, count, length = given[0], given[1], given[2]
    rows = carray(pointer(given[4]), (count, length), zero.dtype)
    gradients = carray(pointer(given[5]), (count, length), zero.dtype)
    numbers = carray(pointer(given[6]), given[3], zero.dtype)
    parts = carray(pointer(given[7]), (pieces, 2, count), np.float64)
    sums = carray(pointer(given[8]), (2, count), np.float64)
    side = arrive(head)
    while True:
        piece = take(head, side, pieces, False)
        if piece == pieces:
            break
        _average(rows, gradients, numbers, piece * _PIECE, min((piece + 1) * _PIECE, length), parts[piece])
        if last(head, pieces):
            for each in range(pieces):
                sums += parts[each]


_FOLLOW = Shared(_follow)


@compiled(reorder=True)
def _average(rows: Any, gradients: Any, numbers: Any, start: int, stop: int, found: Array) -> None:
    """Average columns from ``start`` on; numbers: what is kept, T shares and T weights or none."""
    count, zero, kept = len(rows), rows.dtype.type(0), numbers[0]
    total = np.empty(_STRETCH, rows.dtype)
    for begin in range(start, stop, _STRETCH):
        end = min(begin + _STRETCH, stop)
        for t in range(count):
            row, gradient, share, square = rows[t, begin:end], gradients[t, begin:end], numbers[1 + t], zero
            for k in range(len(row)):
                value = kept * row[k] + share * gradient[k]
                row[k] = value
                square += value * value
            found[0, t] += square
        if len(numbers) == 1 + count:
            continue
        total[:] = zero
        for t in range(count):
            row, weight = rows[t, begin:end], numbers[1 + count + t]
            for k in range(len(row)):
                total[k] += weight * row[k]
        for t in range(count):
            row, product = rows[t, begin:end], zero
            for k in range(len(row)):
                product += row[k] * total[k]
            found[1, t] += product


def weighted_sum(rows: Tensor, weights: Sequence[float]) -> Tensor:
    """Return  sum_t weights_t rows_t  ``[P]`` for ``rows`` ``[T, P]``, summed in their precision.

    `Jacobian.combine` would write over the first row. From three rows on, this takes a CPU half as long as
    torch's product of a vector and a matrix.
    """
    count, length = rows.shape
    if not _dense(rows) or not count:
        return rows.new_tensor(weights) @ rows
    total, factors = rows.new_empty(length), array(LETTERS[rows.dtype], weights)
    places = rows.data_ptr(), factors.buffer_info()[0], total.data_ptr()
    _SUM(rows.dtype, array("q", (*HEAD, -(-length // _PIECE), count, length, *places)), count * length)
    return total


def _sum(order: Any) -> None:
    """Take piece after piece and do what `weighted_sum` says; see `_follow`."""
    zero = carray(order, 1)
    head = zero.ctypes.data
    given = told(head, 6)
    pieces, count, length = given[0], given[1], given[2]
    rows = carray(pointer(given[3]), (count, length), zero.dtype)
    weights = carray(pointer(given[4]), count, zero.dtype)
    total = carray(pointer(given[5]), length, zero.dtype)
    side = arrive(head)
    while True:
        piece = take(head, side, pieces, True)
        if piece == pieces:
            break
        stop = min((piece + 1) * _PIECE, length)
        for begin in range(piece * _PIECE, stop, _STRETCH):
            _write_sum(rows, weights, begin, min(begin + _STRETCH, stop), total)


_SUM = Shared(_sum)


@compiled()
def _write_sum(rows: Any, weights: Any, begin: int, end: int, total: Any) -> None:
    """Write to columns of ``total``, few enough to stay in the cache, the weighted sum of those of ``rows``.

    Four rows are read at a time; where there are fewer, the last one again, times 0.
    """
    found, last, zero = total[begin:end], len(rows) - 1, weights.dtype.type(0)
    found[:] = zero
    for t in range(0, len(rows), 4):
        u, v, w = min(t + 1, last), min(t + 2, last), min(t + 3, last)
        one, two, three, four = rows[t, begin:end], rows[u, begin:end], rows[v, begin:end], rows[w, begin:end]
        a, b = weights[t], weights[u] if u > t else zero
        c, d = weights[v] if v > u else zero, weights[w] if w > v else zero
        for k in range(len(found)):
            found[k] += a * one[k] + b * two[k] + c * three[k] + d * four[k]


class MeetingState(Weighting):
    """A weighting whose tasks meet each other in a random order, another one in every step.

    What is drawn for that is drawn for some steps ahead, since to draw takes longer than to weigh. It is what
    would have been drawn step by step, and what is left of it is state: it is used up first where the
    generator is seeded anew in between.
    """

    def __init__(self, tasks: Sequence[Task] = ()) -> None:
        super().__init__(tasks)
        self._drawn: list[Array] = []

    def draws(self, count: int) -> Array:
        """Return numbers ``[count, count]`` by whose order in row i task i meets the others in this step."""
        if count == 2:
            return _NO_CHOICE
        if not self._drawn or len(self._drawn[-1]) != count:
            size = _AHEAD, count, count
            self._drawn = [*torch.rand(size, dtype=torch.float64, generator=self.generator).numpy()[::-1]]
        return self._drawn.pop()

    def get_extra_state(self) -> Any:
        """Return the generator's state, and what was drawn and not yet used."""
        drawn = torch.from_numpy(np.array(self._drawn)) if self._drawn else torch.empty(0)
        return {"generator": super().get_extra_state(), "drawn": drawn}

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` gave."""
        super().set_extra_state(state["generator"])
        self._drawn = [*state["drawn"].numpy()]


class SimplexState(Weighting):
    """A weighting that moves weights on the simplex from step to step: ``weights`` [T], even at first.

    Tasks without a label in the batch keep their weight; the others share what they have together.
    """

    weights: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.register_buffer("weights", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    def shares(self) -> Array:
        """Return the weights of the active tasks, divided by their sum."""
        return shares_of(self.weights.numpy(), self.active.numpy())

    def keep(self, shares: Array) -> Tensor:
        """Let the active tasks divide the weight that they have together like this; return ``shares``."""
        divide(self.weights.numpy(), self.active.numpy(), shares)
        return torch.from_numpy(shares)


@compiled()
def shares_of(weights: Array, active: NDArray[np.int64]) -> Array:
    """Return the weights of the active tasks, divided by their sum."""
    own = weights[active]
    mass = own.sum()
    return own / mass if mass > 0 else np.full(len(own), 1 / len(own))


@compiled()
def divide(weights: Array, active: NDArray[np.int64], shares: Array) -> None:
    """Let the active tasks divide the weight that they have together in these shares."""
    mass = weights[active].sum()
    for i in range(len(active)):
        weights[active[i]] = mass * shares[i]


def _dense(rows: Tensor) -> bool:
    """Say whether machine code can read the rows by their address."""
    return rows.is_cpu and rows.is_contiguous() and rows.dtype in LETTERS


def columns(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut matrices [T, P] into blocks of columns, as views, that stay in the cache between two uses."""
    count, length = matrices[0].shape
    width = BLOCK // max(count, 1)
    for start in range(0, length, width):
        yield tuple(matrix[:, start : start + width] for matrix in matrices)


def squares(rows: Tensor) -> Tensor:
    """Return the squared lengths of ``rows`` [T, P], float64 [T] on their device."""
    return torch.stack([row.dot(row) for row in rows]).double()


def squared_without_loss(squares: Sequence[float]) -> bool:
    """Return whether squares and their parts are well inside of what float32 can hold."""
    return all(1e-24 < square < 1e30 for square in squares)
