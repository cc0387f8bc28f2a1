"""Optimisers and learning rate schedules of the protocol."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def build_optimizer(
    protocol: dict[str, Any], model: nn.Module, weighting: nn.Module
) -> torch.optim.Optimizer:
    """Return the protocol's optimiser over the model and over what the weighting learns.

    A weighting's own parameters take the same learning rate and no weight decay, which would pull them
    towards equal weights. Fused kernels are used where the device has them.
    """
    trained, learned = [p for p in model.parameters() if p.requires_grad], list(weighting.parameters())
    groups: list[dict[str, Any]] = [{"params": trained}]
    if learned and protocol["weight_decay"]:
        groups.append({"params": learned, "weight_decay": 0.0})
    else:
        trained += learned  # one call of the fused kernel instead of two
    device = next(model.parameters()).device.type
    options: dict[str, Any] = {
        "lr": protocol["lr"],
        "weight_decay": protocol["weight_decay"],
        "fused": device in ("cpu", "cuda"),
    }
    if protocol["optimizer"] == "sgd":
        return torch.optim.SGD(groups, momentum=protocol["momentum"], **options)
    if protocol["optimizer"] == "adamw":
        return torch.optim.AdamW(groups, **options)
    return torch.optim.Adam(groups, **options)


def learning_rate(protocol: dict[str, Any], epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0: a plain function, so nothing need be resumed."""
    lr, gamma = float(protocol["lr"]), float(protocol["gamma"])
    if protocol["scheduler"] == "step":
        return lr * math.pow(gamma, epoch // protocol["step_size"])
    if protocol["scheduler"] == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * epoch / protocol["epochs"]))
    return lr
