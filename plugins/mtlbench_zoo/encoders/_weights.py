"""Weights that somebody trained before: where they come from, whether they fit, and what they are called."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mtlbench.contracts import Encoder
from mtlbench.data.download import download
from mtlbench.data.folder import data_folder
from mtlbench.errors import MtlbenchError

URL = "https://download.pytorch.org/models"
_CLASSIFIER = ("classifier.", "fc.")
_SHOWN = 4


class Pretrained(Encoder):
    """An encoder whose stages hold torchvision's layers under torchvision's names.

    ``weights="imagenet"`` is torchvision's checkpoint of its model `called`, downloaded once and confirmed
    by the checksum in its name; any other text is the path of a ``.pth`` or ``.safetensors`` file with the
    same keys. A classifier is passed by.
    """

    called: ClassVar[str]

    @classmethod
    @abstractmethod
    def published(cls, parameters: Mapping[str, Any]) -> str:
        """Return the name of torchvision's file for these parameters, which ends in its checksum."""

    @classmethod
    def identity(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters with a hash of the weights' content in place of their path."""
        if parameters["weights"] is None:
            return dict(parameters)
        path = cls._file(parameters)
        found = path.stat()
        return {**parameters, "weights": _digest(path, found.st_mtime_ns, found.st_size)}

    @classmethod
    def restored(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters without weights, and whether images are normalised as it was with them."""
        if parameters["weights"] is None:
            return dict(parameters)
        normalize = True if parameters["normalize"] is None else parameters["normalize"]
        return {**parameters, "weights": None, "normalize": normalize}

    @classmethod
    def _file(cls, parameters: Mapping[str, Any]) -> Path:
        weights: str = parameters["weights"]
        if weights == "imagenet":
            name = cls.published(parameters)
            checksum = name.removesuffix(".pth").rpartition("-")[2]
            folder = data_folder(None) / "weights"
            otherwise = f"download it elsewhere and use {cls.called}[weights=PATH]"
            return download([f"{URL}/{name}"], f"sha256:{checksum}", folder, otherwise=otherwise)
        path = Path(weights).expanduser()
        if not path.is_file():
            raise MtlbenchError(
                f"encoder '{cls.called}': weights {weights!r} is no file; give 'imagenet' or the path of a"
                " .pth or .safetensors file"
            )
        return path

    def load(self, parameters: Mapping[str, Any]) -> None:
        """Fill all stages with the weights that the parameters name; nothing where they name none."""
        if parameters["weights"] is None:
            return
        path = self._file(parameters)
        where = f"encoder '{self.called}': weights '{path}'"
        fill(self.stages, self.adapt(read(path, where)), where)
        self.initialised = True

    def adapt(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what a file holds under the names, and in the form, that the stages expect."""
        return found


def read(path: Path, where: str) -> dict[str, Tensor]:
    """Return the tensors of a file by name, real ones as float32; a classifier's are left out.

    Nothing in the file is executed. where: how errors begin.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the unpickler trusts what it reads: any other file may raise anything
        raise MtlbenchError(
            f"{where} cannot be read; it must be a .safetensors file, or a .pth file that holds nothing but"
            " tensors by name"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise MtlbenchError(f"{where} do not hold tensors by name; save a model's state_dict()")
    return {
        key.removeprefix("features."): value.float() if value.is_floating_point() else value
        for key, value in content.items()
        if not key.startswith(_CLASSIFIER)
    }


def fill(stages: nn.ModuleList, found: Mapping[str, Tensor], where: str) -> None:
    """Copy ``found`` into the stages, whose names (without the stage's number) it must have, all of them.

    Counters of batch norms may be absent, as in older files. Raises `MtlbenchError` with what did not fit.
    """
    slots = {key.partition(".")[2]: value for key, value in stages.state_dict(keep_vars=True).items()}
    needed = [key for key in slots if not key.endswith("num_batches_tracked")]
    faults = {
        "missing": [key for key in needed if key not in found],
        "unexpected": [key for key in found if key not in slots],
        "of another shape": [
            f"{key} {list(found[key].shape)} instead of {list(slots[key].shape)}"
            for key in found
            if key in slots and found[key].shape != slots[key].shape
        ],
    }
    if any(faults.values()):
        lists = [f"{len(keys)} {fault} ({_shorten(keys)})" for fault, keys in faults.items() if keys]
        raise MtlbenchError(f"{where} do not fit: {'; '.join(lists)}")
    with torch.no_grad():
        for key, value in found.items():
            slots[key].copy_(value)


def without_biases(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of convolutions with a bias and batch norm for such without a bias.

    Batch norm takes the mean away, so a bias before it is the same as a running mean that is smaller by it.
    Layers are numbered as in torchvision's VGG: the norm follows its convolution.
    """
    adapted = dict(found)
    for key in found:
        layer, _, part = key.rpartition(".")
        mean = f"{int(layer) + 1}.running_mean" if layer.isdecimal() else ""
        if part == "bias" and mean in found:
            adapted[mean] = found[mean] - adapted.pop(key)
    return adapted


def _shorten(keys: list[str]) -> str:
    more = [f"and {len(keys) - _SHOWN} more"] if len(keys) > _SHOWN else []
    return ", ".join([*keys[:_SHOWN], *more])


@cache
def _digest(path: Path, _modified: int, _size: int) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
