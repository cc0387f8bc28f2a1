"""Eigenvalues, and products with the eigenvectors: LAPACK's, and there and back again."""

from __future__ import annotations

import numpy as np
import pytest

from mtlbench.solvers.eigen import decompose, recompose


def matrices(count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(count)
    rows, line = draw.normal(size=(count, 50)), draw.normal(size=(count, 1))
    turn, _ = np.linalg.qr(draw.normal(size=(count, count)))
    graded = rows * draw.permutation(np.logspace(0, -8, count))[:, None]
    found = {
        "ordinary": rows @ rows.T,
        "rank one": line @ line.T,
        "rank two": rows[:, :2] @ rows[:, :2].T,
        "nearly dependent": (turn * np.logspace(0, -14, count)) @ turn.T,
        "graded": graded @ graded.T,
        "indefinite": turn + turn.T,
        "all equal": np.ones((count, count)),
        "diagonal": np.diag(line[:, 0] ** 2),
        "identity": np.eye(count),
        "zero": np.zeros((count, count)),
        "tiny beside its diagonal": np.eye(count) + 1e-170 * np.ones((count, count)),
    }
    return {name: (m + m.T) / max(2 * np.abs(m).max(), 1e-300) for name, m in found.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 40])
def test_the_spectrum_is_lapacks_and_the_way_back_leads_back(count: int) -> None:
    vector = np.random.default_rng(1).normal(size=count)
    for name, matrix in matrices(count).items():
        values, parts, path, ended = decompose(matrix, vector)
        rounding = 1e-15 * count * max(1.0, np.linalg.norm(matrix, 2))
        assert ended, name
        assert np.sort(values) == pytest.approx(np.linalg.eigvalsh(matrix), abs=rounding), name
        assert recompose(path, parts) == pytest.approx(vector, abs=2e-14), name
        assert recompose(path, values * parts) == pytest.approx(matrix @ vector, abs=10 * rounding), name


def test_what_is_not_a_number_ends() -> None:
    assert not decompose(np.full((3, 3), np.nan), np.ones(3))[3]
