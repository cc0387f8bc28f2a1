"""One classification task, seen in several domains: every domain is a task with images of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mtlbench.contracts import SPLITS
from mtlbench.data.photos import read_photo
from mtlbench.data.prepared import PreparedDataset, Row
from mtlbench.data.splits import in_three
from mtlbench.errors import MtlbenchError

PHOTOS = frozenset({".jpg", ".jpeg", ".png"})


class Domains(PreparedDataset):
    """Folders ``DOMAIN/CLASS/IMAGE`` (or ``DOMAIN/images/CLASS/IMAGE``), the same classes in each domain.

    The images of each class of each domain are split 60/20/20 in the order of the SHA-256 of
    ``DOMAIN/CLASS/IMAGE``, so that every class is in every split.
    """

    default_size = 224
    encoder = "resnet18"
    folders: ClassVar[Mapping[str, str]]
    """The folder of each task's domain."""
    classes: ClassVar[int]

    @classmethod
    def parts(cls, source: Path) -> Mapping[str, Sequence[Any]]:
        """Return, by split and domain, images as (path below ``source``, label)."""
        roots = {task: cls._root(source, folder) for task, folder in cls.folders.items()}
        names = {task: sorted(path.name for path in _visible(root)) for task, root in roots.items()}
        first = next(iter(cls.folders))
        for task, classes in names.items():
            apart = sorted(set(classes) ^ set(names[first]))
            if len(classes) != cls.classes or apart:
                other = f", '{apart[0]}' is not in both {first} and {task}" if apart else ""
                raise MtlbenchError(
                    f"{roots[task]} has {len(classes)} classes, {cls.name} has {cls.classes} in every "
                    f"domain{other}: get the data again"
                )
        parts: dict[str, list[Any]] = {f"{split}/{task}": [] for split in SPLITS for task in cls.folders}
        for task, root in roots.items():
            for label, name in enumerate(names[task]):
                images = {f"{cls.folders[task]}/{name}/{p.name}": p for p in _visible(root / name)}
                foreign = [path for path in images.values() if path.suffix.lower() not in PHOTOS]
                if foreign:
                    raise MtlbenchError(f"{foreign[0]} is no .jpg or .png: remove it")
                if len(images) < 3:
                    raise MtlbenchError(
                        f"{root / name} has {len(images)} images, each of three splits needs one: get the "
                        f"data again"
                    )
                for split, chosen in zip(SPLITS, in_three(images), strict=True):
                    parts[f"{split}/{task}"] += [
                        (str(images[key].relative_to(source)), task, label) for key in sorted(chosen)
                    ]
        return parts

    @classmethod
    def _root(cls, source: Path, folder: str) -> Path:
        """Return the folder of a domain's classes."""
        if not (source / folder).is_dir():
            raise MtlbenchError(f"{source} has no folder '{folder}': name the one that holds the domains")
        inner = source / folder / "images"
        return inner if inner.is_dir() else source / folder

    @classmethod
    def row(cls, source: Path, item: Any, size: int) -> Row:
        """Return one image, scaled to a square."""
        path, task, label = item
        return Row(read_photo(source / path, size)[0], {task: label})


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
