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


JOINED = 64
"""Up to how many channels of all tasks' hidden layers are computed together."""


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
        masks: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        attended: dict[str, list[Tensor]] = {name: [] for name in names}
        for index, (first, last) in enumerate(stages):
            passed = None
            if index:
                passed = [self.passing[index - 1](pool_to(attended[n][-1], last.shape[2:])) for n in names]
            parts = [self.attention[self.task_names.index(name)][index] for name in names]
            for name, mask in zip(names, self._masks(parts, first, passed), strict=True):
                masks[name][stage_name(index)] = mask
                attended[name].append(mask * last)
        pyramids: dict[str, Pyramid] = {}
        readings = []
        for name in names:
            pyramids[name] = tuple(attended[name])
            if self.decoder is not None and name in self.maps:
                finest = self.decoder.attend(
                    self.maps.index(name),
                    attended[name][-1],
                    decoded,
                    [last for _, last in stages],
                    masks[name],
                )
                pyramids[name] = (finest,)
            readings += [Reading("attention", at, mask.detach(), name) for at, mask in masks[name].items()]
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

    def _masks(
        self, parts: Sequence[_Attention], first: Tensor, passed: Sequence[Tensor] | None
    ) -> list[Tensor]:
        """Return each task's mask. In training their hidden layers are joined where they are narrow.

        Time goes into passes over memory there, and one pass over the channels of all tasks is much faster
        than one for each. It is not where every task's gradient is pulled by itself.
        """
        if not self.training or self.pulled_apart or not _joins(parts):
            return [
                part(first, None if passed is None else passed[number]) for number, part in enumerate(parts)
            ]
        return [part.open(h) for part, h in zip(parts, _hidden(parts, first, passed), strict=True)]

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

    def open(self, hidden: Tensor) -> Tensor:
        """Return the mask from the hidden layer."""
        for layer in list(self.mask)[3:]:
            hidden = layer(hidden)
        return torch.sigmoid_(hidden)

    @property
    def reader(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """Return the convolution and the norm of the hidden layer."""
        convolution, norm = self.mask[0], self.mask[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        return convolution, norm


def _joins(parts: Sequence[_Attention]) -> bool:
    """Whether one pass serves the hidden layers of these tasks better than one for each."""
    norms = [norm for part in parts for norm in (part.norm, part.reader[1]) if norm is not None]
    replaced = any("forward" in vars(norm) for norm in norms)  # by one over the samples of all processes
    return not replaced and 1 < len(parts) <= JOINED // parts[0].reader[0].out_channels


def _hidden(parts: Sequence[_Attention], first: Tensor, passed: Sequence[Tensor] | None) -> list[Tensor]:
    """Return the hidden layer of each task, from one convolution with a matrix of blocks and one norm."""
    weights = [part.reader[0].weight.flatten(1) for part in parts]
    matrix = torch.cat(weights)
    if passed is not None:
        shared = first.shape[1]
        own = torch.block_diag(*[weight[:, shared:] for weight in weights])  # type: ignore[no-untyped-call]
        matrix = torch.cat([matrix[:, :shared], own], dim=1)
        norms = [part.norm for part in parts if part.norm is not None]
        first = torch.cat([first, _rectified(norms, torch.cat([*passed], dim=1))], dim=1)
    hidden = _rectified(
        [part.reader[1] for part in parts], functional.conv2d(first, matrix[:, :, None, None])
    )
    return [h.contiguous(memory_format=torch.channels_last) for h in hidden.chunk(len(parts), dim=1)]


def _rectified(norms: Sequence[nn.BatchNorm2d], x: Tensor) -> Tensor:
    """Return what ``norms`` in training and ReLU make of ``x``, whose channels they share in their order."""
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    variances = [norm.running_var for norm in norms if norm.running_var is not None]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    mean, variance = torch.cat(means), torch.cat(variances)
    weight, bias = (torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
    momentum, eps = norms[0].momentum, norms[0].eps
    assert momentum is not None
    x = functional.batch_norm(x, mean, variance, weight, bias, True, momentum, eps)
    with torch.no_grad():
        torch._foreach_copy_([*means, *variances], [*mean.chunk(len(norms)), *variance.chunk(len(norms))])
        torch._foreach_add_(counts, 1)
    return functional.relu(x, inplace=True)


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
