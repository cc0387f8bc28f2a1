"""The dataset ``relatedness``: the correlation of its labels is the one that the formula implies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from mtlbench.cli import cli
from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_dataset
from mtlbench_zoo.datasets.relatedness import NOISE, Relatedness


def labels(dataset: Relatedness) -> tuple[Tensor, Tensor, Tensor]:
    batch = dataset.split("train").fetch(torch.arange(len(dataset.split("train"))))
    return batch.inputs, batch.targets["y1"][:, 0], batch.targets["y2"][:, 0]


def pearson(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.double().numpy(), b.double().numpy())[0, 1])


def test_it_keeps_the_contract() -> None:
    dataset = Relatedness(count=40, features=7)
    check_dataset(dataset)
    assert dataset.encoder == "mlp"
    assert dataset.input_shape == (7,)
    assert dataset.counts() == {"train": 40, "val": 10, "test": 10}
    assert dataset.title == "relatedness (p = 0.5)"
    assert dataset.fingerprint() != Relatedness(count=40, features=7, seed=1).fingerprint()


@pytest.mark.parametrize("p", [-1.0, -0.5, 0.0, 0.2, 0.7, 1.0])
def test_without_sines_the_correlation_of_the_labels_is_p(p: float) -> None:
    _, y1, y2 = labels(Relatedness(p, count=20_000, features=20, sines=0))
    noise = 1 / (1 + NOISE**2)
    # The standard error of a correlation of 20,000 pairs is (1 - p^2) / 141; four of them.
    assert pearson(y1, y2) == pytest.approx(p * noise, abs=4 * (1 - p * p) / 141 + 1e-3)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.8, 1.0])
def test_with_sines_it_is_what_an_integral_says(p: float) -> None:
    """E[f(z1) f(z2)] for correlated normals, by a quadrature that knows nothing of the samples."""
    dataset = Relatedness(p, count=40_000, features=10, seed=3)
    draw = np.random.RandomState(3)
    draw.standard_normal((10, 2))
    a, b = draw.uniform(1, 3, 4), draw.uniform(0, 2 * np.pi, 4)

    def f(z: np.ndarray) -> np.ndarray:
        return z + np.sin(a * z[..., None] + b).sum(-1)

    x, w = hermegauss(80)
    w = w / w.sum()
    first, second = f(x)[:, None], f(p * x[:, None] + np.sqrt(1 - p * p) * x)
    weights = w[:, None] * w
    mean = (f(x) * w).sum()
    covariance = (weights * first * second).sum() - mean**2
    variance = (f(x) ** 2 * w).sum() - mean**2 + NOISE**2
    _, y1, y2 = labels(dataset)
    assert pearson(y1, y2) == pytest.approx(covariance / variance, abs=0.02)
    assert y1.mean().item() == pytest.approx(mean, abs=0.05)


def test_more_p_is_more_correlation_up_to_the_noise() -> None:
    found = [pearson(*labels(Relatedness(p, count=10_000, features=10))[1:]) for p in (0, 0.3, 0.6, 0.9, 1)]
    assert found == sorted(found)
    assert found[-1] > 0.98


def test_the_weight_vectors_are_at_the_chosen_angle() -> None:
    x, y1, y2 = labels(Relatedness(0.4, count=20_000, features=6, sines=0, scale=3.0))
    w1, w2 = (torch.linalg.lstsq(x, y[:, None]).solution[:, 0] for y in (y1, y2))
    assert w1.norm().item() == pytest.approx(3, abs=0.01)
    assert (w1 @ w2 / 9).item() == pytest.approx(0.4, abs=0.005)


@pytest.mark.parametrize(
    ("parameters", "rule"),
    [
        ({"p": 1.1}, "p must be in -1..1, found 1.1"),
        ({"p": float("nan")}, "p must be"),
        ({"count": 3}, "count must be in 4"),
        ({"features": 1}, "features must be in 2"),
        ({"sines": -1}, "sines must be in 0"),
        ({"scale": 0.0}, "scale must be finite and above 0"),
        ({"seed": -1}, "seed must be in 0"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, float], rule: str) -> None:
    with pytest.raises(MtlbenchError, match="relatedness: ") as caught:
        Relatedness(**parameters)  # type: ignore[arg-type]
    assert rule in str(caught.value)


def test_a_run_reads_it_with_its_own_encoder(tmp_path: Path) -> None:
    command = ["run", "--data", "relatedness[count=64,features=8]", "--arch", "mmoe", "--weight", "pcgrad"]
    more = ["--epochs", "1", "--no-baseline", "--quiet", "--json", "--results", str(tmp_path)]
    result = CliRunner().invoke(cli, [*command, *more])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[0])["metrics"]["y1"]["mse"] > 0
