from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlbench.gradients import Jacobian

SHAPES = [(7,), (3, 5), (2, 3, 4, 4), ()]


def _jacobian(tasks: int, seed: int, holes: bool = False) -> list[list[torch.Tensor | None]]:
    draw = torch.Generator().manual_seed(seed)
    rows: list[list[torch.Tensor | None]] = [
        [torch.randn(shape, generator=draw) for shape in SHAPES] for _ in range(tasks)
    ]
    if holes:
        for row in rows:
            for i in range(len(row)):
                if torch.rand((), generator=draw) < 0.4:
                    row[i] = None
    return rows


def _dense(jacobian: list[list[torch.Tensor | None]]) -> torch.Tensor:
    return torch.stack(
        [
            torch.cat(
                [
                    torch.zeros(s).flatten() if g is None else g.flatten()
                    for g, s in zip(row, SHAPES, strict=True)
                ]
            )
            for row in jacobian
        ]
    ).double()


@settings(max_examples=30, deadline=None)
@given(tasks=st.integers(1, 7), seed=st.integers(0, 10**6), holes=st.booleans())
def test_gram_and_combination_equal_the_dense_products(tasks: int, seed: int, holes: bool) -> None:
    jacobian = _jacobian(tasks, seed, holes)
    dense = _dense(jacobian)
    found = Jacobian(jacobian).gram()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, dense @ dense.T, rtol=1e-5, atol=1e-5)
    weights = torch.rand(tasks, generator=torch.Generator().manual_seed(seed)).tolist()
    expected = torch.tensor(weights, dtype=torch.float64) @ dense
    combined = Jacobian(jacobian).combine(weights)
    flat = _dense([combined])[0]
    torch.testing.assert_close(flat, expected, rtol=1e-5, atol=1e-5)


def test_mixed_memory_formats_are_products_of_the_same_elements() -> None:
    a, b = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    found = Jacobian([[a], [b.to(memory_format=torch.channels_last)]]).gram()
    torch.testing.assert_close(
        found[0, 1].item(), (a.double() * b.double()).sum().item(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("tasks", "length"), [(1, 10_000_000), (3, 1_000_000), (16, 500_000)])
def test_many_elements_keep_seven_digits(tasks: int, length: int) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.rand(tasks, length, generator=draw)
    exact = rows.double() @ rows.double().T
    assert (Jacobian([[row] for row in rows]).gram() - exact).abs().max() / exact.max() < 1e-7
    crossed = Jacobian([[row] for row in rows]).products(Jacobian([[row] for row in rows.flip(0)]))
    assert (crossed.flip(1) - exact).abs().max() / exact.max() < 1e-7


@settings(max_examples=20, deadline=None)
@given(tasks=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_products_of_two_batches_and_of_lengths_alone(tasks: int, seed: int) -> None:
    first, second = _jacobian(tasks, seed, holes=True), _jacobian(tasks, seed + 1, holes=True)
    expected = _dense(first) @ _dense(second).T
    torch.testing.assert_close(Jacobian(first).products(Jacobian(second)), expected, rtol=1e-5, atol=1e-5)
    lengths = Jacobian(first).gram().diagonal().diag()
    torch.testing.assert_close(Jacobian(first).gram(diagonal=True), lengths, rtol=1e-6, atol=0)


def test_gradients_of_several_precisions_and_layouts_side_by_side() -> None:
    draw = torch.Generator().manual_seed(0)
    columns = [
        [torch.randn(40, generator=draw) for _ in range(3)],
        [torch.randn(30, generator=draw, dtype=torch.float64) for _ in range(3)],
        [torch.randn(5, 8, generator=draw), torch.randn(8, 5, generator=draw).t(), None],
        [torch.randn(25, generator=draw).bfloat16() for _ in range(3)],
        [None, None, None],
        [torch.empty(0) for _ in range(3)],
    ]
    rows = [list(row) for row in zip(*columns, strict=True)]
    wide = [None if c[0] is None else c[0].numel() for c in columns]
    dense = torch.stack(
        [
            torch.cat(
                [
                    torch.zeros(w or 0).double() if g is None else g.double().flatten()
                    for g, w in zip(row, wide, strict=True)
                ]
            )
            for row in rows
        ]
    )
    jacobian, other = Jacobian(rows), Jacobian(rows[::-1])
    torch.testing.assert_close(jacobian.gram(), dense @ dense.T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(jacobian.products(other), dense @ dense.flip(0).T, rtol=1e-6, atol=1e-6)
    sums = jacobian.combine([1.0, -2.0, 0.5])
    assert [g is None for g in sums] == [False, False, False, False, True, False]
    flat = torch.cat([g.double().flatten() for g in sums if g is not None])
    expected = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) @ dense
    torch.testing.assert_close(flat, expected, rtol=1e-2, atol=1e-1)
    torch.testing.assert_close(flat[:110], expected[:110], rtol=1e-5, atol=1e-5)


def test_two_batches_with_gradients_in_different_orders_of_memory() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, others = (
        [[torch.randn(4, 3, 5, 5, generator=draw), torch.randn(6, 7, generator=draw)] for _ in range(2)]
        for _ in range(2)
    )
    expected = Jacobian(rows).products(Jacobian(others))
    turned = [[a.to(memory_format=torch.channels_last), b.t().contiguous().t()] for a, b in others]
    found = Jacobian(rows).products(Jacobian(turned))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_parameters_that_only_one_of_two_batches_reaches_are_told_apart() -> None:
    ones = torch.ones(10)
    first, second = Jacobian([[ones, None], [ones, None]]), Jacobian([[None, ones], [None, ones]])
    assert first.products(second).equal(torch.zeros(2, 2, dtype=torch.float64))
    assert first.products(first).equal(torch.full((2, 2), 10.0, dtype=torch.float64))


def test_no_parameter_at_all_gives_zeros() -> None:
    assert Jacobian([[], []]).gram().equal(torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("tasks", [2, 5, 14, 15, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_two_triangles_are_equal(tasks: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(tasks)
    rows = torch.randn(tasks, 70_001, generator=draw).to(dtype)
    products = Jacobian([[row] for row in rows]).gram()
    assert torch.equal(products, products.T)
    exact = rows.double() @ rows.double().T
    torch.testing.assert_close(products, exact, rtol=1e-5, atol=1e-5 * 70_001)
