"""Indoor scenes with depth: NYU Depth v2 as the multi-task literature uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mtlbench.data.prepared import Declared, PreparedDataset, Row
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.datasets._maps import Scene, scene_parts

OFFICIAL = "nyu_depth_v2_labeled.mat"


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
    Deviations: images are rounded to bytes. The official nyu_depth_v2_labeled.mat is refused, since it holds
    neither the normals, nor the split, nor the mapping of its 894 classes to 13.
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
        "unpack it; DIR is the folder that holds train/ and val/ with image/, label/, depth/ and normal/."
    )

    @classmethod
    def prepare(
        cls, data_dir: Path, source: Path | None, size: int | None, report: Callable[[str], None]
    ) -> Path:
        """Convert the published maps; see `PreparedDataset.prepare`."""
        if source is not None and (source.suffix == ".mat" or (source / OFFICIAL).exists()):
            raise MtlbenchError(
                f"--source {source}: {OFFICIAL} holds neither normals, nor the 795/654 split, nor the "
                f"mapping "
                f"of its 894 classes to 13, so it cannot give the published tasks. {cls.download}"
            )
        return super().prepare(data_dir, source, size, report)

    @classmethod
    def parts(cls, source: Path) -> Mapping[str, Sequence[Any]]:
        """Return the scenes by split."""
        return scene_parts(source, ("image", "label", "depth", "normal"))

    @classmethod
    def row(cls, source: Path, item: Any, size: int) -> Row:
        """Return one scene."""
        scene = Scene(source, item, size)
        targets = {
            "segmentation": scene.labels("label", 13),
            "depth": scene.positive("depth"),
            "normals": scene.directions("normal"),
        }
        return Row(scene.image(), targets)
