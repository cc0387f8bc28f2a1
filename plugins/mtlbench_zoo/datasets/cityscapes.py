"""Street scenes: Cityscapes as the multi-task literature uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from mtlbench.data.hdf5 import MEMORY_BUDGET
from mtlbench.data.prepared import Declared, PreparedDataset, Row
from mtlbench.errors import MtlbenchError
from mtlbench.tasks import depth, segmentation
from mtlbench_zoo.datasets._maps import Scene, scene_parts


class Cityscapes(PreparedDataset):
    """Street scenes of Cityscapes, two tasks: 7 (or 19) classes a pixel, and inverse depth.

    - segmentation: -1 ignored (cross-entropy; mean IoU, pixel accuracy);
    - depth: the published inverse depth, 0 (not known) ignored (L1; absolute and relative error).

    size: height of the images, prepared with ``mtlbench data prepare cityscapes --source DIR --size SIZE``;
    None for the one that is prepared (128 x 256 unless another was asked for). classes: 7 groups, or the 19
    classes of the official benchmark where they were prepared. DIR has the preprocessed layout that Liu et
    al. published: {train,val}/{image,label_7,label_19,depth}/N.npy (2,975 and 500 scenes; one of the two
    label folders is enough, which may also be named label). Its "val" is test here, since the official test
    labels are not public; val is the tenth of the training scenes whose train/N has the smallest SHA-256
    (298).
    Deviations: images are rounded to bytes.
    Source: Cordts et al., CVPR 2016, arXiv:1604.01685; Liu, Johns & Davison, CVPR 2019, arXiv:1803.10704
    (MTAN: tasks, losses, preprocessing).
    """

    name = "cityscapes"
    title = "cityscapes"
    encoder = "unet"
    default_size = 128
    declared: ClassVar[Declared] = {
        "segmentation_7": {"kind": "segmentation", "classes": 7},
        "segmentation_19": {"kind": "segmentation", "classes": 19},
        "depth": {"kind": "depth", "unit": "1", "inverse": True},
    }
    tasks = (segmentation("segmentation", 7), depth("depth", "1", inverse=True))
    licence = "for non-commercial research, after registration"
    citation = (
        "M. Cordts, M. Omran, S. Ramos, T. Rehfeld, M. Enzweiler, R. Benenson, U. Franke, S. Roth, B. "
        "Schiele. "
        "The Cityscapes Dataset for Semantic Urban Scene Understanding. CVPR, 2016."
    )
    homepage = "https://www.cityscapes-dataset.com"
    download = (
        "Get the preprocessed data that https://github.com/lorenmt/mtan links to (3,475 scenes of 128 x "
        "256) and "
        "unpack it; DIR is the folder that holds train/ and val/ with image/, label_7/ and depth/."
    )

    def __init__(
        self,
        data_dir: Path,
        size: int | None = None,
        classes: Literal[7, 19] = 7,
        memory: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(data_dir, size, memory)
        labels = f"segmentation_{classes}"
        if labels not in self.arrays:
            raise MtlbenchError(
                f"cityscapes: the {classes} classes were not prepared; put {{train,val}}/label_{classes} "
                f"into the "
                f"published folder and run: mtlbench data prepare cityscapes --source DIR --data-dir "
                f"{data_dir}"
            )
        self.tasks = (segmentation("segmentation", classes), depth("depth", "1", inverse=True))
        self.arrays = {"segmentation": labels, "depth": "depth"}

    @classmethod
    def found(cls, source: Path) -> Declared:
        """Return the tasks that a folder has labels for."""
        kinds = _label_folders(source)
        return {name: task for name, task in cls.declared.items() if name == "depth" or name in kinds}

    @classmethod
    def parts(cls, source: Path) -> Mapping[str, Sequence[Any]]:
        """Return, by split, scenes and where their labels lie."""
        folders = _label_folders(source)
        parts = scene_parts(source, ("image", "depth", *folders.values()))
        return {split: [(scene, folders) for scene in scenes] for split, scenes in parts.items()}

    @classmethod
    def row(cls, source: Path, item: Any, size: int) -> Row:
        """Return one scene."""
        number, folders = item
        scene = Scene(source, number, size)
        labels = {name: scene.labels(folder, _count(name)) for name, folder in folders.items()}
        return Row(scene.image(), labels | {"depth": scene.positive("depth")})


def _count(name: str) -> int:
    return int(name.rpartition("_")[2])


def _label_folders(source: Path) -> dict[str, str]:
    """Return the folder of each kind of labels that is there, by the task's name in the file."""
    found = {f"segmentation_{n}": f"label_{n}" for n in (7, 19) if (source / "train" / f"label_{n}").is_dir()}
    if found:
        return found
    if not (source / "train" / "label").is_dir():
        raise MtlbenchError(f"{source} has no folder 'train/label_7' (nor label_19, nor label)")
    many = any(Scene.most(path) > 6 for path in sorted((source / "train" / "label").glob("*.npy")))
    return {f"segmentation_{19 if many else 7}": "label"}
