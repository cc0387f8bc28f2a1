from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlbench.data.photos import BrokenFileError, check_size, read_map, read_photo, resize_map
from mtlbench.errors import MtlbenchError


def test_any_kind_of_image_is_read_as_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (40, 20), (200, 10, 10))
    red.save(tmp_path / "a.jpg", quality=95)
    red.convert("P").save(tmp_path / "b.jpg", format="GIF")
    red.convert("RGBA").save(tmp_path / "c.jpg", format="PNG")
    Image.new("L", (40, 20), 90).save(tmp_path / "d.jpg")
    Image.new("CMYK", (40, 20)).save(tmp_path / "e.jpg")
    for name in "abcde":
        image, size = read_photo(tmp_path / f"{name}.jpg", 16)
        assert image.shape == (16, 16, 3)
        assert image.dtype == np.uint8
        assert size == (40, 20)
        if name in "abc":
            assert np.abs(image.astype(int) - [200, 10, 10]).max() < 12


def test_corrupt_images_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("cut.jpg", "text.jpg", "empty.jpg", "missing.jpg"):
        with pytest.raises(BrokenFileError, match=f"^{name}: .+"):
            read_photo(tmp_path / name, 16)
        with pytest.raises(BrokenFileError, match=f"^{name}: .+"):
            read_map(tmp_path / name)
    with pytest.raises(BrokenFileError, match="colour image"):
        read_map(tmp_path / "a.jpg")


def test_maps_keep_their_labels(tmp_path: Path) -> None:
    labels = np.repeat(np.repeat(np.array([[1, 2], [3, 2]], dtype=np.uint8), 8, 0), 8, 1)
    Image.fromarray(labels).save(tmp_path / "a.png")
    assert (read_map(tmp_path / "a.png") == labels).all()
    assert resize_map(labels, 2).tolist() == [[1, 2], [3, 2]]


@pytest.mark.parametrize("size", [0, -16, 8, 70, 100, 4096])
def test_bad_sizes(size: int) -> None:
    with pytest.raises(MtlbenchError, match=f"multiple of 16 from 16 to 1024, not {size}"):
        check_size(size)


def test_good_sizes() -> None:
    assert [check_size(size) for size in (16, 64, 128, 1024)] == [16, 64, 128, 1024]
