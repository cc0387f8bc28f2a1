"""Cats and dogs: which pixels are the animal, which of the two it is, and where its head is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mtlbench.atomic import exclusive, scratch, translated
from mtlbench.contracts import SPLITS, Batch, Dataset, Split, SplitName, Task
from mtlbench.data.download import download, unpack
from mtlbench.data.hdf5 import MEMORY_BUDGET, DiskRows
from mtlbench.data.photos import check_size
from mtlbench.data.prepared import refuse_broken
from mtlbench.data.progress import progress
from mtlbench.errors import MtlbenchError
from mtlbench.tasks import box, classification, mask
from mtlbench_zoo.datasets import _pets_sample as drawn
from mtlbench_zoo.datasets._pets_coursework import Coursework
from mtlbench_zoo.datasets._pets_file import (
    Broken,
    PetsFile,
    Sample,
    Summary,
    file_path,
    prepared_sizes,
    write,
)
from mtlbench_zoo.datasets._pets_in_place import InPlace
from mtlbench_zoo.datasets._pets_official import Official

DEFAULT_SIZE = 128
MIRRORS = ("https://www.robots.ox.ac.uk/~vgg/data/pets/data", "https://thor.robots.ox.ac.uk/pets")
ARCHIVES = {
    "images.tar.gz": "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
    "annotations.tar.gz": "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
}
SAMPLE_TITLE = "pets (built-in sample)"


class PetsSplit(Split):
    """One split of an open file."""

    def __init__(self, file: PetsFile | InPlace, name: SplitName, budget: int = MEMORY_BUDGET) -> None:
        self._images, self._masks, rows = file.rows(name, budget)
        self.streamed = isinstance(self._images, DiskRows)
        self._boxes = torch.from_numpy(file.boxes[rows])
        self._labels = torch.from_numpy(file.labels[rows])

    def __len__(self) -> int:
        return len(self._labels)

    def fetch(self, indices: Tensor) -> Batch:
        """Return images uint8 ``[B, 3, S, S]`` (stored channels last) and the three targets; see `Pets`."""
        # A view as signed bytes makes 255, the stored "no label", the -1 that losses know.
        images = self._images.take(indices)
        masks = self._masks.take(indices).view(torch.int8).long().view(images.shape[:3])
        targets = {
            "segmentation": masks,
            "classification": self._labels[indices].long(),
            "bbox": self._boxes[indices],
        }
        return Batch(images.permute(0, 3, 1, 2), targets)


class Pets(Dataset):
    """Photographs of cats and dogs with three tasks; without prepared data, a drawn stand-in.

    - segmentation: one logit a pixel for "animal"; targets int64 ``[B, S, S]`` in 0, 1 (-1: no label);
    - classification: 0 cat, 1 dog; targets int64 ``[B]``;
    - bbox: the head's box as xmin, ymin, xmax, ymax in 0..1 of the image; targets float32 ``[B, 4]``.

    size: side of the square images, prepared with ``mtlbench data prepare pets --size SIZE``; None for the
    one that is prepared, or the built-in sample (1000 drawn animals of 64 x 64) where none is.
    Photographs with a head box are split 60/20/20 in the order of the SHA-256 of their names (2210/738/738 of
    the full dataset); a source that brings splits of its own keeps them.
    target: the task that all is about; the others become auxiliary: trained and reported, but they neither
    select the epoch nor enter Δ-MTL. None: all three count. path: a folder in the coursework layout, to be
    read where it lies, in its own size and without preparation.
    Source: Parkhi, Vedaldi, Zisserman & Jawahar, "Cats and dogs", CVPR 2012 (Oxford-IIIT Pet, CC BY-SA 4.0).
    """

    tasks: tuple[Task, ...] = (mask("segmentation"), classification("classification", 2), box("bbox"))
    licence = "CC BY-SA 4.0"
    citation = "O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar. Cats and Dogs. CVPR, 2012."
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    download = (
        "mtlbench data prepare pets downloads the archives (about 800 MB); --source DIR takes a folder in "
        "the official or the coursework layout."
    )
    without = "the built-in sample, 1000 drawn cats and dogs"

    def __init__(
        self,
        data_dir: Path,
        size: int | None = None,
        target: Literal["segmentation", "classification", "bbox"] | None = None,
        path: str | None = None,
        memory: int = MEMORY_BUDGET,
    ) -> None:
        self._memory = memory
        self.tasks = tuple(replace(task, auxiliary=target not in (None, task.name)) for task in self.tasks)
        self._splits: dict[SplitName, PetsSplit] = {}
        self._file: PetsFile | InPlace
        if path is not None:
            self._open_in_place(Path(path), size)
            return
        prepared = prepared_sizes(data_dir)
        if size is None and len(prepared) > 1:
            sizes = ", ".join(map(str, prepared))
            raise MtlbenchError(
                f"pets is prepared in several sizes ({sizes}): say which, such as pets[size={prepared[0]}]"
            )
        if size is None and not prepared:
            self._open_sample(data_dir)
        else:
            self._open_prepared(data_dir, prepared[0] if size is None else size, prepared)

    def _open_in_place(self, folder: Path, size: int | None) -> None:
        if size is not None:
            raise MtlbenchError(
                "pets: files that are read in place keep their own size; leave 'size' or 'path' out"
            )
        self._file = InPlace(folder)
        self.title = "pets"
        self.input_shape = (3, self._file.height, self._file.width)

    def _open_prepared(self, data_dir: Path, size: int, prepared: list[int]) -> None:
        check_size(size)
        command = f"mtlbench data prepare pets --size {size} --data-dir {data_dir}"
        if size not in prepared:
            there = (
                f"prepared there: {', '.join(map(str, prepared))}"
                if prepared
                else "nothing is prepared there"
            )
            raise MtlbenchError(f"pets of size {size} is not in {data_dir} ({there}); run: {command}")
        self._file = file = PetsFile(file_path(data_dir, size), size, f"run: {command}")
        self.title = "pets"
        self.input_shape = (3, size, size)
        self.partial = bool(file.attributes.get("missing_masks", 0))

    def _open_sample(self, data_dir: Path) -> None:
        path = data_dir / f"pets-sample-{drawn.SIZE}.h5"
        remedy = "delete it (it is drawn again), or get real photographs with: mtlbench data prepare pets"
        if not path.exists():
            write(path, SAMPLE_TITLE, DrawnSample(), drawn.SIZE)
        file = PetsFile(path, drawn.SIZE, remedy)
        if file.attributes.get("layout") != DrawnSample.layout:
            write(path, SAMPLE_TITLE, DrawnSample(), drawn.SIZE)
            file = PetsFile(path, drawn.SIZE, remedy)
        self._file = file
        self.title = SAMPLE_TITLE
        self.input_shape = (3, drawn.SIZE, drawn.SIZE)
        self.notice = (
            "pets: using the built-in sample, 1000 drawn cats and dogs that stand in for photographs. "
            "Get the real ones with: mtlbench data prepare pets"
        )

    def split(self, name: SplitName) -> PetsSplit:
        """Return one split; its images are read into memory at the first call where they fit."""
        if name not in self._splits:
            self._splits[name] = PetsSplit(self._file, name, self._memory)
        return self._splits[name]

    @classmethod
    def prepared(cls, data_dir: Path) -> Mapping[Path, Mapping[str, int]]:
        """Return the data files that are there, with the samples by split."""
        remedy = "run: mtlbench data prepare pets --size {size} --data-dir {folder}"
        found = {}
        for size in prepared_sizes(data_dir):
            path = file_path(data_dir, size)
            found[path] = PetsFile(path, size, remedy.format(size=size, folder=data_dir)).counts()
        return found

    @classmethod
    def check_source(cls, source: Path, report: Callable[[str], None]) -> int:
        """Read all photographs, masks and boxes in ``source``, and return how many samples they give."""
        broken, count = [], 0
        with translated(f"cannot read {source}", "name another folder with --source"):
            layout = _find_layout(source)
            report(f"found: {layout.layout} layout, {layout.found}")
            with progress(f"reading {source.name}", len(layout)) as advance:
                for item in layout.samples(DEFAULT_SIZE):
                    if isinstance(item, Broken):
                        broken.append(item.reason)
                        report(f"broken: {item.reason}")
                    count += 1
                    advance(1)
            for quirk, number in sorted((+layout.quirks).items(), key=lambda item: (-item[1], item[0])):
                report(f"{number:5d} x {quirk}")
        refuse_broken(source, broken, count)
        return count

    @classmethod
    def prepare(
        cls, data_dir: Path, source: Path | None, size: int | None, report: Callable[[str], None]
    ) -> Path:
        """Convert photographs into ``data_dir/pets-SIZE.h5`` and return its path; see `Dataset.prepare`.

        source: a folder in the official or in the coursework layout; None downloads the official archives,
        which are kept for other sizes. size: 128 for None.
        """
        size = check_size(DEFAULT_SIZE if size is None else size)
        if source is not None:
            with translated(f"cannot read {source}", "name another folder with --source"):
                return _convert(source, file_path(data_dir, size), size, report)
        archives = data_dir / "downloads" / "oxford-iiit-pet"
        with (
            translated(f"cannot write {archives}"),
            exclusive(archives, f"{archives} is in use by another prepare: wait for it"),
            scratch(archives / "unpacked") as folder,
        ):
            for name, checksum in ARCHIVES.items():
                report(f"downloading {name} (kept in {archives})")
                unpack(download([f"{mirror}/{name}" for mirror in MIRRORS], checksum, archives), folder)
            return _convert(folder, file_path(data_dir, size), size, report)


def _convert(folder: Path, path: Path, size: int, report: Callable[[str], None]) -> Path:
    source = _find_layout(folder)
    report(f"found: {source.layout} layout, {source.found}")
    summary = write(path, "pets", source, size)
    _report(source.quirks, summary, report)
    return path


def _find_layout(folder: Path) -> Official | Coursework:
    if not folder.is_dir():
        raise MtlbenchError(f"--source {folder}: there is no such folder")
    if (folder / "images").is_dir() and (folder / "annotations").is_dir():
        return Official(folder)
    if any((folder / split).is_dir() for split in ("train", "val", "test")):
        return Coursework(folder)
    raise MtlbenchError(
        f"--source {folder}: neither the official layout (images/ and annotations/) nor the coursework "
        "layout ({train,val,test}/{images,masks,bboxes,binary}.h5)"
    )


def _report(quirks: Counter[str], summary: Summary, report: Callable[[str], None]) -> None:
    if +quirks:
        report("quirks, handled:")
    for quirk, count in sorted((+quirks).items(), key=lambda item: (-item[1], item[0])):
        report(f"  {count:5d} x {quirk}")
    for reason in summary.broken:
        report(f"  broken, skipped: {reason}")
    train, val, test = summary.counts
    report(f"split: {train} train, {val} val, {test} test")


class DrawnSample:
    """The built-in sample as a source of `write`."""

    layout = f"built-in sample, version {drawn.VERSION}"

    def __init__(self) -> None:
        self.quirks: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(drawn.COUNTS)

    def samples(self, size: int) -> Iterator[Sample]:
        """Draw them one by one; ``size`` is the only one there is."""
        for index, split in enumerate(
            split for split, n in zip(SPLITS, drawn.COUNTS, strict=True) for _ in range(n)
        ):
            drawing = drawn.draw(index)
            yield Sample(f"drawn/{index}", drawing.image, drawing.mask, drawing.box, drawing.label, split)
