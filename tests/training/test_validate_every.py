"""``--validate-every``: scores within an epoch, which change nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import facts, outcome, outcome_in_pieces


@pytest.mark.parametrize(
    "setting",
    [{"arch": "ltb", "weight": "rlw"}, {"weight": "mgda", "data": "tiny[apart=true]"}],
    ids=lambda s: "-".join(s.values()),
)
def test_scores_within_an_epoch_change_nothing_but_the_log(
    setting: dict[str, Any], experiment: Callable[..., Any], tmp_path: Path
) -> None:
    plain, watched = experiment(**setting), experiment(**setting, validate_every=1)
    assert watched._identity(watched.run) == plain._identity(plain.run)
    without, found = facts(outcome(plain)), facts(outcome(watched))
    assert facts(outcome_in_pieces(watched, tmp_path / "c.pt")) == found
    logged = [row.pop("within") for row in found["history"]]
    assert found == without
    # Three steps an epoch; the last one's scores are those of the epoch.
    assert [[point["epoch"] for point in points] for points in logged] == [
        [pytest.approx(epoch + 1 / 3), pytest.approx(epoch + 2 / 3)] for epoch in range(3)
    ]
    for points, row in zip(logged, found["history"], strict=True):
        for point in points:
            assert {t: set(s) for t, s in point["val"].items()} == {t: set(s) for t, s in row["val"].items()}
            assert point["val"] != row["val"]


def test_every_second_step_is_every_second_of_all(experiment: Callable[..., Any]) -> None:
    setting = {"weight": "ew", "arch": "hps", "epochs": 2}
    second = outcome(experiment(**setting, validate_every=2)).history
    every = outcome(experiment(**setting, validate_every=1)).history
    assert [row["within"] for row in second] == [row["within"][1:] for row in every]
