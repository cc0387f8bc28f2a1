"""The state that a forward pass in train mode draws from and changes: random numbers and buffers."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn


class Moment:
    """Remembers buffers and random number generators, so that a forward pass can be made again as it was.

    Made again after `restore`, it draws the same dropout masks and leaves running statistics as they were
    after the first time.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        self._buffers = [buffer for module in modules for buffer in module.buffers()]
        self._values = [buffer.clone() for buffer in self._buffers]
        devices = {p.device for module in modules for p in module.parameters() if p.device.type == "cuda"}
        self._cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices]
        self._generators = torch.get_rng_state(), np.random.get_state(legacy=True), random.getstate()

    def restore(self) -> None:
        """Go back to it."""
        for buffer, value in zip(self._buffers, self._values, strict=True):
            buffer.copy_(value)
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)
        own, arrays, plain = self._generators
        torch.set_rng_state(own)
        np.random.set_state(arrays)
        random.setstate(plain)
