from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence

import pytest
import torch

from mtlbench import compiled
from mtlbench.gradients import Jacobian, kernels


def _rows(tasks: int, lengths: list[int], dtype: torch.dtype, seed: int = 0) -> list[list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [[torch.randn(length, generator=draw, dtype=dtype) for length in lengths] for _ in range(tasks)]


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_length_around_blocks_and_stretches(tasks: int, dtype: torch.dtype) -> None:
    edge = kernels.STRETCH
    lengths = [1, 511, 512, 513, edge - 1, edge, edge + 1]
    rows, others = _rows(tasks, lengths, dtype), _rows(tasks + 1, lengths, dtype, seed=1)
    dense, second = (torch.stack([torch.cat(row) for row in r]).double() for r in (rows, others))
    close = 1e-5 if dtype == torch.float32 else 1e-12
    size = dense.norm(dim=1)
    assert ((Jacobian(rows).gram() - dense @ dense.T).abs() <= close * size[:, None] * size).all()
    width = kernels.width_for(tasks + 1)
    first, both = kernels.Rows(tasks, width), kernels.Rows(tasks + 1, width)
    assert all(map(first.add, zip(*rows, strict=True)))
    assert all(map(both.add, zip(*others, strict=True)))
    found = first.products(both)
    assert ((found - dense @ second.T).abs() <= close * dense.norm() * second.norm()).all()
    assert (
        (Jacobian(rows).products(Jacobian(rows[::-1])) - dense @ dense.flip(0).T).abs()
        <= close * dense.norm() ** 2
    ).all()
    weights = torch.randn(tasks, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    summed = torch.cat([part for part in Jacobian(rows).combine(weights.tolist()) if part is not None])
    assert summed.data_ptr() != rows[0][0].data_ptr()
    torch.testing.assert_close(summed.double(), weights @ dense, rtol=0, atol=10 * close)
    assert torch.equal(torch.cat(rows[0]), summed)  # written over the first row


@pytest.mark.parametrize("tasks", range(1, 26))
def test_nothing_is_read_behind_the_weights(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def followed_by_junk(letter: str, values: Sequence[float] = ()) -> array[float]:
        return array(letter, [*values, *[1e30] * 8] if letter == "f" else values)

    monkeypatch.setattr(kernels, "array", followed_by_junk)
    rows, weights = _rows(tasks, [3, 600], torch.float32), torch.arange(1.0, tasks + 1)
    expected = weights @ torch.stack([torch.cat(row) for row in rows])
    summed = torch.cat([part for part in Jacobian(rows).combine(weights.tolist()) if part is not None])
    torch.testing.assert_close(summed, expected)


def test_sums_do_not_depend_on_the_number_of_threads(
    set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "MANY", 1 << 17)
    found = []
    for threads in (1, 2, 5):
        set_threads(threads)
        rows, others = (
            _rows(3, [300_001, 70_000, 3], torch.float32),
            _rows(3, [300_001, 70_000, 3], torch.float32, 1),
        )
        found.append(
            (
                Jacobian(rows).gram(),
                Jacobian(rows).products(Jacobian(others)),
                Jacobian(rows).combine([0.3, -1.0, 2.0]),
            )
        )
    for products, crossed, summed in found[1:]:
        assert torch.equal(products, found[0][0])
        assert torch.equal(crossed, found[0][1])
        for part, first in zip(summed, found[0][2], strict=True):
            assert part is not None
            assert first is not None
            assert torch.equal(part, first)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(
    set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "MANY", 1 << 17)
    set_threads(2)
    rows = _rows(2, [200_000], torch.float32)
    expected = Jacobian(rows).gram()
    if (child := os.fork()) == 0:
        os._exit(0 if torch.equal(Jacobian(rows).gram(), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    rows = _rows(3, [1000], torch.float32)
    rows[1][0][700] = bad
    products = Jacobian(rows).gram()
    assert not products[1].isfinite().any()
    assert products[[0, 2]][:, [0, 2]].isfinite().all()
    (summed,) = Jacobian(rows).combine([1.0, 0.0, 1.0])
    assert summed is not None
    assert not summed[700].isfinite()


def test_layouts_that_all_tasks_share_are_summed_in_place() -> None:
    draw = torch.Generator().manual_seed(0)
    images = [torch.randn(4, 3, 5, 5, generator=draw).to(memory_format=torch.channels_last) for _ in range(2)]
    tables = [torch.randn(6, 7, generator=draw).t() for _ in range(2)]
    gaps = [torch.randn(6, 14, generator=draw)[:, ::2] for _ in range(2)]
    rows = [[images[i], tables[i], gaps[i]] for i in range(2)]
    wanted = [2 * a.double() - b.double() for a, b in zip(*rows, strict=True)]
    products = sum(float((a.double() * b.double()).sum()) for a, b in zip(*rows, strict=True))
    assert float(Jacobian(rows).gram()[0, 1]) == pytest.approx(products, rel=1e-6)
    for part, want, place in zip(Jacobian(rows).combine([2.0, -1.0]), wanted, rows[0], strict=True):
        assert part is place
        torch.testing.assert_close(part.double(), want, rtol=1e-5, atol=1e-6)


def test_what_has_no_code_is_not_added_and_what_does_not_fit_not_multiplied() -> None:
    rows = kernels.Rows(2)
    part = torch.ones(6)
    for other in (None, part.double(), part[:5], torch.ones(12)[::2], part.half(), part.to("meta")):
        assert not rows.add([part, other])
        assert not rows.add([other, part])
    assert not rows.add([part.half(), part.half()])
    assert rows.add([part, part])
    assert rows.dtype == torch.float32
    assert not rows.add([part.double(), part.double()])  # one precision for all
    assert rows.products().tolist() == [[6, 6], [6, 6]]
    for others in (kernels.Rows(2), kernels.Rows(2, width=1)):
        assert others.add([part[:5], part[:5]])
        with pytest.raises(ValueError, match="cannot be multiplied"):
            rows.products(others)
    assert kernels.Rows(3).products().equal(torch.zeros(3, 3, dtype=torch.float64))


def test_gradients_live_as_long_as_they_are_asked_for() -> None:
    rows = kernels.Rows(2)
    assert rows.add([torch.full((100_000,), 2.0), torch.full((100_000,), 3.0)])
    others = [torch.full((100_000,), 7.0) for _ in range(4)]
    assert rows.products().tolist() == [[400_000, 600_000], [600_000, 900_000]]
    assert len(others) == 4
