"""What an auxiliary task promises."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mtlbench.contracts import Auxiliary, Batch, Dataset, Split, SplitName
from mtlbench.data.auxiliary import with_auxiliary
from mtlbench.testing.dataset import check_dataset


def check_auxiliary(cls: type[Auxiliary], **parameters: Any) -> None:
    """Assert that an auxiliary task keeps the contract, on small colour images of 8 and of 32 bits.

    Its task is marked auxiliary. Target and altered input follow from the one sample and what is drawn for
    it; they are finite, the input keeps shape and type, and nothing is written into the images that came in.
    On a dataset of images it passes `check_dataset`: loss and metrics take the targets.
    """
    name, auxiliary = cls.__name__, cls(**parameters)
    clean = _Images(7, seed=0, real=True).inputs
    task = auxiliary.task(tuple(clean.shape[1:]))
    assert task.auxiliary, f"{name}: its task must have auxiliary=True"
    assert re.fullmatch(r"[A-Za-z_]\w*", task.name), f"{name}: {task.name!r} is no name that specs can hold"
    before = clean.clone()
    target, seen = auxiliary.target(clean), auxiliary.alter(clean, _generators(len(clean)))
    assert torch.equal(clean, before), f"{name}: it writes into the images that it is given"
    assert seen.dtype == torch.float32, f"{name}: altered inputs must be float32, got {seen.dtype}"
    assert seen.shape == clean.shape, (
        f"{name}: altered inputs must keep the shape {tuple(clean.shape)}, got {tuple(seen.shape)}"
    )
    assert seen.isfinite().all(), f"{name}: altered inputs are not finite"
    again = auxiliary.alter(clean, _generators(len(clean)))
    assert torch.equal(seen, again), f"{name}: it draws from elsewhere than the generators that it is given"
    for i, generator in enumerate(_generators(len(clean))):
        assert torch.equal(auxiliary.target(clean[i : i + 1])[0], target[i]), (
            f"{name}: the target of a sample depends on the others in its batch"
        )
        assert torch.equal(auxiliary.alter(clean[i : i + 1], [generator])[0], seen[i]), (
            f"{name}: what the model sees of a sample depends on the others in its batch"
        )
    for real in (False, True):
        check_dataset(with_auxiliary(_ImageSet(real), [auxiliary]))


def _generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


class _Images(Split):
    """Smooth colours with an edge in them, and with noise."""

    def __init__(self, size: int, seed: int, real: bool) -> None:
        draw = torch.Generator().manual_seed(seed)
        coarse = torch.rand(size, 3, 4, 4, generator=draw)
        images = functional.interpolate(coarse, size=(16, 16), mode="bilinear")
        images[:, :, 8:, 8:] = 1 - images[:, :, 8:, 8:].round()
        images = (images + 0.02 * torch.randn(images.shape, generator=draw)).clamp(0, 1)
        self.inputs = images if real else (images * 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.inputs[indices], {})


class _ImageSet(Dataset):
    context: ClassVar[tuple[str, ...]] = ()
    title = "images"
    tasks = ()
    input_shape = (3, 16, 16)

    def __init__(self, real: bool) -> None:
        sizes: dict[SplitName, int] = {"train": 6, "val": 5, "test": 5}
        self._splits = {name: _Images(size, seed, real) for seed, (name, size) in enumerate(sizes.items())}

    def split(self, name: SplitName) -> Split:
        return self._splits[name]
