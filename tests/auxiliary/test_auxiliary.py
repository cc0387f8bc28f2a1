"""Auxiliary tasks: what each derives, and how a dataset with them behaves."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import SPLITS, Auxiliary, Batch, Dataset, Map, Split, SplitName, Task, Vector
from mtlbench.data.auxiliary import with_auxiliary
from mtlbench.errors import MtlbenchError
from mtlbench.losses import L1, MSE
from mtlbench.metrics import mae, psnr
from mtlbench.registry import Registry
from mtlbench.testing import check_auxiliary
from mtlbench_zoo.auxiliary.colour import SCALE, Colour, lab
from mtlbench_zoo.auxiliary.denoise import Denoise
from mtlbench_zoo.auxiliary.edges import Edges, canny
from mtlbench_zoo.auxiliary.reconstruction import Reconstruction

Array = NDArray[Any]
BOX = [Reconstruction, Edges, Denoise, Colour]


class Pictures(Split):
    def __init__(self, size: int, seed: int, channels: int = 3) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.inputs = torch.randint(0, 256, (size, channels, 16, 16), generator=draw, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, indices: Tensor) -> Batch:
        found = self.inputs[indices]
        return Batch(found, {"mean": found.float().mean((1, 2, 3))[:, None] / 255})


class PictureSet(Dataset):
    title = "pictures"
    tasks = (Task("mean", Vector(1), L1(), (mae(),)),)
    input_shape = (3, 16, 16)

    def __init__(self, channels: int = 3) -> None:
        self.input_shape = (channels, 16, 16)
        self.splits = {name: Pictures(9, seed, channels) for seed, name in enumerate(SPLITS)}

    def split(self, name: SplitName) -> Split:
        return self.splits[name]


def fetched(dataset: Dataset, name: SplitName, indices: list[int]) -> Batch:
    split = dataset.split(name)
    assert isinstance(split, Split)
    return split.fetch(torch.tensor(indices, dtype=torch.int64))


# ---- each of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOX)
def test_each_keeps_the_contract(cls: type[Auxiliary]) -> None:
    check_auxiliary(cls)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels(channels: int) -> None:
    dataset = with_auxiliary(PictureSet(channels), [Reconstruction(), Edges(), Denoise()])
    batch = fetched(dataset, "train", [0, 1])
    assert batch.targets["reconstruction"].shape == (2, channels, 16, 16)
    assert batch.targets["edges"].shape == (2, 16, 16)
    with pytest.raises(MtlbenchError, match=f"colour needs images of 3 channels .* these have {channels}"):
        with_auxiliary(PictureSet(channels), [Colour()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Denoise(std=0.0), "'std' must be finite and above 0, found 0"),
        (lambda: Denoise(std=math.nan), "'std'"),
        (lambda: Edges(sigma=0), "'sigma' must be finite and above 0"),
        (lambda: Edges(low=0.2, high=0.1), "0 < low <= high, found 0.2 and 0.1"),
        (lambda: Edges(low=0), "0 < low <= high"),
        (lambda: Edges(high=math.inf), "0 < low <= high"),
    ],
)
def test_numbers_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        make()


def test_the_noise_is_gaussian_of_the_chosen_deviation() -> None:
    clean = torch.full((40, 3, 32, 32), 0.5)
    seen = Denoise(std=0.3).alter(clean, [torch.Generator().manual_seed(i) for i in range(40)])
    noise = (seen - clean).double().flatten()
    assert abs(float(noise.mean())) < 4 * 0.3 / len(noise) ** 0.5
    assert float(noise.std()) == pytest.approx(0.3, rel=0.01)
    assert float((noise.abs() < 0.3).double().mean()) == pytest.approx(0.6827, abs=0.01)
    assert float(seen.min()) < 0, "noise is not cut off"


def test_psnr_of_the_whole_split() -> None:
    target = torch.zeros(2, 1, 2, 2)
    output = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 0.3)])
    metric = psnr().make()
    metric.update(output[:1], target[:1])
    metric.update(output[1:], target[1:])
    assert float(metric.compute()) == pytest.approx(10 * math.log10(1 / 0.05), rel=1e-6)
    perfect = psnr().make()
    perfect.update(target, target)
    assert float(perfect.compute()) == pytest.approx(120)


# ---- colour ---------------------------------------------------------------------------------------------

# sRGB colours and their L*a*b* (D65, two degrees), as tables of the CIE formulae list them.
KNOWN = {
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 255, 255): (100.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (255, 255, 0): (97.14, -21.55, 94.48),
    (0, 255, 255): (91.11, -48.09, -14.13),
    (255, 0, 255): (60.32, 98.23, -60.82),
    (128, 128, 128): (53.59, 0.0, 0.0),
    (128, 0, 0): (25.53, 48.05, 38.06),
}


def test_lab_of_known_colours() -> None:
    rgb = np.array(list(KNOWN)).reshape(-1, 3, 1, 1) / 255
    assert np.abs(lab(rgb)[:, :, 0, 0] - np.array(list(KNOWN.values()))).max() < 0.02


def test_lab_can_be_taken_back() -> None:
    rgb = np.random.default_rng(0).random((2, 3, 16, 16))
    lightness, a, b = lab(rgb).transpose(1, 0, 2, 3)
    roots = np.stack(
        [(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200]
    )
    ratios = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29))
    xyz = ratios * np.array([0.95047, 1.0, 1.08883]).reshape(3, 1, 1, 1)
    back = np.array(
        [
            [3.2404542, -1.5371385, -0.4985314],
            [-0.9692660, 1.8760108, 0.0415560],
            [0.0556434, -0.2040259, 1.0572252],
        ]
    )
    linear = np.einsum("rc,cbhw->brhw", back, xyz)
    coded = np.where(linear > 0.0031308, 1.055 * linear.clip(1e-12) ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert np.abs(coded - rgb).max() < 1e-4


def test_every_colour_stays_in_range_and_grey_has_none() -> None:
    corners = torch.tensor(list(product([0.0, 0.5, 1.0], repeat=3))).view(-1, 3, 1, 1)
    assert Colour().target(corners).abs().max() <= 1
    assert Colour().target(torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4)).abs().max() * SCALE < 0.01
    seen = Colour().alter(corners, [])
    assert torch.equal(seen[:, :1].expand_as(seen), seen)
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1


# ---- edges ----------------------------------------------------------------------------------------------


def slow_canny(grey: Array, sigma: float, low: float, high: float) -> Array:
    """Canny's detector pixel by pixel."""
    rows, columns = grey.shape
    radius = int(4 * sigma + 0.5)
    kernel = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-radius, radius + 1)]
    kernel = [value / math.fsum(kernel) for value in kernel]

    def at(image: Any, y: int, x: int) -> float:
        return float(image[min(max(y, 0), rows - 1)][min(max(x, 0), columns - 1)])

    def blurred(image: Any, dy: int, dx: int) -> Any:
        reach = range(-radius, radius + 1)
        return [
            [
                math.fsum(w * at(image, y + k * dy, x + k * dx) for w, k in zip(kernel, reach, strict=True))
                for x in range(columns)
            ]
            for y in range(rows)
        ]

    smooth = blurred(blurred(grey, 1, 0), 0, 1)
    slope: dict[tuple[int, int], tuple[float, float]] = {}
    for y, x in product(range(rows), range(columns)):
        down = sum(
            w * (at(smooth, y + 1, x + k) - at(smooth, y - 1, x + k)) for k, w in ((-1, 1), (0, 2), (1, 1))
        )
        right = sum(
            w * (at(smooth, y + k, x + 1) - at(smooth, y + k, x - 1)) for k, w in ((-1, 1), (0, 2), (1, 1))
        )
        slope[y, x] = down / 8, right / 8
    length = {place: math.hypot(*found) for place, found in slope.items()}

    def along(y: float, x: float) -> float:
        """The length between pixels, linear, where one coordinate is whole; 0 outside."""
        (y0, x0), found = (math.floor(y), math.floor(x)), 0.0
        for j, i in product((y0, y0 + 1), (x0, x0 + 1)):
            found += max(0, 1 - abs(y - j)) * max(0, 1 - abs(x - i)) * length.get((j, i), 0)
        return found

    ridge = set()
    for (y, x), (down, right) in slope.items():
        if length[y, x] >= low:
            longest = max(abs(down), abs(right))
            dy, dx = down / longest, right / longest
            if length[y, x] >= along(y - dy, x - dx) and length[y, x] > along(y + dy, x + dx):
                ridge.add((y, x))
    todo = [place for place in ridge if length[place] >= high]
    edges = np.zeros(grey.shape, dtype=bool)
    while todo:
        y, x = todo.pop()
        if (y, x) in ridge and not edges[y, x]:
            edges[y, x] = True
            todo += [(y + j, x + i) for j, i in product((-1, 0, 1), repeat=2)]
    return edges


@pytest.mark.parametrize("seed", range(4))
def test_canny_agrees_with_the_slow_way(seed: int) -> None:
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:26, :31]
    grey = (
        draw.uniform(0, 0.5, (1, 2))[0, 0]
        + 0.3 * (np.hypot(y - 11, x - draw.uniform(9, 20)) < 8)
        + 0.2 * (x + 2 * y > 60)
    )
    grey = (grey + draw.normal(0, 0.03, grey.shape)).clip(0, 1)
    ours = canny(grey[None], 1.2, 0.02, 0.04)[0]
    theirs = slow_canny(grey, 1.2, 0.02, 0.04)
    assert 20 < theirs.sum() < 300
    assert (ours != theirs).sum() <= 1  # where two lengths are equal but for rounding


def test_a_circle_has_one_thin_closed_edge_where_it_is() -> None:
    y, x = np.mgrid[:64, :64]
    distance = np.hypot(y - 31.3, x - 32.1)
    (edges,) = canny((0.2 + 0.6 * (distance < 20))[None], 1.0, 0.02, 0.05)
    assert np.abs(distance[edges] - 20).max() < 1.2
    angles = np.arctan2((y - 31.3)[edges], (x - 32.1)[edges])
    assert np.diff(np.sort(angles)).max() < 0.15, "no gap"
    assert edges.sum() < 1.3 * 2 * math.pi * 20, "one pixel thick"


def test_a_step_is_one_pixel_wide_and_an_even_image_has_no_edge() -> None:
    grey = np.zeros((2, 12, 12))
    grey[0, :, 6:] = 1
    edges = canny(grey, 1.0, 0.02, 0.05)
    assert edges[0].sum(1).tolist() == [1] * 12
    assert set(np.nonzero(edges[0])[1]) in ({5}, {6})
    assert not edges[1].any()


def test_weak_edges_stay_only_where_they_lead_to_a_strong_one() -> None:
    grey = np.zeros((2, 40, 20))
    grey[:, :, 10:] = 0.09  # at most 0.036 a pixel: above low, below high
    grey[0, :, 10:] = np.linspace(0.07, 0.4, 40)[:, None]
    edges = canny(grey, 1.0, 0.02, 0.05)
    assert edges[0].any(1).all(), "it goes on into the weak part"
    assert not edges[1].any(), "nor does it reach into the next image of the batch"


# ---- a dataset with them --------------------------------------------------------------------------------


def test_targets_are_of_the_clean_image_and_inputs_as_composed() -> None:
    plain, order = PictureSet(), [Reconstruction(), Colour(), Denoise(0.2), Edges()]
    batch = fetched(with_auxiliary(plain, order), "val", [3, 0])
    clean = fetched(plain, "val", [3, 0]).inputs.float() / 255
    assert torch.equal(batch.targets["reconstruction"], clean)
    assert torch.equal(batch.targets["denoise"], clean)
    assert torch.equal(batch.targets["colour"], Colour().target(clean))
    assert torch.equal(batch.targets["edges"], Edges().target(clean))
    grey = Colour().alter(clean, [])
    noise = batch.inputs - grey
    assert float(noise.std()) == pytest.approx(0.2, rel=0.1)
    other = fetched(with_auxiliary(plain, [Denoise(0.2), Colour()]), "val", [3, 0]).inputs
    assert torch.equal(other[:, :1].expand_as(other), other), "colour after noise leaves brightness only"
    assert not torch.equal(other, grey)


def test_inputs_that_nothing_alters_stay_bytes() -> None:
    batch = fetched(with_auxiliary(PictureSet(), [Edges(), Reconstruction()]), "train", [1])
    assert torch.equal(batch.inputs, fetched(PictureSet(), "train", [1]).inputs)


def test_noise_belongs_to_split_and_sample() -> None:
    dataset = with_auxiliary(PictureSet(), [Denoise()])
    whole = fetched(dataset, "train", list(range(9))).inputs
    torch.rand(3)
    assert torch.equal(fetched(dataset, "train", [4, 7, 4]).inputs, whole[[4, 7, 4]])
    clean = fetched(PictureSet(), "train", list(range(9))).inputs / 255
    noise = whole - clean
    assert not torch.allclose(noise[0], noise[1], atol=0.01)
    val = fetched(dataset, "val", [0]).inputs - fetched(PictureSet(), "val", [0]).inputs / 255
    assert not torch.allclose(noise[0], val[0], atol=0.01)


def test_the_fingerprint_covers_what_is_derived() -> None:
    def found(*auxiliaries: Auxiliary) -> str:
        return with_auxiliary(PictureSet(), auxiliaries).fingerprint()

    prints = [
        found(), found(Reconstruction()), found(Edges()), found(Edges(high=0.3)), found(Denoise()),
        found(Denoise(0.2)), found(Colour(), Denoise()), found(Denoise(), Colour()),
    ]  # fmt: skip
    assert len(set(prints)) == len(prints)
    assert found(Denoise()) == prints[4]
    assert found() == PictureSet().fingerprint()


class Floats(PictureSet):
    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        for split in self.splits.values():
            split.inputs = low + (high - low) * split.inputs.float() / 255


class Apart(PictureSet):
    def split(self, name: SplitName) -> Any:
        return {"mean": self.splits[name]}


def test_what_cannot_be_given_auxiliary_tasks(tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match="each task has inputs of its own, and auxiliary tasks"):
        with_auxiliary(Apart(), [Edges()])
    with pytest.raises(MtlbenchError, match="two tasks 'denoise'"):
        with_auxiliary(PictureSet(), [Denoise(), Denoise(0.2)])
    with pytest.raises(MtlbenchError, match="two tasks 'edges'"):
        with_auxiliary(with_auxiliary(PictureSet(), [Edges()]), [Edges()])
    with pytest.raises(MtlbenchError, match="has no images"):
        with_auxiliary(Registry().choose("datasets", "relatedness").build(data_dir=tmp_path), [Edges()])
    with pytest.raises(MtlbenchError, match=r"need images in 0..1, and the train split has -1..1"):
        fetched(with_auxiliary(Floats(-1, 1), [Edges()]), "train", list(range(9)))
    fetched(with_auxiliary(Floats(0, 1), [Edges()]), "train", [0])


# ---- the kit finds what is wrong ------------------------------------------------------------------------


class Good(Auxiliary):
    def task(self, input_shape: tuple[int, ...]) -> Task:
        return Task("good", Map(3), MSE(), (mae(),), auxiliary=True)

    def target(self, clean: Tensor) -> Tensor:
        return 1 - clean


class NotMarked(Good):
    def task(self, input_shape: tuple[int, ...]) -> Task:
        return Task("good", Map(3), MSE(), (mae(),))


class OfTheBatch(Good):
    def target(self, clean: Tensor) -> Tensor:
        return clean - clean.mean()


class InPlace(Good):
    def target(self, clean: Tensor) -> Tensor:
        return clean.mul_(0.5)


class OwnNoise(Good):
    def alter(self, inputs: Tensor, generators: Any) -> Tensor:
        return inputs + torch.rand(inputs.shape)


class OneChannel(Good):
    def alter(self, inputs: Tensor, generators: Any) -> Tensor:
        return inputs.mean(1, keepdim=True)


class WrongShape(Good):
    def target(self, clean: Tensor) -> Tensor:
        return clean[:, :1]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NotMarked, "auxiliary=True"),
        (OfTheBatch, "depends on the others in its batch"),
        (InPlace, "writes into the images"),
        (OwnNoise, "draws from elsewhere"),
        (OneChannel, "must keep the shape"),
    ],
)
def test_the_check_finds(cls: type[Auxiliary], message: str) -> None:
    check_auxiliary(Good)
    with pytest.raises(AssertionError, match=message):
        check_auxiliary(cls)


def test_the_check_finds_a_target_that_the_loss_cannot_take() -> None:
    with pytest.raises(MtlbenchError, match="does not fit an output"):
        check_auxiliary(WrongShape)
