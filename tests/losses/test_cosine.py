"""The loss of surface normals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mtlbench.errors import MtlbenchError
from mtlbench.losses import Cosine


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), missing=st.sampled_from([0.0, 0.5]), cut=st.integers(1, 4))
def test_it_is_torchs_own_over_what_has_a_label(seed: int, missing: float, cut: int) -> None:
    g = torch.Generator().manual_seed(seed)
    output = torch.randn(5, 3, 4, 3, generator=g, dtype=torch.float64).requires_grad_()
    target = torch.randn(5, 3, 4, 3, generator=g, dtype=torch.float64)
    lost = torch.rand(5, 4, 3, generator=g) < missing
    expected = (1 - functional.cosine_similarity(output, target, dim=1))[~lost].sum()
    # One missing value of three is enough.
    target[:, 1] = target[:, 1].masked_fill(lost, torch.nan)
    total, count = Cosine().terms(output, target)
    assert count == (~lost).sum()
    torch.testing.assert_close(total, expected)
    gradients = [torch.autograd.grad(value, output, retain_graph=True)[0] for value in (total, expected)]
    torch.testing.assert_close(*gradients)
    parts = [Cosine().terms(output[rows], target[rows])[0] for rows in (slice(cut), slice(cut, 5))]
    torch.testing.assert_close(total, parts[0] + parts[1])


def test_length_plays_no_part_and_nothing_is_nan() -> None:
    output, target = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(Cosine()(output, target), Cosine()(output * 7, target * 0.1))
    assert Cosine()(target, target).item() == pytest.approx(0, abs=1e-6)
    zero = torch.zeros(1, 3, 2, 2, requires_grad=True)
    value = Cosine()(zero, target[:1, :, :2, :2])
    assert value.item() == 1
    assert torch.autograd.grad(value, zero)[0].isfinite().all()


def test_no_label_gives_zero_and_zero_gradient() -> None:
    output = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = Cosine()(output, torch.full((2, 3, 4, 4), torch.nan))
    assert value.item() == 0
    assert not torch.autograd.grad(value, output)[0].any()


def test_half_precision_and_what_does_not_fit() -> None:
    output, target = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert Cosine().terms(output.bfloat16(), target)[0].dtype == torch.float32
    with pytest.raises(MtlbenchError, match="Cosine: a target of shape"):
        Cosine().terms(output, target[:, 0])
    with pytest.raises(MtlbenchError, match="Cosine: the target must be real-valued"):
        Cosine().terms(output, target.long())
