"""Shared by all tests: the third party's plugin file, and runs on its tiny dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench.config import RunConfig
from mtlbench.registry import Registry

TINY = Path(__file__).parent / "plugins" / "tiny.py"


def pytest_configure(config: pytest.Config) -> None:
    """Give every pytest worker one thread: they share the cores, and more would wait for each other."""
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # MKL and OpenBLAS look at it, too


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """What sets the number of torch's threads, until the test is over."""
    usual = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(usual)


@pytest.fixture(scope="session")
def tiny_plugin() -> Path:
    """The path of a plugin file with the dataset ``tiny`` and weightings of every need."""
    return TINY


@pytest.fixture(scope="session")
def registry() -> Registry:
    """A registry that also knows the tiny plugin file."""
    return Registry([TINY])


@pytest.fixture
def experiment(registry: Registry, tmp_path: Path) -> Callable[..., Any]:
    """Give a function that sets up an experiment on ``tiny`` from settings."""
    from mtlbench.experiment import Experiment

    def make(**settings: Any) -> Experiment:
        defaults: dict[str, Any] = {
            "data": "tiny",
            "epochs": 3,
            "batch_size": 8,
            "results": tmp_path / "results",
            "data_dir": tmp_path / "data",
            "device": "cpu",
        }
        return Experiment(replace(RunConfig(), **(defaults | settings)), registry)

    return make


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    """Runs ask torch for determinism and seed it; leave the process as it was."""
    state, strict = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_rng_state(state)
    torch.use_deterministic_algorithms(strict)
