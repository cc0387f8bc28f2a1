"""The state of an unfinished run on disk: whole or not there, and read without running code from it."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mtlbench.atomic import replacing, sweep, translated
from mtlbench.errors import MtlbenchError

REMEDY = "choose another --results; --resume goes on from the last whole checkpoint"


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at ``path`` by ``state`` (tensors, numbers, texts, lists, dicts), atomically."""
    content = dumps(state)
    with (
        translated(f"can't write checkpoint '{path}'", REMEDY),
        replacing(path) as descriptor,
        os.fdopen(os.dup(descriptor), "wb") as file,
    ):
        file.write(content)


def dumps(state: dict[str, Any]) -> bytes:
    """Return the bytes of a checkpoint file."""
    buffer = io.BytesIO()  # torch.save hides a full disk behind an error of its own
    torch.save(state, buffer)
    return buffer.getvalue()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, with ``weights_only`` so that a foreign file cannot run code."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@contextmanager
def readable(path: Path, remedy: str = "delete it or leave --resume out") -> Iterator[None]:
    """Turn whatever a damaged or foreign checkpoint makes fail in the block into one line with ``remedy``."""
    try:
        yield
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MtlbenchError(f"checkpoint '{path}' can't be read ({first}); {remedy}") from None


def discard(path: Path) -> None:
    """Delete the checkpoint of a finished run, and what killed writers of it left behind."""
    path.unlink(missing_ok=True)
    sweep(path.parent, path.name)
