"""Loops over numbers as machine code, where calls of NumPy would cost more than what they compute."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import numba
import numpy as np
import platformdirs
import torch
from numba import types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


class _Kept(FunctionCache):  # type: ignore[misc]
    """Machine code on disk. What cannot be read is made anew, and what cannot be written is not kept."""

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return super().load_overload(signature, target)
        except (OSError, EOFError, UnpicklingError):
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, code: Any) -> None:
        # One writer at a time: numba numbers the files of a function by what it finds.
        with suppress(OSError), (Path(self.cache_path) / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            super().save_overload(signature, code)


def compiled(*, reorder: bool = False) -> Callable[[Function], Function]:
    """Return a decorator: a function becomes machine code at its first call, for the types it is given.

    The function is of the part of Python and NumPy that numba knows: loops, scalars, arrays, tuples; it
    cannot raise what a user is to read, so it returns a status and its caller raises. It does not hold
    the interpreter's lock. Division by 0 gives infinity or NaN, as in NumPy. The code is kept for the next
    process, as long as no source beside it or in mtlbench's rooms of compiled code changes, and the processor
    is of the same kind.

    reorder: whether sums may be taken in the order that is fastest, on one kind of processor always the same;
    else arithmetic is as it is written.
    """
    order = {"reassoc", "contract", "nsz"} if reorder else set()

    def decorate(function: Function) -> Function:
        made: Any = numba.njit(nogil=True, error_model="numpy", fastmath=order)(function)
        _keep(made, function)
        return made  # type: ignore[no-any-return]

    return decorate


LETTERS = {torch.float32: "f", torch.float64: "d"}
"""What `array` calls the precisions for which there is machine code."""

MANY = 1 << 17
"""Elements from which on threads share work: with fewer, one is done before others began."""

HEAD = (0,) * 5
"""What an order of work in pieces begins with (see `Shared`): a 0 of the type that is worked on, and numbers
with which threads count how many of them came, the pieces taken of either half, and those that are done."""


class Shared:
    """A function ``f(order)`` as machine code that several threads run at once, each the whole of it.

    order: points at what it is to do, and to write; as in C, nothing is checked. Work in pieces is shared by
    `arrive`, `take` and `last`, and what else such an order says is `told`. The threads are those of torch's
    own operations, of which they have often just done one: then they are awake, and they do not compete with
    each other for cores. In a forked process there are none.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function
        self._codes: dict[torch.dtype, tuple[int, Callable[[int], None]]] = {}

    def __call__(self, dtype: torch.dtype, order: array[int], elements: int) -> None:
        """Run it, with ``order`` as a pointer to ``dtype``; on all threads if there are many ``elements``."""
        if dtype not in self._codes:
            self._codes[dtype] = self._compile(dtype)
        address, alone = self._codes[dtype]
        place, _ = order.buffer_info()
        threads = torch.get_num_threads() if elements >= MANY else 1
        if threads == 1 or not _TEAMS:
            alone(place)
        else:
            _TEAMS[0](address, place, threads, 0)

    def _compile(self, dtype: torch.dtype) -> tuple[int, Callable[[int], None]]:
        pointer = types.CPointer(getattr(types, str(dtype).removeprefix("torch.")))
        made: Any = CFunc(self._function, ((pointer,), types.void), {}, {"error_model": "numpy"})
        _keep(made, self._function)
        made.compile()
        return made.address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address)


@intrinsic  # type: ignore[untyped-decorator]
def pointer(context: Any, address: Any) -> Any:
    """Return an integer as a pointer, for `numba.carray`; for compiled functions."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def count_up(context: Any, address: Any) -> Any:
    """Add 1 to an int64 that several threads count with, and return what it was; for compiled functions.

    What a thread wrote before it counted is there for those who count later.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = target.get_value_type(types.int64)
        place = builder.inttoptr(arguments[0], number.as_pointer())
        return builder.atomic_rmw("add", place, number(1), "acq_rel")

    return types.int64(types.int64), generate


def _keep(made: Any, function: Callable[..., Any]) -> None:
    """Let what is made of a function be kept, where that is possible."""
    if place := _place(Path(function.__code__.co_filename).parent):
        usual, numba.config.CACHE_DIR = numba.config.CACHE_DIR, place
        try:
            with suppress(RuntimeError):  # what was typed in has no file
                made._cache = _Kept(function)
        finally:
            numba.config.CACHE_DIR = usual


def _teams() -> list[Callable[[int, int, int, int], None]]:
    """Return what starts torch's threads: the OpenMP of GCC, or one that is called like it; [] without."""
    try:
        found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return []
    found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return [found]


_TEAMS = _teams()
os.register_at_fork(after_in_child=_TEAMS.clear)  # their threads are not there, and would be waited for


@cache
def _place(room: Path) -> str:
    """Return the directory of machine code that was made in ``room``; "" where none can be written.

    numba looks at the file of a function alone, and not at those of the functions that it calls: those may
    be in the same room, or in the rooms of mtlbench that are read here.
    """
    package = Path(__file__).parent
    called = [Path(__file__), *(package / "gradients").glob("*.py"), *(package / "solvers").glob("*.py")]
    name = f"compiled-{_digest(called)}"
    chosen = [Path(os.environ["NUMBA_CACHE_DIR"])] if os.environ.get("NUMBA_CACHE_DIR") else []
    for folder in (*chosen, package / "__pycache__", platformdirs.user_cache_path("mtlbench")):
        place = folder / name / _digest(room.glob("*.py"))
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return str(place)
    return ""


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        with suppress(OSError):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@compiled()
def told(order: int, count: int) -> Any:
    """Return the numbers, int64 ``[count]``, behind the `HEAD` of the order at an address."""
    return numba.carray(pointer(order + 8 * len(HEAD)), count, np.int64)


@compiled()
def arrive(order: int) -> int:
    """Return which side of the work is this thread's: 0 for the first that comes, 1 for the next, and on."""
    return int(count_up(order + 8)) % 2


@compiled()
def take(order: int, side: int, pieces: int, outwards: bool) -> int:
    """Return the number of a piece that no thread has taken, or ``pieces`` where there is none left.

    Side 0 is the first half, side 1 the other; a thread that is done with its own half takes from the other.
    So in one pass after the other it reads what it has read before, which may still be in its core's cache:
    all the more of it where one pass goes inwards, from both ends to the middle, and the next ``outwards``.
    """
    for front in (side == 0, side != 0):
        size = pieces // 2 if front else pieces - pieces // 2
        number = int(count_up(order + (16 if front else 24)))
        if number < size:
            place = size - 1 - number if outwards else number
            return place if front else pieces - 1 - place
    return pieces


@compiled()
def last(order: int, pieces: int) -> bool:
    """Count a piece as done, and say whether it was the last of them; see `count_up`."""
    return bool(count_up(order + 32) == pieces - 1)
