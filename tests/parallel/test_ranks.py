"""A run on several processes, or in micro-batches, is the run of one: in float64, to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import FILE, MORE, NORMED, Case, compute, differences, every_weighting, world

from mtlbench.registry import Registry

TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def plain() -> Registry:
    return Registry([FILE])


@pytest.fixture(scope="module")
def cases(plain: Registry) -> dict[str, Case]:
    return every_weighting(plain) | MORE | NORMED


@pytest.fixture(scope="module")
def alone(plain: Registry, cases: dict[str, Case]) -> dict[str, Any]:
    """What one process computes, once for all tests."""
    state, strict = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    found = {name: compute(plain, case) for name, case in cases.items()}
    torch.set_rng_state(state)
    torch.use_deterministic_algorithms(strict)
    return found


def _check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    wrong = {name: differences(found[name], expected[name], TOLERANCE) for name in expected}
    assert not {name: lines[:3] for name, lines in wrong.items() if lines}


@pytest.mark.parametrize("size", [2, 4])
def test_processes_train_what_one_trains(
    size: int, cases: dict[str, Case], alone: dict[str, Any], tmp_path: Path
) -> None:
    first, *others = world(size, tmp_path / "world", cases)
    _check({name: first[name] for name in alone}, alone)
    assert alone["not finite"]["status"] == "diverged"
    assert alone["probed"]["history"][0]["gradients"]["cosine"]
    for rank, other in enumerate(others, 1):
        same = differences({n: other[n] for n in alone}, {n: first[n] for n in alone}, 0.0)
        assert not same[:3], f"rank {rank} is not at rank 0's place"
        assert other["disagree"]
    wrote, resumed, even = first["stopped"]
    assert wrote
    assert not any(other["stopped"][0] for other in others)
    assert not differences(resumed, even, 0.0)


def test_micro_batches_train_what_one_batch_trains(
    plain: Registry, cases: dict[str, Case], alone: dict[str, Any]
) -> None:
    kept = {name: case for name, case in cases.items() if name not in NORMED}
    found = {}
    for name, case in kept.items():
        protocol = {"epochs": 1} | case.get("protocol", {}) | {"accumulate": 3}
        found[name] = compute(plain, case | {"protocol": protocol})
    _check(found, {name: alone[name] for name in kept})


def test_a_forward_pass_made_twice_counts_once(plain: Registry) -> None:
    """Parts pass forward twice, by losses or features: with the masks, and statistics, of passing once."""
    case = {"encoder": "smooth[norm=true,drop=0.4]", "protocol": {"epochs": 1, "accumulate": 3}}
    found = [
        compute(plain, case | method)["model"]
        for method in ({"weight": "ones"}, {"weight": "ew"}, {"weight": "ones", "grad": "features"})
    ]
    assert any("running_var" in name for name in found[0])
    assert not differences(found[1], found[0], TOLERANCE)
    assert not differences(found[2], found[0], TOLERANCE)
