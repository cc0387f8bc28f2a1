"""The official layout of the Oxford-IIIT Pet dataset, with its quirks.

``images/NAME.jpg``, ``annotations/list.txt`` (NAME CLASS SPECIES BREED; species 1 cat, 2 dog),
``annotations/trimaps/NAME.png`` (1 animal, 2 background, 3 the border between, which belongs to the animal)
and ``annotations/xmls/NAME.xml`` (the head box, in pixels of the photograph). Source: Parkhi, Vedaldi,
Zisserman & Jawahar, "Cats and dogs", CVPR 2012.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlbench.data.photos import BrokenFileError, read_map, read_photo, resize_map
from mtlbench.data.splits import hashed
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.datasets._pets_file import Broken, Sample

PARTS = ("images", "annotations/list.txt", "annotations/trimaps", "annotations/xmls")
BACKGROUND = 2

Box = tuple[float, float, float, float]


class Official:
    """A folder in the official layout; its samples are the photographs that have a head box.

    They come in the order of the SHA-256 of their names, so that who is in which split depends on nothing
    but the names.
    """

    layout = "official Oxford-IIIT Pet"

    def __init__(self, folder: Path) -> None:
        missing = [part for part in PARTS if not (folder / part).exists()]
        if missing:
            raise MtlbenchError(
                f"{folder} looks like the official layout, but has no {', no '.join(missing)}"
            )
        self.folder = folder
        self.quirks: Counter[str] = Counter()
        self._photos = self._stems("images", ".jpg")
        self._trimaps = self._stems("annotations/trimaps", ".png")
        xmls = self._stems("annotations/xmls", ".xml")
        self._species = self._read_list()
        self._count_quirks(xmls)
        self._names = hashed(xmls & self._photos)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def found(self) -> str:
        """What is there, in a few words."""
        return f"{len(self._photos)} photographs, {len(self)} of them with a head box"

    def samples(self, size: int) -> Iterator[Sample | Broken]:
        """Give the samples; see `Source`."""
        for name in self._names:
            try:
                sample = self._read(name, size)
            except BrokenFileError as error:
                yield Broken(str(error))
            else:
                if sample is not None:
                    yield sample

    def _stems(self, folder: str, suffix: str) -> set[str]:
        stems = set()
        for path in (self.folder / folder).iterdir():
            if path.name.startswith("."):
                self.quirks[f"hidden file in {folder}/"] += 1
            elif path.suffix != suffix:
                self.quirks[f"stray {path.suffix or 'other'} file in {folder}/"] += 1
            else:
                stems.add(path.stem)
        return stems

    def _read_list(self) -> dict[str, int]:
        species = {}
        path = self.folder / "annotations/list.txt"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            fields = line.split()
            if len(fields) >= 3 and fields[2] in ("1", "2"):
                species[fields[0]] = int(fields[2])
            else:
                self.quirks["unreadable line in list.txt"] += 1
        if not species:
            raise MtlbenchError(f"{path}: no line reads NAME CLASS SPECIES BREED; get the annotations again")
        return species

    def _count_quirks(self, xmls: set[str]) -> None:
        photos, listed = self._photos, set(self._species)
        self.quirks["photograph that list.txt leaves out"] = len(photos - listed)
        self.quirks["name in list.txt without a photograph"] = len(listed - photos)
        self.quirks["photograph without a head box (not used)"] = len(photos - xmls)
        self.quirks["trimap without a head box (not used)"] = len(self._trimaps - xmls)
        self.quirks["trimap without a photograph (not used)"] = len(self._trimaps - photos)
        self.quirks["head box without a photograph (not used)"] = len(xmls - photos)
        self.quirks["photograph with a head box but no trimap (mask missing)"] = len(
            (xmls & photos) - self._trimaps
        )
        for name in photos:
            try:
                with Image.open(self._photo(name)) as image:  # reads the header only
                    kind = f"{image.format} {image.mode}"
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                if name not in xmls:
                    self.quirks["unreadable photograph without a head box (not used)"] += 1
            else:
                if kind != "JPEG RGB":
                    what = {"P": "palette image", "RGBA": "image with transparency"}.get(
                        image.mode, "other image"
                    )
                    self.quirks[f"{what} ({kind}) named .jpg"] += 1

    def _photo(self, name: str) -> Path:
        return self.folder / "images" / f"{name}.jpg"

    def _read(self, name: str, size: int) -> Sample | None:
        head = self._read_head(name)
        if head is None:
            self.quirks["annotation without a head box (not used)"] += 1
            return None
        box, animal = head
        image, (width, height) = read_photo(self._photo(name), size)
        xmin, ymin, xmax, ymax = box
        inside = (max(xmin, 0.0), max(ymin, 0.0), min(xmax, float(width)), min(ymax, float(height)))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise BrokenFileError(
                f"{name}.xml: head box {box} is empty in a photograph of {width} x {height}"
            )
        self.quirks["head box that left its photograph (clipped)"] += inside != box
        scaled = (inside[0] / width, inside[1] / height, inside[2] / width, inside[3] / height)
        mask = self._read_mask(name, (width, height), size) if name in self._trimaps else None
        return Sample(name, image, mask, scaled, self._label(name, animal))

    def _read_mask(self, name: str, photo_size: tuple[int, int], size: int) -> NDArray[np.uint8]:
        trimap = read_map(self.folder / "annotations/trimaps" / f"{name}.png")
        if trimap.min() < 1 or trimap.max() > 3:
            raise BrokenFileError(
                f"{name}.png: values {trimap.min()}..{trimap.max()}, a trimap has 1, 2 and 3"
            )
        animal = (trimap != BACKGROUND).astype(np.uint8)
        self.quirks["trimap without an animal"] += not animal.any()
        self.quirks["trimap of another size than its photograph (scaled)"] += trimap.shape[::-1] != photo_size
        return resize_map(animal, size)

    def _read_head(self, name: str) -> tuple[Box, str] | None:
        """Return the first head box of an annotation and its object's name; None where it has no box."""
        path = self.folder / "annotations/xmls" / f"{name}.xml"
        try:
            objects = [o for o in ElementTree.parse(path).iter("object") if o.find("bndbox") is not None]
            if not objects:
                return None
            sides = [
                float(objects[0].findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
            ]
        except (ElementTree.ParseError, OSError, ValueError) as error:
            raise BrokenFileError(f"{path.name}: {error}") from error
        if not np.isfinite(sides).all():
            raise BrokenFileError(f"{path.name}: head box {sides} is not finite")
        self.quirks["annotation with several heads (the first is used)"] += len(objects) > 1
        return (sides[0], sides[1], sides[2], sides[3]), (objects[0].findtext("name") or "").strip().lower()

    def _label(self, name: str, animal: str) -> int:
        """Return 0 for a cat, 1 for a dog: as the list says, else the annotation, else the name's capital."""
        if name in self._species:
            return self._species[name] - 1
        if animal in ("cat", "dog"):
            return int(animal == "dog")
        return int(not name[:1].isupper())
