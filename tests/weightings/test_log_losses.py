"""scale-invariant, gls, imtl-l and stch: the methods that minimise a function of the losses' logarithms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchjd.scalarization import IMTLL as TheirIMTLL
from torchjd.scalarization import STCH as TheirSTCH
from torchjd.scalarization import GeometricMean

from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.testing import check_weighting, tiny_tasks
from mtlbench_zoo.weightings.gls import GLS
from mtlbench_zoo.weightings.imtl_l import IMTLL
from mtlbench_zoo.weightings.scale_invariant import ScaleInvariant
from mtlbench_zoo.weightings.stch import STCH

TASKS = tiny_tasks(3)
LOSSES = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
MEANS = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
losses_of_any_size = st.lists(st.floats(-20, 20).map(lambda e: 10.0**e), min_size=1, max_size=10)


def gradient(objective, losses: torch.Tensor) -> torch.Tensor:
    leaf = losses.clone().requires_grad_()
    (found,) = torch.autograd.grad(objective(leaf), leaf)
    return found


def warmed_up(losses=MEANS, **parameters) -> STCH:
    weighting = STCH(tiny_tasks(len(losses)), **parameters)
    for _ in range(weighting.warmup):
        weighting.after_epoch(torch.full_like(losses, 77.0))
    weighting.after_epoch(losses)
    return weighting


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [(ScaleInvariant, {}), (GLS, {}), (IMTLL, {}), (STCH, {}), (STCH, {"mu": 0.01, "warmup": 0})],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


def test_scale_invariant_is_the_derivative_of_the_sum_of_logarithms() -> None:
    assert ScaleInvariant(TASKS)(LOSSES) == pytest.approx(gradient(lambda x: x.log().sum(), LOSSES))


def test_gls_is_the_derivative_of_the_geometric_mean() -> None:
    assert GLS(TASKS)(LOSSES) == pytest.approx(gradient(lambda x: x.prod() ** (1 / 3), LOSSES))


@given(losses_of_any_size)
def test_gls_is_torchjds_geometric_mean(sizes) -> None:
    losses = torch.tensor(sizes, dtype=torch.float64)
    expected = gradient(GeometricMean(), losses)
    assert GLS(tiny_tasks(len(sizes)))(losses) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_gls_neither_overflows_nor_underflows_with_many_tasks(size: float) -> None:
    weights = GLS(tiny_tasks(40))(torch.full((40,), size))
    assert weights == pytest.approx(torch.full((40,), 1 / 40), rel=1e-6)


def test_a_loss_of_zero_leaves_the_geometric_mean() -> None:
    weights = GLS(TASKS)(torch.tensor([0.5, 0.0, 2.0]))
    assert weights.tolist() == pytest.approx([1.0, 0.0, 0.25])


def test_a_weight_beyond_the_range_of_the_dtype_is_cut_off() -> None:
    losses = torch.tensor([1e-41, 1.0])  # a denormal number, whose inverse float32 does not hold
    assert ScaleInvariant(TASKS[:2])(losses).tolist() == [torch.finfo(torch.float32).max, 1.0]


@pytest.mark.parametrize("make", [ScaleInvariant, GLS, STCH, lambda tasks: warmed_up()])
def test_losses_of_zero_get_weight_zero(make) -> None:
    weights = make(TASKS)(torch.tensor([0.0, 2.0, 0.0]))
    assert weights[[0, 2]].tolist() == [0, 0]
    assert weights[1] > 0
    assert not make(TASKS)(torch.zeros(3)).any()


@pytest.mark.parametrize("cls", [ScaleInvariant, GLS, IMTLL, STCH])
def test_a_negative_loss_ends_the_run_in_one_line(cls) -> None:
    weighting = cls(TASKS)
    weighting.active = torch.tensor([0, 2])
    with pytest.raises(
        RunFailedError,
        match=f"^{cls.__name__} takes losses >= 0, but the loss of task2 is -0.5; use a loss that",
    ):
        weighting(torch.tensor([1.0, -0.5]))


@given(losses_of_any_size, st.floats(-10, 10).map(lambda e: 10.0**e))
def test_units_do_not_matter_to_the_update(sizes, unit) -> None:
    losses, tasks = torch.tensor(sizes, dtype=torch.float64), tiny_tasks(len(sizes))
    units = torch.full_like(losses, unit)
    units[0] = 1.0
    for make in (ScaleInvariant, STCH, lambda _: warmed_up(losses**0.5)):
        expected = make(tasks)(losses) * losses
        assert make(tasks)(losses * unit) * losses * unit == pytest.approx(expected, rel=1e-9, abs=1e-12)
    other = warmed_up(losses**0.5 * units)
    assert other(losses * units) * losses * units == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_imtl_l_is_its_objective() -> None:
    weighting = IMTLL(TASKS)
    assert weighting(LOSSES).item() == pytest.approx(LOSSES.sum().item())
    with torch.no_grad():
        weighting.log_scale.copy_(torch.tensor([0.5, -1.0, 2.0]))
    theirs = TheirIMTLL(3)
    theirs.load_state_dict({"log_scale": weighting.log_scale.detach()})
    assert weighting(LOSSES).item() == pytest.approx(theirs(LOSSES).item())
    assert gradient(weighting, LOSSES) == pytest.approx(weighting.log_scale.exp().double().detach())


def test_imtl_l_scales_every_loss_to_one() -> None:
    weighting = IMTLL(TASKS)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        weighting(LOSSES).backward()
        optimizer.step()
    assert (weighting.log_scale.exp() * LOSSES).detach() == pytest.approx(torch.ones(3), rel=1e-3)


def test_the_scale_of_a_task_without_labels_or_loss_rests() -> None:
    weighting = IMTLL(TASKS)
    weighting.active = torch.tensor([0, 2])
    weighting(torch.tensor([0.0, 4.0])).backward()
    assert weighting.log_scale.grad.tolist() == [0, 0, 3]
    objective = weighting(torch.zeros(2))
    objective.backward()
    assert objective.item() == 0


@pytest.mark.parametrize("mu", [0.01, 0.1, 1.0, 5.0])
def test_stch_is_the_smooth_maximum_of_logarithms_over_the_nadir(mu: float) -> None:
    expected = gradient(lambda x: 3 * mu * torch.logsumexp((x / MEANS).log() / mu, 0), LOSSES)
    assert warmed_up(mu=mu)(LOSSES) == pytest.approx(expected, rel=1e-9)
    theirs = TheirSTCH(mu, weights=torch.ones(3))
    assert gradient(lambda x: 3 * theirs((x / MEANS).log()), LOSSES) == pytest.approx(expected)


def test_stch_warms_up_with_the_sum_of_logarithms() -> None:
    weighting = STCH(TASKS, warmup=2)
    for epoch in range(3):
        assert weighting(LOSSES) == pytest.approx(1 / LOSSES)
        weighting.after_epoch(MEANS if epoch == 2 else LOSSES)
    assert weighting(LOSSES) == pytest.approx(warmed_up()(LOSSES))
    weighting.after_epoch(7 * MEANS)
    assert weighting(LOSSES) == pytest.approx(warmed_up()(LOSSES))


def test_stch_goes_over_smoothly_at_the_nadir() -> None:
    assert warmed_up()(MEANS) == pytest.approx(1 / MEANS)


@pytest.mark.parametrize("missing", [math.nan, 0.0])
def test_stch_learns_a_missing_nadir_later(missing: float) -> None:
    weighting = warmed_up(torch.tensor([1.0, missing, 1.0], dtype=torch.float64))
    at_nadir = warmed_up(torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))
    assert weighting(LOSSES) == pytest.approx(at_nadir(LOSSES))  # the second loss is at 2
    weighting.after_epoch(torch.tensor([9.0, 0.5, 9.0], dtype=torch.float64))
    later = warmed_up(torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64))
    assert weighting(LOSSES) == pytest.approx(later(LOSSES))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"mu": 0.0}, "stch: mu must be .* > 0, got 0.0"), ({"warmup": -1}, "stch: warmup must be .*, got -1")],
)
def test_stch_explains_what_is_wrong(parameters, message: str) -> None:
    with pytest.raises(MtlbenchError, match=f"^{message}$"):
        STCH(TASKS, **parameters)
