"""Tables: the encoder mlp under every architecture, from data to test scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from runs import facts, outcome

from mtlbench.errors import MtlbenchError
from mtlbench.registry import Registry

DATA = "relatedness[count=128,features=6]"


@pytest.mark.parametrize("arch", [plugin.name for plugin in Registry().plugins("architectures")])
def test_every_architecture_learns_from_tables(arch: str, experiment: Callable[..., Any]) -> None:
    made = experiment(data=DATA, arch=arch, encoder="mlp[hidden=[16,16]]", lr=0.01, epochs=8)
    found = outcome(made)
    assert found.status == "ok", found.reason
    first, last = found.history[0], found.history[-1]
    for task in ("y1", "y2"):
        assert last["train"][task] < first["train"][task]
    assert facts(found) == facts(outcome(made))


def test_an_encoder_of_images_is_refused(experiment: Callable[..., Any]) -> None:
    with pytest.raises(MtlbenchError, match=r"'conv' reads images \[B, 6, H, W\], found \(2, 6\)"):
        experiment(data=DATA, encoder="conv")
