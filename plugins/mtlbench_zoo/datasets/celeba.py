"""CelebA: faces with forty attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mtlbench.contracts import SPLITS
from mtlbench.data.photos import read_photo
from mtlbench.data.prepared import Declared, PreparedDataset, Row
from mtlbench.errors import MtlbenchError

ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips",
    "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby",
    "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male",
    "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose",
    "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair",
    "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip


class CelebA(PreparedDataset):
    """Faces of CelebA with forty attributes, each a binary task.

    Tasks carry the official names, such as Smiling or Wearing_Hat: 1 where the attribute is there (binary
    cross-entropy; accuracy, F1); train some of them with ``--tasks Male,Smiling``.
    size: side of the square images, prepared with ``mtlbench data prepare celeba --source DIR --size SIZE``;
    None for the one that is prepared (64 unless another was asked for). Of DIR it reads list_attr_celeba.txt,
    list_eval_partition.txt and those images of img_align_celeba/ that both list; the three may lie in the
    official folders Anno/, Eval/ and Img/. The official partition is kept (162,770 train, 19,867 val, 19,962
    test).
    Source: Liu, Luo, Wang & Tang, "Deep learning face attributes in the wild", ICCV 2015,
    arXiv:1411.7766; Sener & Koltun, NeurIPS 2018, arXiv:1810.04650 (forty tasks, 64 x 64).
    """

    name = "celeba"
    title = "celeba"
    encoder = "resnet18"
    default_size = 64
    declared: ClassVar[Declared] = {name: {"kind": "binary"} for name in ATTRIBUTES}
    licence = "for non-commercial research, see its homepage"
    citation = "Z. Liu, P. Luo, X. Wang, X. Tang. Deep Learning Face Attributes in the Wild. ICCV, 2015."
    homepage = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    download = (
        "Get img_align_celeba.zip (202,599 images, about 1.4 GB), list_attr_celeba.txt and "
        "list_eval_partition.txt from its homepage and unpack them into one folder, DIR."
    )

    @classmethod
    def parts(cls, source: Path) -> Mapping[str, Sequence[Any]]:
        """Return, by split, images as (path below ``source``, their forty labels)."""
        images = _find(source, "img_align_celeba", "Img")
        labels = _attributes(_find(source, "list_attr_celeba.txt", "Anno"))
        path = _find(source, "list_eval_partition.txt", "Eval")
        parts: dict[str, list[Any]] = {split: [] for split in SPLITS}
        for number, line in _lines(path):
            name, _, split = line.partition(" ")
            if split.strip() not in ("0", "1", "2"):
                raise MtlbenchError(f"{path}, line {number}: expected an image and 0, 1 or 2, found {line!r}")
            if name not in labels:
                raise MtlbenchError(f"{path}, line {number}: {name} is not in list_attr_celeba.txt")
            parts[SPLITS[int(split)]].append(((images / name).relative_to(source), labels[name]))
        return parts

    @classmethod
    def row(cls, source: Path, item: Any, size: int) -> Row:
        """Return one image, scaled to a square."""
        path, labels = item
        return Row(read_photo(source / path, size)[0], dict(zip(ATTRIBUTES, labels, strict=True)))


def _find(source: Path, name: str, folder: str) -> Path:
    for path in (source / name, source / folder / name):
        if path.exists():
            return path
    raise MtlbenchError(
        f"{source} has no '{name}', nor has {folder}/: name the folder that holds the official files"
    )


def _lines(path: Path) -> list[tuple[int, str]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _attributes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the labels 0 and 1 of each image; the file writes -1 and 1 after a count and the names."""
    lines = _lines(path)
    if len(lines) < 2 or tuple(lines[1][1].split()) != ATTRIBUTES:
        raise MtlbenchError(f"{path}: the second line does not name the forty attributes; get the file again")
    values = {"-1": 0, "1": 1}
    labels = {}
    for number, line in lines[2:]:
        name, *signs = line.split()
        if len(signs) != len(ATTRIBUTES) or not values.keys() >= set(signs):
            raise MtlbenchError(f"{path}, line {number}: expected an image and forty times -1 or 1")
        labels[name] = tuple(values[sign] for sign in signs)
    return labels
