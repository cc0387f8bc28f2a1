"""Office-31: things of an office, photographed in three ways."""

from __future__ import annotations

from typing import ClassVar

from mtlbench.data.prepared import Declared
from mtlbench_zoo.datasets._domains import Domains


class Office31(Domains):
    """Office-31: 31 things in three domains, each a task with images of its own.

    Tasks amazon (2,817 images), dslr (498) and webcam (795): one of 31 classes (cross-entropy; accuracy,
    F1).
    size: side of the square images, prepared with ``mtlbench data prepare office31 --source DIR --size
    SIZE``; None for the one that is prepared (224 unless another was asked for).
    DIR has the official layout, {amazon,dslr,webcam}/images/CLASS/*.jpg. The images of each class of each
    domain are split 60/20/20 in the order of the SHA-256 of their names: the fractions of the field,
    with a split that anybody can make again.
    Source: Saenko, Kulis, Fritz & Darrell, "Adapting visual category models to new domains", ECCV 2010.
    """

    name = "office31"
    title = "office31"
    classes = 31
    folders: ClassVar = {name: name for name in ("amazon", "dslr", "webcam")}
    declared: ClassVar[Declared] = {name: {"kind": "classification", "classes": 31} for name in folders}
    licence = "for research, see its homepage"
    citation = (
        "K. Saenko, B. Kulis, M. Fritz, T. Darrell. Adapting Visual Category Models to New Domains. "
        "ECCV, 2010."
    )
    homepage = "https://faculty.cc.gatech.edu/~judy/domainadapt/"
    download = (
        "Get the archive (4,110 images) from its homepage and unpack it; DIR is the folder that holds "
        "amazon/, dslr/ and webcam/."
    )
