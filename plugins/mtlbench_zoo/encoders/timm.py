"""Backbones of timm."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.contracts import Encoder
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench_zoo.encoders._entry import Entry
from mtlbench_zoo.encoders._foreign import LastMap, line, measure

_FAULTS = (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError)
_PROBE = 64


class Timm(Encoder):
    """Any backbone of timm (PyTorch Image Models): ``timm:resnet18``, ``timm:convnext_atto``.

    name: a model of timm, with its tag where a certain checkpoint is meant. pretrained: whether its published
    weights are downloaded; otherwise it is initialised as its authors do. size: side of square images, for
    models that must know it. normalize: whether images are brought to the mean and deviation that the model
    was trained with; none: exactly when pretrained.

    Where timm gives features layer by layer (resnet, convnext, swin, regnet, densenet, vgg …), every level
    becomes a stage; any other backbone is one stage that gives its last map.

    Needs ``pip install 'mtlbench[timm]'``, which brings torchvision: it must match torch, or timm does not
    import. Source: Wightman, PyTorch Image Models, 2019, doi:10.5281/zenodo.4414861.
    """

    def __init__(
        self,
        in_channels: int,
        name: str,
        pretrained: bool = False,
        size: int | None = None,
        normalize: bool | None = None,
    ) -> None:
        super().__init__()
        what = f"encoder 'timm:{name}'"
        library = _timm(what)
        if not library.is_model(name):
            known = library.list_models()
            raise MtlbenchError(f"{what}: timm has no such model.{did_you_mean(name, known)}")
        more = {} if size is None else {"img_size": size}
        try:
            model = library.create_model(
                name, features_only=True, pretrained=pretrained, in_chans=in_channels, **more
            )
            entry = Entry(f"timm:{name}", in_channels, 1, pretrained if normalize is None else normalize)
            known_by = library.get_pretrained_cfg(name)
            if known_by is not None:
                entry.expect(known_by.mean, known_by.std)
            first, *later = _stages(model)
            self.stages = nn.ModuleList([nn.Sequential(entry, first), *later])
            side = size or (known_by.input_size[-1] if known_by and known_by.fixed_input_size else _PROBE)
            self.shape = measure(self.stages, torch.rand(1, in_channels, side, side))
        except _FAULTS as error:
            raise MtlbenchError(f"{what} cannot be made: {line(error)}") from error
        entry.stride = self.shape.strides[-1]
        self.initialised = True

    @classmethod
    def identity(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters, with the full name of the checkpoint where one is loaded."""
        if not parameters["pretrained"]:
            return dict(parameters)
        name = parameters["name"]
        found = _timm(f"encoder 'timm:{name}'").get_pretrained_cfg(name)
        return {**parameters, "name": f"{found.architecture}.{found.tag}" if found else name}


class Innermost(nn.Module):
    """A stage on ``[B, H, W, C]``, as a stage on maps. first: it reads the image, as it is."""

    def __init__(self, stage: nn.Module, first: bool) -> None:
        super().__init__()
        self.stage, self.first = stage, first

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, C', h', w']`` for ``x`` ``[B, C, h, w]``."""
        found: Tensor = self.stage(x if self.first else x.permute(0, 2, 3, 1))
        return found.permute(0, 3, 1, 2)


def _stages(model: Any) -> list[nn.Module]:
    """Return the layers up to each level that the model gives; one stage where it is no list of layers."""
    levels = getattr(model, "return_layers", None)
    if not levels:
        return [LastMap(model)]
    stages: list[nn.Module] = []
    layers: list[nn.Module] = []
    for name, layer in model.items():
        layers.append(layer)
        if name in levels:
            stages.append(nn.Sequential(*layers))
            layers = []
    if str(getattr(model.output_fmt, "value", "")) == "NHWC":
        return [Innermost(stage, first=index == 0) for index, stage in enumerate(stages)]
    return stages


def _timm(what: str) -> Any:
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # torchvision that does not match torch is the latter
        reason = f"{what} needs timm, and torchvision that matches torch: pip install 'mtlbench[timm]'"
        raise MtlbenchError(f"{reason} ({line(error)})") from error
