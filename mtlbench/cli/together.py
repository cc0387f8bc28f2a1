"""Several processes, started by torchrun, that train one model: what all do is told once, by one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mtlbench.errors import Interrupted, MtlbenchError, RunFailedError

if TYPE_CHECKING:
    from mtlbench.parallel import Ranks


def launched() -> tuple[int, int]:
    """Return (rank, number of processes) as torchrun set them; (0, 1) without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), size) if size > 1 else (0, 1)


def tell(message: str, label: str = "error") -> None:
    """Print one line on standard error."""
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble((f"{label}:", "bold red"), " ", " ".join(message.splitlines()))
    Console(stderr=True, highlight=False).print(line, soft_wrap=True)


@contextmanager
def together(device: str) -> Iterator[Ranks]:
    """Connect the processes for the time of the block.

    device: the setting; with several GPUs on a machine each process takes its own. What ends all of them is
    told by the first; what happens to one of them by that one, and the others, which lose it, are silent.
    """
    from mtlbench.parallel import ALONE, Team

    rank, size = launched()
    if size == 1:
        yield ALONE
        return
    from mtlbench.training.loop import pick_device

    team = Team()
    try:
        yield team.join(pick_device(device, int(os.environ.get("LOCAL_RANK", "0"))))
    except (Interrupted, RunFailedError):
        raise  # they decide on these together
    except (MtlbenchError, OSError) as error:
        code = error.exit_code if isinstance(error, MtlbenchError) else 2
        if not team.alarm():
            raise SystemExit(code) from None
        if rank:
            tell(f"process {rank}: {error}")
            raise SystemExit(code) from None
        raise
    except Exception:
        if not team.alarm():
            raise SystemExit(1) from None
        raise
    team.leave()  # one that fails just ends, since the others may not answer any more
