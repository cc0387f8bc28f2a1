"""krum: the definition on the vectors themselves, ties, a peer, and bad numbers."""

from __future__ import annotations

import pytest
import torch
from torchjd.aggregation import KrumWeighting

from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_weighting, tiny_tasks
from mtlbench_zoo.weightings.krum import Krum


def example(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * count + seed)
    return torch.randn(count, 12, dtype=torch.float64, generator=generator)


def by_vectors(jacobian: torch.Tensor, byzantine: int, selected: int) -> torch.Tensor:
    count = len(jacobian)
    scores = []
    for i in range(count):
        squares = sorted(float((jacobian[i] - jacobian[j]).square().sum()) for j in range(count) if j != i)
        scores.append(sum(squares[: count - byzantine - 2]))
    weights = torch.zeros(count, dtype=torch.float64)
    for i in sorted(range(count), key=scores.__getitem__)[:selected]:
        weights[i] = 1 / selected
    return weights


@pytest.mark.parametrize("parameters", [{}, {"n_byzantine": 2}, {"n_selected": 3}])
def test_conformance(parameters) -> None:
    check_weighting(Krum, **parameters)


@pytest.mark.parametrize(("count", "byzantine", "selected"), [(3, 0, 1), (5, 1, 1), (8, 2, 3), (20, 5, 8)])
def test_the_gram_matrix_says_what_the_vectors_say(count: int, byzantine: int, selected: int) -> None:
    for seed in range(10):
        jacobian = example(count, seed)
        found = Krum(tiny_tasks(count), byzantine, selected)(jacobian @ jacobian.T, torch.ones(count))
        assert found.tolist() == by_vectors(jacobian, byzantine, selected).tolist()


@pytest.mark.parametrize("count", [4, 6, 10])
def test_the_peer_selects_alike_where_one_neighbour_counts(count: int) -> None:
    """With one neighbour, squares and distances have one order; the nearest pair is selected whole."""
    for seed in range(10):
        jacobian = example(count, seed)
        gram = jacobian @ jacobian.T
        ours = Krum(tiny_tasks(count), count - 3, 2)(gram, torch.ones(count))
        assert ours.tolist() == KrumWeighting(count - 3, 2)(gram).tolist()


def test_a_wild_gradient_is_left_out() -> None:
    jacobian = example(1, 0) + 0.1 * example(6, 1)
    jacobian[2] *= -50
    weights = Krum(tiny_tasks(6), 1, 4)(jacobian @ jacobian.T, torch.ones(6))
    assert weights[2] == 0
    assert weights.sum() == 1


def test_of_equal_scores_the_first_is_taken() -> None:
    row = example(1, 0)
    jacobian = row * torch.arange(1.0, 7.0)[:, None]  # inner ones are at equal distances to their neighbours
    for factor in (1.0, 1e-7, 3e5):
        scaled = factor * jacobian
        weights = Krum(tiny_tasks(6), 3)(scaled @ scaled.T, torch.ones(6))
        assert weights.tolist() == [1, 0, 0, 0, 0, 0]


def test_few_tasks() -> None:
    assert Krum(tiny_tasks(1))(torch.ones(1, 1, dtype=torch.float64), torch.ones(1)).tolist() == [1]
    gram = torch.eye(2, dtype=torch.float64)
    assert Krum(tiny_tasks(2))(gram, torch.ones(2)).tolist() == [1, 0]
    weighting = Krum(tiny_tasks(5), 2, 4)
    weighting.active = torch.tensor([1, 3])
    assert weighting(gram, torch.ones(2)).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("byzantine", "selected", "found"),
    [
        (-1, 1, "got -1 for 5 tasks"),
        (3, 1, "got 3 for 5 tasks"),
        (0, 0, "got 0 for 5"),
        (0, 6, "got 6 for 5"),
    ],
)
def test_bad_numbers_are_refused(byzantine: int, selected: int, found: str) -> None:
    with pytest.raises(MtlbenchError, match=f"krum: n_(byzantine|selected) must be from .* {found}"):
        Krum(tiny_tasks(5), byzantine, selected)
