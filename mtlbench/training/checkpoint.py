"""The state of an unfinished run on disk: whole or not there, and read without running code from it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from mtlbench.atomic import replacing, sweep
from mtlbench.errors import MtlbenchError


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at ``path`` by ``state`` (tensors, numbers, texts, lists, dicts), atomically."""
    with replacing(path) as descriptor, os.fdopen(os.dup(descriptor), "wb") as file:
        torch.save(state, file)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint, with ``weights_only`` so that a foreign file cannot run code."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MtlbenchError(
            f"checkpoint '{path}' can't be read ({first}); delete it or leave --resume out"
        ) from None
    return state


def discard(path: Path) -> None:
    """Delete the checkpoint of a finished run, and what killed writers of it left behind."""
    path.unlink(missing_ok=True)
    sweep(path.parent, path.name)
