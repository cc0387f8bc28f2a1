"""Whole steps of training as users of the peers write them, on the workloads that ours are timed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import MGDA
from torchjd.autojac import jac_to_grad, mtl_backward
from workloads import Workload

from peers import libmtl

Step = Callable[[], None]


def torchjd(workload: Workload, *, tuned: bool = False) -> Step:
    """Return a step with TorchJD's MGDA.

    tuned: one task after another instead of vmap, a Gram matrix parameter by parameter and the fused Adam,
    which are the faster settings on a processor; else its defaults and torch's.
    """
    shared = list(workload.architecture.parameters())
    optimizer = torch.optim.Adam(workload.parameters, lr=1e-5, fused=tuned)
    aggregator = MGDA()

    def step() -> None:
        features, losses = _forward(workload)
        mtl_backward(
            losses,
            features=features,
            tasks_params=[list(workload.heads[task.name].parameters()) for task in workload.tasks],
            shared_params=shared,
            parallel_chunk_size=1 if tuned else None,
        )
        jac_to_grad(shared, aggregator, optimize_gramian_computation=tuned)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _forward(workload: Workload) -> tuple[list[Tensor], list[Tensor]]:
    """Return the features that heads read, each once, and the losses, in one graph.

    Heads must read the last level only: of one that another depends on, TorchJD would count a part twice.
    """
    batch = workload.batch
    pyramids = workload.architecture(batch.inputs).pyramids
    features = {id(pyramid[-1]): pyramid[-1] for pyramid in pyramids.values()}
    size = (batch.inputs.shape[2], batch.inputs.shape[3])
    losses = [
        task.loss(workload.heads[task.name](pyramids[task.name], size), batch.targets[task.name])
        for task in workload.tasks
    ]
    return list(features.values()), losses


def libmtl_mgda(workload: Workload, *, features: bool = False) -> Step:
    """Return a step with LibMTL's MGDA and torch's Adam. Raises `libmtl.PeerMissingError`.

    features: whether gradients are those of the shared features (its ``rep_grad``); it sums them over the
    batch before it compares them.
    """
    peer = libmtl.weighting("mgda", workload.shared, len(workload.tasks))
    optimizer = torch.optim.Adam(workload.parameters, lr=1e-5)

    def step() -> None:
        if features:
            losses = _losses_behind(workload, peer)
        else:
            _, losses = _forward(workload)
        peer.backward(torch.stack(losses), **libmtl.DEFAULTS)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def _losses_behind(workload: Workload, peer: Any) -> list[Tensor]:
    """Return the losses of heads that read copies of the features, as LibMTL's ``rep_grad`` wants it."""
    batch, names = workload.batch, [task.name for task in workload.tasks]
    pyramid = next(iter(workload.architecture(batch.inputs).pyramids.values()))
    read = libmtl.by_features(peer, names, pyramid[-1])
    size = (batch.inputs.shape[2], batch.inputs.shape[3])
    return [
        task.loss(workload.heads[task.name]((*pyramid[:-1], read[task.name]), size), batch.targets[task.name])
        for task in workload.tasks
    ]
