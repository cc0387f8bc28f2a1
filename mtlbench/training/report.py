"""What the loop tells whoever watches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Reporter(Protocol):
    """Receives what happens during training; progress bars and logs are made from it."""

    def started(self, label: str, epochs: int, steps: int, done: int) -> None:
        """A run begins: its label, epochs at most, steps an epoch, and epochs already done."""

    def stepped(self, losses: Mapping[str, float]) -> None:
        """One step was made."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch ended; ``row`` is its entry in the record's history."""

    def finished(self, status: str, reason: str | None) -> None:
        """The run ended."""


class Silence:
    """A reporter that says nothing."""

    def started(self, label: str, epochs: int, steps: int, done: int) -> None:
        """Say nothing."""

    def stepped(self, losses: Mapping[str, float]) -> None:
        """Say nothing."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Say nothing."""

    def finished(self, status: str, reason: str | None) -> None:
        """Say nothing."""
