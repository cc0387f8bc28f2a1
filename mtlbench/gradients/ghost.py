"""The Gram matrix and the update of wide layers, without any task's weight gradient.

A linear layer reads rows X ``[R, K]``, one for each sample and position, and going back it receives the
cotangents D_t ``[R, C]`` of task t. Its weight gradient is D_tᵀ X, and the product of two of them is

    ``<D_iᵀ X, D_jᵀ X> = <D_i, (X Xᵀ) D_j>``.

Where R is small beside K and C, as in the late layers of a convolutional net, the right side is much cheaper
than T gradients of K C numbers, and it needs no memory for them; the update is then one weight gradient, with
the weighted sum of the D_t. A convolution is the same on its patches, whose products are sums of those of
their pixels (`_by_pixels`), and a weight that several passes read is the same with their rows joined. Where
rows nearly cancel each other all is summed in float64, so that nothing is lost (`CANCELLED`).

What a layer is, autograd's graph says and not the modules: a weight counts where every path from the features
to it goes through a linear layer or a 2d convolution. One that a parametrisation, spectral norm, autocast or
the architecture's own arithmetic reads as well is left to autograd.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn import functional

from mtlbench.gradients.gram import Jacobian

FLOP, ROW_FLOP, ELEMENT, NUMBER, SHIFT, LAYER = 0.0035, 0.006, 1.0, 2.0, 3.5, 1.5e5
"""Nanoseconds, measured on two cores; only their ratios matter. An operation of a float32 weight gradient,
and of a product with rows, in float32; what one task's gradient costs an element, to write, multiply and
combine; laying out a number of X or D; an element of X Xᵀ, where it is summed from pixels; a layer's fixed
costs."""

FEW = 80
"""Rows up to which a convolution's weight gradient is faster as a product with laid out patches: oneDNN needs
0.0027 ns for an operation instead of 0.0087, and then 1 ns for a weight, to reorder what it has computed."""

CANCELLED = 4.0
"""How many times the squared length g_tt = |D_tᵀ X|² of a weight gradient its rows' own products
Q_t = Σ_r |X_r|² |D_tr|² may be, where products are formed in float32. Rounding each X_r X_sᵀ by
u |X_r| |X_s|, independently, moves g_ij by u √(Σ_rs |X_r|² |X_s|² ⟨D_ir, D_js⟩²) ≤ u √(Q_i Q_j), here
4 u √(g_ii g_jj). In a ResNet-18 Q_t is 1.2 to 1.8 times g_tt, and errors were 1e-8 to 3e-8 of √(g_ii g_jj);
the worst that was found, of cotangents that are alike in all channels, was 1.3e-6."""


def pays(
    rows: int, width: int, channels: int, tasks: int, groups: int = 1, pixels: int = 0, area: int = 1
) -> bool:
    """Say whether a layer is faster without weight gradients.

    rows: R, over all passes; width: K of one group; channels: C of all groups. pixels, area: of the inputs
    and of the kernel, where products of patches may be had from pixels.
    """
    weights = width * channels
    saved = (2 * FLOP * rows + ELEMENT) * weights * (tasks - 1)  # one of them is needed for the update
    patches = _patch_cost(rows, width * groups)
    similar = min(patches, _pixel_cost(rows, pixels, width // area)) if pixels else patches
    arrived = 2 * ROW_FLOP * tasks * channels * (rows + tasks) * rows + NUMBER * rows * tasks * channels
    return similar + arrived + LAYER < saved


def _patch_cost(rows: int, width: int) -> float:
    """Return what X Xᵀ costs where X is laid out."""
    return 2 * ROW_FLOP * rows * rows * width + NUMBER * rows * width


def _pixel_cost(rows: int, pixels: int, depth: int) -> float:
    """Return what X Xᵀ costs where it is summed from products of pixels of ``depth`` channels."""
    return 2 * ROW_FLOP * pixels * pixels * depth + NUMBER * pixels * depth + SHIFT * rows * rows


_Pair = tuple[int, int]
_Reader = tuple[Any, int, bool]
"""A node of autograd's graph, at which place it reads, and whether what it reads is transposed."""


@dataclass(frozen=True)
class _Use:
    """One pass of a layer: the edge (by number) where its cotangents arrive, and what it read.

    convolution: stride, padding, dilation and groups; None for a linear layer.
    """

    edge: int
    inputs: Tensor
    convolution: tuple[_Pair, _Pair, _Pair, int] | None

    @property
    def groups(self) -> int:
        """Return how many groups of channels there are, each with weights of its own."""
        return 1 if self.convolution is None else self.convolution[3]

    def length(self, weight: Tensor) -> int:
        """Return R, the number of `rows`."""
        if self.convolution is None:
            return len(self.inputs)
        stride, padding, dilation, _ = self.convolution
        places = len(self.inputs)
        for axis in (0, 1):
            reach = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
            places *= (self.inputs.shape[2 + axis] + 2 * padding[axis] - reach) // stride[axis] + 1
        return places

    def pixels(self, weight: Tensor) -> int:
        """Return how many pixels patches are made of; 0 where they are rows already, or of some channels."""
        if self.convolution is None or self.groups > 1 or weight[0, 0].numel() == 1:
            return 0
        return self.inputs[:, 0].numel()

    def rows(self, weight: Tensor, precision: torch.dtype) -> Tensor:
        """Return what the weight was multiplied with, ``[groups, R, K]``."""
        inputs = self.inputs.to(precision)
        if self.convolution is None:
            return inputs[None]
        stride, padding, dilation, groups = self.convolution
        patches = functional.unfold(inputs, weight.shape[2:], dilation, padding, stride)
        batch, numbers, positions = patches.shape
        patches = patches.view(batch, groups, numbers // groups, positions)
        return patches.permute(1, 0, 3, 2).flatten(1, 2)

    def similar(self, weight: Tensor, precision: torch.dtype) -> Tensor:
        """Return the products of all rows with all, ``[groups, R, R]``."""
        rows, width = self.length(weight), weight[0].numel()
        if pixels := self.pixels(weight):
            depth = len(weight[0])
            if _pixel_cost(rows, pixels, depth) < _patch_cost(rows, width):
                return self._by_pixels(weight, precision).view(1, rows, rows)
        read = self.rows(weight, precision)
        return read @ read.transpose(1, 2)

    def _by_pixels(self, weight: Tensor, precision: torch.dtype) -> Tensor:
        """Return the products of patches: of each place in the kernel, those of the pixels that it lies on.

        A patch has kh kw times as many numbers as a pixel, and most pixels are in several patches. Sums over
        the kernel's rows come first, then those over its columns.
        """
        assert self.convolution is not None
        strides, paddings, dilations, _ = self.convolution
        pixels = self.inputs.to(precision).permute(0, 2, 3, 1).flatten(0, 2)
        count, _, height, width = self.inputs.shape
        products = (pixels @ pixels.T).view(count, height, width, count, height, width)
        for axis, stride, padding, dilation in zip((1, 2), strides, paddings, dilations, strict=True):
            around = (0, 0, padding, padding, 0, 0) if axis == 1 else (padding, padding, 0, 0, 0, 0)
            products = functional.pad(products, around * 2)
            size = weight.shape[1 + axis]
            last = products.shape[axis] - dilation * (size - 1)
            parts = []
            for at in range(0, dilation * size, dilation):
                where = [slice(None)] * 6
                where[axis] = where[axis + 3] = slice(at, at + last, stride)
                parts.append(products[tuple(where)])
            products = reduce(torch.add, parts)
        return products

    def cotangents(self, deltas: Sequence[Tensor | None], precision: torch.dtype) -> Tensor:
        """Return all tasks' cotangents in the order of `rows`, ``[groups, T, C, R]``."""
        none = torch.zeros_like(next(delta for delta in deltas if delta is not None))
        maps = torch.stack([none if delta is None else delta for delta in deltas]).to(precision)
        size, batch, channels = maps.shape[:3]
        maps = maps.reshape(size, batch, self.groups, channels // self.groups, -1)
        return maps.permute(2, 0, 3, 1, 4).flatten(3)

    def gradient(self, delta: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of ``weight`` for the cotangents ``delta``."""
        if self.convolution is None:
            return delta.T @ self.inputs
        laid_out = weight.is_contiguous() and self.inputs.is_contiguous()
        if laid_out and self.groups == 1 and self.length(weight) <= FEW:
            arrived = self.cotangents([delta], weight.dtype)[0, 0]
            return (arrived @ self.rows(weight, weight.dtype)[0]).view_as(weight)
        *geometry, groups = self.convolution
        backward = torch.ops.aten.convolution_backward
        only = [False, True, False]
        gradient: Tensor = backward(
            delta, self.inputs, weight.detach(), None, *geometry, False, [0, 0], groups, only
        )[1]
        return gradient


class Ghosts:
    """The layers of one step whose weight gradients are not taken task by task.

    plain: the other parameters, whose gradients autograd gives. edges: where it gives cotangents; `add` takes
    them, one task after another.
    """

    def __init__(
        self,
        plain: Sequence[nn.Parameter],
        edges: Sequence[GradientEdge] = (),
        weights: Mapping[nn.Parameter, Sequence[_Use]] | None = None,
        biases: Mapping[nn.Parameter, Sequence[int]] | None = None,
    ) -> None:
        self.plain, self.edges = plain, edges
        self._weights, self._biases = weights or {}, biases or {}
        self._deltas: list[Sequence[Tensor | None]] = []

    def add(self, deltas: Sequence[Tensor | None]) -> None:
        """Take the cotangents of the next task at `edges`; None where it does not reach one."""
        self._deltas.append(deltas)

    def gram(self) -> Tensor:
        """Return the hidden parameters' share of the Gram matrix, float64 ``[T, T]``."""
        size = len(self._deltas)
        total = torch.zeros(size, size, dtype=torch.float64)
        for weight, uses in self._weights.items():
            total += self._products(weight, uses, torch.promote_types(weight.dtype, torch.float32))
        for bias, edges in self._biases.items():
            rows = torch.stack([_sums(bias, [deltas[e] for e in edges]) for deltas in self._deltas])
            total += rows @ rows.T
        return total

    def _products(self, weight: nn.Parameter, uses: Sequence[_Use], precision: torch.dtype) -> Tensor:
        """Return a weight's share, float64 ``[T, T]``, computed in ``precision`` or, where that is not exact
        enough (`CANCELLED`), in float64.
        """
        columns = {use.edge: [deltas[use.edge] for deltas in self._deltas] for use in uses}
        uses = [use for use in uses if any(delta is not None for delta in columns[use.edge])]
        if not uses:
            return torch.zeros(len(self._deltas), len(self._deltas), dtype=torch.float64)
        if len(uses) == 1:
            similar = uses[0].similar(weight, precision)
        else:
            read = torch.cat([use.rows(weight, precision) for use in uses], dim=1)
            similar = read @ read.transpose(1, 2)
        arrived = torch.cat([use.cotangents(columns[use.edge], precision) for use in uses], dim=3)
        spread = (arrived.flatten(1, 2) @ similar).view_as(arrived)
        rows, others = ([[*row] for row in part.flatten(2).transpose(0, 1)] for part in (arrived, spread))
        products = Jacobian(rows).products(Jacobian(others))
        if precision == torch.float32:
            own = torch.einsum("gtr,gr->t", arrived.square().sum(2), similar.diagonal(dim1=1, dim2=2))
            lengths = products.diagonal()
            if not (lengths.isfinite() & (own <= CANCELLED * lengths)).all():
                return self._products(weight, uses, torch.float64)
        return (products + products.T) / 2

    def combine(self, weights: Sequence[float]) -> dict[nn.Parameter, Tensor]:
        """Return the sum of ``weights[t]`` times the gradient of task t, for what any task reaches."""
        combined: dict[nn.Parameter, Tensor] = {}
        sums = [self._weighted(edge, weights) for edge in range(len(self.edges))]
        for weight, uses in self._weights.items():
            for use in uses:
                delta = sums[use.edge]
                if delta is not None:
                    part = use.gradient(delta, weight)
                    combined[weight] = combined[weight].add_(part) if weight in combined else part
        for bias, edges in self._biases.items():
            reached = [sums[e] for e in edges]
            if any(delta is not None for delta in reached):
                combined[bias] = _sums(bias, reached).to(bias)
        return combined

    def _weighted(self, edge: int, weights: Sequence[float]) -> Tensor | None:
        total: Tensor | None = None
        for weight, deltas in zip(weights, self._deltas, strict=True):
            delta = deltas[edge]
            if delta is not None:
                total = delta * weight if total is None else total.add_(delta, alpha=weight)
        return total


def _sums(bias: Tensor, deltas: Iterable[Tensor | None]) -> Tensor:
    """Return the gradient of a bias, float64 ``[C]``."""
    total = bias.new_zeros(bias.shape, dtype=torch.float64)
    for delta in deltas:
        if delta is not None:
            total += delta.double().sum([axis for axis in range(delta.dim()) if axis != 1])
    return total


def find(
    roots: Sequence[Tensor], trunk: Sequence[nn.Parameter], shared: Sequence[bool], tasks: int
) -> Ghosts:
    """Return the layers below ``roots`` that are faster without weight gradients (`pays`).

    roots: the features of all tasks. trunk: the parameters that take gradients from there; only those that
    are ``shared`` can be hidden.
    """
    # A layer has a row for every sample, or more: where that is too many already, nothing is looked for.
    least = len(roots[0]) if roots else 0
    allowed = [p for p, keep in zip(trunk, shared, strict=True) if keep]
    shapes = [(p, p.shape) for p in allowed]
    wide = [p for p, s in shapes if len(s) in (2, 4) and pays(least, s[1:].numel(), s[0], tasks)]
    if not wide:
        return Ghosts(trunk)
    open_to = [p for p in allowed if _is_simple(p)]
    wide = [p for p in wide if _is_simple(p)]
    readers = _readers(roots)
    edges: list[GradientEdge] = []
    hidden: dict[Any, int] = {}
    weights: dict[nn.Parameter, list[_Use]] = {}
    for weight in wide:
        nodes = [node for node, _, _ in readers[id(weight)]]
        uses = [_use(reader, weight, len(edges) + i) for i, reader in enumerate(readers[id(weight)])]
        known = [use for use in uses if use is not None]
        if not uses or len(known) < len(uses):
            continue
        rows = sum(use.length(weight) for use in known)
        pixels = known[0].pixels(weight) if len(known) == 1 else 0
        area = weight[0, 0].numel() if pixels else 1
        if pays(rows, weight[0].numel(), len(weight), tasks, known[0].groups, pixels, area):
            weights[weight] = known
            hidden |= {node: len(edges) + i for i, node in enumerate(nodes)}
            edges += [GradientEdge(node, 0) for node in nodes]
    # Autograd would compute a convolution's weight gradient along with that of its bias.
    biases = {
        p: [hidden[node] for node, _, _ in readers[id(p)]]
        for p in open_to
        if readers[id(p)] and all(node in hidden and _reads_bias(node, at) for node, at, _ in readers[id(p)])
    }
    plain = [p for p in trunk if p not in weights and p not in biases]
    return Ghosts(plain, edges, weights, biases)


def _is_simple(parameter: nn.Parameter) -> bool:
    """Say whether nothing but the graph decides the gradient. Costs are known on the CPU only."""
    return (
        type(parameter) is nn.Parameter
        and parameter.device.type == "cpu"
        and parameter.is_floating_point()
        and not parameter._backward_hooks
    )


def _readers(roots: Iterable[Tensor]) -> dict[int, list[_Reader]]:
    """Walk the graph and return who reads each parameter, by its id."""
    readers: dict[int, list[_Reader]] = defaultdict(list)
    found: dict[Any, list[_Reader]] = defaultdict(list)
    pending: list[Any] = []
    for root in roots:
        if root.grad_fn is None:  # a parameter is itself a feature
            readers[id(root)].append((None, 0, False))
        else:
            found[root.grad_fn].append((None, 0, False))
            pending.append(root.grad_fn)
    visited = set()
    leaves = set()
    while pending:
        node = pending.pop()
        if node in visited:
            continue
        visited.add(node)
        for place, (child, _) in enumerate(node.next_functions):
            if child is None:
                continue
            kind = type(child).__name__
            if kind in ("AccumulateGrad", "TBackward0"):
                found[child].append((node, place, False))
            if kind == "AccumulateGrad":
                leaves.add(child)
            else:
                pending.append(child)
    for leaf in leaves:
        for node, place, _ in found[leaf]:
            if type(node).__name__ == "TBackward0":
                readers[id(leaf.variable)] += [(reader, at, True) for reader, at, _ in found[node]]
            else:
                readers[id(leaf.variable)].append((node, place, False))
    return readers


def _use(reader: _Reader, weight: Tensor, edge: int) -> _Use | None:
    """Return what ``reader`` does with ``weight``; None where it is none of the layers that we know."""
    node, place, transposed = reader
    kind = type(node).__name__
    geometry = None
    if kind == "ConvolutionBackward0" and place == 1 and not transposed and not node._saved_transposed:
        inputs = node._saved_input
        geometry = node._saved_stride, node._saved_padding, node._saved_dilation, node._saved_groups
    elif kind == "AddmmBackward0" and place == 2 and transposed and node._saved_alpha == 1:
        inputs = node._saved_mat1
    elif kind == "MmBackward0" and place == 1 and transposed:
        inputs = node._saved_self
    else:
        return None
    inputs = inputs.detach()
    if inputs.dim() != weight.dim() or inputs.dtype != weight.dtype or not len(inputs):
        return None
    return _Use(edge, inputs, geometry)


def _reads_bias(node: Any, place: int) -> bool:
    if type(node).__name__ == "ConvolutionBackward0":
        return place == 2
    return type(node).__name__ == "AddmmBackward0" and place == 0 and node._saved_beta == 1
