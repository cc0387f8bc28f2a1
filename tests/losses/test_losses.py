"""The losses agree with torch's own, mask what has no label, and are exact when a batch is divided."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mtlbench.contracts import Loss
from mtlbench.errors import MtlbenchError
from mtlbench.losses import L1, MSE, BinaryCrossEntropy, CrossEntropy

LOSSES = [BinaryCrossEntropy(), CrossEntropy(), L1(), MSE()]
SHAPES = [(), (3, 5)]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


def sample(
    loss: Loss, seed: int, batch: int, shape: tuple[int, ...], missing: float
) -> tuple[Tensor, Tensor]:
    """Draw an output and a target with a share of missing labels."""
    g = torch.Generator().manual_seed(seed)
    lost = torch.rand(batch, *shape, generator=g) < missing
    if isinstance(loss, BinaryCrossEntropy):
        output = torch.randn(batch, 1, *shape, generator=g, dtype=torch.float64) * 4
        return output, torch.randint(2, (batch, *shape), generator=g).masked_fill(lost, -1)
    output = torch.randn(batch, 4, *shape, generator=g, dtype=torch.float64) * 4
    if isinstance(loss, CrossEntropy):
        return output, torch.randint(4, (batch, *shape), generator=g).masked_fill(lost, -1)
    target = torch.randn(output.shape, generator=g, dtype=torch.float64)
    return output, target.masked_fill(torch.rand(output.shape, generator=g) < missing, float("nan"))


def plain(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """Remove what has no label and ask torch for the sum."""
    if isinstance(loss, BinaryCrossEntropy):
        keep = target != -1
        return functional.binary_cross_entropy_with_logits(
            output.squeeze(1)[keep], target[keep].double(), reduction="sum"
        )
    if isinstance(loss, CrossEntropy):
        keep = target != -1
        return functional.cross_entropy(output.movedim(1, -1)[keep], target[keep], reduction="sum")
    keep = ~target.isnan()
    function = functional.l1_loss if isinstance(loss, L1) else functional.mse_loss
    return function(output[keep], target[keep], reduction="sum")


@each_loss
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 6),
    shape=st.sampled_from(SHAPES),
    missing=st.sampled_from([0.0, 0.4, 0.9]),
)
def test_masked_equals_removed(
    loss: Loss, seed: int, batch: int, shape: tuple[int, ...], missing: float
) -> None:
    output, target = sample(loss, seed, batch, shape, missing)
    ours, theirs = output.clone().requires_grad_(), output.clone().requires_grad_()
    total, count = loss.terms(ours, target)
    expected = plain(loss, theirs, target)
    torch.testing.assert_close(total, expected)
    labelled = ~target.isnan() if target.is_floating_point() else target != -1
    assert count.item() == labelled.sum().item()
    assert total.shape == count.shape == ()
    gradients = [torch.autograd.grad(value, x)[0] for value, x in ((total, ours), (expected, theirs))]
    torch.testing.assert_close(*gradients)


@each_loss
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), batch=st.integers(2, 7), cut=st.integers(1, 6))
def test_terms_of_parts_add_up(loss: Loss, seed: int, batch: int, cut: int) -> None:
    output, target = sample(loss, seed, batch, (3, 5), 0.3)
    whole = loss.terms(output, target)
    parts = [
        loss.terms(*part) for part in zip(output.tensor_split([cut]), target.tensor_split([cut]), strict=True)
    ]
    torch.testing.assert_close(whole[0], parts[0][0] + parts[1][0])
    assert whole[1] == parts[0][1] + parts[1][1]
    torch.testing.assert_close(loss(output, target), whole[0] / whole[1].clamp(min=1))


@each_loss
def test_no_label_gives_zero_and_zero_gradient(loss: Loss) -> None:
    output, target = sample(loss, 0, 3, (3, 5), 2.0)
    output.requires_grad_()
    value = loss(output, target)
    (gradient,) = torch.autograd.grad(value, output)
    assert value.item() == 0
    assert loss.terms(output, target)[1] == 0
    assert (gradient == 0).all()


@each_loss
def test_half_precision_is_summed_in_float32(loss: Loss) -> None:
    output, target = sample(loss, 1, 4, (16, 16), 0.2)
    half = output.bfloat16()
    total, _ = loss.terms(half, target.float() if target.is_floating_point() else target)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), plain(loss, half.double(), target), rtol=1e-5, atol=1e-5)


def test_large_logits_stay_finite() -> None:
    output = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    value = BinaryCrossEntropy()(output, torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(value, output)
    assert value.item() == pytest.approx(1e4)
    assert gradient.flatten().tolist() == [0.5, -0.5]


def test_one_logit_may_come_without_a_channel() -> None:
    output, target = torch.randn(5), torch.tensor([0, 1, -1, 1, 0])
    assert BinaryCrossEntropy()(output, target) == BinaryCrossEntropy()(output[:, None], target)


@pytest.mark.parametrize(
    ("loss", "output", "target", "message"),
    [
        (L1(), torch.zeros(3, 1), torch.zeros(3), r"L1: a target of shape \(3,\) does not fit"),
        (MSE(), torch.zeros(3, 2), torch.zeros(3, 2).long(), "MSE: the target must be real-valued"),
        (CrossEntropy(), torch.zeros(3, 2), torch.zeros(3, 1).long(), "CrossEntropy: a target of shape"),
        (CrossEntropy(), torch.zeros(3, 2), torch.zeros(3), "CrossEntropy: the target must be int64"),
        (BinaryCrossEntropy(), torch.zeros(3, 2), torch.zeros(3).long(), "must have one channel"),
        (BinaryCrossEntropy(), torch.zeros(3, 1), torch.zeros(3, 1).long(), "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(loss: Loss, output: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        loss.terms(output, target)


@each_loss
def test_losses_are_values(loss: Loss) -> None:
    assert loss == type(loss)()
    assert loss.likelihood in ("categorical", "gaussian", "laplace")
