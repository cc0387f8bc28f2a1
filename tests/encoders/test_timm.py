"""Backbones of timm: refused in one line where it does not import, as timm's own where it does."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from mtlbench.errors import MtlbenchError
from mtlbench.registry import Registry
from mtlbench.testing import check_encoder
from mtlbench_zoo.encoders.timm import Timm

try:
    library = importlib.import_module("timm")
except (ImportError, RuntimeError) as error:
    library = None
    REASON = f"timm does not import here: {error}"
else:
    REASON = ""
needs_timm = pytest.mark.skipif(bool(REASON), reason=REASON)


def test_where_timm_does_not_import_one_line_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    choice = Registry().choose("encoders", "timm:resnet18")
    assert choice.parameters["name"] == "resnet18"
    with pytest.raises(
        MtlbenchError, match=r"timm:resnet18' needs timm, and torchvision that matches"
    ) as caught:
        choice.build(in_channels=3)
    assert "pip install 'mtlbench[timm]'" in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_timm
@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "efficientnet_b0"]
)
def test_stages_give_what_timm_gives(name: str) -> None:
    size = {"img_size": 64} if "swin" in name else {}
    torch.manual_seed(0)
    oracle = library.create_model(name, features_only=True, **size).eval()
    torch.manual_seed(0)
    encoder = Timm(3, name, size=64 if size else None).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = encoder(x), oracle(x)
    for ours, theirs in zip(found, expected[-len(found) :], strict=True):
        torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2) if size else theirs, rtol=1e-4, atol=1e-5)


@needs_timm
def test_the_contract_is_kept() -> None:
    check_encoder(Timm, name="resnet18")


@needs_timm
def test_unknown_names_are_answered() -> None:
    with pytest.raises(MtlbenchError, match=r"'timm:resnet81': timm has no such model\. Did you mean"):
        Timm(3, "resnet81")
