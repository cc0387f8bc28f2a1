"""The dataset ``digits``: real handwriting, composed the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_digits

from mtlbench.cli import cli
from mtlbench.contracts import SPLITS
from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_dataset
from mtlbench_zoo.datasets.digits import CANVAS, SIDE, WRITERS, Digits, _placed, _source

FINGERPRINT = "9cec0ca9c0b4aeb1"


def test_it_keeps_the_contract_and_is_the_same_everywhere() -> None:
    dataset = Digits()
    check_dataset(dataset)
    assert dataset.counts() == {"train": 2000, "val": 500, "test": 500}
    assert dataset.fingerprint() == FINGERPRINT
    assert dataset.fingerprint() != Digits(combine="sum").fingerprint()


def test_splits_use_images_of_different_writers() -> None:
    edges = [edge for name in SPLITS for edge in WRITERS[name]]
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (0, 1797)
    # Every writer wrote 0..9 in order first; a split that began within a writer's digits would not.
    labels = load_digits().target
    for name in SPLITS:
        start, stop = WRITERS[name]
        assert labels[start : start + 10].tolist() == list(range(10))
        assert np.bincount(labels[start:stop]).min() > 30


@pytest.mark.parametrize("combine", ["max", "sum"])
def test_each_image_shows_its_two_digits(combine: str) -> None:
    """Some pair of source images of the right classes, at some place, gives exactly the picture."""
    images, labels = _source()
    dataset = Digits(8, combine)  # type: ignore[arg-type]
    batch = dataset.split("test").fetch(torch.arange(2))
    start, stop = WRITERS["test"]
    images, labels = images[start:stop].astype(int), labels[start:stop]
    for picture, left, right in zip(batch.inputs[:, 0].numpy(), *batch.targets.values(), strict=True):
        fits = {}
        for digit, offsets in ((left, range(3)), (right, range(6, 9))):
            fits[int(offsets[0])] = [
                placed
                for image in images[labels == digit.item()]
                for down in offsets
                for across in offsets
                if (placed := _placed(image[None], np.array([down]), np.array([across]))[0] <= picture).all()
            ]
        assert all(fits.values())
    assert batch.inputs[:, :, :6].float().mean() > 0


def test_placing() -> None:
    images = np.full((2, SIDE, SIDE), 7, np.uint8)
    canvas = _placed(images, np.array([0, 8]), np.array([2, 6]))
    assert canvas.shape == (2, CANVAS, CANVAS)
    assert canvas.sum() == 2 * SIDE * SIDE * 7
    assert canvas[0, :16, 2:18].min() == canvas[1, 8:, 6:22].min() == 7


def test_the_count_is_checked() -> None:
    with pytest.raises(MtlbenchError, match=r"digits: count must be in 4\.\.1000000, found 3"):
        Digits(3)


def test_a_run_learns_both_digits(tmp_path: object) -> None:
    command = ["run", "--data", "digits[count=400]", "--epochs", "3", "--no-baseline", "--quiet", "--json"]
    result = CliRunner().invoke(cli, [*command, "--results", f"{tmp_path}", "--lr", "0.003"])
    assert result.exit_code == 0, result.output
    assert '"title": "digits"' in result.stdout
