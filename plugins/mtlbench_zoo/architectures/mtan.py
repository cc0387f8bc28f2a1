"""Multi-task attention network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import (
    Architecture,
    EncoderFactory,
    Features,
    Map,
    Pyramid,
    PyramidShape,
    Reading,
    Task,
)
from mtlbench.errors import MtlbenchError
from mtlbench.heads.segnet import corners, unpool
from mtlbench_zoo.architectures._parts import Modules, pool_to, require, stage_name

Blocks = tuple[Tensor, Tensor]
"""What the first and what the last block of a stage gave."""


class MTAN(Architecture):
    """Multi-task attention network: one encoder, and for each task soft attention to every stage of it.

    With u and p what the first and the last block of stage j give, task i attends to p with the mask

        ``a = sigmoid(BN(h_i(ReLU(BN(g_i([u; ReLU(BN_i(f(pool(a' p'))))])))))``

    where ``a' p'`` is what task i got from the stage before (absent at first), ``[;]`` joins channels, g and
    h are 1x1 convolutions and f is a 3x3 convolution. Its head reads ``a p`` of every stage.
    Source: Liu, Johns & Davison, CVPR 2019, arXiv:1803.10704, section 3. Deviations: features are pooled
    before f, not after it, at a quarter of the cost. f is shared by all tasks, as in the original; its
    batch norm is each task's own, so that eval mode normalises with what was seen in training. There
    is no f after the last stage. Where a stage cannot be cut into blocks (it has one convolution, or is no
    `torch.nn.Sequential`), u is p.

    reduction: by how much g and f narrow the channels (to 8 at least), at least 1. With 1, all is as wide as
    the stage, as in the original; 4 costs much less.

    decoder: whether tasks that want a map also attend in a shared decoder, as in the original's SegNet: from
    the last stage on, two 3x3 convolutions with batch norm and ReLU, then unpooling to the next finer
    stage, to the places where that stage has its maxima (bilinear interpolation, where it is not twice the
    size). At every step task i attends as above, with u what the step reads, p what it gives, and unpooling
    in place of pooling; its head reads the finest ``a p`` alone.

    Attention serves one task, so it receives that task's own gradient; gradient weightings act on the
    encoder, on f, and on a decoder that serves several tasks.
    """

    cost: ClassVar[str] = "1 trunk and T small attention modules a stage"

    def __init__(
        self, encoder: EncoderFactory, tasks: Sequence[Task], decoder: bool = False, reduction: int = 4
    ) -> None:
        super().__init__(encoder, tasks)
        require("mtan", "reduction", "at least 1", reduction >= 1, reduction)
        self.maps = [task.name for task in tasks if isinstance(task.output, Map)] if decoder else []
        if decoder and not self.maps:
            raise MtlbenchError(
                "architecture 'mtan': decoder=true attends while maps are decoded, but none of the tasks "
                f"{', '.join(self.task_names)} wants a map; leave it out"
            )
        self.encoder = encoder()
        self._shape = self.encoder.shape
        self._cuts = [_cut(s, c) for s, c in zip(self.encoder.stages, self._shape.channels, strict=True)]
        inner = [max(c // reduction, min(c, 8)) for c in self._shape.channels]
        self.passing = nn.ModuleList(
            nn.Conv2d(c, width, 3, padding=1, bias=False)
            for c, width in zip(self._shape.channels[:-1], inner[1:], strict=True)
        )
        # Lists, because the name of a task need not be fit for the name of a module.
        self.attention: Modules[Modules[_Attention]] = Modules(
            Modules(
                _Attention(c, width if index else 0, width, c)
                for index, (c, width) in enumerate(zip(self._shape.channels, inner, strict=True))
            )
            for _ in tasks
        )
        self.decoder = _Decoder(self._shape.channels, inner, len(self.maps)) if decoder else None

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all); only their attention is run."""
        names = self.task_names if tasks is None else tasks
        # What attention is made of, 1x1 convolutions, norms and pooling, is fastest with channels innermost.
        stages = self._run_encoder(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)
        decoded: list[Blocks] = []
        if self.decoder is not None and any(name in self.maps for name in names):
            decoded = self.decoder([last for _, last in stages])
        pyramids: dict[str, Pyramid] = {}
        readings = []
        for name in names:
            masks = {}
            attended: list[Tensor] = []
            for index, (first, last) in enumerate(stages):
                passed = None
                if index:
                    passed = self.passing[index - 1](pool_to(attended[-1], last.shape[2:]))
                mask = self.attention[self.task_names.index(name)][index](first, passed)
                masks[stage_name(index)] = mask
                attended.append(mask * last)
            pyramids[name] = tuple(attended)
            if self.decoder is not None and name in self.maps:
                finest = self.decoder.attend(
                    self.maps.index(name), attended[-1], decoded, [last for _, last in stages], masks
                )
                pyramids[name] = (finest,)
            readings += [Reading("attention", place, mask.detach(), name) for place, mask in masks.items()]
        return Features(pyramids, readings=tuple(readings))

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of the encoder's pyramid; of its first level alone for what the decoder gives."""
        if task in self.maps:
            return PyramidShape(self._shape.channels[:1], self._shape.strides[:1])
        return self._shape

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the encoder, of f, and of a decoder that serves several tasks."""
        yield from self.encoder.parameters()
        yield from self.passing.parameters()
        if self.decoder is not None and len(self.maps) > 1:
            yield from self.decoder.steps.parameters()
            yield from self.decoder.passing.parameters()

    def _run_encoder(self, x: Tensor) -> list[Blocks]:
        found = []
        for stage, cut in zip(self.encoder.stages, self._cuts, strict=True):
            if cut:
                blocks = _blocks(stage)
                for block in blocks[:cut]:
                    x = block(x)
                first = x
                for block in blocks[cut:]:
                    x = block(x)
            else:
                first = x = stage(x)
            found.append((first, x))
        return found


class _Attention(nn.Module):
    """One task's mask for one stage: from u ``[B, first, H, W]`` and from what was passed on to it.

    passed: channels of what comes from the stage before; 0 for none. width: of the hidden layer. channels: of
    the mask, whose values are in 0..1.
    """

    def __init__(self, first: int, passed: int, width: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(passed) if passed else None
        self.mask = nn.Sequential(
            nn.Conv2d(first + passed, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, first: Tensor, passed: Tensor | None) -> Tensor:
        """Return the mask."""
        if passed is not None and self.norm is not None:
            first = torch.cat([first, functional.relu(self.norm(passed), inplace=True)], dim=1)
        return torch.sigmoid_(self.mask(first))


class _Decoder(nn.Module):
    """The shared decoder over stages of these channels, coarse to fine, and its attention for each map."""

    def __init__(self, channels: Sequence[int], inner: Sequence[int], maps: int) -> None:
        super().__init__()
        finer = [channels[0], *channels[:-1]]
        pairs = [*zip(channels, finer, strict=True)][::-1]
        widths = [*zip(channels, inner, finer, strict=True)][::-1]
        self.steps: Modules[nn.ModuleList] = Modules(
            nn.ModuleList([_convolution(wide, wide), _convolution(wide, narrow)]) for wide, narrow in pairs
        )
        self.passing = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1, bias=False) for c, width, _ in widths)
        self.attention: Modules[Modules[_Attention]] = Modules(
            Modules(_Attention(c, width, width, given) for c, width, given in widths) for _ in range(maps)
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Blocks]:
        """Return what each step reads and what it gives; ``levels`` are the encoder's, fine to coarse."""
        x = levels[-1]
        found = []
        for step, level in zip(self.steps, reversed(levels), strict=True):
            unpooled = _unpool(x, level)
            x = step[1](step[0](unpooled))
            found.append((unpooled, x))
        return found

    def attend(
        self,
        task: int,
        x: Tensor,
        decoded: Sequence[Blocks],
        levels: Sequence[Tensor],
        masks: dict[str, Tensor],
    ) -> Tensor:
        """Return the finest features that a task attends to, from the coarsest ``x``; note the ``masks``."""
        parts = zip(self.passing, self.attention[task], decoded, reversed(levels), strict=True)
        for number, (passing, attention, (first, last), level) in enumerate(parts):
            mask = attention(first, passing(_unpool(x, level)))
            masks[f"decoder {stage_name(len(levels) - 1 - number)}"] = mask
            x = mask * last
        return x


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _unpool(x: Tensor, level: Tensor) -> Tensor:
    """Return ``x`` at the size of ``level``, with its values where ``level`` has its 2x2 maxima."""
    size = level.shape[2:]
    if x.shape[2:] == size:
        return x
    if any(want != 2 * have for have, want in zip(x.shape[2:], size, strict=True)):
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return unpool(x, corners(level, x.shape[2:]), size)


_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish)
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def _blocks(stage: nn.Module) -> list[nn.Module]:
    """Return the parts of a stage in the order in which they are applied."""
    if not isinstance(stage, nn.Sequential):
        return [stage]
    return [block for part in stage for block in _blocks(part)]


def _cut(stage: nn.Module, channels: int) -> int:
    """Return how many parts of a stage make its first block; 0 where it cannot be told from the last.

    The first block ends with the activation of the first convolution, or with the first part that has
    convolutions inside. What it gives must be shaped as the stage's output, and a convolution must follow.
    """
    blocks = _blocks(stage)
    end = next((end for end in range(1, len(blocks)) if _ends_block(blocks[:end])), 0)
    first = [part for block in blocks[:end] for part in block.modules()]
    rest = [part for block in blocks[end:] for part in block.modules()]
    widths = [getattr(part, "num_features", getattr(part, "out_channels", None)) for part in first]
    convolutions = [part for part in rest if isinstance(part, nn.Conv2d)]
    same_shape = (
        [width for width in widths if width][-1:] == [channels]
        and all(set(part.stride) == {1} for part in convolutions)
        and not any(isinstance(part, _POOLINGS) for part in rest)
    )
    return end if convolutions and same_shape else 0


def _ends_block(blocks: Sequence[nn.Module]) -> bool:
    """Whether a block ends with the last of these parts, the first ones of a stage."""
    last = blocks[-1]
    if any(True for _ in last.children()):
        return _convolves(last)
    return isinstance(last, _ACTIVATIONS) and any(map(_convolves, blocks))


def _convolves(block: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) for part in block.modules())
