"""Office-Home: everyday things as art, clip art, products and photographs."""

from __future__ import annotations

from typing import ClassVar

from mtlbench.data.prepared import Declared
from mtlbench_zoo.datasets._domains import Domains


class OfficeHome(Domains):
    """Office-Home: 65 everyday things in four domains, each a task with images of its own.

    Tasks art (2,427 images), clipart (4,365), product (4,439) and real (4,357): one of 65 classes
    (cross-entropy; accuracy, F1).
    size: side of the square images, prepared with ``mtlbench data prepare officehome --source DIR --size
    SIZE``; None for the one that is prepared (224 unless another was asked for). DIR has the official layout,
    {Art,Clipart,Product,Real World}/CLASS/*.jpg. The images of each class of each domain are split 60/20/20
    in the order of the SHA-256 of their names: the fractions of the field, with a split that anybody can make
    again.
    Source: Venkateswara, Eusebio, Chakraborty & Panchanathan, CVPR 2017, arXiv:1706.07522.
    """

    name = "officehome"
    title = "officehome"
    classes = 65
    folders: ClassVar = {"art": "Art", "clipart": "Clipart", "product": "Product", "real": "Real World"}
    declared: ClassVar[Declared] = {name: {"kind": "classification", "classes": 65} for name in folders}
    licence = "for non-commercial research, see its homepage"
    citation = (
        "H. Venkateswara, J. Eusebio, S. Chakraborty, S. Panchanathan. Deep Hashing Network for Unsupervised "
        "Domain Adaptation. CVPR, 2017."
    )
    homepage = "https://www.hemanthdv.org/officeHomeDataset.html"
    download = (
        "Get the archive (15,588 images) from its homepage and unpack it; DIR is the folder that holds Art/, "
        "Clipart/, Product/ and Real World/."
    )
