"""The scale that gradients are divided by before a Gram method compares them."""

from __future__ import annotations

import numpy as np
import pytest

from mtlbench.solvers import gradient_scale

GRAM = np.diag([4.0, 9.0, 0.0])
LOSSES = np.array([2.0, -3.0, 0.0])


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("none", [1, 1, 1]),
        ("l2", [2, 3, 1]),
        ("loss", [2, 3, 3e-8]),
        ("loss+", [4, 9, 3e-8]),
    ],
)
def test_scale_by_hand(normalize, expected: list[float]) -> None:
    assert gradient_scale(GRAM, LOSSES, normalize) == pytest.approx(expected)


def test_losses_that_are_all_zero_leave_the_gradients_alone() -> None:
    assert gradient_scale(GRAM, np.zeros(3), "loss").tolist() == [1, 1, 1]
