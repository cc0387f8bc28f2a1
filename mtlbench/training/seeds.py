"""One seed a run, and from it one independent stream for each thing that is random.

Streams are named, so that adding one moves no other: two runs with the same seed share the data order, and
the same encoder copy starts from the same values in every architecture. That is what makes a run and its
single-task baseline a pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit seed for the stream ``names`` of the run's ``seed``."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


@contextmanager
def stream(seed: int, *names: object) -> Iterator[None]:
    """Draw from the named stream inside the block; the global generator is as before after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, *names))
        yield


def order(seed: int, epoch: int, size: int, *names: object) -> torch.Tensor:
    """Return the order in which an epoch visits ``size`` samples."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch, *names))
    return torch.randperm(size, generator=generator)
