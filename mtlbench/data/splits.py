"""Who is in which split, decided by names alone: the same on every machine and in every order of reading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def hashed(names: Iterable[str]) -> list[str]:
    """Return the names in the order of their SHA-256."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def shares(n: int) -> tuple[int, int, int]:
    """Return how many of ``n`` samples are train, val and test; the last two get a fifth, rounded up."""
    fifth = -(-n // 5)
    return n - 2 * fifth, fifth, fifth


def in_three(names: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Return names split 60/20/20 in the order of their SHA-256: train, val and test."""
    ordered = hashed(names)
    train, val, _ = shares(len(ordered))
    return ordered[:train], ordered[train : train + val], ordered[train + val :]


def held_out(names: Iterable[str], part: int = 10) -> tuple[list[str], list[str]]:
    """Return (what stays, the ``part``-th of the names, rounded up, whose SHA-256 comes first), as given."""
    names = list(names)
    chosen = set(hashed(names)[: -(-len(names) // part)])
    return [name for name in names if name not in chosen], [name for name in names if name in chosen]


def consecutive(counts: Mapping[str, int]) -> dict[str, range]:
    """Return the numbers of samples by split, from 0 on, where so many are in each."""
    starts, start = {}, 0
    for split, count in counts.items():
        starts[split] = range(start, start + count)
        start += count
    return starts
