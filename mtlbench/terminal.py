"""Which view a person gets on standard error: a live one on a terminal, plain lines elsewhere, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from rich.console import Console

View = TypeVar("View")


@contextmanager
def shown(
    quiet: View | None,
    lines: Callable[[Console], View],
    live: Callable[[Console], AbstractContextManager[View]],
) -> Iterator[View]:
    """Give ``quiet`` unless it is None, else what suits standard error; a live view moves in the block."""
    if quiet is not None:
        yield quiet
        return
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield lines(console)
        return
    with live(console) as view:
        yield view
