"""Backbones of Hugging Face transformers."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.contracts import Encoder
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.spec import Spec, convert
from mtlbench_zoo.encoders._entry import IMAGENET_DEVIATION, IMAGENET_MEAN, Entry
from mtlbench_zoo.encoders._foreign import LastMap, line, measure

# What the library raises where a configuration, a file or an image does not suit it: anything of these.
_FAULTS = (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError)

_PROBE = 64
"""Side of the image that a backbone without a size of its own is measured with."""


class HF(Encoder):
    """Any backbone of Hugging Face transformers: ``hf:swin``, ``hf:microsoft/resnet-18``, ``hf:FOLDER``.

    name: a model type (``resnet``, ``convnext``, ``swin``, ``dinov2`` …), which is made from its default
    configuration and initialised as its authors do, without any network; or a folder that holds a saved
    model; or the name of one on the hub, which is downloaded. Weights that are loaded are the model's own.
    config: settings that shall differ from the configuration, as text such as
    ``config='depths=[1,1,1,1],embed_dim=24'``. normalize: whether images are brought to the mean and
    deviation that the saved model asks for (ImageNet's where it does not say); none: exactly when weights are
    loaded.

    Of resnet, rt_detr_resnet, bit, hgnet_v2, textnet, convnext, convnextv2, dinov3_convnext, pvt_v2, swin,
    swinv2 and focalnet every stage becomes a stage here: it downsamples at its start and gives its map before
    the next one does; a norm that the backbone puts on what it gives is kept on the last. Any other backbone
    is one stage that gives its last map: plain vision transformers have one resolution anyway. What plays no
    part in these maps is frozen.

    Needs ``pip install 'mtlbench[hf]'``. Source: Wolf et al., EMNLP 2020 (demonstrations), arXiv:1910.03771.
    """

    def __init__(self, in_channels: int, name: str, config: str = "", normalize: bool | None = None) -> None:
        super().__init__()
        what = f"encoder 'hf:{name}'"
        backbone, saved = _backbone(what, name, config, in_channels)
        split = _SPLITS.get(backbone.config.model_type)
        parts = [LastMap(backbone)] if split is None else split(backbone)
        entry = Entry(f"hf:{name}", in_channels, 1, saved if normalize is None else normalize)
        if saved:
            entry.expect(*_statistics(_folder(name)))
        self.stages = nn.ModuleList([nn.Sequential(entry, parts[0]), *parts[1:]])
        size = getattr(backbone.config, "image_size", None) or _PROBE
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        try:
            self.shape = measure(self.stages, torch.rand(1, in_channels, height, width))
        except _FAULTS as error:
            raise MtlbenchError(f"{what} cannot read {in_channels} channels: {line(error)}") from error
        entry.stride = self.shape.strides[-1]
        self.initialised = True

    @classmethod
    def identity(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters, with a hash of the files that are loaded after the name or in its place."""
        name = parameters["name"]
        if name in _types(f"encoder 'hf:{name}'"):
            return dict(parameters)
        folder = _folder(name)
        shown = "" if Path(name).is_dir() else f"{name}@"
        return {**parameters, "name": shown + _digest(folder)}


class Grid(nn.Module):
    """A stage of a transformer on tokens, as a stage on maps.

    start: what comes before: image -> (tokens, size), or the merging of patches at the end of the stage
    before. norm: of the tokens, in the end.
    """

    def __init__(
        self, start: nn.Module, stage: nn.Module, norm: nn.Module | None, more: dict[str, Any]
    ) -> None:
        super().__init__()
        self.start, self.stage, self.norm, self.more = start, stage, norm, more
        self.merges = "PatchMerging" in type(start).__name__

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, C', h', w']`` for ``x`` ``[B, C, h, w]``."""
        if self.merges:
            height, width = x.shape[2:]
            tokens = self.start(x.flatten(2).transpose(1, 2), (height, width))
            height, width = (height + 1) // 2, (width + 1) // 2
        else:
            tokens, size = self.start(x)
            height, width = size[-2:]
        tokens = self.stage(tokens, (height, width), **self.more)[0]
        if self.norm is not None:
            tokens = self.norm(tokens)
        return _map(tokens, height, width)


class Overlapping(nn.Module):
    """A stage of PVT v2, as a stage on maps."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, C', h', w']`` for ``x`` ``[B, C, h, w]``."""
        (tokens,), height, width = self.stage(x, False)
        return _map(tokens, height, width)


def _map(tokens: Tensor, height: int, width: int) -> Tensor:
    batch, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, channels, height, width)


def _chain(start: nn.Module, stages: nn.ModuleList, norm: nn.Module | None = None) -> list[nn.Module]:
    """Return stages on maps, the first after ``start``, the last before ``norm``."""
    first, *later = stages
    parts = [nn.Sequential(start, first), *later]
    return parts if norm is None else [*parts[:-1], nn.Sequential(parts[-1], norm)]


def _grids(
    start: nn.Module, stages: Iterable[Any], norm: nn.Module | None = None, **more: Any
) -> list[nn.Module]:
    """Return stages on tokens; what each does at its end to downsample, the next one does at its start."""
    parts: list[Grid] = []
    for stage in stages:
        parts.append(Grid(start, stage, None, more))
        start, stage.downsample = stage.downsample, None
    parts[-1].norm = norm
    return list(parts)


def _last_norm(backbone: Any) -> nn.Module:
    norm: nn.Module = backbone.hidden_states_norms[backbone.stage_names[-1]]
    return norm


_SPLITS: dict[str, Callable[[Any], list[nn.Module]]] = {
    "bit": lambda b: _chain(b.bit.embedder, b.bit.encoder.stages),
    "convnext": lambda b: _chain(b.embeddings, b.encoder.stages, _last_norm(b)),
    "convnextv2": lambda b: _chain(b.embeddings, b.encoder.stages, _last_norm(b)),
    "dinov3_convnext": lambda b: list(b.model.stages),
    "focalnet": lambda b: _grids(b.focalnet.embeddings, b.focalnet.encoder.stages),
    "hgnet_v2": lambda b: _chain(b.embedder, b.encoder.stages),
    "pvt_v2": lambda b: [Overlapping(layer) for layer in b.encoder.layers],
    "resnet": lambda b: _chain(b.embedder, b.encoder.stages),
    "rt_detr_resnet": lambda b: _chain(b.embedder, b.encoder.stages),
    "swin": lambda b: _grids(b.swin.embeddings, b.swin.encoder.layers, _last_norm(b), always_partition=True),
    "swinv2": lambda b: _grids(b.embeddings, b.encoder.layers),
    "textnet": lambda b: _chain(b.textnet.stem, b.textnet.encoder.stages),
}


def _transformers(what: str) -> Any:
    try:
        found = importlib.import_module("transformers")
    except ImportError as error:
        raise MtlbenchError(
            f"{what} needs transformers: pip install 'mtlbench[hf]' ({line(error)})"
        ) from error
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found


def _types(what: str) -> Mapping[str, str]:
    """Return the model types that have a backbone."""
    _transformers(what)
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    types: Mapping[str, str] = auto.MODEL_FOR_BACKBONE_MAPPING_NAMES
    return types


def _backbone(what: str, name: str, changes: str, in_channels: int) -> tuple[Any, bool]:
    """Return the backbone, and whether its weights were loaded."""
    library, types = _transformers(what), _types(what)
    saved = name not in types
    if saved and not Path(name).is_dir() and ("/" not in name or name[0] in "/.~"):
        raise MtlbenchError(
            f"{what}: there is no such model type and no such folder.{did_you_mean(name, types)} Types:"
            f" {', '.join(types)}"
        )
    try:
        if saved:
            folder, auto = str(_folder(name)), library.AutoConfig
            settings = _settings(auto.from_pretrained(folder), changes, what)
            config = auto.from_pretrained(folder, **settings)
            return _load(folder, config, what), True
        default = library.AutoConfig.for_model(name)
        channels = {"num_channels": in_channels} if hasattr(default, "num_channels") else {}
        config = library.AutoConfig.for_model(name, **channels, **_settings(default, changes, what))
        for key, value in vars(config).items():
            if isinstance(value, tuple):  # some backbones add these to lists
                setattr(config, key, list(value))
        return library.AutoBackbone.from_config(config), False
    except _FAULTS as error:
        raise MtlbenchError(f"{what} cannot be made: {line(error)}") from error


def _load(folder: str, config: Any, what: str) -> Any:
    """Return the backbone that lies in a folder, in float32. (AutoBackbone asks the hub for folders, too.)"""
    kinds = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_BACKBONE_MAPPING
    if type(config) not in kinds:
        raise MtlbenchError(f"{what}: a model of type {config.model_type!r} has no backbone")
    backbone, found = kinds[type(config)].from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True
    )
    # The norms that a backbone puts on what it gives are not part of the model that was trained.
    missing = sorted(key for key in found["missing_keys"] if "hidden_states_norms" not in key)
    if missing:
        raise MtlbenchError(f"{what}: {len(missing)} weights are missing, such as {missing[0]}")
    return backbone


def _settings(default: Any, changes: str, what: str) -> dict[str, Any]:
    """Return the settings that ``key=value,key=value`` names, all of them settings that ``default`` has."""
    known, found = default.to_dict(), {}
    for key, text in Spec.parse(f"config[{changes}]").arguments:
        if key not in known:
            raise MtlbenchError(
                f"{what}: its configuration has no setting {key!r}.{did_you_mean(key, known)}"
            )
        found[key] = convert(text, Any)
    return found


@cache
def _folder(name: str) -> Path:
    """Return the folder of a saved model: ``name`` itself, or what the hub gives or gave under that name."""
    if Path(name).is_dir():
        return Path(name).resolve()
    hub = importlib.import_module("huggingface_hub")
    kinds = ["*.json", "*.safetensors"]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=kinds))
    except (OSError, ValueError) as error:
        raise MtlbenchError(
            f"encoder 'hf:{name}' cannot be downloaded ({line(error)}); give a local folder, or a model type"
            " such as hf:resnet, which needs no network"
        ) from error


def _statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Return the mean and the deviation of its images that a saved model asks for."""
    file = folder / "preprocessor_config.json"
    asked = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    mean, deviation = asked.get("image_mean") or IMAGENET_MEAN, asked.get("image_std") or IMAGENET_DEVIATION
    return list(mean), list(deviation)


@cache
def _digest(folder: Path) -> str:
    """Return a hash of what a saved model is made from."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"
