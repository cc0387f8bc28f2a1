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


def uniforms(count: int, seed: int, *names: object) -> list[float]:
    """Return the first ``count`` numbers of the stream ``names``, uniform in [0, 1).

    For many short streams, where a generator of its own for each would take longer than its numbers are
    worth.
    """
    drawn = hashlib.shake_256("/".join(map(str, (seed, *names))).encode()).digest(8 * count)
    return [(int.from_bytes(drawn[i : i + 8]) >> 11) / 2**53 for i in range(0, 8 * count, 8)]


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
