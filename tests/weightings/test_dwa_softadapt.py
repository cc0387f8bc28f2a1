"""dwa and softadapt: weights from how the mean losses move."""

from __future__ import annotations

import math

import pytest
import torch
from torchjd.scalarization import DWA as TheirDWA

from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.testing import check_weighting, tiny_tasks
from mtlbench_zoo.weightings.dwa import DWA
from mtlbench_zoo.weightings.softadapt import SoftAdapt

TASKS = tiny_tasks(3)
LOSSES = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
EPOCHS = torch.tensor(
    [[1.0, 2.0, 4.0], [0.5, 2.0, 8.0], [0.4, 1.0, 9.0], [0.1, 3.0, 9.0]], dtype=torch.float64
)


def after(cls, epochs: torch.Tensor, **parameters):
    weighting = cls(tiny_tasks(epochs.shape[1]), **parameters)
    for epoch in epochs:
        weighting.after_epoch(epoch)
    return weighting


@pytest.mark.parametrize("cls", [DWA, SoftAdapt])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_conformance(cls, window) -> None:
    check_weighting(cls, window=window)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("loss_weighted", [False, True])
def test_conformance_of_the_variants(normalize: bool, loss_weighted: bool) -> None:
    check_weighting(SoftAdapt, beta=-3.0, normalize=normalize, loss_weighted=loss_weighted)


def test_the_first_two_epochs_are_equal() -> None:
    for epochs in (EPOCHS[:0], EPOCHS[:1]):
        assert after(DWA, epochs)(LOSSES).tolist() == [1, 1, 1]
        assert after(SoftAdapt, epochs)(LOSSES) == pytest.approx(torch.ones(3) / 3)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_dwa_is_the_softmax_of_the_ratios(temperature: float) -> None:
    weights = after(DWA, EPOCHS[:2], temperature=temperature)(LOSSES)
    powers = [math.exp(ratio / temperature) for ratio in (0.5, 1.0, 2.0)]
    assert weights == pytest.approx(torch.tensor([3 * power / sum(powers) for power in powers]).double())
    assert weights.sum().item() == pytest.approx(3)


def test_dwa_is_torchjds() -> None:
    ours, theirs = DWA(TASKS), TheirDWA()
    for epoch in EPOCHS:  # of one step each
        leaf = epoch.clone().requires_grad_()
        (expected,) = torch.autograd.grad(theirs(leaf), leaf)
        assert ours(epoch) == pytest.approx(expected)
        theirs.step()
        ours.after_epoch(epoch)


@pytest.mark.parametrize("cls", [DWA, SoftAdapt])
def test_a_window_moves_with_the_steps(cls) -> None:
    steps = 10 ** torch.rand(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weighting, flat = cls(TASKS, window=4), cls(TASKS)(LOSSES)
    for number, losses in enumerate(steps, 1):
        weights = weighting(losses)
        weighting.after_epoch(7 * losses)  # has no say
        if number < 8:
            assert weights == pytest.approx(flat)
        else:
            halves = steps[number - 8 : number].view(2, 4, 3).mean(1)
            assert weights == pytest.approx(after(cls, halves)(LOSSES))


def test_a_window_leaves_out_what_a_task_did_not_have() -> None:
    weighting = DWA(TASKS, window=2)
    for row in ([1.0, 2.0, 3.0], [4.0, 2.0], [1.0, 2.0, 3.0], [1.0, 4.0]):
        weighting.active = torch.tensor([0, 1, 2] if len(row) == 3 else [0, 2])
        weights = weighting(torch.tensor(row, dtype=torch.float64))
    earlier = torch.tensor([2.5, 2.0, 2.5], dtype=torch.float64)
    later = torch.tensor([1.0, 2.0, 3.5], dtype=torch.float64)
    expected = 2 * (later / earlier / 2)[[0, 2]].softmax(0)
    assert weights == pytest.approx(expected)


@pytest.mark.parametrize("cls", [DWA, SoftAdapt])
def test_losses_scaled_alike_give_the_same_weights(cls) -> None:
    expected = after(cls, EPOCHS)(LOSSES)
    for factor in (1e-20, 1e-6, 1e6, 1e20):
        assert after(cls, EPOCHS * factor)(LOSSES * factor) == pytest.approx(expected, rel=1e-9)


def test_softadapt_is_scale_free_where_slopes_are_normalised() -> None:
    assert "scale-free" in SoftAdapt(TASKS).properties
    assert "scale-free" not in SoftAdapt(TASKS, normalize=False).properties


def test_softadapt_has_three_variants() -> None:
    before, now = EPOCHS[:2]
    slope = now - before
    share = slope / slope.abs().sum()
    for normalize, s in ((False, slope), (True, share)):
        for loss_weighted, a in ((False, torch.ones(3)), (True, now)):
            powers = a * (0.1 * s).exp()
            weighting = after(SoftAdapt, EPOCHS[:2], normalize=normalize, loss_weighted=loss_weighted)
            assert weighting(LOSSES) == pytest.approx(powers / powers.sum())


@pytest.mark.parametrize("cls", [DWA, SoftAdapt])
@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_odd_means_give_sensible_weights(cls, size: float) -> None:
    for rows in (
        [[0.0, 1.0, 2.0], [1.0, 1.0, 2.0]],
        [[1.0, 1.0, 2.0], [0.0, 1.0, 2.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        [[math.nan, 1.0, 2.0], [1.0, 1.0, 2.0]],
        [[1.0, 1.0, 2.0], [math.nan, 1.0, 2.0]],
        [[math.nan] * 3, [math.nan] * 3],
        [[size, 1.0, 1 / size], [1 / size, 1.0, size]],
        [[size, size, size], [size, 2 * size, 3 * size]],
    ):
        weights = after(cls, torch.tensor(rows, dtype=torch.float64))(LOSSES.float())
        assert weights.isfinite().all()
        assert (weights >= 0).all()
        assert weights.sum().item() == pytest.approx(3 if cls is DWA else 1)


def test_a_task_that_was_never_seen_counts_as_unchanged() -> None:
    rows = torch.tensor([[math.nan, 1.0, 1.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
    assert after(DWA, rows)(LOSSES).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("cls", [DWA, SoftAdapt])
def test_a_negative_loss_ends_the_run(cls) -> None:
    with pytest.raises(RunFailedError, match=f"{cls.__name__} takes losses >= 0, but the loss of task1"):
        cls(TASKS)(torch.tensor([1.0, -1.0, 1.0]))


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (DWA, {"temperature": 0.0}, "dwa: temperature must be a finite number > 0, got 0.0"),
        (DWA, {"temperature": math.nan}, "dwa: temperature must be a finite number > 0, got nan"),
        (DWA, {"window": 0}, "dwa: window must be a number of steps >= 1, or None, got 0"),
        (SoftAdapt, {"window": -2}, "softadapt: window must be .*, got -2"),
        (SoftAdapt, {"beta": math.inf}, "softadapt: beta must be a finite number, got inf"),
    ],
)
def test_wrong_parameters_are_explained(cls, parameters, message: str) -> None:
    with pytest.raises(MtlbenchError, match=f"^{message}$"):
        cls(TASKS, **parameters)
