"""Indoor scenes with depth: NYU Depth v2 as the multi-task literature uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mtlbench.data.prepared import Declared, PreparedDataset, Row
from mtlbench_zoo.datasets import _nyuv2_official
from mtlbench_zoo.datasets._maps import Scene, scene_parts


class NYUv2(PreparedDataset):
    """Indoor scenes of NYU Depth v2, three tasks: 13 classes a pixel, depth, surface normals.

    - segmentation: 13 classes, -1 ignored (cross-entropy; mean IoU, pixel accuracy);
    - depth: in metres, 0 (not measured) ignored (L1; absolute and relative error);
    - normals: vectors of 0 ignored (1 - cosine; mean and median angle, shares within 11.25, 22.5 and 30
      degrees).

    size: height of the images, prepared with ``mtlbench data prepare nyuv2 --source DIR --size SIZE``; None
    for the one that is prepared (288 x 384 unless another was asked for). DIR has the
    preprocessed layout that Liu et al. published: {train,val}/{image,label,depth,normal}/N.npy (795 and 654
    scenes). Its "val" is the test split of the literature, and is test here; val is the tenth of the training
    scenes whose train/N has the smallest SHA-256 (80), so nothing is selected on test.

    DIR may also hold the official nyu_depth_v2_labeled.mat, with the official splits.mat and the mappings of
    its 894 labels to 40 classes (Gupta et al.) and of these to 13, classMapping40.mat and class13Mapping.mat,
    beside it. Then there are segmentation and depth, the 795 scenes of its training split (of which a tenth
    is val) and the 654 of test: 480 x 640, scaled to the size. Depth is what was measured (rawDepths),
    without what was filled in later. Its figures are not those of the preprocessed maps, and stand apart.
    Deviations: images are rounded to bytes. The official file has no normals, and none are made up; its
    white margins are kept, where most pixels have no label.
    Source: Silberman et al., ECCV 2012; Couprie et al., ICLR 2013, arXiv:1301.3572 (13 classes); Liu, Johns &
    Davison, CVPR 2019, arXiv:1803.10704 (MTAN: tasks, losses, preprocessing).
    """

    name = "nyuv2"
    title = "nyuv2"
    encoder = "unet"
    default_size = 288
    declared: ClassVar[Declared] = {
        "segmentation": {"kind": "segmentation", "classes": 13},
        "depth": {"kind": "depth", "unit": "m"},
        "normals": {"kind": "normals"},
    }
    licence = "for research, see its homepage"
    citation = (
        "N. Silberman, D. Hoiem, P. Kohli, R. Fergus. Indoor Segmentation and Support Inference from RGBD "
        "Images. ECCV, 2012."
    )
    homepage = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
    download = (
        "Get the preprocessed data that https://github.com/lorenmt/mtan links to (1,449 scenes of 288 x "
        "384) and "
        "unpack it; DIR is the folder that holds train/ and val/ with image/, label/, depth/ and normal/. Or "
        "get the official nyu_depth_v2_labeled.mat from the homepage (no normals) and, beside it, splits.mat"
        ", classMapping40.mat and class13Mapping.mat from https://github.com/ankurhanda/nyuv2-meta-data."
    )

    @classmethod
    def prepare(
        cls, data_dir: Path, source: Path | None, size: int | None, report: Callable[[str], None]
    ) -> Path:
        """Convert the published maps or the official file; see `PreparedDataset.prepare`."""
        if source is not None and source.suffix == ".mat" and source.is_file():
            source = source.parent
        return super().prepare(data_dir, source, size, report)

    @classmethod
    def found(cls, source: Path) -> Declared:
        """Return the tasks that there are labels for: the official file has no normals."""
        official = _is_official(source)
        return {name: task for name, task in cls.declared.items() if not (official and name == "normals")}

    @classmethod
    def parts(cls, source: Path) -> Mapping[str, Sequence[Any]]:
        """Return the scenes by split."""
        if _is_official(source):
            return _nyuv2_official.parts(source)
        return scene_parts(source, ("image", "label", "depth", "normal"))

    @classmethod
    def row(cls, source: Path, item: Any, size: int) -> Row:
        """Return one scene."""
        if isinstance(item, _nyuv2_official.Picture):
            return _nyuv2_official.row(source, item, size)
        scene = Scene(source, item, size)
        targets = {
            "segmentation": scene.labels("label", 13),
            "depth": scene.positive("depth"),
            "normals": scene.directions("normal"),
        }
        return Row(scene.image(), targets)


def _is_official(source: Path) -> bool:
    return (source / _nyuv2_official.LABELED).is_file() and not (source / "train").is_dir()
