"""Batch normalisation over the samples of all ranks. torch's own is for GPUs only."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from mtlbench.parallel.ranks import Ranks


def synchronise_batch_norm(model: nn.Module, ranks: Ranks) -> None:
    """Let every batch norm of ``model`` take mean and variance over the samples of all ranks.

    The modules stay what they are (parameters, buffers, names), so checkpoints fit either way; only their
    ``forward`` in train mode is another. With one rank nothing is changed. What a plugin normalises with
    ``torch.nn.functional`` is out of reach.
    """
    if ranks.size > 1:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                # Its own method stays reachable: it is what eval mode does.
                module.forward = partial(_forward, module, ranks)  # type: ignore[method-assign]


def _forward(module: _BatchNorm, ranks: Ranks, x: Tensor) -> Tensor:
    if not module.training:
        return type(module).forward(module, x)
    module._check_input_dim(x)  # type: ignore[no-untyped-call]
    momentum = module.momentum
    if module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / float(module.num_batches_tracked)
    output: Tensor
    output, mean, variance, count = _Normalise.apply(  # type: ignore[no-untyped-call]
        x, module.weight, module.bias, module.eps, ranks
    )
    if module.running_mean is not None and module.running_var is not None:
        assert momentum is not None
        unbiased = variance * (count / (count - 1).clamp(min=1))
        module.running_mean.lerp_(mean.to(module.running_mean.dtype), momentum)
        module.running_var.lerp_(unbiased.to(module.running_var.dtype), momentum)
    return output


class _Normalise(torch.autograd.Function):
    """``y = (x - m) / sqrt(v + eps) * w + b`` for ``[B, C, ...]``; m and v are those of all ranks' samples.

    B may be 0 on some ranks. One message forward and one backward; the gradients of w and b are those of
    this rank's samples. Besides y it returns m, v ``[C]`` and the number of values in each channel.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        channels = x.shape[1]
        count = x.numel() // max(channels, 1)
        # Every rank's count, mean and squared deviations, merged as in Chan, Golub & LeVeque (1979): sums of
        # squares would lose the digits of a small variance around a large mean.
        table = values.new_zeros(ranks.size, 2 * channels + 1, dtype=torch.float64)
        if count:
            mean = values.mean(over)
            deviations = (values - mean.view(shape)).square_().sum(over)
            table[ranks.rank] = torch.cat([mean, deviations, mean.new_tensor([count])]).double()
        ranks.sum([table])
        counts, means, squares = table[:, -1:], table[:, :channels], table[:, channels:-1]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (squares + counts * (means - mean).square()).sum(0) / total
        inverse = (variance + eps).rsqrt().to(values.dtype)
        mean = mean.to(values.dtype)
        normal = (values - mean.view(shape)).mul_(inverse.view(shape))
        ctx.save_for_backward(normal.to(x.dtype), inverse, weight)
        ctx.ranks, ctx.over, ctx.shape, ctx.total = ranks, over, shape, total
        output = normal if weight is None else normal * weight.view(shape)
        if bias is not None:
            output = output + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance, total)
        return output.to(x.dtype), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normal, inverse, weight = ctx.saved_tensors
        g, normal = gradient.to(inverse.dtype), normal.to(inverse.dtype)
        to_bias, to_weight = g.sum(ctx.over), (g * normal).sum(ctx.over)
        sums = torch.stack([to_bias, to_weight]).double()
        ctx.ranks.sum([sums])
        level, slope = (sums / ctx.total).to(inverse.dtype)
        to_x = g - level.view(ctx.shape) - normal * slope.view(ctx.shape)
        factor = inverse if weight is None else inverse * weight.to(inverse.dtype)
        to_x = to_x.mul_(factor.view(ctx.shape)).to(gradient.dtype)
        return to_x, None if weight is None else to_weight, None if weight is None else to_bias, None, None
