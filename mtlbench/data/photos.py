"""Photographs and label maps from files, as arrays of the size that runs use."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mtlbench.errors import MtlbenchError

SIZES = range(16, 1025, 16)


class BrokenFileError(Exception):
    """A file of a data set that cannot be read; it is named, counted and skipped."""


def check_size(size: int) -> int:
    """Return ``size`` where square images of that side can be made, else raise `MtlbenchError`."""
    if size not in SIZES:
        raise MtlbenchError(
            f"size must be a multiple of 16 from {SIZES[0]} to {SIZES[-1]}, not {size}; try --size 128"
        )
    return size


def read_photo(path: Path, size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the photograph as uint8 ``[size, size, 3]``, and the (width, height) that it had.

    Resized with an antialiased bilinear filter. Whatever the file is called, and whether it has a palette
    or an alpha channel (ignored), it is read. Raises
    `BrokenFileError` where it cannot be decoded to the end.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # such as broken EXIF, which is not used
            before = image.size
            rgb = image.convert("RGBA" if image.mode == "P" else "RGB").convert("RGB")
            return resize_photo(rgb, size), before
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenFileError(f"{path.name}: {_reason(error)}") from error


def read_grey(path: Path, size: int) -> NDArray[np.uint8]:
    """Return an image as grey values uint8 ``[size, size]``; `BrokenFileError` as `read_photo`."""
    try:
        with Image.open(path) as image:
            grey = image.convert("L")
            if grey.size != (size, size):
                grey = grey.resize((size, size), Image.Resampling.BILINEAR)
            return np.array(grey, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenFileError(f"{path.name}: {_reason(error)}") from error


def read_map(path: Path) -> NDArray[np.uint8]:
    """Return a label map as uint8 ``[H, W]``, as in the file; `BrokenFileError` where it cannot be read."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise BrokenFileError(f"{path.name}: is a colour image ({image.mode}), not a label map")
            return np.array(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenFileError(f"{path.name}: {_reason(error)}") from error


def resize_photo(image: Image.Image | NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return an RGB image as uint8 ``[size, size, 3]``, antialiased bilinear."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.uint8)


def resize_map(labels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return a label map as uint8 ``[size, size]``, each pixel the nearest one's label."""
    return np.array(Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST), dtype=np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is no image"
    return (str(error) or type(error).__name__).splitlines()[0]
