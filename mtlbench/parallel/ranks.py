"""The processes of one run. Each holds a share of every batch; what they sum is the same on all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mtlbench.errors import MtlbenchError

T = TypeVar("T")

BUCKET = 1 << 22
"""Elements that travel in one message: large enough to hide the latency of many small tensors."""

PATIENCE = timedelta(minutes=10)
"""How long the others wait for a rank that says nothing; one that ends is noticed at once."""


class Ranks:
    """The processes (*ranks*) that train one model together, as one of them sees them.

    rank: which one this is, from 0. size: how many there are. With one, the default, every method gives its
    argument back and costs nothing. All ranks must call the same methods in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = device or torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, prints and decides."""
        return self.rank == 0

    # ---- tensors -------------------------------------------------------------------------------------

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, the same bits on all of them."""
        if self.size > 1:
            for bucket in _buckets(tensors):
                self._sum_bucket(bucket)

    def sum_gradients(
        self, gradients: Sequence[Tensor | None], like: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Return the sums over the ranks; None only where it is None on all of them.

        like: tensors of the gradients' shapes, for those that are None on this rank only.
        """
        if self.size == 1:
            return list(gradients)
        there = torch.tensor([gradient is not None for gradient in gradients], dtype=torch.int32)
        self.sum([there])
        found = [
            torch.zeros_like(shape) if gradient is None and ranks else gradient
            for gradient, shape, ranks in zip(gradients, like, there.tolist(), strict=True)
        ]
        self.sum([gradient for gradient in found if gradient is not None])
        return found

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum over the ranks of each number, in float64."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        self.sum([values])
        return values.tolist()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return flag if self.size == 1 else self.total([float(flag)])[0] > 0

    def overwrite(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by what it is on the first rank."""
        if self.size > 1:
            if not self.first:
                for tensor in tensors:
                    tensor.detach().zero_()
            self.sum(tensors)

    def _sum_bucket(self, bucket: Sequence[Tensor]) -> None:
        only = bucket[0].detach()
        with _connected(self.rank):
            if len(bucket) == 1 and only.is_contiguous() and only.device == self.device:
                dist.all_reduce(only)
                return
            flat = torch.empty(sum(t.numel() for t in bucket), dtype=only.dtype, device=self.device)
            pieces = torch.split(flat, [tensor.numel() for tensor in bucket])
            for piece, tensor in zip(pieces, bucket, strict=True):
                piece.view(tensor.shape).copy_(tensor.detach())
            dist.all_reduce(flat)
            for piece, tensor in zip(pieces, bucket, strict=True):
                tensor.detach().copy_(piece.view(tensor.shape))

    # ---- objects -------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Return the value of every rank, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _connected(self.rank):
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """Return on every rank what ``make`` returns, or raises, on the first; the others do not call it."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except (MtlbenchError, OSError) as error:
                box[1] = error
        with _connected(self.rank):
            dist.broadcast_object_list(box, 0)
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result

    def agree(self, value: str, what: str) -> None:
        """Raise `MtlbenchError` unless ``value`` is the same on all ranks."""
        for rank, found in enumerate(self.gather(value)):
            if found != value:
                raise MtlbenchError(
                    f"process {rank} differs from process {self.rank} in {what}: "
                    "all must run the same command on the same data and code"
                )


ALONE = Ranks()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of one dtype, in their order, into messages of about `BUCKET` elements."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        bucket: list[Tensor] = []
        filled = 0
        for tensor in group:
            if bucket and filled + tensor.numel() > BUCKET:
                yield bucket
                bucket, filled = [], 0
            bucket.append(tensor)
            filled += tensor.numel()
        if bucket:
            yield bucket


@contextmanager
def _connected(rank: int) -> Iterator[None]:
    """Turn a broken connection, which torch reports in many ways, into one line."""
    try:
        yield
    except RuntimeError as error:
        if os.environ.get("MTLBENCH_TRACEBACK"):
            raise
        said = re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0]).partition(". ")[0]
        raise MtlbenchError(
            f"process {rank} lost another one ({said}); the same command with --resume goes on from the last"
            " whole epoch"
        ) from error


class Team:
    """The connection between the processes that torchrun started, or whoever sets its variables.

    Raises `MtlbenchError` where they do not find each other.
    """

    def __init__(self) -> None:
        with _connected(int(os.environ.get("RANK", "0"))):
            found, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
        self.rank, self.size = int(rank), int(size)
        self._store = PrefixStore("mtlbench", found)

    def join(self, device: torch.device) -> Ranks:
        """Connect all processes; they compute on ``device``."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _connected(self.rank):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=PATIENCE,
            )
        return Ranks(self.rank, self.size, device)

    def alarm(self) -> bool:
        """Return whether this is the first process that fails, so that one says why and the others do not."""
        try:
            return int(self._store.add("failures", 1)) == 1
        except RuntimeError:  # whoever kept the count is gone
            return self.rank == 0

    def leave(self) -> None:
        """End the connection."""
        if dist.is_initialized():
            dist.destroy_process_group()
