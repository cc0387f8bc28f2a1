"""Residual networks."""

from __future__ import annotations

from mtlbench_zoo.encoders._resnet import BasicBlock, Bottleneck, ResNet


class ResNet18(ResNet):
    """ResNet-18: a stem and four groups of two basic blocks, at strides 2, 4, 8, 16 and 32.

    dilated: leave out the last strides and dilate the convolutions after them instead. stride: the stride of
    the whole, 8 (default) or 16 with dilated=true, else 32. weights: "imagenet" for torchvision's checkpoint,
    or the path of a .pth or .safetensors file with its keys. normalize: whether images are brought to
    ImageNet's mean and deviation; none: exactly when weights are given.
    Source: He, Zhang, Ren & Sun, CVPR 2016, arXiv:1512.03385, table 1, without the classifier: 11,176,512
    parameters for RGB. Stages hold torchvision's ``conv1 bn1``, ``layer1`` .. ``layer4`` under these names.
    """

    called, file = "resnet18", "resnet18-f37072fd.pth"
    block, blocks = BasicBlock, (2, 2, 2, 2)


class ResNet34(ResNet):
    """ResNet-34: a stem and groups of 3, 4, 6 and 3 basic blocks, at strides 2, 4, 8, 16 and 32.

    dilated, stride, weights, normalize: as for resnet18.
    Source: He, Zhang, Ren & Sun, CVPR 2016, arXiv:1512.03385, table 1, without the classifier: 21,284,672
    parameters for RGB.
    """

    called, file = "resnet34", "resnet34-b627a593.pth"
    block, blocks = BasicBlock, (3, 4, 6, 3)


class ResNet50(ResNet):
    """ResNet-50: a stem and groups of 3, 4, 6 and 3 bottleneck blocks, at strides 2, 4, 8, 16 and 32.

    With ``dilated=true`` and the head ``aspp`` it is the usual network of dense prediction.

    dilated, stride, weights, normalize: as for resnet18.
    Source: He, Zhang, Ren & Sun, CVPR 2016, arXiv:1512.03385, table 1, without the classifier: 23,508,032
    parameters for RGB. Deviation, as in torchvision: a block strides in its 3x3 convolution, not before.
    """

    called, file = "resnet50", "resnet50-0676ba61.pth"
    block, blocks = Bottleneck, (3, 4, 6, 3)


class ResNet101(ResNet):
    """ResNet-101: a stem and groups of 3, 4, 23 and 3 bottleneck blocks, at strides 2, 4, 8, 16 and 32.

    dilated, stride, weights, normalize: as for resnet18.
    Source: He, Zhang, Ren & Sun, CVPR 2016, arXiv:1512.03385, table 1, without the classifier: 42,500,160
    parameters for RGB. Deviation, as in torchvision: a block strides in its 3x3 convolution, not before.
    """

    called, file = "resnet101", "resnet101-63fe2227.pth"
    block, blocks = Bottleneck, (3, 4, 23, 3)
