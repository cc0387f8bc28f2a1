"""Errors that a person caused or can repair: one clear line, never a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MtlbenchError(Exception):
    """Bad input or a broken surrounding. The message says what, where and what to do; exit code 2."""

    exit_code = 2


class RunFailedError(MtlbenchError):
    """A run that ended without a result although its input was right; exit code 3."""

    exit_code = 3


class Interrupted(MtlbenchError):
    """The user asked to stop; a checkpoint was left. Exit code 130, as shells expect after SIGINT."""

    exit_code = 130


class Busy(MtlbenchError):
    """Another process trains the same run, and this one was not to wait for it."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest of ``choices``, or an empty string."""
    near = get_close_matches(word, list(choices), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
